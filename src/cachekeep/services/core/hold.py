"""Instant waiters: a Describe of one resource in transition is held open until it has settled.

boto3's and Terraform's waiters poll every 10 to 15 seconds; held, their first poll is their last. While it is held a request has no
transaction and no task of its own beside itself: it sleeps on one future, and thousands of them cost next to nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from cachekeep.clock import Clock
from cachekeep.model import Cache, CacheKind, Condition
from cachekeep.store.contract import Store, Transaction

_RECHECK_SECONDS = 3.0
"""A change that was told may be missed when a connection breaks, so everybody looks again at times."""


def current(cache: Cache, condition: Condition | None) -> Condition | None:
    """The condition, if it describes the cache as it is stored now."""
    return condition if condition is not None and condition.version == cache.version else None


def settled(cache: Cache, condition: Condition | None) -> bool:
    """Whether nothing is on its way: it is as it was asked for, or waits for the user."""
    seen = current(cache, condition)
    return seen is not None and (seen.settled or seen.refused)


class Waiting:
    """Who waits for which cache to change."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._closed = False
        self._ends = (store.on_change(self._changed), store.on_told(self._changed))

    def close(self) -> None:
        """Listen no longer; let everybody go, and hold nobody from now on."""
        self._closed = True
        for end in self._ends:
            end()
        for uid in list(self._waiters):
            self._changed(uid)

    def _changed(self, uid: str) -> None:
        for future in self._waiters.pop(uid, ()):
            if not future.done():
                future.set_result(None)

    async def settle(self, kind: CacheKind, name: str, seconds: float) -> None:
        """Return when the cache has settled, when there is none, or after ``seconds``."""
        deadline = self._clock.monotonic() + seconds
        uid = await self._unsettled(kind, name)
        while uid is not None and not self._closed:
            future = asyncio.get_running_loop().create_future()
            self._waiters[uid].add(future)
            try:
                # Looked at now, when a change cannot be missed any more.
                now = await self._unsettled(kind, name)
                left = deadline - self._clock.monotonic()
                if now == uid and left > 0:
                    await asyncio.wait({future}, timeout=min(left, _RECHECK_SECONDS))
                elif now == uid:
                    return
            finally:
                self._drop(uid, future)
            uid = now

    def _drop(self, uid: str, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(uid)
        if waiters is not None:
            waiters.discard(future)
            if not waiters:
                del self._waiters[uid]

    async def _unsettled(self, kind: CacheKind, name: str) -> str | None:
        """The uid of a cache in transition; None if it has settled or does not exist."""
        async with self._store.reading() as tx:
            cache = await _find(tx, kind, name)
            if cache is None or settled(cache, await tx.condition(cache.uid)):
                return None
            return cache.uid


async def _find(tx: Transaction, kind: CacheKind, name: str) -> Cache | None:
    return await (tx.cache(name, "group") if kind == "group" else tx.cache_of(name))
