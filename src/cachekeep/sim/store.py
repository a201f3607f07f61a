"""A store that ails, and the disk of a journal: both outlive the control planes that use them."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cachekeep.clock import Clock
from cachekeep.model import Cache, Condition, Decided, Event
from cachekeep.sim.hosts import Hosts
from cachekeep.store import Journal, JournaledStore
from cachekeep.store.contract import Along, Lease, Store, StoreFailed, Transaction
from cachekeep.store.memory import MemoryStore

HALF_BYTES = 1 << 15
"""Of a simulated journal: small, so that it goes from one half to the other."""
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


AILMENTS: tuple[Ailment, ...] = (
    Ailment(slow_seconds=0.3),
    Ailment(slow_seconds=4.0),
    Ailment(locked=True),
    Ailment(full=True),
    Ailment(hung=True),
    Ailment(gone=True),
    Ailment(unsure=0.5),
    Ailment(slow_seconds=0.3, unsure=0.5),
)


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

    async def claim_work(self, holder: str, name: str, *, ttl_seconds: float) -> int | None:
        async with self._asked(writes=True):
            return await self._store.claim_work(holder, name, ttl_seconds=ttl_seconds)

    async def prune(self) -> None:
        async with self._asked(writes=True):
            await self._store.prune()

    async def release(self, lease: Lease) -> None:
        async with self._asked(writes=True):
            await self._store.release(lease)

    async def bury(self, holder_prefix: str) -> None:
        async with self._asked(writes=True):
            await self._store.bury(holder_prefix)

    async def load(self, uid: str) -> Cache | None:
        async with self._asked(writes=False):
            return await self._store.load(uid)

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        async with self._asked(writes=True):
            return await self._store.save_decided(cache, lease, along)

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        async with self._asked(writes=True):
            return await self._store.merge_decided(uid, decided, lease, along)

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

    def on_told(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._store.on_told(callback)


class SimDisk:
    """A journal's disk. Who is killed while writing leaves part of what was written: some first bytes, and nothing behind."""

    shown = "simulated"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.content = bytearray()
        self.full = False
        self.writes = 0

    def kill(self) -> None:
        """Of whoever writes: what has not been synced is lost."""

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


class WatchedStore(JournaledStore):
    """A control plane's own store, with an eye on each decision, wherever it is kept."""

    def __init__(
        self,
        store: Store,
        disk: SimDisk,
        clock: Clock,
        *,
        alone: bool,
        saved: Callable[[Cache, Lease], Awaitable[None]],
    ) -> None:
        super().__init__(store, Journal(disk, half_bytes=HALF_BYTES), clock, alone=lambda: alone)
        self._disk, self._saved, self._opened = disk, saved, False

    async def open(self) -> None:
        await super().open()
        self._opened = True

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        saved = await super().save_decided(cache, lease, along)
        await self._saved(saved, lease)
        return saved

    @property
    def settled(self) -> bool:
        """Nothing is in the journal that the store has not."""
        return self._opened and self._journal.empty

    def kill(self) -> None:
        """What the control plane had begun ends, wherever it is."""
        for task in (*self._tasks, *([self._journal._writing] if self._journal._writing else [])):
            task.cancel()
        self._disk.kill()


class WitnessedStore(MemoryStore):
    """The store, with an eye on each decision: what a keeper has saved, and what the next one finds in its journal."""

    def __init__(self, clock: Clock, saved: Callable[[Cache, Lease], Awaitable[None]]) -> None:
        super().__init__(clock)
        self.saved = saved

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        saved = await super().save_decided(cache, lease, along)
        await self.saved(saved, lease)
        return saved

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        merged = await super().merge_decided(uid, decided, lease, along)
        await self.saved(merged, lease)
        return merged


class Stores:
    """The control planes' own stores: their views of the one store there is, each behind what ails it, each with a journal."""

    def __init__(self, store: WitnessedStore, hosts: Hosts, *, alone: bool, chance: random.Random, seed: int) -> None:
        self._store, self._hosts, self._alone, self._chance = store, hosts, alone, chance
        self._ailment, self._disk = Ailment(), SimDisk(random.Random(seed + 2))
        self._of: dict[str, WatchedStore] = {}
        self._old_journal = b""

    def of(self, name: str) -> WatchedStore:
        """Of a control plane that begins. Where nobody else decides, its journal is what the next one finds."""
        former = self._of.get(name)
        if self._old_journal and self._alone and former is not None and former.settled:
            self._disk.content[:], self._old_journal = self._old_journal, b""
        beneath = AilingStore(self._store, self._ailment, self._chance)
        disk = self._disk if self._alone else SimDisk(self._chance)
        self._of[name] = WatchedStore(beneath, disk, self._hosts.clock(name), alone=self._alone, saved=self._store.saved)
        return self._of[name]

    async def open(self, name: str) -> None:
        """Whoever has the data directory knows that the former control plane is dead. It starts when the store is there."""
        store = self._of[name]
        while self._alone:
            with contextlib.suppress(StoreFailed):
                await store.bury(f"{name}-")
                break
            await asyncio.sleep(0.5)
        await store.open()

    def ail(self) -> None:
        """Something becomes wrong with the store, and with the journal's disk now and then."""
        vars(self._ailment).update(vars(self._chance.choice(AILMENTS)))
        self._disk.full = self._chance.random() < 0.1

    def heal(self) -> None:
        """Nothing is any more."""
        vars(self._ailment).update(vars(Ailment()))
        self._disk.full = False

    def bring_back_the_journal(self) -> None:
        """The next control plane finds the journal as it is now, if there is nothing in it by then: somebody has restored it."""
        self._old_journal = bytes(self._disk.content)
