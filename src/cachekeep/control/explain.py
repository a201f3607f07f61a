"""What the planner would do with a cache now, rule by rule, without doing it."""

from __future__ import annotations

import msgspec

from cachekeep.clock import Clock
from cachekeep.control.observe import Observer
from cachekeep.model import Cache, Step, View, Wait
from cachekeep.plan import Policy, plan
from cachekeep.plan.flights import first
from cachekeep.plan.planner import rules_of
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
    now, moment = clock.now(), clock.moment()
    step = plan(cache, view, now, moment, policy)
    asked: list[Answer] = []
    s = Situation(cache, view, now, moment, policy)
    for rule in rules_of(cache):
        said = first(s, (rule(s),))
        about = " ".join((rule.__doc__ or "").split()).split(". ")[0].rstrip(".")
        name = f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"
        asked.append(Answer(rule=name, about=about, step=_kind(said), because=said.because if said else ""))
        if said is not None and not isinstance(said, Wait):
            break
    return Explanation(
        name=cache.name,
        step=_kind(step),
        because=step.because,
        refused=isinstance(step, Wait) and step.refused,
        effects=tuple(tuple(map(repr, stage)) for stage in getattr(step, "stages", ())),
        rules=tuple(asked),
        view=view,
    )


def _kind(step: Step | None) -> str:
    return type(step).__name__.lower() if step else ""
