"""Caches, as every service reads and saves them."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Cache, Event, Wanted
from cachekeep.store.contract import Transaction
from cachekeep.store.every import every

__all__ = ["every", "save", "told"]


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
