"""The store's twin without a disk: for the simulated world. Deterministic, and as strict as the real ones."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec

from cachekeep.clock import Clock
from cachekeep.errors import LeaseLost
from cachekeep.model import Cache, Condition, Decided, Event, elapsed
from cachekeep.plan import Policy
from cachekeep.store.contract import Along, Lease
from cachekeep.store.families.events import EVENTS_KEPT_DAYS
from cachekeep.store.families.memory.addresses import MemoryAddresses
from cachekeep.store.families.memory.caches import MemoryCaches
from cachekeep.store.families.memory.conditions import MemoryConditions
from cachekeep.store.families.memory.events import MemoryEvents
from cachekeep.store.families.memory.part import State
from cachekeep.store.families.memory.resources import MemoryResources
from cachekeep.store.serial import following, merge
from cachekeep.store.wakes import Touched, Wakes


class MemoryStore:
    """``Store``. What is given to the same object is kept for as long as the object lives, ``aclose`` or not."""

    def __init__(self, clock: Clock, *, linger_seconds: float = Policy().linger_seconds) -> None:
        self._clock = clock
        self._linger_seconds = linger_seconds
        self._state = State()
        self._gate = asyncio.Lock()
        self._changes, self._conditions = Wakes(), Wakes()

    async def open(self) -> None:
        now = self._clock.moment()
        released = self._state.released.items()
        self._state.released = {a: (uid, now if elapsed(at, now) is None else at) for a, (uid, at) in released}

    async def aclose(self) -> None:
        pass

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        async with self._gate:
            transaction = MemoryTransaction(self._clock, self._state.copy(), touched := Touched(), self._linger_seconds)
            yield transaction
            self._state = transaction.state
        for uid, told in touched.told_only.items():
            (self._conditions if told else self._changes)(uid)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[MemoryTransaction]:
        yield MemoryTransaction(self._clock, self._state, None, self._linger_seconds)

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        async with self.transaction() as transaction:
            state, now = transaction.state, self._clock.monotonic()
            free = [
                uid
                for uid, (_, held_by) in sorted(state.leases.items())
                if (uids is None or uid in uids)
                and held_by != holder
                and not (held_by in state.holders and state.holders[held_by] > now)
            ][:limit]
            leases = [Lease(uid, holder, state.leases[uid][0] + 1) for uid in free]
            state.leases.update((lease.uid, (lease.epoch, holder)) for lease in leases)
            if leases:
                state.holders[holder] = now + ttl_seconds
            return leases

    async def renew(self, holder: str, *, ttl_seconds: float) -> builtins.list[Lease]:
        async with self.transaction() as transaction:
            transaction.state.holders[holder] = self._clock.monotonic() + ttl_seconds
            leases = sorted(transaction.state.leases.items())
            return [Lease(uid, holder, epoch) for uid, (epoch, held_by) in leases if held_by == holder]

    async def release(self, lease: Lease) -> None:
        async with self.transaction() as transaction:
            if transaction.state.leases.get(lease.uid) == (lease.epoch, lease.holder):
                transaction.state.leases[lease.uid] = (lease.epoch, None)

    async def bury(self, holder_prefix: str) -> None:
        async with self.transaction() as transaction:
            holders = transaction.state.holders
            transaction.state.holders = {name: until for name, until in holders.items() if not name.startswith(holder_prefix)}

    async def claim_work(self, holder: str, name: str, *, ttl_seconds: float) -> int | None:
        async with self.transaction() as transaction:
            state, now = transaction.state, self._clock.monotonic()
            epoch, held_by = state.work.get(name, (0, None))
            if held_by not in (None, holder) and state.holders.get(held_by or "", now) > now:
                return None
            state.work[name] = (epoch if held_by == holder else epoch + 1, holder)
            state.holders[holder] = now + ttl_seconds
            return state.work[name][0]

    async def prune(self) -> None:
        async with self.transaction() as transaction:
            oldest = self._clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
            transaction.state.events = [e for e in transaction.state.events if e[0] >= oldest]

    async def load(self, uid: str) -> Cache | None:
        return self._state.caches.get(uid)

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        async with self.transaction() as transaction:
            row = transaction.fenced(cache, lease)
            saved = msgspec.structs.replace(row, decided=following(cache.decided), version=cache.version + 1)
            transaction.state.caches[cache.uid] = saved
            transaction.own_addresses(cache.uid, set(along.addresses))
            transaction.own_members(saved)
            transaction.leave(along.records)
            await transaction.tell(*along.events)
            transaction.wake(cache.uid)
            return saved

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        async with self.transaction() as transaction:
            before = transaction.held(uid, lease)
            merged = merge(before, decided)
            transaction.state.caches[uid] = merged
            transaction.own_addresses(uid, set(along.addresses))
            transaction.own_members(merged)
            transaction.leave(along.records if merged is not before else ())
            told = {event for *_, event in transaction.state.events}
            await transaction.tell(*(event for event in along.events if event not in told))
            transaction.wake(uid)
            return merged

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        async with self.transaction() as transaction:
            state, row = transaction.state, transaction.fenced(cache, lease)
            del state.caches[row.uid], state.names[row.kind, row.name], state.leases[row.uid]
            state.conditions.pop(row.uid, None)
            state.members = {name: uid for name, uid in state.members.items() if uid != row.uid}
            transaction.own_addresses(row.uid, set())
            await transaction.tell(*events)
            transaction.wake(row.uid)

    async def addresses(self) -> set[str]:
        async with self.reading() as transaction:
            return {*self._state.addresses, *transaction.resting()}

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        _hold(self._state, uid, lease)
        if self._state.conditions.get(uid) == (lease.epoch, condition):
            return
        async with self.transaction() as transaction:
            _hold(transaction.state, uid, lease)
            transaction.state.conditions[uid] = (lease.epoch, condition)
            transaction.has_told(uid)

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._changes.add(callback)

    def on_told(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._conditions.add(callback)


class MemoryTransaction(MemoryCaches, MemoryAddresses, MemoryConditions, MemoryResources, MemoryEvents):
    """``Transaction``."""

    def fenced(self, cache: Cache, lease: Lease) -> Cache:
        """The row, if the lease holds and the version is the same. Raises ``LeaseLost``, ``Conflict``."""
        self.held(cache.uid, lease)
        return self._row(cache)

    def held(self, uid: str, lease: Lease) -> Cache:
        """The row, if the lease holds. Raises ``LeaseLost``."""
        _hold(self.state, uid, lease)
        return self.state.caches[uid]

    def wake(self, uid: str) -> None:
        self._write().add(uid)

    def has_told(self, uid: str) -> None:
        """Nothing but the condition of the cache is new."""
        self._write().add(uid, told=True)


def _hold(state: State, uid: str, lease: Lease) -> None:
    if lease.uid != uid or state.leases.get(uid) != (lease.epoch, lease.holder):
        raise LeaseLost(f"{lease.holder} no longer holds cache {uid}: its epoch {lease.epoch} is over")
