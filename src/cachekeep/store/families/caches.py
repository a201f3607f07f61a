"""Caches: what is wanted of them, and which CacheClusterIds are whose."""

from __future__ import annotations

import builtins
from typing import Protocol

from cachekeep.model import Cache, CacheKind


class CacheRecords(Protocol):
    """Of a transaction. Its writing methods raise ``RuntimeError`` in ``Store.reading``."""

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
