"""Caches: what is wanted of them, and which CacheClusterIds are whose."""

from __future__ import annotations

import builtins

import msgspec
import sqlalchemy as sa

from cachekeep.model import Cache, CacheKind
from cachekeep.store import tables as t
from cachekeep.store.contract import AlreadyThere
from cachekeep.store.families.sql.part import SqlPart
from cachekeep.store.rows import ROW, cache_of, micros_of, stale, text_of

# Statements of every request and of the failover path are built once: building one costs as much as running it.
_p = sa.bindparam
_BY_NAME = ROW.where(t.caches.c.kind == _p("kind"), t.caches.c.name == _p("name"))
_BY_MEMBER = ROW.where(
    t.caches.c.uid == sa.select(t.members.c.uid).where(t.members.c.cluster_id == _p("cluster_id")).scalar_subquery()
)
_MEMBERS_OF = sa.select(t.members.c.cluster_id).where(t.members.c.uid == _p("uid"))


class SqlCaches(SqlPart):
    """``CacheRecords``."""

    async def cache(self, name: str, kind: CacheKind) -> Cache | None:
        row = (await self.execute(self._held(_BY_NAME, t.caches), {"kind": kind, "name": name})).first()
        return cache_of(row) if row else None

    async def cache_of(self, cluster_id: str) -> Cache | None:
        row = (await self.execute(self._held(_BY_MEMBER, t.caches), {"cluster_id": cluster_id})).first()
        return cache_of(row) if row else None

    async def caches(self, *, kind: CacheKind | None = None, after: str = "", limit: int | None = None) -> builtins.list[Cache]:
        query = ROW.where(t.caches.c.name > after).order_by(t.caches.c.name, t.caches.c.kind).limit(limit)
        if kind is not None:
            query = query.where(t.caches.c.kind == kind)
        return [cache_of(row) for row in (await self.execute(query)).all()]

    async def members(self, *, after: str = "", limit: int) -> builtins.list[tuple[str, str]]:
        query = sa.select(t.members.c.cluster_id, t.members.c.uid).where(t.members.c.cluster_id > after)
        rows = (await self.execute(query.order_by(t.members.c.cluster_id).limit(limit))).all()
        return [(row.cluster_id, row.uid) for row in rows]

    async def insert(self, cache: Cache) -> Cache:
        self._write().add(cache.uid)
        await self._free(cache)
        saved = msgspec.structs.replace(cache, version=1)
        await self.execute(
            sa.insert(t.caches).values(
                uid=saved.uid,
                kind=saved.kind,
                name=saved.name,
                region=saved.region,
                created_at=micros_of(saved.created_at),
                version=saved.version,
                wanted=text_of(saved.wanted),
                decided=text_of(saved.decided),
            )
        )
        await self.execute(sa.insert(t.leases).values(uid=saved.uid, epoch=0, holder=None))
        await self.own_members(saved)
        return saved

    async def save_wanted(self, cache: Cache) -> Cache:
        self._write().add(cache.uid)
        await self._free(cache)
        saved = await self.execute(
            sa.update(t.caches)
            .where(t.caches.c.uid == cache.uid, t.caches.c.version == cache.version)
            .values(kind=cache.kind, name=cache.name, wanted=text_of(cache.wanted), version=cache.version + 1)
        )
        if saved.rowcount != 1:
            raise stale(cache)
        await self.own_members(cache)
        return msgspec.structs.replace(cache, version=cache.version + 1)

    async def _free(self, cache: Cache) -> None:
        taken = sa.select(t.caches.c.uid).where(
            t.caches.c.kind == cache.kind, t.caches.c.name == cache.name, t.caches.c.uid != cache.uid
        )
        if (await self.execute(taken)).first():
            raise AlreadyThere(cache.kind, cache.name)
        # Looked at before anything is written, so that whoever catches the error has nothing half-made to commit.
        taken = sa.select(t.members.c.cluster_id).where(
            t.members.c.cluster_id.in_(cache.cluster_ids()), t.members.c.uid != cache.uid
        )
        if names := (await self.execute(taken)).scalars().all():
            raise AlreadyThere("member", min(names))

    async def own_members(self, cache: Cache) -> None:
        """Make the member index say what the cache owns."""
        own = set(cache.cluster_ids())
        had = set((await self.execute(_MEMBERS_OF, {"uid": cache.uid})).scalars().all())
        if gone := had - own:
            await self.execute(sa.delete(t.members).where(t.members.c.cluster_id.in_(sorted(gone))))
        if new := sorted(own - had):
            await self.execute(sa.insert(t.members), [{"cluster_id": cluster_id, "uid": cache.uid} for cluster_id in new])
