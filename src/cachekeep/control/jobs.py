"""The door to jobs: tasks of caches that take minutes are begun, looked at and cancelled here, by name. Nobody waits for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cachekeep.errors import CachekeepError, OrderFailed
from cachekeep.model import Broken, JobSeen, Missing, Record, Task, Worked, Working
from cachekeep.store.wakes import Wakes

log = logging.getLogger("cachekeep.jobs")

JobKey = tuple[str, str]
"""Uid of the cache, id of the job."""
Report = Callable[[float], None]
"""Told how many percent are done."""
Runner = Callable[[Task, Report], Coroutine[Any, Any, tuple[Record, ...]]]
"""Does a task of one kind and returns what it leaves in the store. Raises what it fails of; ends when it is cancelled."""


class Jobs(Protocol):
    """What control needs of whoever does tasks."""

    async def begin(self, key: JobKey, task: Task, attempt: int) -> None:
        """Have this attempt go on by itself. Does nothing if it was begun; an earlier one is ended first. Raises ``OrderFailed``:
        it cannot be begun, a later one was, or it was cancelled."""

    async def look(self, keys: Collection[JobKey]) -> dict[JobKey, JobSeen]:
        """What each does now; those of which nothing can be said are left out."""

    async def cancel(self, key: JobKey) -> None:
        """End it and forget it, but for that it was cancelled. On return nothing of it goes on. Raises ``OrderFailed``."""

    async def abandon(self, uid: str) -> None:
        """Another control plane decides for the cache now, or nobody does: what only we could look after ends."""

    def on_end(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(uid)`` when an attempt has ended by itself. Returns what ends that."""


@dataclass
class _Attempt:
    number: int
    seen: JobSeen
    work: asyncio.Task[None] | None = None


class JobsHere:
    """``Jobs`` that are done by this process, and end with it: the next one is told that they are missing."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = runners
        self._attempts: dict[JobKey, _Attempt] = {}
        self._cancelled: dict[JobKey, int] = {}
        """The last attempt that was."""
        self._wakes = Wakes()

    async def begin(self, key: JobKey, task: Task, attempt: int) -> None:
        known = self._attempts.get(key)
        if known is not None and known.number == attempt:
            return
        if attempt <= max(self._cancelled.get(key, 0), known.number if known is not None else 0):
            raise OrderFailed(f"attempt {attempt} of {key[1]} is over")
        runner = self._runners.get(task.kind)
        if runner is None:
            raise OrderFailed(f"nobody here can do a {task.kind}")
        if known is not None:
            await _ended(known)
        begun = self._attempts[key] = _Attempt(attempt, Working(attempt))
        begun.work = asyncio.create_task(self._do(key, begun, runner, task), name=f"{task.kind} {key[1]}")

    async def _do(self, key: JobKey, attempt: _Attempt, runner: Runner, task: Task) -> None:
        def report(percent: float) -> None:
            attempt.seen = Working(attempt.number, percent)

        try:
            attempt.seen = Worked(attempt.number, await runner(task, report))
        except CachekeepError as error:
            attempt.seen = Broken(attempt.number, str(error))
        except Exception as error:
            log.exception("%s %s failed in a way that nobody expected", task.kind, key[1])
            attempt.seen = Broken(attempt.number, f"{type(error).__name__}: {error}")
        self._wakes(key[0])

    async def look(self, keys: Collection[JobKey]) -> dict[JobKey, JobSeen]:
        return {key: self._attempts[key].seen if key in self._attempts else Missing() for key in keys}

    async def cancel(self, key: JobKey) -> None:
        known = self._attempts.get(key)
        if known is None:
            return
        self._cancelled[key] = known.number
        await _ended(known)
        self._attempts.pop(key, None)

    async def abandon(self, uid: str) -> None:
        mine = [key for key in self._attempts if key[0] == uid]
        await asyncio.gather(*(_ended(self._attempts.pop(key)) for key in mine))
        for key in [key for key in self._cancelled if key[0] == uid]:
            del self._cancelled[key]

    async def aclose(self) -> None:
        """End all of it."""
        for uid in {uid for uid, _ in self._attempts}:
            await self.abandon(uid)

    def on_end(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._wakes.add(callback)


async def _ended(attempt: _Attempt) -> None:
    if attempt.work is not None:
        attempt.work.cancel()
        await asyncio.wait({attempt.work})
