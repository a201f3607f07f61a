"""Results of SELECTs, cached, and invalidated by the tables they read (SQLAlchemy 2).

A result hangs on the tag of each table; an `Outbox` on the writing sessions renews those tags with every commit, and so may you
(`cache.invalidate(tags=[table_tag("users")])`). Queries run on a connection of their own, each in a new transaction: a session's
transaction may have an old snapshot (REPEATABLE READ) or its own uncommitted rows, and neither may get into the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from cachekeep_patterns.cache import AsyncCache, Cache
from cachekeep_patterns.codecs import Codec, Msgspec
from cachekeep_patterns.database.outbox import table_tag
from cachekeep_patterns.keys import canonical
from cachekeep_patterns.policy import Policy

Row = tuple[Any, ...]


def tables_of(statement: sa.Select[Any]) -> list[str]:
    """The tables a statement reads, in subqueries and joins too.
    Raises ValueError if it holds raw SQL, which cannot be seen through."""
    names = set()
    for part in visitors.iterate(statement):
        if isinstance(part, sa.Table):
            names.add(part.name)
        elif isinstance(part, sa.TextClause):
            raise ValueError("the statement holds text(); say which tables it reads: tables=[…]")
        table = getattr(part, "table", None)
        if isinstance(table, sa.Table):
            names.add(table.name)
        for source in part.get_final_froms() if isinstance(part, sa.Select) else ():
            names |= {inner.name for inner in visitors.iterate(source) if isinstance(inner, sa.Table)}
    if not names:
        raise ValueError("no table was found in the statement; say which: tables=[…]")
    return sorted(names)


class _Queries:
    def __init__(self, engine: Any, policy: Policy | None) -> None:
        self.engine, self.policy = engine, policy
        self._codecs: dict[str, Codec] = {}

    def _prepare(self, statement: sa.Select[Any], tables: Sequence[str] | None) -> tuple[str, list[str], Codec]:
        """(key, tags, codec) of a statement with its parameters."""
        if any(isinstance(column["expr"], type) for column in statement.column_descriptions):
            raise ValueError("select columns, not whole entities: cached rows belong to no session")
        compiled = statement.compile(dialect=self.engine.dialect)
        sql = str(compiled)
        parameters = canonical({name: repr(value) for name, value in compiled.params.items()})
        key = "query:" + hashlib.blake2b(f"{sql}\0{parameters}".encode(), digest_size=20).hexdigest()
        codec = self._codecs.get(sql)
        if codec is None:
            codec = Msgspec(list[_row_type(statement)], format="msgpack")  # type: ignore[misc]
            self._codecs[sql] = codec
        return key, [table_tag(name) for name in tables or tables_of(statement)], codec


def _row_type(statement: sa.Select[Any]) -> Any:
    types: list[Any] = []
    for column in statement.selected_columns:
        try:
            kind = column.type.python_type
        except NotImplementedError:
            types.append(Any)
        else:
            types.append(kind | None if kind not in (dict, list) else Any)
    return tuple[tuple(types)]  # type: ignore[misc]


class QueryCache(_Queries):
    """``rows(select(User.id, User.name).where(…))`` answers a list of tuples with the columns' Python types."""

    def __init__(self, cache: Cache, engine: sa.Engine, *, policy: Policy | None = None) -> None:
        super().__init__(engine, policy)
        self.cache = cache

    def rows(self, statement: sa.Select[Any], *, tables: Sequence[str] | None = None, policy: Policy | None = None) -> list[Row]:
        """Raises ValueError for statements whose tables cannot be told, and what the database raises."""
        key, tags, codec = self._prepare(statement, tables)

        def load() -> list[Row]:
            with self.engine.connect() as connection:
                return [tuple(row) for row in connection.execute(statement)]

        return self.cache.get(key, load, tags=tags, policy=policy or self.policy, codec=codec)


class AsyncQueryCache(_Queries):
    """The same over an AsyncEngine."""

    def __init__(self, cache: AsyncCache, engine: Any, *, policy: Policy | None = None) -> None:
        super().__init__(engine, policy)
        self.cache = cache

    async def rows(
        self, statement: sa.Select[Any], *, tables: Sequence[str] | None = None, policy: Policy | None = None
    ) -> list[Row]:
        key, tags, codec = self._prepare(statement, tables)

        async def load() -> list[Row]:
            async with self.engine.connect() as connection:
                return [tuple(row) for row in await connection.execute(statement)]

        return await self.cache.get(key, load, tags=tags, policy=policy or self.policy, codec=codec)
