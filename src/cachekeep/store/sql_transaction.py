"""A transaction over SQL: the same statements for SQLite and PostgreSQL."""

from __future__ import annotations

import builtins
import datetime as dt
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import sqlalchemy as sa

from cachekeep.errors import Conflict
from cachekeep.model import Cache, CacheKind, Condition, Event, Record
from cachekeep.model.resources import SourceType
from cachekeep.store import tables as t
from cachekeep.store.contract import EVENTS_KEPT_DAYS, AddressTaken, AlreadyThere, Cursor, R
from cachekeep.store.database import Session
from cachekeep.store.rows import ROW, cache_of, condition_of, micros_of, resource_of, stale, text_of, time_of, versioned
from cachekeep.store.wakes import Touched

if TYPE_CHECKING:
    from cachekeep.store.sql import SqlStore

_CHUNK = 1000
"""Most values in one IN list; SQLite allows 32,766 and PostgreSQL 32,767 parameters."""

# Statements of every request and of the failover path are built once: building one costs as much as running it.
_p = sa.bindparam
_BY_NAME = ROW.where(t.caches.c.kind == _p("kind"), t.caches.c.name == _p("name"))
_BY_MEMBER = ROW.where(
    t.caches.c.uid == sa.select(t.members.c.uid).where(t.members.c.cluster_id == _p("cluster_id")).scalar_subquery()
)
_ADDRESSES_OF = sa.select(t.addresses.c.address).where(t.addresses.c.uid == _p("uid"))
_MEMBERS_OF = sa.select(t.members.c.cluster_id).where(t.members.c.uid == _p("uid"))
_INSERT_EVENTS = sa.insert(t.events)


