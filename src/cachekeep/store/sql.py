"""``Store`` over SQL: the same statements for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cachekeep.clock import Clock
from cachekeep.errors import Conflict, LeaseLost, Unusable
from cachekeep.model import Cache, CacheKind, Condition, Decided, Event, Secret, Wanted
from cachekeep.model.resources import SourceType
from cachekeep.store import tables as t
from cachekeep.store.contract import EVENTS_KEPT_DAYS, AddressTaken, AlreadyThere, Cursor, Lease, R
from cachekeep.store.database import Database, Session, Touched
from cachekeep.store.sqlite import Sqlite
from cachekeep.store.wakes import Wakes

log = logging.getLogger(__name__)

_PRUNE_SECONDS = 3600.0
_CHUNK = 1000
"""Most values in one IN list; SQLite allows 32,766 and PostgreSQL 32,767 parameters."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

_decode_wanted = msgspec.json.Decoder(Wanted).decode
_decode_decided = msgspec.json.Decoder(Decided).decode
_decode_condition = msgspec.json.Decoder(Condition).decode

# Statements of every request and of the failover path are built once: building one costs as much as running it.
_p = sa.bindparam
_ROW = sa.select(
    t.caches.c.uid,
    t.caches.c.name,
    t.caches.c.kind,
    t.caches.c.region,
    t.caches.c.created_at,
    t.caches.c.admin_password,
    t.caches.c.wanted,
    t.caches.c.decided,
    t.caches.c.version,
)
_BY_UID = _ROW.where(t.caches.c.uid == _p("uid"))
_BY_NAME = _ROW.where(t.caches.c.kind == _p("kind"), t.caches.c.name == _p("name"))
_BY_MEMBER = _ROW.where(
    t.caches.c.uid == sa.select(t.members.c.uid).where(t.members.c.cluster_id == _p("cluster_id")).scalar_subquery()
)
_FENCE = sa.select(t.leases.c.uid).where(
    t.leases.c.uid == _p("uid"), t.leases.c.epoch == _p("epoch"), t.leases.c.holder == _p("holder")
)
_FENCE_LOCK = _FENCE.with_for_update(read=True)
_SAVE_DECIDED = (
    sa.update(t.caches)
    .where(t.caches.c.uid == _p("of"), t.caches.c.version == _p("seen"))
    .values(decided=_p("decided"), version=t.caches.c.version + 1)
)
_ADDRESSES_OF = sa.select(t.addresses.c.address).where(t.addresses.c.uid == _p("uid"))
_MEMBERS_OF = sa.select(t.members.c.cluster_id).where(t.members.c.uid == _p("uid"))
_PUBLISHED = sa.select(t.conditions.c.epoch, t.conditions.c.version, t.conditions.c.body).where(t.conditions.c.uid == _p("uid"))
_INSERT_EVENTS = sa.insert(t.events)


