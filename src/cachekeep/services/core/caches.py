"""Caches, as every service reads and saves them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from msgspec.structs import replace

from cachekeep.model import Cache, CacheKind, Event, Wanted
from cachekeep.store.contract import Transaction

_BATCH: Final = 200
_KINDS: Final[tuple[CacheKind, ...]] = ("cluster", "group")


async def every(tx: Transaction, chosen: Callable[[Cache], bool] = lambda cache: True) -> AsyncIterator[Cache]:
    """All caches of both kinds for which ``chosen`` holds, read in batches."""
    for kind in _KINDS:
        after = ""
        while batch := await tx.caches(kind=kind, after=after, limit=_BATCH):
            for cache in batch:
                if chosen(cache):
                    yield cache
            after = batch[-1].name


async def save(tx: Transaction, cache: Cache, wanted: Wanted, *events: Event) -> Cache:
    """Save what is wanted and wake its keeper; nothing happens when nothing has changed."""
    if wanted == cache.wanted:
        return cache
    saved = await tx.save_wanted(replace(cache, wanted=wanted))
    await tx.tell(*events)
    tx.wake(cache.uid)
    return saved


def told(cache: Cache, message: str) -> Event:
    """An event of the cache."""
    return Event(source_type=cache.source_type, source=cache.name, message=message)
