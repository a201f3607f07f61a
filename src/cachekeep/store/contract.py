"""The door to memory. ``SqlStore`` (SQLite, PostgreSQL) and ``MemoryStore`` keep it; ``tests/contract`` runs one suite over all.

Two sides use it. API requests write what is *wanted*, inside a ``Transaction``: such transactions are serial, so that what one has
read is still so when it commits. Keepers write what has been *decided*, each only for caches whose lease it holds. Both save by
compare-and-swap on ``Cache.version``; neither touches the other's half.
"""

from __future__ import annotations

import builtins
import datetime as dt
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import msgspec

from cachekeep.errors import CachekeepError, Conflict
from cachekeep.model import Cache, CacheKind, Condition, Decided, Event, Record

EVENTS_KEPT_DAYS = 14
"""DescribeEvents answers for the last 14 days (API reference, DescribeEvents)."""


class AddressTaken(Conflict):
    """Another cache took the address meanwhile, or has just given it up. Look again: it is no longer among the free ones."""

    def __init__(self, address: str) -> None:
        super().__init__(f"address {address} is another cache's, or was until a moment ago")
        self.address = address


class AlreadyThere(CachekeepError):
    """The name is in use. ``kind`` is ``group`` or ``cluster`` for a cache,
    ``member`` for a CacheClusterId inside another cache."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name} already exists")
        self.kind = kind
        self.name = name


class StoreFailed(CachekeepError):
    """The database cannot be read or written now (disk full, server gone). Nothing of the transaction was kept, unless ``unsure``:
    the connection broke while it was being committed."""

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


class Resource(Protocol):
    """Any frozen struct with a name and a version: parameter group, subnet group, tags, … Its type's name is its kind."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...


R = TypeVar("R", bound=Resource)
Cursor = str
"""Where a page of events ended. Opaque."""


class Lease(msgspec.Struct, frozen=True):
    """The right to decide for a cache. ``epoch`` grows with every claim and fences off everybody who held it before."""

    uid: str
    holder: str
    epoch: int


class Transaction(Protocol):
    """One unit of reading and writing. In ``Store.reading`` the writing methods raise ``RuntimeError``."""

    async def cache(self, name: str, kind: CacheKind) -> Cache | None:
        """The cache of that name. In a read-write transaction nobody else changes it until the end."""

    async def cache_of(self, cluster_id: str) -> Cache | None:
        """The cache that owns this CacheClusterId: a stand-alone cluster, or the group of which it is a member."""

    async def caches(self, *, kind: CacheKind | None = None, after: str = "", limit: int | None = None) -> builtins.list[Cache]:
        """Caches by name, those with a name greater than ``after``.
        Page through one ``kind`` at a time: names repeat across kinds."""

    async def members(self, *, after: str = "", limit: int) -> builtins.list[tuple[str, str]]:
        """(CacheClusterId, uid) of every cache cluster, by id, those greater than ``after``."""

    async def insert(self, cache: Cache) -> Cache:
        """Add a new cache; ``version`` becomes 1. Raises ``AlreadyThere`` if its name or one of its CacheClusterIds is in use."""

    async def save_wanted(self, cache: Cache) -> Cache:
        """Write ``wanted``, ``name`` and ``kind`` (a cluster that becomes a group keeps its uid) over the same version.

        Returns the cache with its new version. Raises ``Conflict`` (another version) or ``AlreadyThere`` (a name is in use).
        """

    async def condition(self, uid: str) -> Condition | None:
        """What its keeper last told, if that keeper's lease is live and it told it of the row's present version; else None."""

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        """``condition`` of many; those without one are left out."""

    async def get(self, kind: type[R], name: str) -> R | None:
        """The resource of that kind and name."""

    async def put(self, resource: R) -> R:
        """Insert (version 0) or replace the same version; returns it with its new version. Raises ``Conflict``."""

    async def delete(self, kind: type[R], name: str) -> bool:
        """Remove it; False if there was none."""

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        """Resources of that kind by name, those greater than ``after``."""

    async def tell(self, *events: Event) -> None:
        """Add events; those without ``at`` get the present time."""

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
        """Events with ``start <= at < end``, those behind ``after``, in the order in which they were told: the wall clock, by
        which they are dated, may have been set back in between."""

    def wake(self, uid: str) -> None:
        """Tell those who listen with ``on_change``, after the commit and only then."""