class SqlStore:
    """``Store``. ``url``: ``sqlite:///path``, a plain path, or ``postgresql://user:password@host/database``."""

    def __init__(self, url: str | Path, clock: Clock) -> None:
        self._clock = clock
        self._database = _database(url, clock)
        self._insert: Callable[[sa.Table], Any] = sqlite.insert if isinstance(self._database, Sqlite) else postgresql.insert
        self._wakes = Wakes()
        self._pruned_at: float | None = None
        self._resync: set[object] = set()

    async def open(self) -> None:
        self._database.on_wake(self._hear)
        await self._database.open()

    async def aclose(self) -> None:
        await self._database.aclose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlTransaction]:
        async with self._writing(serial=True) as transaction:
            yield transaction

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqlTransaction]:
        async with self._database.reading() as session:
            yield SqlTransaction(self, session, None)

    @asynccontextmanager
    async def _writing(self, *, serial: bool = False, durable: bool = True) -> AsyncIterator[SqlTransaction]:
        touched = Touched()
        try:
            async with self._database.writing(touched, serial=serial, durable=durable) as session:
                yield SqlTransaction(self, session, touched)
        finally:
            if touched.committed:
                for uid in touched.uids:
                    self._wakes(uid)

    # ------------------------------------------------------------------------------------------------- leases

    def _claimable(self, uids: Collection[str] | None) -> builtins.list[sa.ColumnElement[bool]]:
        live = sa.exists().where(t.holders.c.holder == t.leases.c.holder, t.holders.c.until > self._database.now())
        return [~live, *([t.leases.c.uid.in_(list(uids))] if uids is not None else [])]

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        free = self._claimable(uids)
        wanted = sa.select(t.leases.c.uid).where(*free).order_by(t.leases.c.uid).limit(limit)
        async with self._database.reading() as session:
            # Mostly there is nothing: then nobody waits for a write.
            if (await session.execute(wanted)).first() is None:
                return []
        async with self._writing() as transaction:
            found = (await transaction.execute(wanted.with_for_update(skip_locked=True))).scalars().all()
            # Asked again, now that the rows are locked: the old holder may have renewed in between.
            taken = await transaction.execute(
                sa.update(t.leases)
                .where(t.leases.c.uid.in_(found), *free)
                .values(holder=holder, epoch=t.leases.c.epoch + 1)
                .returning(t.leases.c.uid, t.leases.c.epoch)
            )
            leases = sorted((Lease(row.uid, holder, row.epoch) for row in taken.all()), key=lambda lease: lease.uid)
            await self._live(transaction, holder, ttl_seconds)
            return leases

    async def renew(self, holder: str, *, ttl_seconds: float) -> set[str]:
        async with self._writing(durable=False) as transaction:
            await self._live(transaction, holder, ttl_seconds)
            held = sa.select(t.leases.c.uid).where(t.leases.c.holder == holder).with_for_update(read=True)
            return set((await transaction.execute(held)).scalars().all())

    async def _live(self, transaction: SqlTransaction, holder: str, ttl_seconds: float) -> None:
        until = self._database.now() + int(ttl_seconds * 1_000_000)
        await transaction.execute(
            self._insert(t.holders)
            .values(holder=holder, until=until)
            .on_conflict_do_update(index_elements=["holder"], set_={"until": until})
        )
        unused = sa.select(t.leases.c.holder).where(t.leases.c.holder.is_not(None))
        await transaction.execute(
            sa.delete(t.holders).where(t.holders.c.until < self._database.now(), t.holders.c.holder.not_in(unused))
        )

    async def release(self, lease: Lease) -> None:
        async with self._writing() as transaction:
            await transaction.execute(
                sa.update(t.leases)
                .where(t.leases.c.uid == lease.uid, t.leases.c.holder == lease.holder, t.leases.c.epoch == lease.epoch)
                .values(holder=None)
            )

    async def bury(self, holder_prefix: str) -> None:
        async with self._writing() as transaction:
            await transaction.execute(sa.delete(t.holders).where(t.holders.c.holder.startswith(holder_prefix, autoescape=True)))

    async def _fence(self, transaction: SqlTransaction, uid: str, lease: Lease) -> None:
        found = await transaction.execute(_FENCE_LOCK, {"uid": uid, "epoch": lease.epoch, "holder": lease.holder})
        if lease.uid != uid or found.first() is None:
            raise _lost(uid, lease)

    # ------------------------------------------------------------------------------------------------- the keeper's half

    async def load(self, uid: str) -> Cache | None:
        async with self._database.reading() as session:
            row = (await session.execute(_BY_UID, {"uid": uid})).first()
        return _cache(row) if row else None

    async def save_decided(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]) -> Cache:
        async with self._writing() as transaction:
            await self._fence(transaction, cache.uid, lease)
            saved = await transaction.execute(
                _SAVE_DECIDED, {"of": cache.uid, "seen": cache.version, "decided": _text(cache.decided)}
            )
            if saved.rowcount != 1:
                raise _stale(cache)
            await transaction.own_addresses(cache.uid, set(addresses))
            await transaction.own_members(cache)
            await transaction.tell(*events)
            transaction.wake(cache.uid)
        return msgspec.structs.replace(cache, version=cache.version + 1)

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        async with self._writing() as transaction:
            await self._fence(transaction, cache.uid, lease)
            gone = await transaction.execute(
                sa.delete(t.caches).where(t.caches.c.uid == cache.uid, t.caches.c.version == cache.version)
            )
            if gone.rowcount != 1:
                raise _stale(cache)
            await transaction.tell(*events)
            transaction.wake(cache.uid)

    async def addresses(self) -> set[str]:
        async with self._database.reading() as session:
            return set((await session.execute(sa.select(t.addresses.c.address))).scalars().all())

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        async with self._database.reading() as session:
            old = (await session.execute(_PUBLISHED, {"uid": uid})).first()
            held = (await session.execute(_FENCE, {"uid": uid, "epoch": lease.epoch, "holder": lease.holder})).first()
        if lease.uid != uid or held is None:
            raise _lost(uid, lease)
        if old and old.epoch == lease.epoch and old.version == condition.version and _decode_condition(old.body) == condition:
            return
        values = {"epoch": lease.epoch, "version": condition.version, "body": _text(condition)}
        # A condition that a power cut takes back belongs to a holder that it took, too.
        async with self._writing(durable=False) as transaction:
            await self._fence(transaction, uid, lease)
            await transaction.execute(
                self._insert(t.conditions).values(uid=uid, **values).on_conflict_do_update(index_elements=["uid"], set_=values)
            )
            transaction.wake(uid)

    # ------------------------------------------------------------------------------------------------- wakes

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._wakes.add(callback)

    def _hear(self, uid: str | None) -> None:
        if uid is not None:
            self._wakes(uid)
            return
        task = asyncio.ensure_future(self._wake_all())
        self._resync.add(task)
        task.add_done_callback(self._resync.discard)

    async def _wake_all(self) -> None:
        async with self._database.reading() as session:
            uids = (await session.execute(sa.select(t.caches.c.uid))).scalars().all()
        for uid in uids:
            self._wakes(uid)

    def _prune_due(self) -> bool:
        now = self._clock.monotonic()
        if self._pruned_at is not None and now - self._pruned_at < _PRUNE_SECONDS:
            return False
        self._pruned_at = now
        return True


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
        return _cache(row) if row else None

    async def cache_of(self, cluster_id: str) -> Cache | None:
        row = (await self.execute(self._held(_BY_MEMBER, t.caches), {"cluster_id": cluster_id})).first()
        return _cache(row) if row else None

    async def caches(self, *, kind: CacheKind | None = None, after: str = "", limit: int | None = None) -> builtins.list[Cache]:
        query = _ROW.where(t.caches.c.name > after).order_by(t.caches.c.name, t.caches.c.kind).limit(limit)
        if kind is not None:
            query = query.where(t.caches.c.kind == kind)
        return [_cache(row) for row in (await self.execute(query)).all()]

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
                created_at=_micros(saved.created_at),
                admin_password=saved.admin_password.value,
                version=saved.version,
                wanted=_text(saved.wanted),
                decided=_text(saved.decided),
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
            .values(kind=cache.kind, name=cache.name, wanted=_text(cache.wanted), version=cache.version + 1)
        )
        if saved.rowcount != 1:
            raise _stale(cache)
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
        # In order, so that two keepers that want the same addresses wait for one another one way only.
        if new := sorted(own - had):
            rows = [{"address": address, "uid": uid} for address in new]
            added = await self.execute(
                self._store._insert(t.addresses).values(rows).on_conflict_do_nothing().returning(t.addresses.c.address)
            )
            if taken := set(new) - set(added.scalars().all()):
                raise AddressTaken(min(taken))

    async def condition(self, uid: str) -> Condition | None:
        return (await self.conditions((uid,))).get(uid)

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        live = (
            sa.select(t.conditions.c.uid, t.conditions.c.body)
            .join(t.caches, sa.and_(t.caches.c.uid == t.conditions.c.uid, t.caches.c.version == t.conditions.c.version))
            .join(t.leases, sa.and_(t.leases.c.uid == t.conditions.c.uid, t.leases.c.epoch == t.conditions.c.epoch))
            .join(t.holders, t.holders.c.holder == t.leases.c.holder)
            .where(t.holders.c.until > self._store._database.now())
        )
        found: dict[str, Condition] = {}
        asked = list(uids)
        for start in range(0, len(asked), _CHUNK):
            rows = await self.execute(live.where(t.conditions.c.uid.in_(asked[start : start + _CHUNK])))
            found.update((row.uid, _decode_condition(row.body)) for row in rows.all())
        return found

    async def get(self, kind: type[R], name: str) -> R | None:
        query = sa.select(t.resources.c.version, t.resources.c.body).where(
            t.resources.c.kind == kind.__name__, t.resources.c.name == name
        )
        row = (await self.execute(self._held(query, t.resources))).first()
        return _resource(kind, row.version, row.body) if row else None

    async def put(self, resource: R) -> R:
        self._write()
        values = {"version": resource.version + 1, "body": _text(resource)}
        kind = type(resource).__name__
        if resource.version == 0:
            statement = self._store._insert(t.resources).values(kind=kind, name=resource.name, **values).on_conflict_do_nothing()
        else:
            statement = (
                sa.update(t.resources)
                .where(t.resources.c.kind == kind, t.resources.c.name == resource.name, t.resources.c.version == resource.version)
                .values(**values)
            )
        if (await self.execute(statement)).rowcount != 1:
            raise Conflict(f"{kind} {resource.name} was changed by somebody else since version {resource.version}")
        return _versioned(resource, resource.version + 1)

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
        return [_resource(kind, row.version, row.body) for row in (await self.execute(query)).all()]

    async def tell(self, *events: Event) -> None:
        self._write()
        if not events:
            return
        now = self._store._clock.now()
        await self.execute(
            _INSERT_EVENTS,
            [{"at": _micros(e.at or now), "source_type": e.source_type, "source": e.source, "message": e.message} for e in events],
        )
        if self._store._prune_due():
            await self.execute(sa.delete(t.events).where(t.events.c.at < _micros(now - dt.timedelta(days=EVENTS_KEPT_DAYS))))

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
        oldest = self._store._clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        c = t.events.c
        query = sa.select(c.at, c.id, c.source_type, c.source, c.message).where(c.at >= _micros(max(start or oldest, oldest)))
        if end is not None:
            query = query.where(c.at < _micros(end))
        if source_type is not None:
            query = query.where(c.source_type == source_type)
        if source is not None:
            query = query.where(c.source == source)
        if after is not None:
            at, _, id_ = after.partition("-")
            query = query.where(sa.tuple_(c.at, c.id) > sa.tuple_(sa.literal(int(at)), sa.literal(int(id_))))
        rows = (await self.execute(query.order_by(c.at, c.id).limit(limit))).all()
        return [
            (
                f"{row.at}-{row.id}",
                Event(source_type=cast(SourceType, row.source_type), source=row.source, message=row.message, at=_time(row.at)),
            )
            for row in rows
        ]

    def wake(self, uid: str) -> None:
        self._write().add(uid)


