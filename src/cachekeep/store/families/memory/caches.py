"""Caches: what is wanted of them, and which CacheClusterIds are whose."""

from __future__ import annotations

import builtins

import msgspec

from cachekeep.errors import Conflict
from cachekeep.model import Cache, CacheKind
from cachekeep.store.contract import AlreadyThere
from cachekeep.store.families.memory.part import MemoryPart, owned


class MemoryCaches(MemoryPart):
    """``CacheRecords``."""

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

    def _name(self, cache: Cache) -> None:
        if self.state.names.get((cache.kind, cache.name), cache.uid) != cache.uid:
            raise AlreadyThere(cache.kind, cache.name)
        if taken := [name for name in cache.cluster_ids() if self.state.members.get(name, cache.uid) != cache.uid]:
            raise AlreadyThere("member", min(taken))
        self.state.names[cache.kind, cache.name] = cache.uid

    def own_members(self, cache: Cache) -> None:
        """Make the member index say what the cache owns."""
        self.state.members = owned(self.state.members, cache.uid, set(cache.cluster_ids()))
