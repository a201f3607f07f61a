"""``Store`` over SQL: the same statements for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cachekeep.clock import Clock
from cachekeep.errors import LeaseLost, Unusable
from cachekeep.model import Cache, Condition, Credential, Decided, Event
from cachekeep.plan import Policy
from cachekeep.store import tables as t
from cachekeep.store.beats import Beats
from cachekeep.store.contract import Along, Lease
from cachekeep.store.database import Database, Session
from cachekeep.store.families.events import EVENTS_KEPT_DAYS
from cachekeep.store.migrate import Seal, migrate
from cachekeep.store.rows import ROW, cache_of, condition_of, micros_of, stale, text_of
from cachekeep.store.serial import following, merge
from cachekeep.store.sql_transaction import SqlTransaction
from cachekeep.store.sqlite import Sqlite
from cachekeep.store.wakes import Touched, Wakes

# Statements of every request and of the failover path are built once: building one costs as much as running it.
_p = sa.bindparam
_BY_UID = ROW.where(t.caches.c.uid == _p("uid"))
_FENCE = sa.select(t.leases.c.uid).where(
    t.leases.c.uid == _p("uid"), t.leases.c.epoch == _p("epoch"), t.leases.c.holder == _p("holder")
)
_FENCE_LOCK = _FENCE.with_for_update(read=True)
_SAVE_DECIDED = (
    sa.update(t.caches)
    .where(t.caches.c.uid == _p("of"), t.caches.c.version == _p("seen"))
    .values(decided=_p("decided"), version=t.caches.c.version + 1)
)
_PUBLISHED = sa.select(t.conditions.c.epoch, t.conditions.c.version, t.conditions.c.body).where(t.conditions.c.uid == _p("uid"))


def no_key(uid: str, password: str) -> Credential:
    raise Unusable("passwords in it are not sealed, and there is no key to seal them with. It was left as it is")


class SqlStore:
    """``Store``. ``url``: ``sqlite:///path``, a plain path, or ``postgresql://user:password@host/database``. Addresses that are
    given up stay unused for ``linger_seconds``. ``seal``: what is done about passwords that an earlier release kept as they are."""

    def __init__(
        self, url: str | Path, clock: Clock, *, linger_seconds: float = Policy().linger_seconds, seal: Seal = no_key
    ) -> None:
        self.clock = clock
        self.linger_seconds = linger_seconds
        self.database = database_of(url, clock, seal)
        self.insert: Callable[[sa.Table], Any] = sqlite.insert if isinstance(self.database, Sqlite) else postgresql.insert
        self.beats = Beats(clock)
        self._changes, self._conditions = Wakes(), Wakes()
        self._resync: set[object] = set()

    async def open(self) -> None:
        self.database.on_wake(self._hear)
        await self.database.open()
        async with self._writing() as transaction:
            await transaction.recount_released()

    async def aclose(self) -> None:
        await self.database.aclose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlTransaction]:
        async with self._writing(serial=True) as transaction:
            yield transaction

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqlTransaction]:
        async with self.database.reading() as session:
            yield SqlTransaction(self, session, None)

    @asynccontextmanager
    async def _writing(self, *, serial: bool = False, durable: bool = True) -> AsyncIterator[SqlTransaction]:
        touched = Touched()
        try:
            async with self.database.writing(touched, serial=serial, durable=durable) as session:
                yield SqlTransaction(self, session, touched)
        finally:
            if touched.committed:
                for uid, told in touched.told_only.items():
                    self._hear(uid, told)

    # ------------------------------------------------------------------------------------------------- leases

    async def _dead(self, session: Session) -> builtins.list[sa.ColumnElement[bool]]:
        """Conditions, one for each holder that has been silent for its time to live, which hold while it still is."""
        c = t.holders.c
        rows = (await session.execute(sa.select(c.holder, c.beat, c.ttl))).all()
        self.beats.keep({row.holder for row in rows})
        silent = [row for row in rows if self.beats.silent_seconds(row.holder, row.beat) * 1_000_000 >= row.ttl]
        return [sa.and_(c.holder == row.holder, c.beat == row.beat) for row in silent]

    def _claimable(
        self, holder: str, uids: Collection[str] | None, dead: Sequence[sa.ColumnElement[bool]]
    ) -> builtins.list[sa.ColumnElement[bool]]:
        live = sa.exists().where(t.holders.c.holder == t.leases.c.holder, sa.not_(sa.or_(sa.false(), *dead)))
        others = t.leases.c.holder.is_distinct_from(holder)
        return [others, ~live, *([t.leases.c.uid.in_(list(uids))] if uids is not None else [])]

    async def claim(
        self, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> builtins.list[Lease]:
        async with self.database.reading() as session:
            dead = await self._dead(session)
            free = self._claimable(holder, uids, dead)
            wanted = sa.select(t.leases.c.uid).where(*free).order_by(t.leases.c.uid).limit(limit)
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
            unused = sa.select(t.leases.c.holder).where(t.leases.c.holder.is_not(None))
            await transaction.execute(sa.delete(t.holders).where(sa.or_(sa.false(), *dead), t.holders.c.holder.not_in(unused)))
            return leases

    async def renew(self, holder: str, *, ttl_seconds: float) -> builtins.list[Lease]:
        async with self._writing(durable=False) as transaction:
            await self._live(transaction, holder, ttl_seconds)
            held = sa.select(t.leases.c.uid, t.leases.c.epoch).where(t.leases.c.holder == holder).order_by(t.leases.c.uid)
            rows = (await transaction.execute(held.with_for_update(read=True))).all()
            return [Lease(row.uid, holder, row.epoch) for row in rows]

    async def _live(self, transaction: SqlTransaction, holder: str, ttl_seconds: float) -> None:
        ttl = int(ttl_seconds * 1_000_000)
        counted = await transaction.execute(
            self.insert(t.holders)
            .values(holder=holder, beat=1, ttl=ttl)
            .on_conflict_do_update(index_elements=["holder"], set_={"beat": t.holders.c.beat + 1, "ttl": ttl})
            .returning(t.holders.c.beat)
        )
        self.beats.silent_seconds(holder, counted.scalar_one())  # it is seen here and now

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

    async def claim_work(self, holder: str, name: str, *, ttl_seconds: float) -> int | None:
        c = t.work.c
        mine = sa.select(c.epoch, c.holder).where(c.name == name)
        async with self.database.reading() as session:
            dead = await self._dead(session)
            row = (await session.execute(mine)).first()
            live = sa.select(t.holders.c.holder).where(t.holders.c.holder == c.holder, sa.not_(sa.or_(sa.false(), *dead)))
            free = sa.or_(c.holder == holder, c.holder.is_(None), ~live.exists())
            if row is not None and (await session.execute(mine.where(free))).first() is None:
                return None
        kept = row is not None and row.holder == holder
        async with self._writing(durable=not kept) as transaction:
            await transaction.execute(self.insert(t.work).values(name=name, epoch=0).on_conflict_do_nothing())
            await transaction.execute(mine.with_for_update())
            epoch = sa.case((c.holder == holder, c.epoch), else_=c.epoch + 1)
            # Asked again, now that the row is locked: another may have taken it in between, and that it lives is to be seen.
            taken = await transaction.execute(
                sa.update(t.work).where(c.name == name, free).values(holder=holder, epoch=epoch).returning(c.epoch)
            )
            if (found := taken.first()) is None:
                return None
            await self._live(transaction, holder, ttl_seconds)
            return int(found.epoch)

    async def prune(self) -> None:
        oldest = self.clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        async with self._writing(durable=False) as transaction:
            await transaction.execute(sa.delete(t.events).where(t.events.c.at < micros_of(oldest)))

    async def _fence(self, transaction: SqlTransaction, uid: str, lease: Lease) -> None:
        found = await transaction.execute(_FENCE_LOCK, {"uid": uid, "epoch": lease.epoch, "holder": lease.holder})
        if lease.uid != uid or found.first() is None:
            raise _lost(uid, lease)

    # ------------------------------------------------------------------------------------------------- the keeper's half

    async def load(self, uid: str) -> Cache | None:
        async with self.database.reading() as session:
            row = (await session.execute(_BY_UID, {"uid": uid})).first()
        return cache_of(row) if row else None

    async def save_decided(self, cache: Cache, lease: Lease, along: Along) -> Cache:
        decided = following(cache.decided)
        async with self._writing() as transaction:
            await self._fence(transaction, cache.uid, lease)
            done = await transaction.execute(_SAVE_DECIDED, {"of": cache.uid, "seen": cache.version, "decided": text_of(decided)})
            if done.rowcount != 1:
                raise stale(cache)
            await transaction.own_addresses(cache.uid, set(along.addresses))
            await transaction.own_members(cache)
            await transaction.leave(along.records)
            await transaction.tell(*along.events)
            transaction.wake(cache.uid)
        return msgspec.structs.replace(cache, decided=decided, version=cache.version + 1)

    async def merge_decided(self, uid: str, decided: Decided, lease: Lease, along: Along) -> Cache:
        async with self._writing() as transaction:
            await self._fence(transaction, uid, lease)
            row = (await transaction.execute(_BY_UID.with_for_update(of=t.caches), {"uid": uid})).first()
            if row is None:
                raise _lost(uid, lease)
            before = cache_of(row)
            merged = merge(before, decided)
            await transaction.execute(
                sa.update(t.caches).where(t.caches.c.uid == uid).values(decided=text_of(merged.decided), version=merged.version)
            )
            await transaction.own_addresses(uid, set(along.addresses))
            await transaction.own_members(merged)
            await transaction.leave(along.records if merged is not before else ())
            await transaction.tell(*[event for event in along.events if not await transaction.told(event)])
            transaction.wake(uid)
        return merged

    async def forget(self, cache: Cache, lease: Lease, *, events: Sequence[Event] = ()) -> None:
        async with self._writing() as transaction:
            await self._fence(transaction, cache.uid, lease)
            await transaction.own_addresses(cache.uid, set())
            gone = await transaction.execute(
                sa.delete(t.caches).where(t.caches.c.uid == cache.uid, t.caches.c.version == cache.version)
            )
            if gone.rowcount != 1:
                raise stale(cache)
            await transaction.tell(*events)
            transaction.wake(cache.uid)

    async def addresses(self) -> set[str]:
        async with self.reading() as transaction:
            return await transaction.addresses()

    async def publish(self, uid: str, condition: Condition, lease: Lease) -> None:
        async with self.database.reading() as session:
            old = (await session.execute(_PUBLISHED, {"uid": uid})).first()
            held = (await session.execute(_FENCE, {"uid": uid, "epoch": lease.epoch, "holder": lease.holder})).first()
        if lease.uid != uid or held is None:
            raise _lost(uid, lease)
        if old and old.epoch == lease.epoch and old.version == condition.version and condition_of(old.body) == condition:
            return
        values = {"epoch": lease.epoch, "version": condition.version, "body": text_of(condition)}
        # A condition that a power cut takes back belongs to a holder that it took, too.
        async with self._writing(durable=False) as transaction:
            await self._fence(transaction, uid, lease)
            await transaction.execute(
                self.insert(t.conditions).values(uid=uid, **values).on_conflict_do_update(index_elements=["uid"], set_=values)
            )
            transaction.has_told(uid)

    # ------------------------------------------------------------------------------------------------- wakes

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._changes.add(callback)

    def on_told(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self._conditions.add(callback)

    def _hear(self, uid: str | None, told: bool) -> None:
        if uid is not None:
            (self._conditions if told else self._changes)(uid)
            return
        task = asyncio.ensure_future(self._wake_all())
        self._resync.add(task)
        task.add_done_callback(self._resync.discard)

    async def _wake_all(self) -> None:
        async with self.database.reading() as session:
            uids = (await session.execute(sa.select(t.caches.c.uid))).scalars().all()
        for uid in uids:
            self._changes(uid)
            self._conditions(uid)


def database_of(url: str | Path, clock: Clock, seal: Seal) -> Database:
    if isinstance(url, Path) or "://" not in url:
        return Sqlite(Path(url), clock, lambda connection, shown: migrate(connection, shown, seal))
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Without the cause: it may quote the password.
        raise Unusable("the database URL cannot be read; it should look like postgresql://user:password@host/database") from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.database:
            return database_of(Path(parsed.database), clock, seal)
        case "postgresql" | "postgres":
            from cachekeep.store.postgres import Postgres  # a third of the program's start and memory, needed by few

            return Postgres(parsed, clock, seal)
    raise Unusable(f"database {parsed.render_as_string(hide_password=True)}: only SQLite files and PostgreSQL are supported")


def _lost(uid: str, lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.holder} no longer holds cache {uid}: its epoch {lease.epoch} is over")
