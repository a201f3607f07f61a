"""The door to memory. ``SqlStore`` (SQLite, PostgreSQL) and ``MemoryStore`` keep it; ``tests/contract`` runs one suite over all.

Two sides use it. API requests write what is *wanted*, inside a ``Transaction``: such transactions are serial, so that what one has
read is still so when it commits. Keepers write what has been *decided*, each only for caches whose lease it holds. Both save by
compare-and-swap on ``Cache.version``; neither touches the other's half.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from cachekeep.errors import CachekeepError, Conflict
from cachekeep.model import Cache, Condition, Decided, Event, Record
from cachekeep.store.families.caches import CacheRecords
from cachekeep.store.families.conditions import ConditionRecords
from cachekeep.store.families.events import EventRecords
from cachekeep.store.families.resources import ResourceRecords


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


class Lease(msgspec.Struct, frozen=True):
    """The right to decide for a cache. ``epoch`` grows with every claim and fences off everybody who held it before."""

    uid: str
    holder: str
    epoch: int


class Transaction(CacheRecords, ConditionRecords, ResourceRecords, EventRecords, Protocol):
    """One unit of reading and writing: what there is of each family (``families``). In ``Store.reading`` the writing methods raise
    ``RuntimeError``."""

    def wake(self, uid: str) -> None:
        """Tell those who listen with ``on_change``, after the commit and only then."""


class Along(msgspec.Struct, frozen=True, kw_only=True):
    """What is written along with a decision, all of it or nothing."""

    addresses: Collection[str]
    """All that the decided state uses; one address belongs to one cache, and for a while to nobody else."""
    events: Sequence[Event] = ()
    records: Sequence[Record] = ()
    """Each takes the place of whatever of its kind and name is there."""


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

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        """Write ``cache.decided`` over the same version; returns the cache with its new version and serial.

        Raises ``LeaseLost``, ``Conflict``, ``AddressTaken``.
        """

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        """Write what a keeper has decided elsewhere under a lease, over whatever has become of what is wanted.

        The version grows by more than the serial. Where it is there already nothing is done, records are as they have become
        since, and none of the events, which say when they happened, is told twice: whoever is not sure that it was done does it
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
