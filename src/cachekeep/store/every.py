"""All caches, whoever asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from cachekeep.model import Cache, CacheKind
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
