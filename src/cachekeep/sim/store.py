"""A store that ails, and the disk of a journal: both outlive the control planes that use them."""

from __future__ import annotations

import asyncio
import builtins
import errno
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cachekeep.model import Cache, Condition, Decided, Event
from cachekeep.store.contract import Lease, Store, StoreFailed, Transaction

BUSY_SECONDS = 10.0
"""How long a store lets others wait before it says that it cannot be had."""


@dataclass
class Ailment:
    """What is wrong with a store now."""

    slow_seconds: float = 0.0
    """At most so long before, and once more after, whatever is done."""
    locked: bool = False
    """Somebody else writes, and does not come to an end."""
    full: bool = False
    """Its disk: nothing more can be written."""
    hung: bool = False
    """It takes every request and answers none."""
    gone: bool = False
    """It refuses connections."""
    unsure: float = 0.0
    """Chance that it does what it is asked for and the answer is lost."""


class AilingStore:
    """``Store``: another one, behind an ailment."""

    def __init__(self, store: Store, ailment: Ailment, chance: random.Random) -> None:
        self._store, self._ailment, self._chance = store, ailment, chance

    async def _slowly(self) -> None:
        if self._ailment.slow_seconds:
            await asyncio.sleep(self._ailment.slow_seconds * self._chance.random())

    @asynccontextmanager
    async def _asked(self, *, writes: bool) -> AsyncIterator[None]:
        ailment = self._ailment
        await self._slowly()
        end = asyncio.get_running_loop().time() + BUSY_SECONDS
        while ailment.hung or (writes and ailment.locked):
            if asyncio.get_running_loop().time() > end:
                raise StoreFailed("the simulated store does not answer")
            await asyncio.sleep(0.05)
        if ailment.gone:
            raise StoreFailed("the simulated store is gone")
        if writes and ailment.full:
            raise StoreFailed("the simulated store's disk is full")
        yield
        await self._slowly()
        if writes and self._chance.random() < ailment.unsure:
            raise StoreFailed("the connection to the simulated store broke", unsure=True)

    async def open(self) -> None:
        await self._store.open()

    async def aclose(self) -> None:
        await self._store.aclose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._asked(writes=True), self._store.transaction() as transaction:
            yield transaction

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        async with self._asked(writes=False), self._store.reading() as transaction:
            yield transaction

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        async with self._asked(writes=True):
            return await self._store.claim(holder, ttl_seconds=ttl_seconds, uids=uids, limit=limit)

    async def renew(self, holder: str, *, ttl_seconds: float) -> builtins.list[Lease]:
        async with self._asked(writes=True):
            return await self._store.renew(holder, ttl_seconds=ttl_seconds)

    async def release(self, lease: Lease) -> None:
        async with self._asked(writes=True):
            await self._store.release(lease)

    async def bury(self, holder_prefix: str) -> None:
        async with self._asked(writes=True):
            await self._store.bury(holder_prefix)

    async def load(self, uid: str) -> Cache | None:
        async with self._asked(writes=False):
            return await self._store.load(uid)

    async def save_decided(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]) -> Cache:
        async with self._asked(writes=True):
            return await self._store.save_decided(cache, lease, events=events, addresses=addresses)

    async def merge_decided(
        self, uid: str, decided: Decided, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]
    ) -> Cache:
        async with self._asked(writes=True):
            return await self._store.merge_decided(uid, decided, lease, events=events, addresses=addresses)

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        async with self._asked(writes=True):
            await self._store.forget(cache, lease, events=events)

    async def addresses(self) -> set[str]:
        async with self._asked(writes=False):
            return await self._store.addresses()

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        async with self._asked(writes=True):
            await self._store.publish(uid, condition, lease)

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._store.on_change(callback)


class SimDisk:
    """A journal's disk. Who is killed while writing leaves part of what was written: some first bytes, and nothing behind."""

    shown = "simulated"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.content = bytearray()
        self.full = False
        self.writes = 0

    def open(self, size_bytes: int) -> bytes:
        self.content.extend(bytes(size_bytes - len(self.content)))
        return bytes(self.content)

    async def write(self, offset: int, data: bytes) -> None:
        self.writes += 1
        await asyncio.sleep(0.002 * self._chance.random())
        if self.full:
            raise OSError(errno.ENOSPC, "the simulated disk is full")
        part = self._chance.randrange(len(data) + 1)
        self.content[offset : offset + part] = data[:part]
        await asyncio.sleep(0.004 * self._chance.random())
        self.content[offset : offset + len(data)] = data

    def set_aside(self) -> str:
        return ""

    def close(self) -> None: ...
