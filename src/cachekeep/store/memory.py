"""The store's twin without a disk: for the simulated world. Deterministic, and as strict as the real ones."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from cachekeep.clock import Clock
from cachekeep.errors import Conflict, LeaseLost
from cachekeep.model import Cache, CacheKind, Condition, Decided, Event, Moment, Record, elapsed
from cachekeep.plan import Policy
from cachekeep.store.contract import EVENTS_KEPT_DAYS, AddressTaken, AlreadyThere, Cursor, Lease, R
from cachekeep.store.serial import following, merge
from cachekeep.store.wakes import Touched, Wakes


class _State:
    """All that is stored. A transaction works on a copy and swaps it in: everything inside is immutable, so copies are shallow."""

    def __init__(self) -> None:
        self.caches: dict[str, Cache] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.members: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self.released: dict[str, tuple[str, Moment]] = {}
        self.leases: dict[str, tuple[int, str | None]] = {}
        self.holders: dict[str, float] = {}
        self.work: dict[str, tuple[int, str]] = {}
        self.conditions: dict[str, tuple[int, Condition]] = {}
        self.resources: dict[tuple[str, str], Any] = {}
        self.events: list[tuple[dt.datetime, int, Event]] = []
        self.events_told = 0

    def copy(self) -> _State:
        new = _State()
        for key, value in vars(self).items():
            setattr(new, key, value if isinstance(value, int) else value.copy())
        return new


class MemoryStore:
    """``Store``. What is given to the same object is kept for as long as the object lives, ``aclose`` or not."""

    def __init__(self, clock: Clock, *, linger_seconds: float = Policy().linger_seconds) -> None:
        self._clock = clock
        self._linger_seconds = linger_seconds
        self._state = _State()
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

    async def save_decided(
        self,
        cache: Cache,
        lease: Lease,
        *,
        events: Sequence[Event] = (),
        records: Sequence[Record] = (),
        addresses: Collection[str],
    ) -> Cache:
        async with self.transaction() as transaction:
            row = transaction.fenced(cache, lease)
            saved = msgspec.structs.replace(row, decided=following(cache.decided), version=cache.version + 1)
            transaction.state.caches[cache.uid] = saved
            transaction.own_addresses(cache.uid, set(addresses))
            transaction.own_members(saved)
            transaction.leave(records)
            await transaction.tell(*events)
            transaction.wake(cache.uid)
            return saved

    async def merge_decided(
        self,
        uid: str,
        decided: Decided,
        lease: Lease,
        *,
        events: Sequence[Event] = (),
        records: Sequence[Record] = (),
        addresses: Collection[str],
    ) -> Cache:
        async with self.transaction() as transaction:
            before = transaction.held(uid, lease)
            merged = merge(before, decided)
            transaction.state.caches[uid] = merged
            transaction.own_addresses(uid, set(addresses))
            transaction.own_members(merged)
            transaction.leave(records if merged is not before else ())
            told = {event for *_, event in transaction.state.events}
            await transaction.tell(*(event for event in events if event not in told))
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


class MemoryTransaction:
    """``Transaction``. ``touched`` None: read only."""

    def __init__(self, clock: Clock, state: _State, touched: Touched | None, linger_seconds: float) -> None:
        self._clock, self._linger_seconds = clock, linger_seconds
        self.state = state
        self.touched = touched

    def _write(self) -> Touched:
        if self.touched is None:
            raise RuntimeError("a reading transaction cannot write")
        return self.touched

    async def cache(self, name: str, kind: CacheKind) -> Cache | None:
        return self.state.caches.get(self.state.names.get((kind, name), ""))

    async def cache_of(self, cluster_id: str) -> Cache | None:
        return self.state.caches.get(self.state.members.get(cluster_id, ""))

    async def caches(self, *, kind: CacheKind | None = None, after: str = "", limit: int | None = None) -> builtins.list[Cache]:
        found = [c for c in self.state.caches.values() if c.name > after and kind in (None, c.kind)]
        return sorted(found, key=lambda c: (c.name, c.kind))[:limit]

    async def members(self, *, after: str = "", limit: int) -> builtins.list[tuple[str, str]]:
        return sorted(item for item in self.state.members.items() if item[0] > after)[:limit]

    async def insert(self, cache: Cache) -> Cache:
        self._write().add(cache.uid)
        self._name(cache)
        saved = msgspec.structs.replace(cache, version=1)
        self.state.caches[cache.uid] = saved
        self.state.leases[cache.uid] = (0, None)
        self.own_members(saved)
        return saved

    async def save_wanted(self, cache: Cache) -> Cache:
        self._write().add(cache.uid)
        row = self._row(cache)
        self._name(cache)
        saved = msgspec.structs.replace(row, name=cache.name, kind=cache.kind, wanted=cache.wanted, version=cache.version + 1)
        if (row.kind, row.name) != (cache.kind, cache.name):
            del self.state.names[row.kind, row.name]
        self.state.caches[cache.uid] = saved
        self.own_members(saved)
        return saved

    def _row(self, cache: Cache) -> Cache:
        row = self.state.caches.get(cache.uid)
        if row is None or row.version != cache.version:
            raise Conflict(
                f"cache {cache.name} ({cache.uid}) was changed by somebody else since version {cache.version}, or is gone"
            )
        return row

    def fenced(self, cache: Cache, lease: Lease) -> Cache:
        """The row, if the lease holds and the version is the same. Raises ``LeaseLost``, ``Conflict``."""
        self.held(cache.uid, lease)
        return self._row(cache)

    def held(self, uid: str, lease: Lease) -> Cache:
        """The row, if the lease holds. Raises ``LeaseLost``."""
        _hold(self.state, uid, lease)
        return self.state.caches[uid]

    def _name(self, cache: Cache) -> None:
        if self.state.names.get((cache.kind, cache.name), cache.uid) != cache.uid:
            raise AlreadyThere(cache.kind, cache.name)
        if taken := [name for name in cache.cluster_ids() if self.state.members.get(name, cache.uid) != cache.uid]:
            raise AlreadyThere("member", min(taken))
        self.state.names[cache.kind, cache.name] = cache.uid

    def own_members(self, cache: Cache) -> None:
        """Make the member index say what the cache owns."""
        self.state.members = _owned(self.state.members, cache.uid, set(cache.cluster_ids()))

    def own_addresses(self, uid: str, own: set[str]) -> None:
        """Make the address index say what the cache uses. Raises ``AddressTaken``."""
        had = {address for address, of in self.state.addresses.items() if of == uid}
        resting = self.resting()
        others = {a for a, (of, _) in resting.items() if of != uid}
        if taken := [a for a in own - had if a in self.state.addresses or a in others]:
            raise AddressTaken(min(taken))
        self.state.addresses = _owned(self.state.addresses, uid, own)
        self.state.released = resting | dict.fromkeys(had - own, (uid, self._clock.moment()))

    def resting(self) -> dict[str, tuple[str, Moment]]:
        """Addresses that were given up not long ago, or nobody knows when."""
        now = self._clock.moment()
        since = {address: elapsed(at, now) for address, (_, at) in self.state.released.items()}
        return {a: v for a, v in self.state.released.items() if (age := since[a]) is None or age < self._linger_seconds}

    async def condition(self, uid: str) -> Condition | None:
        cache, (told_in, condition) = self.state.caches.get(uid), self.state.conditions.get(uid, (0, None))
        epoch, holder = self.state.leases.get(uid, (0, None))
        until = self.state.holders.get(holder) if holder is not None else None
        if cache is None or condition is None or until is None or until <= self._clock.monotonic():
            return None
        return condition if told_in == epoch and condition.version == cache.version else None

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        found = {uid: await self.condition(uid) for uid in uids}
        return {uid: condition for uid, condition in found.items() if condition is not None}

    async def get(self, kind: type[R], name: str) -> R | None:
        return cast("R | None", self.state.resources.get((kind.__name__, name)))

    async def put(self, resource: R) -> R:
        self._write()
        key = (type(resource).__name__, resource.name)
        row = self.state.resources.get(key)
        if (row.version if row is not None else 0) != resource.version:
            raise Conflict(f"{key[0]} {resource.name} was changed by somebody else since version {resource.version}")
        saved = cast(R, msgspec.structs.replace(cast(msgspec.Struct, resource), version=resource.version + 1))
        self.state.resources[key] = saved
        return saved

    def leave(self, records: Sequence[Record]) -> None:
        """Put them in the place of whatever of their kinds and names is there."""
        for record in records:
            key = (type(record).__name__, record.name)
            there = self.state.resources.get(key)
            version = there.version + 1 if there is not None else 1
            self.state.resources[key] = msgspec.structs.replace(record, version=version)

    async def delete(self, kind: type[R], name: str) -> bool:
        self._write()
        return self.state.resources.pop((kind.__name__, name), None) is not None

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        found = [(name, r) for (of, name), r in self.state.resources.items() if of == kind.__name__ and name > after]
        return [r for _, r in sorted(found, key=lambda item: item[0])][:limit]

    async def tell(self, *events: Event) -> None:
        self._write()
        now = self._clock.now()
        for event in events:
            self.state.events_told += 1
            at = event.at or now
            self.state.events.append((at, self.state.events_told, msgspec.structs.replace(event, at=at)))

    async def events(
        self,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        source_type: str | None = None,
        source: str | None = None,
        after: Cursor | None = None,
        limit: int,
    ) -> builtins.list[tuple[Cursor, Event]]:
        oldest = self._clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        behind = int(after or 0)
        return [
            (str(number), event)
            for at, number, event in self.state.events
            if at >= max(start or oldest, oldest)
            and (end is None or at < end)
            and source_type in (None, event.source_type)
            and source in (None, event.source)
            and number > behind
        ][:limit]

    def wake(self, uid: str) -> None:
        self._write().add(uid)

    def has_told(self, uid: str) -> None:
        """Nothing but the condition of the cache is new."""
        self._write().add(uid, told=True)


def _hold(state: _State, uid: str, lease: Lease) -> None:
    if lease.uid != uid or state.leases.get(uid) != (lease.epoch, lease.holder):
        raise LeaseLost(f"{lease.holder} no longer holds cache {uid}: its epoch {lease.epoch} is over")


def _owned(index: dict[str, str], uid: str, own: set[str]) -> dict[str, str]:
    kept = {name: of for name, of in index.items() if of != uid}
    kept.update((name, uid) for name in own)
    return kept
