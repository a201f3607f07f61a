"""What the planner would do with a cache now, rule by rule, without doing it."""

from __future__ import annotations

import msgspec

from cachekeep.clock import Clock
from cachekeep.control.observe import Observer
from cachekeep.model import Cache, Step, View, Wait
from cachekeep.plan import Policy
from cachekeep.plan.planner import Rule, answers, conclude, named
from cachekeep.plan.situation import Situation


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule says; ``step`` is empty when it has nothing to say."""

    rule: str
    about: str
    step: str = ""
    because: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The step that would follow, every rule that was asked for it, and the view they were given."""

    name: str
    step: str
    because: str
    refused: bool
    effects: tuple[tuple[str, ...], ...]
    """Of an act: stage after stage."""
    rules: tuple[Answer, ...]
    view: View


async def explain(cache: Cache, observer: Observer, clock: Clock, policy: Policy) -> Explanation:
    """Look at a cache and think; save nothing, do nothing."""
    view = await observer.look(cache)
    s = Situation(cache, view, clock.now(), clock.moment(), policy)
    asked = list(answers(s))
    step = conclude(s, (said for _, said in asked))
    return Explanation(
        name=cache.name,
        step=_kind(step),
        because=step.because,
        refused=isinstance(step, Wait) and step.refused,
        effects=tuple(tuple(map(repr, stage)) for stage in getattr(step, "stages", ())),
        rules=tuple(_answer(rule, said) for rule, said in asked),
        view=view,
    )


def _answer(rule: Rule, said: Step | None) -> Answer:
    about = " ".join((rule.__doc__ or "").split()).split(". ")[0].rstrip(".")
    name = named(rule)
    return Answer(rule=name, about=about, step=_kind(said), because=said.because if said else "")


def _kind(step: Step | None) -> str:
    return type(step).__name__.lower() if step else ""
