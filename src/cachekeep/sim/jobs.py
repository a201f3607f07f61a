"""Tasks in the simulated world: they take their virtual time, fail as often as they are told to, and go on when the control plane
that began them dies, or end with it. One kind nobody else knows: a rehearsal of all that lasts for minutes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Collection

from cachekeep.control.jobs import JobKey
from cachekeep.errors import OrderFailed
from cachekeep.model import Beginning, Broken, Decide, Job, JobSeen, Missing, SnapshotEnd, Step, Tags, Task, Worked, Working
from cachekeep.plan import snapshots
from cachekeep.plan.jobs import with_job
from cachekeep.plan.situation import Situation
from cachekeep.sim.world import World
from cachekeep.store.wakes import Wakes

_BEGINNING = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
REHEARSAL = Task(kind="rehearsal", arguments={"seconds": "90", "failures": "1"})
REHEARSAL_ID = "rehearsal-1"


def rehearse(s: Situation) -> Step | None:
    """A rule that a test may put beside the others: once a cache is available, it rehearses."""
    if s.decided.available_at is None or s.decided.job(REHEARSAL_ID) is not None:
        return None
    job = Job(id=REHEARSAL_ID, work=REHEARSAL, began_at=s.moment, deadline_seconds=1800.0, state=Beginning())
    return Decide(with_job(s, s.decided, job), "a rehearsal is due")


class Tasks:
    """What goes on in the world, whoever began it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: dict[JobKey, Working | Worked | Broken] = {}
        self.cancelled: dict[JobKey, int] = {}
        self.begun: list[tuple[JobKey, int]] = []
        """Every attempt, in order."""
        self.ended = Wakes()

    def begin(self, key: JobKey, task: Task, attempt: int) -> None:
        """It goes on by itself from now on."""
        self.begun.append((key, attempt))
        self.seen[key] = Working(attempt)
        self.world.spawn(self._go_on(key, task, attempt))

    async def _go_on(self, key: JobKey, task: Task, attempt: int) -> None:
        for percent in (25.0, 50.0, 75.0, 100.0):
            await asyncio.sleep(float(task.arguments.get("seconds", "60")) / 4)
            if (there := self.seen.get(key)) is None or there.attempt != attempt:
                return  # cancelled, or lost
            self.seen[key] = Working(attempt, percent)
        if attempt <= int(task.arguments.get("failures", "0")):
            self.seen[key] = Broken(attempt, "it was told to fail")
        elif task.kind == snapshots.KIND:
            self.seen[key] = Worked(attempt, (SnapshotEnd(name=task.arguments["snapshot"], at=_BEGINNING, holding=key[1]),))
        else:
            self.seen[key] = Worked(attempt, (Tags(name=f"{key[0]}/{key[1]}", values={"attempt": str(attempt)}),))
        self.ended(key[0])


class SimJobs:
    """``Jobs`` as one control plane sees them. ``outlives``: what it began goes on without it."""

    def __init__(self, tasks: Tasks, *, outlives: bool) -> None:
        self._tasks, self._outlives = tasks, outlives
        self._mine: set[JobKey] = set()

    async def begin(self, key: JobKey, task: Task, attempt: int) -> None:
        await self._tasks.world.progress(key)
        there = self._tasks.seen.get(key)
        if there is not None and there.attempt == attempt:
            return
        if attempt <= max(self._tasks.cancelled.get(key, 0), there.attempt if there is not None else 0):
            raise OrderFailed(f"attempt {attempt} of {key[1]} is over")
        self._mine.add(key)
        self._tasks.begin(key, task, attempt)

    async def look(self, keys: Collection[JobKey]) -> dict[JobKey, JobSeen]:
        return {key: self._tasks.seen.get(key, Missing()) for key in keys}

    async def cancel(self, key: JobKey) -> None:
        await self._tasks.world.progress(key)
        if (there := self._tasks.seen.pop(key, None)) is not None:
            self._tasks.cancelled[key] = there.attempt

    async def abandon(self, uid: str) -> None:
        if not self._outlives:
            for key in [k for k in self._mine if k[0] == uid]:
                self._tasks.seen.pop(key, None)

    def on_end(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._tasks.ended.add(callback)
