"""Jobs, whoever does them: decided, ended, forgotten; and tasks, which go on at a door of their own: begun, watched, begun again
when they were lost or have failed, cancelled with their cache.
"""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    Begin,
    Beginning,
    Broken,
    Cancel,
    Decide,
    Decided,
    Done,
    Event,
    Failed,
    Job,
    Missing,
    Record,
    Resting,
    Running,
    Step,
    Task,
    Wait,
    Worked,
    Working,
)
from cachekeep.plan import snapshots
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.situation import Situation

ATTEMPTS_MAX = 4
"""Those that were lost count, too."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 5.0, 300.0
"""Between an attempt that has failed and the next, doubled each time."""


def with_job(s: Situation, decided: Decided, job: Job) -> Decided:
    """``decided`` with this job in place of its namesake. Of those that have ended, what nobody can ask for any more goes."""
    wanted = {e.id for e in s.cache.wanted.errands}

    def stays(other: Job) -> bool:
        if not other.ended or other.id in wanted:
            return True
        return isinstance(other.work, Task) and not (isinstance(job.work, Task) and job.work.kind == other.work.kind)

    kept = tuple(j for j in decided.jobs if j.id != job.id and stays(j))
    return replace(decided, jobs=(*kept, job))


def ended(s: Situation, job: Job, state: Done | Failed, because: str) -> Decide:
    """It has ended; what has failed is told as an event, and a snapshot either way."""
    told: tuple[Event, ...] = (s.tell(because, group=True),) if isinstance(state, Failed) else ()
    records: tuple[Record, ...] = ()
    if isinstance(job.work, Task) and job.work.kind == snapshots.KIND:
        told, records = snapshots.left(s, job.work, state)
    return Decide(with_job(s, s.decided, replace(job, state=state)), because, told, records)


def late(s: Situation, job: Job, what: str) -> Decide | None:
    """A job that has outlasted its deadline has failed."""
    if _left_seconds(s, job) > 0:
        return None
    because = f"{what} has not ended within {job.deadline_seconds:g} s and counts as failed; what it has changed stays"
    if isinstance(job.state, Resting):
        because += f" (last, {job.state.problem})"
    return ended(s, job, Failed(because), because)


def _left_seconds(s: Situation, job: Job) -> float:
    return job.deadline_seconds - (s.seconds_since(job.began_at) or 0.0)


def carry(s: Situation) -> Step | None:
    """Tasks, each on its way from one attempt to the next, and to its end."""
    return first(s, (_carry(s, job, job.work) for job in s.decided.jobs if isinstance(job.work, Task)))


def _named(job: Job, task: Task) -> str:
    return job.id if job.id == task.kind else f"{task.kind} {job.id}"


def _carry(s: Situation, job: Job, task: Task) -> Step | None:
    if job.ended:
        return _clear(s, job)
    what = _named(job, task)
    if (over := late(s, job, what)) is not None:
        return over
    state, seen, left = job.state, s.view.jobs.get(job.id), _left_seconds(s, job)
    if isinstance(state, Resting):
        rest = _rest_seconds(state.attempt) - (s.seconds_since(state.since) or 0.0)
        if rest > 0:
            return Wait(min(rest, left), "job", f"{what} is tried again soon, since {state.problem}", about=(job.id,))
        aimed = snapshots.aim(s, task, again=True) if task.kind == snapshots.KIND else task
        if isinstance(aimed, str):
            return Wait(min(FIRST_REST_SECONDS, left), "job", f"{what} waits: {aimed}", about=(job.id,), refused=True)
        return _decide(
            s, replace(job, work=aimed), Beginning(state.attempt + 1), f"{what} is tried again (attempt {state.attempt + 1})"
        )
    if not isinstance(state, Beginning | Running):
        return None
    match seen:
        case None:
            return Wait(min(s.policy.poll_seconds * 10, left), "job", f"nobody can say how {what} does", about=(job.id,))
        case Working(attempt) | Worked(attempt) | Broken(attempt) if (
            attempt > state.attempt
        ):  # the store went back to an older copy
            return _decide(s, job, Beginning(attempt), f"attempt {attempt} of {what} is there already")
        case Working(attempt, percent) if attempt == state.attempt:
            if isinstance(state, Beginning):
                return _decide(s, job, Running(attempt), f"{what} has begun")
            told = "" if percent is None else f": {percent:.0f} % done"
            return Wait(min(s.policy.rest_seconds, left), "job", f"{what} goes on{told}", about=(job.id,))
        case Worked(attempt, records) if attempt == state.attempt:
            return _done(s, job, what, records)
        case Broken(attempt, problem) if attempt == state.attempt:
            return _failed(s, job, task, attempt, problem)
        case _ if isinstance(state, Running):
            return _failed(s, job, task, state.attempt, "it was lost in the middle")
        case _:
            return Act(((Begin(job.id, state.attempt),),), f"{what} begins (attempt {state.attempt} of {ATTEMPTS_MAX})")


def _done(s: Situation, job: Job, what: str, records: tuple[Record, ...]) -> Decide:
    step = ended(s, job, Done(), f"{what} is done")
    return replace(step, records=(*step.records, *records))


def _decide(s: Situation, job: Job, state: Beginning | Running | Resting, because: str) -> Decide:
    return Decide(with_job(s, s.decided, replace(job, state=state)), because)


def _failed(s: Situation, job: Job, task: Task, attempt: int, problem: str) -> Decide:
    """An attempt has: the next one, if there is one."""
    what = f"attempt {attempt} of {_named(job, task)} has failed: {problem.rstrip('.')}"
    if attempt >= ATTEMPTS_MAX:
        because = f"{what}. It is not tried again"
        return ended(s, job, Failed(problem), because)
    return _decide(s, job, Resting(attempt, s.moment, problem), what)


def _rest_seconds(attempt: int) -> float:
    return float(min(FIRST_REST_SECONDS * 2 ** (attempt - 1), LONGEST_REST_SECONDS))


def _clear(s: Situation, job: Job) -> Step | None:
    """What has ended goes on nowhere. That it cannot be seen is no reason to wait."""
    if isinstance(s.view.jobs.get(job.id, Missing()), Missing):
        return None
    return Act(((Cancel(job.id),),), f"nothing of {job.id} goes on any more")


def at_door(s: Situation) -> list[Job]:
    """Jobs of which something may be at their door."""
    tasks = [j for j in s.decided.jobs if isinstance(j.work, Task)]
    return [j for j in tasks if under_way(s, Begin, on=f"job {j.id}") or not isinstance(s.view.jobs.get(j.id), Missing)]


def cancel(s: Situation) -> Step | None:
    """Whatever is being done for a deleted cache ends."""
    if not (left := at_door(s)):
        return None
    seen = [j for j in left if s.view.jobs.get(j.id) is not None]
    if not seen:
        because = f"nobody can say whether {left[0].id} goes on"
        return Wait(s.policy.poll_seconds * 10, "job", because, about=tuple(j.id for j in left))
    return Act((tuple(Cancel(j.id) for j in seen),), f"{s.cache.name} is deleted: what was being done for it ends")