class Store(Protocol):
    """Every method raises ``StoreFailed`` when the database cannot be used at the moment."""

    async def open(self) -> None:
        """Make the database ready, migrating an older one. Raises ``Unusable``: corrupt, of a newer program, or not ours."""

    async def aclose(self) -> None:
        """Let go of the database. Nothing is lost if this is never called."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Read and write. Serial: one at a time among all processes. Commits at the end, rolls back on an exception."""

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Read one snapshot. Never waits for writers."""

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        """Take leases that nobody holds or whose holder is seen to have been silent for its time to live, among ``uids`` or all;
        epoch + 1 each. Who looks for the first time sees nobody silent: it waits for as long as if the holder had just spoken,
        whatever clocks say.

        Never those that ``holder`` itself holds, however long it was silent: as long as nobody else takes them its epoch goes on. A
        holder lives as a whole: this call, like ``renew``, lets it live for another ``ttl_seconds``.
        """

    async def renew(self, holder: str, *, ttl_seconds: float) -> builtins.list[Lease]:
        """Let the holder live for another ``ttl_seconds``; returns all that it still holds, by uid."""

    async def release(self, lease: Lease) -> None:
        """Give a lease back. Does nothing if it was lost meanwhile."""

    async def bury(self, holder_prefix: str) -> None:
        """Declare dead every holder whose name begins so: what they held can be claimed at once.

        Only for whoever knows that they are dead, by holding the lock that they would hold. Epochs fence off one that is not.
        """

    async def claim_work(self, holder: str, name: str, *, ttl_seconds: float) -> int | None:
        """Take what one worker of an installation does at a time, or keep it. Returns its epoch, which grows whenever another takes
        it; None: it is another's, who is not seen to have been silent for its time to live (as ``claim`` does).

        Taken or kept, the holder lives for another ``ttl_seconds``.
        """

    async def prune(self) -> None:
        """Remove events that are too old to be told."""

    async def load(self, uid: str) -> Cache | None:
        """The cache as it is stored."""

    async def save_decided(
        self,
        cache: Cache,
        lease: Lease,
        *,
        events: Sequence[Event] = (),
        records: Sequence[Record] = (),
        addresses: Collection[str],
    ) -> Cache:
        """Write ``cache.decided`` over the same version, with ``events`` and ``records``, all of it or nothing; returns the cache
        with its new version and serial. A record takes the place of whatever of its kind and name is there.

        ``addresses`` are all that the decided state uses; one address belongs to one cache, and for a while to nobody else.
        Raises ``LeaseLost``, ``Conflict``, ``AddressTaken``.
        """

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
        """Write what a keeper has decided elsewhere under a lease, over whatever has become of what is wanted.

        The version grows by more than the serial. Where it is there already nothing is done, ``records`` are as they have become
        since, and none of ``events``, which say when they happened, is told twice: whoever is not sure that it was done does it
        again. Returns the cache. Raises ``LeaseLost``,
        ``AddressTaken``, or ``Conflict`` where something later is there.
        """

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        """Remove the cache and all that belongs to it: addresses, members, condition. Tags went when its deletion was asked for.

        Raises ``LeaseLost``, ``Conflict``.
        """

    async def addresses(self) -> set[str]:
        """All that nobody can be given now: those in use, of all caches, and those that were given up (by a save, or with their
        cache) less than the store's ``linger_seconds`` ago. Clients that have not heard of it yet still look for what was there,
        and must not meet a stranger.

        It is counted by moments; what another boot began is counted anew from ``open``.
        """

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        """Tell how a cache is. Writes only what is new. Raises ``LeaseLost``."""

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(uid)`` in the event loop after each commit that touched the cache, or woke it.

        Returns what ends it. Calls may repeat, and one may be missed when a connection breaks: a hint, never the truth.
        """

    def on_told(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """``on_change`` for the cache's condition: its keeper, which has told it, is not woken by that."""
