"""Doing what committed transactions left undone: their rows in the outbox's table tell it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from cachekeep_patterns.cache import AsyncCache, Cache

log = logging.getLogger("cachekeep_patterns.outbox")
_SAY_EVERY_SECONDS = 60.0


class Relay:
    """The half of an `Outbox` that sweeps. ``table`` holds a row for each commit whose invalidation is not known to be done."""

    def __init__(self, cache: Cache | AsyncCache, metadata: sa.MetaData, table_name: str) -> None:
        self.cache = cache
        self.table = sa.Table(
            table_name,
            metadata,
            sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
            sa.Column("what", sa.Text(), nullable=False),
            sa.Column("created", sa.Float(), nullable=False),
        )
        self._settled: list[int] = []
        self._settling = threading.Lock()
        self._said_at = -math.inf

    def _settle(self, row: int) -> None:
        """The invalidation of this row is done; the next sweep deletes it."""
        with self._settling:
            self._settled.append(row)

    def _due(self, grace_seconds: float, limit: int) -> tuple[sa.Select[Any], sa.Delete]:
        with self._settling:
            settled, self._settled = self._settled, []
        due = sa.select(self.table.c.id, self.table.c.what).where(self.table.c.created <= time.time() - grace_seconds)
        return due.order_by(self.table.c.id).limit(limit), sa.delete(self.table).where(self.table.c.id.in_(settled))

    def _check(self, cache: type[Any], engine: Any, kind: type[Any]) -> None:
        if not isinstance(self.cache, cache) or not isinstance(engine, kind):
            raise TypeError(
                "sweep and keep_swept take an Engine and are for a Cache; "
                "sweep_async and keep_swept_async take an AsyncEngine and are for an AsyncCache"
            )

    def _missed(self, error: Exception) -> None:
        """Said once a minute: while it lasts, what processes that died left undone stays undone."""
        if time.monotonic() - self._said_at >= _SAY_EVERY_SECONDS:
            self._said_at = time.monotonic()
            log.warning("the outbox could not be swept; its rows stay and it is tried again: %s", error)

    def sweep(self, engine: sa.Engine, *, grace_seconds: float = 5.0, limit: int = 500) -> int:
        """Do what was left undone for ``grace_seconds``; how many rows that was. Raises CacheDown, and then the rows stay."""
        self._check(Cache, engine, sa.Engine)
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
        self._check(AsyncCache, getattr(engine, "sync_engine", None), sa.Engine)
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
        """Sweep in a daemon thread until the returned function is called. Several processes may do so. Raises TypeError for an
        outbox over an AsyncCache, which is swept by `keep_swept_async`."""
        self._check(Cache, engine, sa.Engine)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.wait(every_seconds):
                try:
                    self.sweep(engine)
                except Exception as error:  # the next turn may get through
                    self._missed(error)

        threading.Thread(target=work, name="cachekeep-outbox", daemon=True).start()
        return stopped.set

    async def keep_swept_async(self, engine: Any, *, every_seconds: float = 5.0) -> None:
        """Sweep until cancelled: keep the task. ``engine``: an AsyncEngine."""
        self._check(AsyncCache, getattr(engine, "sync_engine", None), sa.Engine)
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.sweep_async(engine)
            except Exception as error:
                self._missed(error)


def _union(whats: Iterable[str]) -> tuple[list[str], list[str]]:
    keys: dict[str, None] = {}
    tags: dict[str, None] = {}
    for what in whats:
        decoded = json.loads(what)
        keys.update(dict.fromkeys(decoded["keys"]))
        tags.update(dict.fromkeys(decoded["tags"]))
    return list(keys), list(tags)
