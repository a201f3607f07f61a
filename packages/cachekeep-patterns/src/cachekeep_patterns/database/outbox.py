"""A commit and its invalidation that cannot part, for SQLAlchemy 2 sessions, sync and async.

Two nets, one under the other:

1. While the commit is under way a barrier stands at every key and table the transaction touched (write.py). Nothing old is served
  from
   just before the commit until the barrier is lowered or, if this process dies, lapses.
2. What is to be invalidated is a row of the same transaction. If the cache could not be reached, or the process died, `sweep` (any
   process, again and again) finds the row and invalidates. If the transaction did not commit, there is no row.

Rows whose invalidation is known to be done are deleted by the next sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.util import await_only

from cachekeep_patterns.cache import AsyncCache, Cache
from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.ports import run
from cachekeep_patterns.write import Write

_AT = "cachekeep.outbox"
Keys = Callable[[Any], Iterable[str]]


def table_tag(name: str) -> str:
    """The tag that cached results of queries over a table hang on."""
    return f"table:{name}"


@dataclass
class _Pending:
    """What one transaction is going to invalidate."""

    keys: dict[str, None] = field(default_factory=dict)
    tags: dict[str, None] = field(default_factory=dict)
    write: Write | None = None
    row: int | None = None


class Outbox:
    """``cache``     a Cache for sync sessions, an AsyncCache for async ones
    ``metadata``  where the table goes (`outbox.table`), so that your migrations or `create_all` make it
    ``lease_seconds``  how long the barriers of a dead process stand; renewed while a commit takes longer
    """

    def __init__(
        self,
        cache: Cache | AsyncCache,
        metadata: sa.MetaData,
        *,
        table_name: str = "cachekeep_outbox",
        lease_seconds: float = 10.0,
    ) -> None:
        self.cache, self.lease_seconds = cache, lease_seconds
        self.table = sa.Table(
            table_name,
            metadata,
            sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
            sa.Column("what", sa.Text(), nullable=False),
            sa.Column("created", sa.Float(), nullable=False),
        )
        self._keys_of: dict[type[Any], Keys] = {}
        self._settled: list[int] = []
        self._settling = threading.Lock()

    # ------------------------------------------------------------------ what is watched

    def watch(self, model: type[Any], keys: Keys) -> None:
        """``keys(instance)`` are the cache keys that change with it. Build them of what does not change, such as the primary key;
        if one is built of a column that may change, answer the old one too (`sqlalchemy.inspect(x).attrs.name.history`).
        """
        self._keys_of[model] = keys

    def attach(self, target: Any) -> None:
        """``target``: a sessionmaker, an async_sessionmaker, a Session class or a Session."""
        if type(target).__name__ == "async_sessionmaker":
            base = target.kw.get("sync_session_class", Session)
            target.kw["sync_session_class"] = target = type("OutboxSession", (base,), {})
        event.listen(target, "after_flush", self._after_flush)
        event.listen(target, "do_orm_execute", self._on_execute)
        event.listen(target, "before_commit", self._before_commit)
        event.listen(target, "after_commit", self._after_commit)
        event.listen(target, "after_rollback", self._after_rollback)

    def invalidate(self, session: Any, *keys: str, tags: Iterable[str] = ()) -> None:
        """These too, when ``session`` commits: for what cannot be seen from its objects (raw SQL, triggers)."""
        pending = self._pending(getattr(session, "sync_session", session))
        pending.keys.update(dict.fromkeys(keys))
        pending.tags.update(dict.fromkeys(tags))

    # ------------------------------------------------------------------ inside the session

    @staticmethod
    def _pending(session: Session) -> _Pending:
        pending: _Pending = session.info.setdefault(_AT, _Pending())
        return pending

    def _after_flush(self, session: Session, _context: object) -> None:
        pending = self._pending(session)
        for one in (*session.new, *session.dirty, *session.deleted):
            mapper = sa.inspect(one).mapper
            pending.tags.update((table_tag(table.name), None) for table in mapper.tables if isinstance(table, sa.Table))
            for model, keys in self._keys_of.items():
                if isinstance(one, model):
                    pending.keys.update(dict.fromkeys(keys(one)))

    def _on_execute(self, state: ORMExecuteState) -> None:
        if state.is_insert or state.is_update or state.is_delete:
            table = getattr(state.statement, "table", None)
            if isinstance(table, sa.Table):
                self._pending(state.session).tags[table_tag(table.name)] = None

    def _before_commit(self, session: Session) -> None:
        if session.in_nested_transaction():  # a savepoint; the whole is still to come
            return
        session.flush()  # whatever can fail in a flush fails before the barriers are up, and now everything is known
        pending = self._pending(session)
        if not pending.keys and not pending.tags:
            return
        what = json.dumps({"keys": list(pending.keys), "tags": list(pending.tags)})
        made = session.connection().execute(sa.insert(self.table).values(what=what, created=time.time()))
        pending.row = made.inserted_primary_key[0] if made.inserted_primary_key else None
        pending.write = self.cache._write(list(pending.keys), list(pending.tags), self.lease_seconds, strict=False)
        self._do(pending.write.begin())

    def _after_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return
        pending = session.info.pop(_AT, None)
        if pending is None or pending.write is None:
            return
        self._do(pending.write.end(None))
        if pending.write.outcome.name == "INVALIDATED" and pending.row is not None:
            with self._settling:
                self._settled.append(pending.row)

    def _after_rollback(self, session: Session) -> None:
        pending = session.info.pop(_AT, None)
        if pending is not None and pending.write is not None:
            # The barriers were up, so COMMIT was on its way and nobody knows whether it came through: they lapse by themselves.
            self._do(pending.write.end(ConnectionError("the outcome of COMMIT is unknown")))

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        if isinstance(self.cache, AsyncCache):
            await_only(work)
        else:
            run(work)

    # ------------------------------------------------------------------ the relay

    def _due(self, grace_seconds: float, limit: int) -> tuple[sa.Select[Any], sa.Delete]:
        with self._settling:
            settled, self._settled = self._settled, []
        due = sa.select(self.table.c.id, self.table.c.what).where(self.table.c.created <= time.time() - grace_seconds)
        return due.order_by(self.table.c.id).limit(limit), sa.delete(self.table).where(self.table.c.id.in_(settled))

    def sweep(self, engine: sa.Engine, *, grace_seconds: float = 5.0, limit: int = 500) -> int:
        """Do what was left undone for ``grace_seconds``; how many rows that was. Raises CacheDown, and then the rows stay."""
        assert isinstance(self.cache, Cache)
        due, forget = self._due(grace_seconds, limit)
        with engine.begin() as connection:
            connection.execute(forget)
        with engine.connect() as connection:
            rows = connection.execute(due).all()
        if rows:
            keys, tags = _union(row.what for row in rows)
            self.cache.invalidate(*keys, tags=tags)
            with engine.begin() as connection:
                connection.execute(sa.delete(self.table).where(self.table.c.id.in_([row.id for row in rows])))
        return len(rows)

    async def sweep_async(self, engine: Any, *, grace_seconds: float = 5.0, limit: int = 500) -> int:
        """The same over an AsyncEngine."""
        assert isinstance(self.cache, AsyncCache)
        due, forget = self._due(grace_seconds, limit)
        async with engine.begin() as connection:
            await connection.execute(forget)
        async with engine.connect() as connection:
            rows = (await connection.execute(due)).all()
        if rows:
            keys, tags = _union(row.what for row in rows)
            await self.cache.invalidate(*keys, tags=tags)
            async with engine.begin() as connection:
                await connection.execute(sa.delete(self.table).where(self.table.c.id.in_([row.id for row in rows])))
        return len(rows)

    def keep_swept(self, engine: sa.Engine, *, every_seconds: float = 5.0) -> Callable[[], None]:
        """Sweep in a daemon thread until the returned function is called. Several processes may do so."""
        stopped = threading.Event()

        def work() -> None:
            while not stopped.wait(every_seconds):
                with contextlib.suppress(CacheDown, sa.exc.SQLAlchemyError):
                    self.sweep(engine)

        threading.Thread(target=work, name="cachekeep-outbox", daemon=True).start()
        return stopped.set

    async def keep_swept_async(self, engine: Any, *, every_seconds: float = 5.0) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(every_seconds)
            with contextlib.suppress(CacheDown, sa.exc.SQLAlchemyError):
                await self.sweep_async(engine)


def _union(whats: Iterable[str]) -> tuple[list[str], list[str]]:
    keys: dict[str, None] = {}
    tags: dict[str, None] = {}
    for what in whats:
        decoded = json.loads(what)
        keys.update(dict.fromkeys(decoded["keys"]))
        tags.update(dict.fromkeys(decoded["tags"]))
    return list(keys), list(tags)
