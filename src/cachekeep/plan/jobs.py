"""Jobs, whoever does them: decided, ended, forgotten."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Decide, Decided, Done, Failed, Job
from cachekeep.plan.situation import Situation


def with_job(s: Situation, decided: Decided, job: Job) -> Decided:
    """``decided`` with this job in place of its namesake. Of those that have ended, what nobody can ask for any more goes."""
    wanted = {e.id for e in s.cache.wanted.errands}

    def stays(other: Job) -> bool:
        return not other.ended or other.id in wanted

    kept = tuple(j for j in decided.jobs if j.id != job.id and stays(j))
    return replace(decided, jobs=(*kept, job))


def ended(s: Situation, job: Job, state: Done | Failed, because: str) -> Decide:
    """It has ended; what has failed is told as an event."""
    told = (s.tell(because, group=True),) if isinstance(state, Failed) else ()
    return Decide(with_job(s, s.decided, replace(job, state=state)), because, told)


def late(s: Situation, job: Job, what: str) -> Decide | None:
    """A job that has outlasted its deadline has failed."""
    since = s.seconds_since(job.began_at)
    if since is None or since < job.deadline_seconds:
        return None
    because = f"{what} has not ended within {job.deadline_seconds:g} s and counts as failed; what it has changed stays"
    return ended(s, job, Failed(because), because)