class SqlTransaction:
    """``Transaction``. ``touched`` None: read only."""

    def __init__(self, store: SqlStore, session: Session, touched: Touched | None) -> None:
        self._store = store
        self._session = session
        self._touched = touched
        self.execute = session.execute

    def _write(self) -> Touched:
        if self._touched is None:
            raise RuntimeError("a reading transaction cannot write")
        return self._touched

    def _held(self, statement: sa.Select[Any], of: sa.Table) -> sa.Select[Any]:
        """Lock what is read by name, so that a keeper's save waits for the commit and not the other way round."""
        return statement if self._touched is None else statement.with_for_update(of=of)

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

    async def own_addresses(self, uid: str, own: set[str]) -> None:
        """Make the address index say what the cache uses. Raises ``AddressTaken``."""
        had = set((await self.execute(_ADDRESSES_OF, {"uid": uid})).scalars().all())
        if gone := had - own:
            await self.execute(sa.delete(t.addresses).where(t.addresses.c.address.in_(sorted(gone))))
            await self._release(uid, gone)
        # In order, so that two keepers that want the same addresses wait for one another one way only.
        if new := sorted(own - had):
            rows = [{"address": address, "uid": uid} for address in new]
            added = await self.execute(
                self._store.insert(t.addresses).values(rows).on_conflict_do_nothing().returning(t.addresses.c.address)
            )
            others = sa.and_(t.released.c.uid != uid, ~self._rested())
            held = await self.execute(sa.select(t.released.c.address).where(t.released.c.address.in_(new), others))
            if taken := set(held.scalars().all()) | (set(new) - set(added.scalars().all())):
                raise AddressTaken(min(taken))

    async def _release(self, uid: str, addresses: set[str]) -> None:
        """A cache gives up these; those that were given up long enough ago are forgotten."""
        now = self._store.clock.moment()
        over = sa.select(t.released.c.address).where(self._rested()).with_for_update(skip_locked=True)
        await self.execute(sa.delete(t.released).where(t.released.c.address.in_(over)))
        rows = [{"address": address, "uid": uid, "boot": now.boot, "seconds": now.seconds} for address in sorted(addresses)]
        insert = self._store.insert(t.released).values(rows)
        again = {name: insert.excluded[name] for name in ("uid", "boot", "seconds")}
        await self.execute(insert.on_conflict_do_update(index_elements=["address"], set_=again))

    def _rested(self) -> sa.ColumnElement[bool]:
        """Of ``released``: nobody looks for what was there any more."""
        now = self._store.clock.moment()
        return sa.and_(t.released.c.boot == now.boot, t.released.c.seconds <= now.seconds - self._store.linger_seconds)

    async def recount_released(self) -> None:
        """What another boot began is counted from now on."""
        now = self._store.clock.moment()
        anew = sa.update(t.released).where(t.released.c.boot != now.boot)
        await self.execute(anew.values(boot=now.boot, seconds=now.seconds))

    async def addresses(self) -> set[str]:
        """``Store.addresses``."""
        used, resting = sa.select(t.addresses.c.address), sa.select(t.released.c.address).where(~self._rested())
        return set((await self.execute(used.union(resting))).scalars().all())

    async def condition(self, uid: str) -> Condition | None:
        return (await self.conditions((uid,))).get(uid)

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        live = (
            sa.select(t.conditions.c.uid, t.conditions.c.body, t.holders.c.holder, t.holders.c.beat, t.holders.c.ttl)
            .join(t.caches, sa.and_(t.caches.c.uid == t.conditions.c.uid, t.caches.c.version == t.conditions.c.version))
            .join(t.leases, sa.and_(t.leases.c.uid == t.conditions.c.uid, t.leases.c.epoch == t.conditions.c.epoch))
            .join(t.holders, t.holders.c.holder == t.leases.c.holder)
        )
        silent_seconds = self._store.beats.silent_seconds
        found: dict[str, Condition] = {}
        asked = list(uids)
        for start in range(0, len(asked), _CHUNK):
            rows = await self.execute(live.where(t.conditions.c.uid.in_(asked[start : start + _CHUNK])))
            alive = (row for row in rows.all() if silent_seconds(row.holder, row.beat) * 1_000_000 < row.ttl)
            found.update((row.uid, condition_of(row.body)) for row in alive)
        return found

    async def get(self, kind: type[R], name: str) -> R | None:
        query = sa.select(t.resources.c.version, t.resources.c.body).where(
            t.resources.c.kind == kind.__name__, t.resources.c.name == name
        )
        row = (await self.execute(self._held(query, t.resources))).first()
        return resource_of(kind, row.version, row.body) if row else None

    async def put(self, resource: R) -> R:
        self._write()
        values = {"version": resource.version + 1, "body": text_of(resource)}
        kind = type(resource).__name__
        if resource.version == 0:
            statement = self._store.insert(t.resources).values(kind=kind, name=resource.name, **values).on_conflict_do_nothing()
        else:
            statement = (
                sa.update(t.resources)
                .where(t.resources.c.kind == kind, t.resources.c.name == resource.name, t.resources.c.version == resource.version)
                .values(**values)
            )
        if (await self.execute(statement)).rowcount != 1:
            raise Conflict(f"{kind} {resource.name} was changed by somebody else since version {resource.version}")
        return versioned(resource, resource.version + 1)

    async def leave(self, records: Sequence[Record]) -> None:
        """Put them in the place of whatever of their kinds and names is there."""
        for record in records:
            key = {"kind": type(record).__name__, "name": record.name}
            insert = self._store.insert(t.resources).values(version=1, body=text_of(record), **key)
            again = {"version": t.resources.c.version + 1, "body": insert.excluded.body}
            await self.execute(insert.on_conflict_do_update(index_elements=["kind", "name"], set_=again))

    async def delete(self, kind: type[R], name: str) -> bool:
        self._write()
        gone = await self.execute(sa.delete(t.resources).where(t.resources.c.kind == kind.__name__, t.resources.c.name == name))
        return gone.rowcount == 1

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        query = (
            sa.select(t.resources.c.version, t.resources.c.body)
            .where(t.resources.c.kind == kind.__name__, t.resources.c.name > after)
            .order_by(t.resources.c.name)
            .limit(limit)
        )
        return [resource_of(kind, row.version, row.body) for row in (await self.execute(query)).all()]

    async def told(self, event: Event) -> bool:
        """Whether the very same event, with its time, is there already."""
        c = t.events.c
        same = (c.at == micros_of(event.at)) if event.at else sa.false()
        query = sa.select(c.id).where(
            same, c.source_type == event.source_type, c.source == event.source, c.message == event.message
        )
        return (await self.execute(query.limit(1))).first() is not None

    async def tell(self, *events: Event) -> None:
        self._write()
        if not events:
            return
        now = self._store.clock.now()
        await self.execute(
            _INSERT_EVENTS,
            [
                {"at": micros_of(e.at or now), "source_type": e.source_type, "source": e.source, "message": e.message}
                for e in events
            ],
        )

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
        oldest = self._store.clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        c = t.events.c
        query = sa.select(c.at, c.id, c.source_type, c.source, c.message).where(c.at >= micros_of(max(start or oldest, oldest)))
        if end is not None:
            query = query.where(c.at < micros_of(end))
        if source_type is not None:
            query = query.where(c.source_type == source_type)
        if source is not None:
            query = query.where(c.source == source)
        if after is not None:
            query = query.where(c.id > int(after))
        rows = (await self.execute(query.order_by(c.id).limit(limit))).all()
        return [
            (
                str(row.id),
                Event(source_type=cast(SourceType, row.source_type), source=row.source, message=row.message, at=time_of(row.at)),
            )
            for row in rows
        ]

    def wake(self, uid: str) -> None:
        self._write().add(uid)

    def has_told(self, uid: str) -> None:
        """Nothing but the condition of the cache is new."""
        self._write().add(uid, told=True)