def _database(url: str | Path, clock: Clock) -> Database:
    if isinstance(url, Path) or "://" not in url:
        return Sqlite(Path(url), clock)
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Without the cause: it may quote the password.
        raise Unusable("the database URL cannot be read; it should look like postgresql://user:password@host/database") from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.database:
            return Sqlite(Path(parsed.database), clock)
        case "postgresql" | "postgres":
            from cachekeep.store.postgres import Postgres  # a third of the program's start and memory, needed by few

            return Postgres(parsed, clock)
    raise Unusable(f"database {parsed.render_as_string(hide_password=True)}: only SQLite files and PostgreSQL are supported")


def _cache(row: Any) -> Cache:
    uid, name, kind, region, created_at, admin_password, wanted, decided, version = row
    return Cache(
        uid=uid,
        name=name,
        kind=kind,
        region=region,
        created_at=_time(created_at),
        admin_password=Secret(admin_password),
        wanted=_decode_wanted(wanted),
        decided=_decode_decided(decided),
        version=version,
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _resource(kind: type[R], version: int, body: str) -> R:
    return _versioned(msgspec.json.decode(body, type=kind), version)


def _versioned(resource: R, version: int) -> R:
    return cast(R, msgspec.structs.replace(cast(msgspec.Struct, resource), version=version))


def _micros(at: dt.datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time(micros: int) -> dt.datetime:
    return _EPOCH + micros * _MICROSECOND


def _stale(cache: Cache) -> Conflict:
    return Conflict(f"cache {cache.name} ({cache.uid}) was changed by somebody else since version {cache.version}, or is gone")


def _lost(uid: str, lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.holder} no longer holds cache {uid}: its epoch {lease.epoch} is over")
