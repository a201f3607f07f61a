"""What works beside the API for as long as a control plane serves: the keeper, and whoever is put beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError
from cachekeep.rounds import rounds
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.workers")

LEASE_SECONDS = 15.0
SPARE_SECONDS = 1.0
"""So long before our leases can be another's nothing is done by them any more."""
PRUNE_SECONDS = 3600.0


class Worker(Protocol):
    """One of the control plane's own tasks. What only one of an installation may do at a time is a ``Single``."""

    async def run(self) -> None:
        """Work until cancelled. What passes by itself is the worker's own affair: whatever ends the keeper ends the control plane,
        and a ``Single`` begins anew."""

    def hasten(self) -> None:
        """Try again at once whatever failed: what it lacked (an engine that is not installed) may be there now."""


class Single:
    """A worker of which one works in an installation at a time: under a lease of the store that bears its name. Where another holds
    that, this one waits. Whoever loses it, or has been halted for longer than it, is ended before it takes another step; a worker
    that writes where an earlier step may still be on its way gets by with what compare-and-swap refuses.

    One that fails is told of and begun anew: none of them is worth the failovers that a control plane which ends does not make."""

    def __init__(
        self, name: str, worker: Worker, *, store: Store, clock: Clock, holder: str, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._name, self._worker, self._store, self._clock, self._holder = name, worker, store, clock, holder
        self._lease_seconds, self._until = lease_seconds, 0.0
        """By the seconds of our moments."""
        self._working: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Work whenever it is ours to, until cancelled."""
        while True:
            if await self._claimed():
                await self._work()
            await self._clock.sleep(self._lease_seconds / 3)

    def hasten(self) -> None:
        if self._working is not None:
            self._worker.hasten()

    async def _claimed(self) -> bool | None:
        """Whether it is ours for another while; None: nobody can say."""
        asked_at = self._clock.moment().seconds
        try:
            epoch = await self._store.claim_work(self._holder, self._name, ttl_seconds=self._lease_seconds)
        except CachekeepError as error:
            log.warning("the lease of %s cannot be claimed: %s", self._name, error)
            return None
        if epoch is None:
            return False
        self._until = asked_at + self._lease_seconds - SPARE_SECONDS
        return self._left() > 0

    def _left(self) -> float:
        return self._until - self._clock.moment().seconds

    async def _work(self) -> None:
        """Have the worker work for as long as that is ours, or until it fails."""
        working = self._working = asyncio.create_task(self._worker.run(), name=self._name)
        watching = asyncio.create_task(self._watch(working), name=f"lease of {self._name}")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not working.cancelled():
                log.error("%s has failed, and is begun anew; everything else goes on", self._name, exc_info=working.exception())
        finally:
            self._working = None
            await end([working, watching])

    async def _watch(self, working: asyncio.Task[None]) -> None:
        """Until it is not ours any more."""
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(self._left(), working.cancel)
        try:
            while True:
                await self._clock.sleep(self._lease_seconds / 3)
                ours = await self._claimed()
                if ours is False or self._left() <= 0:
                    return
                # A timer that is due runs before any task takes its next step, also in a process that was halted.
                expiry.cancel()
                expiry = loop.call_later(self._left(), working.cancel)
        finally:
            expiry.cancel()


class Pruner:
    """Removes what nobody is told any more from the store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def run(self) -> None:
        await rounds(self._clock, PRUNE_SECONDS, self._store.prune, log, "what is too old cannot be removed from the store")

    def hasten(self) -> None:
        """It lacks nothing."""


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them, and wait for the end of each."""
    found = list(tasks)
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


@contextlib.asynccontextmanager
async def at_work(workers: Iterable[Worker]) -> AsyncIterator[set[asyncio.Task[None]]]:
    """All of them run, each as a task, until the end of the block; then they are cancelled. Raises what ended one before that."""
    tasks = {asyncio.create_task(worker.run(), name=type(worker).__name__.lower()) for worker in workers}
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
