"""A commit and its invalidation that cannot part, for SQLAlchemy 2 sessions, sync and async.

Two nets, one under the other:

1. While the commit is under way a barrier stands at every key and table the transaction touched (write.py). Nothing old is served
   from just before the commit until the barrier is lowered or, if this process dies, lapses.
2. What is to be invalidated is a row of the same transaction. If the cache could not be reached, or the process died, `sweep` (any
   process, again and again) finds the row and invalidates. If the transaction did not commit, there is no row.

Rows whose invalidation is known to be done are deleted by the next sweep.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.util import await_only

from cachekeep_patterns.cache import AsyncCache, Cache
from cachekeep_patterns.database.changes import (
    LOOKING,
    MAX_ROWS,
    Rows,
    all_falling_with,
    condition,
    falling_with,
    having_keys,
    having_values,
    inserted,
    look,
    looking,
    plain,
    tables_of_text,
    writes_within,
)
from cachekeep_patterns.database.relay import Relay
from cachekeep_patterns.errors import UnseenChange
from cachekeep_patterns.ports import run
from cachekeep_patterns.write import Write

Keys = Callable[[Any], Iterable[str]]


def table_tag(name: str) -> str:
    """The tag that cached results of queries over a table hang on."""
    return f"table:{name.lower()}"


@dataclass(eq=False)
class _Pending:
    """What one transaction is going to invalidate. Both dicts only grow, so a savepoint is known by their lengths."""

    keys: dict[str, None] = field(default_factory=dict)
    tags: dict[str, None] = field(default_factory=dict)
    unseen: dict[str, None] = field(default_factory=dict)  # statements that do not tell which watched rows they change
    named: dict[int, None] = field(default_factory=dict)  # calls that did tell, by hand
    marks: dict[SessionTransaction, tuple[int, ...]] = field(default_factory=dict)
    flushing: bool = False
    about: tuple[Any, list[tuple[Mapper[Any], Keys, list[Any]]]] | None = (
        None  # a statement under way, and the rows it is to change
    )
    write: Write | None = None
    row: int | None = None
    connection: sa.Connection | None = None
    refusal: BaseException | None = None  # what the database said to our COMMIT

    def _parts(self) -> tuple[dict[Any, None], ...]:
        return (self.keys, self.tags, self.unseen, self.named)

    def mark(self, savepoint: SessionTransaction) -> None:
        self.marks[savepoint] = tuple(map(len, self._parts()))

    def back_to(self, savepoint: SessionTransaction) -> None:
        for part, size in zip(self._parts(), self.marks.pop(savepoint), strict=True):
            while len(part) > size:
                part.popitem()


class _RolledBack(ValueError):
    """The database confirmed a rollback: certainly undone."""


class Outbox(Relay):
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
        super().__init__(cache, metadata, table_name)
        self.lease_seconds = lease_seconds
        self._keys_of: list[tuple[type[Any], Keys]] = []
        self._by_table: dict[str, list[tuple[Mapper[Any], Keys]]] | None = None
        self._sessions: weakref.WeakKeyDictionary[sa.Connection, weakref.ref[Session]] = weakref.WeakKeyDictionary()
        self._engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()

    # ------------------------------------------------------------------ what is watched

    def watch(self, model: type[Any], keys: Keys) -> None:
        """``keys(instance)`` are the cache keys that change with it. Asked for a row as it is and as it was, so that a key may be
        built of a column that changes.
        """
        self._keys_of.append((model, keys))
        self._by_table = None

    def attach(self, target: Any) -> None:
        """``target``: a sessionmaker, an async_sessionmaker, a Session class or a Session."""
        if type(target).__name__ == "async_sessionmaker":
            base = target.kw.get("sync_session_class", Session)
            target.kw["sync_session_class"] = target = type("OutboxSession", (base,), {})
        event.listen(target, "after_begin", self._after_begin)
        event.listen(target, "after_transaction_create", self._after_transaction_create)
        event.listen(target, "before_flush", self._before_flush)
        event.listen(target, "after_flush", self._after_flush)
        event.listen(target, "before_commit", self._before_commit)
        event.listen(target, "after_commit", self._after_commit)
        event.listen(target, "after_transaction_end", self._after_transaction_end)

    def invalidate(self, session: Any, *keys: str, tags: Iterable[str] = ()) -> None:
        """These too, when ``session`` commits: for what cannot be seen from its objects and statements (triggers, SQL as text)."""
        pending = self._pending(getattr(session, "sync_session", session))
        pending.keys.update(dict.fromkeys(keys))
        pending.tags.update(dict.fromkeys(tags))
        pending.named[len(pending.named)] = None

    def _watchers(self, name: str) -> list[tuple[Mapper[Any], Keys]]:
        """Who is watched over a table of this name: the entity that its rows belong to, and its keys."""
        if self._by_table is None:
            found: dict[str, list[tuple[Mapper[Any], Keys]]] = {}
            for model, keys in self._keys_of:
                for mapper in _mappers_of(model):
                    for table in mapper.tables:
                        if table is mapper.local_table or mapper.inherits is None:
                            found.setdefault(getattr(table, "name", "").lower(), []).append((mapper, keys))
            self._by_table = found
        return self._by_table.get(name.lower(), [])

    # ------------------------------------------------------------------ inside the session

    def _pending(self, session: Session) -> _Pending:
        pending: _Pending = session.info.setdefault(self, _Pending())
        return pending

    def _after_begin(self, session: Session, _transaction: object, connection: sa.Connection) -> None:
        if LOOKING in session.info:
            return
        self._sessions[connection] = weakref.ref(session)
        self._pending(session).connection = connection
        if connection.engine not in self._engines:
            self._engines.add(connection.engine)
            event.listen(connection.engine, "before_execute", self._before_execute)
            event.listen(connection.engine, "after_execute", self._after_execute)
            event.listen(connection.engine, "before_cursor_execute", self._before_cursor_execute)
            event.listen(connection.engine, "commit", self._on_commit)
            event.listen(connection.engine, "handle_error", self._on_error)

    def _of(self, connection: sa.Connection | None) -> _Pending | None:
        """What the session over ``connection`` has pending; None for connections that are no attached session's."""
        known = None if connection is None else self._sessions.get(connection)
        session = None if known is None else known()
        return None if session is None else session.info.get(self)

    def _after_transaction_create(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested and LOOKING not in session.info:
            self._pending(session).mark(transaction)

    def _before_flush(self, session: Session, _context: object, _instances: object) -> None:
        pending = self._pending(session)
        for one in session.dirty:
            state = sa.inspect(one)
            if any(_old(state, name) is _UNKNOWN for name in state.mapper.column_attrs.keys()):  # noqa: SIM118 - not a dict
                for mapper, keys in self._watchers(state.mapper.local_table.name):
                    for where in having_keys(mapper, [state.identity]):
                        self._look(pending, session.connection(), Rows(mapper, where), keys, f"a change of {mapper}")
        pending.flushing = True

    def _after_flush(self, session: Session, context: Any) -> None:
        pending = self._pending(session)
        pending.flushing = False
        # Also those that only the flush itself found, such as orphans.
        touched = [state.obj() for state, (_, only_listed) in context.states.items() if not only_listed]
        for one in {id(one): one for one in (*touched, *session.new, *session.dirty, *session.deleted)}.values():
            for model, keys in self._keys_of:
                if isinstance(one, model):
                    pending.keys.update(dict.fromkeys(keys(one)))
                    with contextlib.suppress(sa.exc.NoInspectionAvailable):  # a function that looks at the history itself
                        pending.keys.update(dict.fromkeys(keys(_AsItWas(one))))

    # ------------------------------------------------------------------ statements

    def _before_cursor_execute(
        self, connection: sa.Connection, _cursor: object, sql: str, _parameters: object, context: Any, _many: bool
    ) -> None:
        compiled = getattr(context, "compiled", None)
        if compiled is not None and not isinstance(getattr(compiled.statement, "element", compiled.statement), sa.TextClause):
            return
        pending = self._of(connection)
        if pending is None:
            return
        named, tables = self._named(pending, context.execution_options), tables_of_text(sql)
        if tables is None:
            if not named:
                pending.unseen[f"{_short(sql)} (which may change anything)"] = None
            return
        for name in tables:
            known = [table for table in self.table.metadata.tables.values() if table.name.lower() == name.lower()]
            self._tag(pending, name, *(other.name for table in known for other in all_falling_with(table)))
            if self._watchers(name) and not named:
                pending.unseen[f"{_short(sql)} (which may change any row of {name})"] = None

    def _named(self, pending: _Pending, options: Mapping[str, Any]) -> bool:
        """Whether the statement says itself what it invalidates: ``execution_options={"invalidates": ["user:1"]}``."""
        keys = options.get("invalidates")
        if keys is None:
            return False
        if isinstance(keys, str):
            raise TypeError("invalidates= takes a list of keys, not one text")
        pending.keys.update(dict.fromkeys(keys))
        return True

    def _before_execute(self, connection: sa.Connection, clause: Any, several: Any, one: Any, options: Mapping[str, Any]) -> None:
        statement = writes_within(clause)
        pending = None if statement is None else self._of(connection)
        if statement is None or pending is None:
            return
        table = plain(statement.table)
        self._tag(pending, table.name)
        pending.about = None
        falling = isinstance(statement, sa.Delete) and isinstance(table, sa.Table) and all_falling_with(table)
        for other in falling or ():
            self._tag(pending, other.name)
        if self._named(pending, options) or not isinstance(table, sa.Table):
            return
        watchers = [] if pending.flushing else self._watchers(table.name)
        if isinstance(statement, (sa.Update, sa.Delete)):
            about: list[tuple[Mapper[Any], Keys, list[Any]]] = []
            for where in condition(statement, several, one):
                for mapper, keys in watchers:
                    about.append((mapper, keys, self._look(pending, connection, Rows(mapper, where), keys, statement)))
                if falling and any(self._watchers(other.name) for other in falling):
                    self._look_at_falling(pending, connection, table, where, statement, {table})
            pending.about = (clause, about)
        elif watchers:
            pending.about = (clause, [(mapper, keys, []) for mapper, keys in watchers])

    def _look(self, pending: _Pending, connection: sa.Connection, rows: Rows, keys: Keys, statement: Any) -> list[Any]:
        """The primary keys of ``rows``, whose cache keys are noted."""
        with looking(connection) as eye:
            found = look(eye, rows)
            if found is None:
                pending.unseen[f"{_short(statement)} (more than {MAX_ROWS} rows)"] = None
                return []
            for one in found:
                pending.keys.update(dict.fromkeys(keys(one)))
            return [rows.entity.primary_key_from_instance(one) for one in found]

    def _look_at_falling(
        self, pending: _Pending, connection: sa.Connection, table: sa.Table, where: Any, statement: Any, seen: set[sa.Table]
    ) -> None:
        for other, links in falling_with(table):
            if other in seen:
                if self._watchers(other.name):
                    pending.unseen[f"{_short(statement)} (which takes rows of {other.name} with it, level by level)"] = None
                continue
            joined = [link.parent == link.column for link in links]
            below = sa.exists(sa.select(sa.literal(1)).select_from(table).where(*joined, *([] if where is None else [where])))
            for mapper, keys in self._watchers(other.name):
                self._look(pending, connection, Rows(mapper, below), keys, statement)
            self._look_at_falling(pending, connection, other, below, statement, {*seen, other})

    def _after_execute(
        self, connection: sa.Connection, clause: Any, _several: Any, _one: Any, _options: Any, result: sa.CursorResult[Any]
    ) -> None:
        compiled = getattr(result.context, "compiled", None)
        ctes = getattr(compiled, "ctes", None)
        pending = self._of(connection) if ctes or writes_within(clause) is not None else None
        if pending is None:
            return
        for cte in ctes or ():
            if (inner := writes_within(cte)) is not None:
                self._tag(pending, plain(inner.table).name)
                if self._watchers(plain(inner.table).name):
                    pending.unseen[f"{_short(inner)} (within WITH)"] = None
        about, pending.about = pending.about, None
        if about is None or about[0] is not clause:
            return
        statement: Any = writes_within(clause)
        for mapper, keys, before in about[1]:
            if isinstance(statement, sa.Insert):
                rows = inserted(statement, result.context)
                made = [] if rows is None or len(rows) != 1 else list(result.context.inserted_primary_key_rows)
                wheres = None if rows is None else having_values(plain(statement.table), rows, made)
                if wheres is None:
                    pending.unseen[f"{_short(statement)} (whose rows only the database knows)"] = None
                    continue
                expected = len(rows or ())
            else:
                wheres = having_keys(mapper, before) if isinstance(statement, sa.Update) else []
                expected = len(before)
            found = sum(len(self._look(pending, connection, Rows(mapper, where), keys, statement)) for where in wheres)
            if found < expected and not isinstance(statement, sa.Delete):
                pending.unseen[f"{_short(statement)} (of whose rows {expected - found} were not found again)"] = None
        matched = sum(len(before) for _, _, before in about[1])
        if not isinstance(statement, sa.Insert) and about[1] and result.rowcount > matched:
            pending.unseen[f"{_short(statement)} (rows came in under it while it ran)"] = None

    @staticmethod
    def _tag(pending: _Pending, *names: str) -> None:
        pending.tags.update((table_tag(name), None) for name in names)

    # ------------------------------------------------------------------ the commit

    def _before_commit(self, session: Session) -> None:
        if session.in_nested_transaction():  # a savepoint; the whole is still to come
            return
        session.flush()  # whatever can fail in a flush fails before the barriers are up, and now everything is known
        pending = self._pending(session)
        if pending.keys or pending.tags or pending.unseen:
            self._prepare(pending, session.connection())

    def _on_commit(self, connection: sa.Connection) -> None:
        """COMMIT is about to be sent. Of a session that left its savepoints open this is the first that is heard."""
        pending = self._of(connection)
        if pending is not None and pending.write is None and (pending.keys or pending.tags or pending.unseen):
            self._prepare(pending, connection)

    def _prepare(self, pending: _Pending, connection: sa.Connection) -> None:
        if pending.unseen and not pending.named:
            raise UnseenChange(
                "not committed, because it cannot be told which cached values these statements change: "
                + "; ".join(pending.unseen)
                + '. Name them: execution_options={"invalidates": [keys]} with the statement, or outbox.invalidate(session, *keys)'
            )
        what = json.dumps({"keys": list(pending.keys), "tags": list(pending.tags)})
        pending.write = self.cache._write(list(pending.keys), list(pending.tags), self.lease_seconds, strict=False)
        made = connection.execute(sa.insert(self.table).values(what=what, created=time.time()))
        pending.row = made.inserted_primary_key[0] if made.inserted_primary_key else None
        self._do(pending.write.begin())

    def _on_error(self, context: ExceptionContext) -> None:
        pending = self._of(context.connection)
        if pending is not None and pending.write is not None:
            pending.refusal = context.sqlalchemy_exception or context.original_exception

    def _after_commit(self, session: Session) -> None:
        pending: _Pending | None = session.info.get(self)
        if pending is None:
            return
        if session.in_nested_transaction():
            if (savepoint := session.get_nested_transaction()) is not None:
                pending.marks.pop(savepoint, None)  # its changes are the outer one's from now on
            return
        if pending.write is None or _is_open(pending.connection):
            return  # an open connection is somebody else's, and so is its COMMIT: see below
        del session.info[self]
        self._do(pending.write.end(None))
        if pending.write.outcome.name == "INVALIDATED" and pending.row is not None:
            self._settle(pending.row)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        pending: _Pending | None = session.info.get(self)
        if pending is None:
            return
        pending.flushing = False
        if transaction in pending.marks:
            pending.back_to(transaction)
        if transaction.parent is not None:
            return
        del session.info[self]
        if pending.write is None:
            return
        # The barriers are up, and this was no commit of ours. The database refused, or confirmed the rollback; or nobody knows (the
        # connection went, or it is an outer transaction's, which commits later): then they lapse, and the row is for the sweep.
        ended = sys.exc_info()[1]
        error = pending.refusal or (ended if ended is not None and not isinstance(ended, Exception) else _RolledBack())
        self._do(pending.write.end(ConnectionError("COMMIT is still to come") if _is_open(pending.connection) else error))

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        if isinstance(self.cache, AsyncCache):
            await_only(work)
        else:
            run(work)


_UNKNOWN = object()


def _old(state: Any, name: str) -> Any:
    """What a column had before it was changed; `_UNKNOWN` if it was changed without having been loaded, None if it was not."""
    history = state.attrs[name].history
    return (history.deleted[0] if history.deleted else _UNKNOWN) if history.added else None


class _AsItWas:
    """An instance with the values its columns had before they were changed."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        state = sa.inspect(self._instance)
        if name in state.mapper.column_attrs and state.attrs[name].history.deleted:
            return state.attrs[name].history.deleted[0]
        return getattr(self._instance, name)


def _is_open(connection: sa.Connection | None) -> bool:
    return connection is not None and not connection.closed and connection.in_transaction()


def _short(statement: Any) -> str:
    """A statement for a message: no parameters, and not all of it."""
    text = " ".join(str(statement).split())
    return text if len(text) <= 80 else f"{text[:77]}…"


def _mappers_of(model: type[Any]) -> list[Mapper[Any]]:
    """The mapper of a model and of what inherits from it; for a base or mixin that is not mapped itself, of all its models."""
    mapper = sa.inspect(model, raiseerr=False)
    if isinstance(mapper, Mapper):
        return list(mapper.self_and_descendants)
    return [one for below in model.__subclasses__() for one in _mappers_of(below)]
