"""A store that decisions need not wait for: while the one beneath is slow, locked, full or away, they go to the journal.

Reading and saving are given a short time. When that is over, or when the store beneath fails, it counts as away: keepers go on with
what they know, and decide on the journal's disk instead, until all of that has been merged. See docs/decisions/0009-journal.md for
why nobody else can decide meanwhile.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import msgspec

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError, Conflict, LeaseLost
from cachekeep.model import Cache, CacheKind, Condition, Decided, Event
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.store.contract import Along, Lease, Store, StoreFailed, Transaction
from cachekeep.store.journal import Carried, Entry, Journal
from cachekeep.store.serial import following, overlaid
from cachekeep.store.wakes import Wakes

PATIENCE_SECONDS = 0.1
"""How long a keeper waits for the store beneath. A save takes 1 to 20 ms, some 50 ms on a busy machine (decision 9)."""
REQUEST_SECONDS = 10.0
"""How long an API request that writes waits for the store to come back."""
TRY_SECONDS = 5.0
"""How long one attempt to come back may take: a server that is gone for good must not be waited for
when another has its address."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 1.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class JournaledStore:
    """``Store``. ``alone`` says whether nobody but this process can decide now: without that the journal is not used, for whoever
    decides next must be able to read it."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        clock: Clock,
        *,
        alone: Callable[[], bool],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._store, self._journal, self._clock, self._alone = store, journal, clock, alone
        self._patience_seconds = patience_seconds
        self._changes, self._conditions = Wakes(), Wakes()
        self._known: dict[str, Cache] = {}
        """Rows as the store beneath last showed them to keepers."""
        self._doubtful: dict[str, int] = {}
        """Serials of saves of which nobody knows whether they were done: no other decision may have one of these."""
        self._told: dict[str, Condition] = {}
        """What keepers have told and the store beneath does not know yet."""
        self._holder: tuple[str, float] | None = None
        self._trouble, self._since = "", 0.0
        """Why the store beneath is away, and since when; empty: it is there."""
        self._back = asyncio.Event()
        self._back.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ends: list[Callable[[], None]] = []

    async def open(self) -> None:
        """Read the journal; the store beneath is open already. What is in the journal is merged before anything is claimed."""
        self._ends = [self._store.on_change(self._changes), self._store.on_told(self._conditions)]
        await self._journal.open()
        if self._journal.damage:
            log.error("%s", self._journal.damage)
        if entries := self._journal.entries.values():
            self._lost(f"{_many(entries)} of an earlier control plane are not merged yet")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), TRY_SECONDS)

    async def aclose(self) -> None:
        """Let go of the journal; what is in it is merged by the next control plane.
        The store beneath is closed by whoever opened it."""
        for end in self._ends:
            end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._journal.aclose()

    def trouble(self) -> str:
        """What is wrong with the store beneath, for people; empty: nothing."""
        if not self._trouble:
            return ""
        away_seconds = self._clock.monotonic() - self._since
        kept = _many(self._journal.entries.values()) or "no decisions"
        return (
            f"the store has not taken a change for {away_seconds:.1f} s: {self._trouble}. Failovers go on; {kept} are kept in "
            f"{self._journal.shown} until it does. Changes that are asked for are refused meanwhile."
        )

    def remembered(self) -> builtins.list[tuple[Cache, Condition | None]]:
        """Caches as the keepers of this process know them, by name: for when nothing can be read."""
        shown = [self._shown(cache) for cache in self._known.values()]
        return [(c, self._condition(c)) for c in sorted(shown, key=lambda c: (c.name, c.kind))]

    # -- away, and back

    def _lost(self, why: str) -> None:
        if self._trouble:
            return
        log.warning("the store is away: %s. Decisions go to journal %s until it is back", why, self._journal.shown)
        self._trouble, self._since = why, self._clock.monotonic()
        self._back.clear()
        self._start(self._return())

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, CachekeepError):
            log.error("the store failed in a way that nobody expected", exc_info=error)

    async def _patiently(self, work: Coroutine[Any, Any, T], *, goes_on: bool = False) -> T:
        """Wait for it, but not for long; then it ends as soon as it can, or ``goes_on``. Raises ``StoreFailed``:
        if it would have written something, it may have."""
        task = self._start(work)
        try:
            await asyncio.wait({task}, timeout=self._patience_seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            if not goes_on:
                task.cancel()
            self._lost(f"it has not answered within {self._patience_seconds:g} s")
            raise StoreFailed(self._trouble)
        try:
            return task.result()
        except StoreFailed as error:
            self._lost(str(error))
            raise

    async def _return(self) -> None:
        """Try until the store takes a change and has everything that is in the journal."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    await self._try()
                    if self._journal.empty:
                        break
            except StoreFailed as error:
                self._trouble = str(error)
            except TimeoutError:
                self._trouble = f"it has not answered within {TRY_SECONDS:g} s"
            except Exception:
                log.exception("the store cannot come back, in a way that nobody expected")
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        log.info("the store is back after %.1f s", self._clock.monotonic() - self._since)
        self._trouble = ""
        self._back.set()
        for uid in list(self._known):  # they have not seen what was wanted meanwhile
            self._changes(uid)

    async def _try(self) -> None:
        """Something that has to be written, so that it is known whether anything can be; then what is in the journal."""
        if self._holder is not None:
            await self._store.renew(self._holder[0], ttl_seconds=self._holder[1])
        else:
            async with self._store.transaction():
                pass
        for entry in list(self._journal.entries.values()):
            await self._merge(entry)

    async def _merge(self, entry: Entry) -> None:
        uid = entry.lease.uid
        try:
            merged = await self._store.merge_decided(
                uid,
                entry.decided,
                entry.lease,
                Along(events=entry.events, records=entry.carried(), addresses=entry.addresses),
            )
        except (LeaseLost, Conflict) as error:
            self._known.pop(uid, None)
            orders = ", ".join(f"order {x.order} of shard {x.id} for {x.primary}" for x in entry.decided.shards)
            log.error("what the journal holds of cache %s is void: %s. The last were: %s", uid, error, orders or "no orders")
        else:
            self._known[uid] = merged
            if uid in self._journal.entries:
                log.info("%s: the store has decision %d", merged.name, entry.decided.serial)
        await self._journal.drop(uid, entry.decided.serial)

    # -- what keepers see

    def _shown(self, row: Cache) -> Cache:
        """A row, with what has been decided since."""
        entry = self._journal.entries.get(row.uid)
        return row if entry is None else overlaid(row, entry.decided)

    def _condition(self, shown: Cache) -> Condition | None:
        told = self._told.get(shown.uid)
        return told if told is not None and told.version == shown.version else None

    async def load(self, uid: str) -> Cache | None:
        if not self._trouble:
            with contextlib.suppress(StoreFailed):
                return await self._patiently(self._load(uid), goes_on=True)
        row = self._known.get(uid)
        if row is None or not self._alone():
            raise StoreFailed(f"cache {uid} cannot be read: {self._trouble}")
        return self._shown(row)

    async def _load(self, uid: str) -> Cache | None:
        before = self._known.get(uid)
        row = await self._store.load(uid)
        if row is None:
            self._known.pop(uid, None)
            return None
        known = self._known.get(uid)
        if known is not None and known is not before and known.decided.serial > row.decided.serial:
            return self._shown(known)  # it was written while this was on its way, and is not to be taken back
        if self._trouble and self._known.get(uid) != row:  # too late for whoever asked
            self._changes(uid)
        self._known[uid] = row
        return self._shown(row)

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        now = self._clock.now()
        events = tuple(msgspec.structs.replace(e, at=e.at or now) for e in along.events)
        along = msgspec.structs.replace(along, events=events)
        decided = following(cache.decided)
        if not self._trouble:
            with contextlib.suppress(StoreFailed):
                saving = self._store.save_decided(cache, lease, along)
                saved = await self._patiently(saving)
                self._known[cache.uid] = saved
                return saved
            self._doubtful[cache.uid] = decided.serial
        elif (doubtful := self._doubtful.get(cache.uid, 0)) >= decided.serial:
            decided = msgspec.structs.replace(decided, serial=doubtful + 1)
        return await self._keep(cache, decided, lease, along)

    async def _keep(self, cache: Cache, decided: Decided, lease: Lease, along: Along) -> Cache:
        if not self._alone():
            raise StoreFailed(f"{self._trouble}. Nothing was decided: another control plane may have to go on from here")
        row, former = self._known.get(cache.uid), self._journal.entries.get(cache.uid)
        if row is None or (before := self._shown(row)).version != cache.version:
            raise Conflict(f"cache {cache.name} ({cache.uid}) was changed by somebody else since version {cache.version}")
        if new := set(along.addresses) - addresses_used(before.decided):
            raise StoreFailed(f"{self._trouble}. Nothing was decided: {min(new)} may be in use by another cache")
        if former is not None and former.lease != lease:
            raise StoreFailed(
                f"{self._trouble}. Nothing was decided: what was decided under epoch {former.lease.epoch} comes first"
            )
        told, left = (former.events, former.records) if former is not None else ((), ())
        entry = Entry(
            lease=lease,
            decided=decided,
            addresses=tuple(sorted(along.addresses)),
            events=(*told, *along.events),
            records=(*left, *(Carried.of(record) for record in along.records)),
        )
        await self._journal.keep(entry)
        self._changes(cache.uid)
        return overlaid(row, decided)

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        self._refuse()
        await self._store.forget(cache, lease, events=events)
        self._known.pop(cache.uid, None)
        self._doubtful.pop(cache.uid, None)

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        return await self._store.merge_decided(uid, decided, lease, along)

    async def addresses(self) -> set[str]:
        self._refuse()
        return await self._patiently(self._store.addresses())

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        if not self._trouble:
            with contextlib.suppress(StoreFailed):
                await self._patiently(self._store.publish(uid, condition, lease))
                self._told.pop(uid, None)
                return
        if self._alone() and self._told.get(uid) != condition:
            self._told[uid] = condition
            self._conditions(uid)

    def _refuse(self) -> None:
        if self._trouble:
            raise StoreFailed(self._trouble)

    # -- leases

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        self._refuse()  # what an earlier control plane has decided is merged under its own lease, before anybody has the next
        self._holder = (holder, ttl_seconds)
        return await self._store.claim(holder, ttl_seconds=ttl_seconds, uids=uids, limit=limit)

    async def renew(self, holder: str, *, ttl_seconds: float) -> builtins.list[Lease]:
        self._refuse()
        self._holder = (holder, ttl_seconds)
        return await self._patiently(self._store.renew(holder, ttl_seconds=ttl_seconds), goes_on=True)

    async def claim_work(self, holder: str, name: str, *, ttl_seconds: float) -> int | None:
        self._refuse()
        return await self._store.claim_work(holder, name, ttl_seconds=ttl_seconds)

    async def prune(self) -> None:
        self._refuse()
        await self._store.prune()

    async def release(self, lease: Lease) -> None:
        await self._store.release(lease)

    async def bury(self, holder_prefix: str) -> None:
        await self._store.bury(holder_prefix)

    # -- what requests see

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        if self._trouble:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), REQUEST_SECONDS)
            if not self._back.is_set():
                raise StoreFailed(self._trouble)
        async with self._store.transaction() as transaction:
            yield transaction

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        async with self._store.reading() as transaction:
            plain = not self._trouble and not self._told
            yield transaction if plain else cast(Transaction, _Overlaid(transaction, self))

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._changes.add(callback)

    def on_told(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._conditions.add(callback)


class _Overlaid:
    """A reading ``Transaction`` that shows what has been decided and told since the store is away."""

    def __init__(self, transaction: Transaction, store: JournaledStore) -> None:
        self._transaction, self._store = transaction, store
        self._seen: dict[str, Cache] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def _shown(self, row: Cache) -> Cache:
        return self._seen.setdefault(row.uid, self._store._shown(row))

    async def cache(self, name: str, kind: CacheKind) -> Cache | None:
        row = await self._transaction.cache(name, kind)
        return row and self._shown(row)

    async def cache_of(self, cluster_id: str) -> Cache | None:
        row = await self._transaction.cache_of(cluster_id)
        return row and self._shown(row)

    async def caches(self, *, kind: CacheKind | None = None, after: str = "", limit: int | None = None) -> builtins.list[Cache]:
        return [self._shown(row) for row in await self._transaction.caches(kind=kind, after=after, limit=limit)]

    async def condition(self, uid: str) -> Condition | None:
        return (await self.conditions((uid,))).get(uid)

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        """Those of caches that were read before: of which version they are is not known of others."""
        found = {uid: c for uid, c in (await self._transaction.conditions(uids)).items() if self._fits(uid, c)}
        for uid in uids:
            if (cache := self._seen.get(uid)) is not None and (told := self._store._condition(cache)) is not None:
                found[uid] = told
        return found

    def _fits(self, uid: str, condition: Condition) -> bool:
        return uid not in self._seen or self._seen[uid].version == condition.version


def _many(entries: Collection[Entry]) -> str:
    """``decisions about 2 caches``; empty for none."""
    return f"decisions about {len(entries)} cache{'s' * (len(entries) > 1)}" if entries else ""
