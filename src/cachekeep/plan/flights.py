"""What can be begun now: nothing that is under way already, nothing that must wait for what is, nothing that failed a moment ago.

So the trouble of one node keeps nobody else waiting: rules say what has to be done for everybody, and what cannot be begun yet
becomes a wait, which does not keep the steps after it from being asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    Admit,
    Apply,
    Begin,
    Bind,
    Cancel,
    Discover,
    Effect,
    Elect,
    Erase,
    Failure,
    Follow,
    HandOver,
    Interrupt,
    Part,
    Point,
    Promote,
    Replicate,
    Start,
    Step,
    Stop,
    Swap,
    Wait,
    collides,
    subjects,
)
from cachekeep.plan.situation import Situation, listed

LASTING_SECONDS = 1.0
"""What has been failing for so long is for the user to read; before that it may heal by itself."""


def first(s: Situation, steps: Iterable[Step | None]) -> Step | None:
    """The first decision, or act as far as it can be begun. Else the first wait, one that users should read before others, until
    the soonest moment that one of them names."""
    waits: list[Wait] = []
    for step in steps:
        can = _possible(s, step) if isinstance(step, Act) else step
        if isinstance(can, Wait):
            waits.append(can)
        elif can is not None:
            return can
    if not waits:
        return None
    told = next((w for w in waits if w.refused), waits[0])
    return replace(told, seconds=min(w.seconds for w in waits), steady=any(w.steady for w in waits))


def _possible(s: Situation, act: Act) -> Act | Wait:
    """Stages up to the first of which a part has to wait: what comes after rests on all of it."""
    stages: list[tuple[Effect, ...]] = []
    for stage in act.stages:
        free = tuple(e for e in stage if not _held(s, e))
        if free:
            stages.append(free)
        if len(free) < len(stage):
            break
    return Act(tuple(stages), act.because) if stages else _wait(s, act)


def _held(s: Situation, effect: Effect) -> bool:
    flies = any(collides(effect, flight.effect) for flight in s.view.flights)
    return flies or any(f.again_seconds > 0 for f in s.view.failures if f.effect == effect)


def _wait(s: Situation, act: Act) -> Wait:
    """For an act of which nothing can be begun."""
    failures = [f for f in s.view.failures if f.effect in act.stages[0]]
    flights = [f for f in s.view.flights if any(collides(e, f.effect) for e in act.stages[0])]
    seconds = min(
        [*(f.left_seconds for f in flights), *(f.again_seconds for f in failures if f.again_seconds > 0)],
        default=s.policy.poll_seconds,
    )
    told = [said(f) for f in lasting(s) if f in failures]
    if told:
        return Wait(seconds, "failure", "; ".join(told), about=tuple(subjects(f.effect)[0] for f in failures), refused=True)
    effect, because = (flights[0].effect, flights[0].because) if flights else (act.stages[0][0], act.because)
    return Wait(seconds, "flight", because, about=subjects(effect))


def lasting(s: Situation) -> list[Failure]:
    """What has been failing for so long that it does not heal by itself, or not soon."""
    return [f for f in s.view.failures if f.since_seconds >= LASTING_SECONDS]


def under_way(s: Situation, *kinds: type, on: str | None) -> Wait | None:
    """The wait for the end of an effect of one of these kinds that is in flight on a node:
    what is seen meanwhile of the node is no word to decide by."""
    for flight in s.view.flights:
        if isinstance(flight.effect, kinds) and on in subjects(flight.effect):
            return Wait(flight.left_seconds, "flight", flight.because, about=subjects(flight.effect))
    return None


_DONE = {
    Admit: "let in at its primary",
    Begin: "begun",
    Bind: "given its addresses",
    Cancel: "cancelled",
    Discover: "told the list of nodes",
    Elect: "elected",
    Erase: "erased",
    Follow: "made to follow its primary",
    HandOver: "given the lead",
    Interrupt: "made to end its script",
    Point: "pointed at its nodes",
    Promote: "made primary",
    Replicate: "made to follow its primary",
    Start: "started",
    Stop: "stopped",
    Swap: "given the lead",
}


_PARTS: Final[dict[Part, str]] = {"acl": "users", "login": "login at its primary", "settings": "settings"}


def said(failure: Failure) -> str:
    """What fails, why, and what comes of it."""
    subject, kind = subjects(failure.effect)[0], type(failure.effect)
    done = _DONE.get(kind)
    if isinstance(failure.effect, Apply):
        parts = [_PARTS[part] for part in failure.effect.parts]
        done = f"given its {listed(parts)}" if parts else "held to its limits"
    what = f"{subject} cannot be {done}" if done else f"{kind.__name__} of {subject} fails"
    return f"{what}: {failure.problem.removeprefix(f'{subject}: ').rstrip('.')}. It is tried again every few seconds"
