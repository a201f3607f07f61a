"""Results of SELECTs, cached, and invalidated by the tables they read (SQLAlchemy 2).

A result hangs on the tag of each table; an `Outbox` on the writing sessions renews those tags with every commit, and so may you
(`cache.invalidate(tags=[table_tag("users")])`). Queries run on a connection of their own, each in a new transaction: a session's
transaction may have an old snapshot (REPEATABLE READ) or its own uncommitted rows, and neither may get into the cache.

A result's key stands for everything that decides what the rows are: the database (its URL, and what PostgreSQL itself says about
database, roles and search path), execution options such as ``schema_translate_map``, the SQL, its parameters, the types of its
columns, and what ``identity`` answers. That is for what an engine does not show: a tenant or role set anew for each transaction.
"""

from __future__ import annotations

import enum
import hashlib
import os
import re
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Bundle
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase

from cachekeep_patterns.cache import AsyncCache, Cache
from cachekeep_patterns.database.outbox import table_tag
from cachekeep_patterns.errors import UncacheableArgument, Uncodable
from cachekeep_patterns.exact import Exact
from cachekeep_patterns.policy import Policy

Row = tuple[Any, ...]
Select = sa.SelectBase
Identity = str | Callable[[], str]

MAX_PLANS = 1000
_HIDES_TABLES = re.compile(r"\b(select|from|join)\b", re.IGNORECASE)
_WITHOUT_EFFECT = frozenset({"compiled_cache", "logging_token", "yield_per", "stream_results", "max_row_buffer"})
# What of a connection decides what its statements read. Asked once for each engine.
_ASK = {
    "postgresql": "select current_database(), session_user::text, current_user::text, current_setting('search_path'),"
    " inet_server_addr()::text, inet_server_port()",
}


def tables_of(statement: Select) -> list[str]:
    """The tables a statement reads, in subqueries and joins too.
    Raises ValueError if it holds raw SQL, which cannot be seen through, or writes."""
    names = set()
    for part in visitors.iterate(statement):
        if isinstance(part, UpdateBase):
            raise ValueError("the statement writes; only what it reads can be cached")
        if isinstance(part, sa.TableClause):
            names.add(part.name)
        elif isinstance(part, sa.TextClause) or (getattr(part, "is_literal", False) and _HIDES_TABLES.search(str(part))):
            raise ValueError("the statement holds text(); say which tables it reads: tables=[…]")
        table = getattr(part, "table", None)
        if isinstance(table, sa.TableClause):
            names.add(table.name)
        for source in part.get_final_froms() if isinstance(part, sa.Select) else ():
            names |= {inner.name for inner in visitors.iterate(source) if isinstance(inner, sa.TableClause)}
    if not names:
        raise ValueError("no table was found in the statement; say which: tables=[…]")
    return sorted(names)


