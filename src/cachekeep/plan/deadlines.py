"""What takes too long: a wait beyond its deadline, and a cache that is still being created, are problems that users should read of,
in its status and, once, by an event. Nothing else comes of it: it is waited for as before."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Act, Decide, Step, Wait
from cachekeep.plan import restores
from cachekeep.plan.situation import Situation

CREATION = "creation"
"""In ``Decided.overdue``: the cache has not been available yet."""
CREATION_SECONDS = 600.0
"""ElastiCache takes some 10 minutes for what takes seconds here; the rest is for machines that are busy."""


def overdue(s: Situation, step: Step) -> Step:
    """The step, unless there is something to tell first."""
    if not isinstance(step, Act | Wait) or s.cache.wanted.deleted:
        return step
    told = s.decided.overdue
    if isinstance(step, Wait) and step.reason == "calm" and told:
        return Decide(replace(s.decided, overdue=frozenset()), "nothing takes too long any more")
    late = _late(s, step)
    if late is None:
        return step
    what, because = late
    if what not in told:
        return Decide(replace(s.decided, overdue=told | {what}), because, (s.tell(because, group=True),))
    return replace(step, because=because, refused=True) if isinstance(step, Wait) else step


def _late(s: Situation, step: Act | Wait) -> tuple[str, str] | None:
    """What takes too long, and the sentence that says so."""
    if creating_for_too_long(s):
        return CREATION, f"{s.cache.name} has been creating for more than {CREATION_SECONDS:g} s: {step.because}"
    waited = s.view.waited
    if not isinstance(step, Wait) or step.refused or waited is None or (waited.reason, waited.about) != (step.reason, step.about):
        return None
    deadline = step.deadline_seconds
    if deadline is None or waited.seconds < deadline:
        return None
    return step.reason, f"{step.because}. That has been so for more than {deadline:g} s"


def creating_for_too_long(s: Situation) -> bool:
    """Its nodes were appointed long ago, and it has not been available yet."""
    since = s.seconds_since(s.decided.appointed_at)
    fetching = restores.held_back(s)  # which has a deadline of its own
    return s.decided.available_at is None and since is not None and since >= CREATION_SECONDS and not fetching