class _Rows:
    """Lists of rows. ``enums``: the positions of columns whose values are of an Enum, which go by name."""

    def __init__(self, enums: Mapping[int, type[enum.Enum]]) -> None:
        self._enums = enums
        self._exact = Exact()

    def encode(self, value: list[Row], key: str) -> bytes:
        rows = [list(row) for row in value]
        for at in self._enums:
            for row in rows:
                row[at] = row[at].name if isinstance(row[at], enum.Enum) else row[at]
        return self._exact.encode(rows, key)

    def decode(self, data: bytes, key: str) -> list[Row]:
        rows: list[list[Any]] = self._exact.decode(data, key)
        try:
            for at, kind in self._enums.items():
                for row in rows:
                    row[at] = None if row[at] is None else kind[row[at]]
            return [tuple(row) for row in rows]
        except (KeyError, IndexError, TypeError) as error:
            raise Uncodable(f"stored bytes are no rows of this statement: {error}") from error


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a statement needs, whatever its parameters are."""

    digest: bytes
    tags: list[str]
    codec: _Rows


_here: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_here_lock = threading.Lock()


def _shown(engine: sa.Engine) -> str:
    """What the engine itself shows of the database it leads to."""
    url = engine.url.set(password=None)
    if engine.dialect.name != "sqlite":
        return url.render_as_string(hide_password=False)
    name = url.database or ":memory:"
    if ":memory:" in name or "mode=memory" in name or not url.database:
        with _here_lock:  # it lives in this process, and only behind this pool
            return f"sqlite:{os.getpid()}:{_here.setdefault(engine.pool, secrets.token_hex(16))}"
    return f"sqlite:{os.path.realpath(name)}?{sorted(url.query.items())}"


class _Queries:
    def __init__(self, engine: Any, policy: Policy | None, identity: Identity) -> None:
        self.engine, self.policy = engine, policy
        self._engine: sa.Engine = getattr(engine, "sync_engine", engine)
        self._identity = identity
        self._database: str | None = None
        self._plans: dict[Any, _Plan] = {}
        self._exact = Exact()

    def _ask(self, connection: sa.Connection) -> None:
        """Which database this is. By the driver itself: it is no statement of the application's, to be heard by its listeners."""
        question, answer = _ASK.get(self._engine.dialect.name), None
        if question is not None:
            cursor = connection.connection.cursor()
            try:
                cursor.execute(question)
                answer = tuple(cursor.fetchone() or ())
            finally:
                cursor.close()
        self._database = repr((self._engine.dialect.name, _shown(self._engine), answer))

    def _prepare(self, statement: Select, tables: Sequence[str] | None) -> tuple[str, _Plan]:
        """The key of a statement with its parameters, and its plan."""
        assert self._database is not None
        cache_key = statement._generate_cache_key()  # as SQLAlchemy's own caching examples do
        values: Any
        if cache_key is None:
            plan = self._plan(statement, tables)
            values = sorted(statement.compile(dialect=self._engine.dialect).params.items())
        else:
            at = (cache_key.key, None if tables is None else tuple(tables))
            known = self._plans.get(at)
            if known is None:
                known = self._plan(statement, tables)
                while len(self._plans) >= MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)), None)
                self._plans[at] = known
            plan = known
            values = [bound.effective_value for bound in cache_key.bindparams]
        told = self._identity if isinstance(self._identity, str) else self._identity()
        options = {**self._engine.get_execution_options(), **cast(sa.Executable, statement).get_execution_options()}
        parts = (
            *(self._database.encode(), told.encode(), plan.digest),
            self._bytes([[name, _option(name, value)] for name, value in sorted(options.items()) if name not in _WITHOUT_EFFECT]),
            self._bytes([_parameter(value) for value in values]),
        )
        whole = hashlib.blake2b(digest_size=20)
        for part in parts:
            whole.update(len(part).to_bytes(8, "big") + part)
        return f"query:{whole.hexdigest()}", plan

    def _bytes(self, values: list[Any]) -> bytes:
        try:
            return self._exact.encode(values, "")
        except Uncodable as error:
            raise UncacheableArgument(f"no key can be built from a parameter of this statement: {error}") from error

    def _plan(self, statement: Select, tables: Sequence[str] | None) -> _Plan:
        if not isinstance(statement, (sa.Select, sa.CompoundSelect)):
            raise ValueError(f"a SELECT is needed, not {type(statement).__name__}")
        for column in getattr(statement, "column_descriptions", ()):
            if isinstance(column["expr"], Bundle) or (column.get("entity") is column["expr"]):
                raise ValueError("select columns, not whole entities: cached rows belong to no session")
        if getattr(statement, "_for_update_arg", None) is not None:
            raise ValueError("a SELECT … FOR UPDATE locks rows; it cannot be answered from a cache")
        found = tables_of(statement) if tables is None else list(tables)
        compiled = statement.compile(dialect=self._engine.dialect)
        columns = list(statement.selected_columns)
        binds = [repr(bound.type) for bound in compiled.binds.values()]
        kinds = [f"{type(column.type).__module__}.{column.type!r}" for column in columns]
        digest = hashlib.blake2b(repr((str(compiled), binds, kinds, found)).encode(), digest_size=20).digest()
        return _Plan(digest, [table_tag(name) for name in found], _Rows(_enums(columns)))


def _enums(columns: Sequence[sa.ColumnElement[Any]]) -> dict[int, type[enum.Enum]]:
    kinds = ((at, getattr(column.type, "enum_class", None)) for at, column in enumerate(columns))
    return {at: kind for at, kind in kinds if kind is not None}


def _parameter(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return ("enum", type(value).__module__, type(value).__qualname__, value.name)
    return tuple(map(_parameter, value)) if isinstance(value, (list, tuple)) else value


def _option(name: str, value: Any) -> str:
    text = repr(sorted(value.items(), key=repr)) if isinstance(value, Mapping) else repr(value)
    if " at 0x" in text:
        raise UncacheableArgument(f"no key can be built from the execution option {name}: {text}")
    return text


class QueryCache(_Queries):
    """``rows(select(User.id, User.name).where(…))`` answers a list of tuples with the columns' Python types.

    ``identity``: a text, or a function that answers one, for what the engine does not show of whose rows these are.
    """

    def __init__(self, cache: Cache, engine: sa.Engine, *, policy: Policy | None = None, identity: Identity = "") -> None:
        super().__init__(engine, policy, identity)
        self.cache = cache

    def rows(self, statement: Select, *, tables: Sequence[str] | None = None, policy: Policy | None = None) -> list[Row]:
        """Raises ValueError for statements whose tables cannot be told, UncacheableArgument for parameters that make no key, and
        what the database raises."""
        if self._database is None:
            with self.engine.connect() as connection:
                self._ask(connection)
        key, plan = self._prepare(statement, tables)

        def load() -> list[Row]:
            with self.engine.connect() as connection:
                return [tuple(row) for row in connection.execute(statement)]

        return self.cache.get(key, load, tags=plan.tags, policy=policy or self.policy, codec=plan.codec)


class AsyncQueryCache(_Queries):
    """The same over an AsyncEngine."""

    def __init__(self, cache: AsyncCache, engine: Any, *, policy: Policy | None = None, identity: Identity = "") -> None:
        super().__init__(engine, policy, identity)
        self.cache = cache

    async def rows(self, statement: Select, *, tables: Sequence[str] | None = None, policy: Policy | None = None) -> list[Row]:
        if self._database is None:
            async with self.engine.connect() as connection:
                await connection.run_sync(self._ask)
        key, plan = self._prepare(statement, tables)

        async def load() -> list[Row]:
            async with self.engine.connect() as connection:
                return [tuple(row) for row in await connection.execute(statement)]

        return await self.cache.get(key, load, tags=plan.tags, policy=policy or self.policy, codec=plan.codec)
