"""SQLite: one connection that writes, some that read, all in this process.

A statement takes microseconds and no lock that others wait on, so it runs where it is called, in the event loop: a hop to a thread
and back costs more than the statement. Only a commit waits for the disk, and only a commit is given to a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from cachekeep.clock import Clock
from cachekeep.errors import Unusable
from cachekeep.store.contract import StoreFailed
from cachekeep.store.database import finish
from cachekeep.store.wakes import Touched

BUSY_SECONDS = 10.0
"""How long to wait for another process (a backup, a shell) that holds the write lock, and for those here who wait for it, too."""
_IDLE_READERS = 4

Prepare = Callable[[sa.Connection, str], bool]
"""Brings the tables of a database, shown by this name, to where they are to be, inside the caller's transaction. Whether there is
something behind them that is not to stay."""


class _Connection:
    def __init__(self, connection: sa.Connection, raw: sqlite3.Connection) -> None:
        self._connection = connection
        self.raw = raw

    async def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    def sync(self) -> sa.Connection:
        return self._connection

    def close(self) -> None:
        self._connection.close()


class Sqlite:
    """``Database`` over one file, mode 0600, whose tables are as ``prepare`` makes them. WAL with a sync at every commit;
    transactions begin IMMEDIATE, so no update gets lost."""

    def __init__(self, path: Path, clock: Clock, prepare: Prepare) -> None:
        self.path = path
        self.shown = str(path)
        self._clock, self._prepare = clock, prepare
        # SQLAlchemy compiles and converts; when a transaction begins and ends is said here, in plain SQL.
        self._engine = sa.create_engine(
            "sqlite://", creator=self._raw, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True
        )
        self._gate = asyncio.Lock()
        self._writer: _Connection | None = None
        self._readers: list[_Connection] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cachekeep-store")

    def _raw(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)

    def _connect(self, *pragmas: str) -> _Connection:
        connection = self._engine.connect()
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        for pragma in ("foreign_keys=on", "cell_size_check=on", *pragmas):
            raw.execute(f"pragma {pragma}")
        return _Connection(connection, raw)

    async def open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(self.path, 0o600)  # SQLite gives -wal and -shm the mode of the file itself.
        except OSError as error:
            raise Unusable(f"database {self.shown}: {error.strerror}") from error
        writer: _Connection | None = None
        try:
            with self._plain_errors():
                writer = self._connect("synchronous=full")
                if (mode := writer.raw.execute("pragma journal_mode=wal").fetchone()[0]) != "wal":
                    raise Unusable(f"database {self.shown}: this file system allows no WAL (SQLite says {mode}). Use a local disk.")
                if (fault := writer.raw.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                    raise Unusable(f"database {self.shown} is damaged: {fault}. It was left as it is; restore it from a backup.")
                writer.raw.execute("begin immediate")
                try:
                    stays = self._prepare(writer.sync(), f"database {self.shown}")
                    writer.raw.execute("commit")
                    if stays:  # in free pages, and in the log of what was written
                        writer.raw.execute("vacuum")
                        writer.raw.execute("pragma wal_checkpoint(truncate)")
                finally:
                    if writer.raw.in_transaction:
                        writer.raw.execute("rollback")
                writer.raw.execute("pragma busy_timeout=0")  # From now on waiting is done without holding up the event loop.
        except StoreFailed as error:
            if writer is not None:
                writer.close()
            raise Unusable(str(error)) from error
        except Unusable:
            if writer is not None:
                writer.close()
            raise
        self._writer = writer

    async def aclose(self) -> None:
        async with self._gate:
            for connection in (*self._readers, *([self._writer] if self._writer else [])):
                connection.close()
            self._readers.clear()
            self._writer = None
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def writing(self, touched: Touched, *, serial: bool = False, durable: bool = True) -> AsyncIterator[_Connection]:
        deadline = self._clock.monotonic() + BUSY_SECONDS
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                await self._gate.acquire()
        except TimeoutError:
            raise StoreFailed(f"database {self.shown}: {_BUSY}. Nothing of this change was kept.") from None
        try:
            if (writer := self._writer) is None:
                raise StoreFailed(f"database {self.shown} is not open")
            raw = writer.raw
            with self._plain_errors():
                await self._begin(raw, durable, deadline)
                try:
                    yield writer
                    await finish(asyncio.get_running_loop().run_in_executor(self._thread, self._commit, raw, touched))
                finally:
                    if raw.in_transaction:
                        raw.execute("rollback")
        finally:
            self._gate.release()

    @staticmethod
    def _commit(raw: sqlite3.Connection, touched: Touched) -> None:
        raw.execute("commit")
        touched.committed = True

    async def _begin(self, raw: sqlite3.Connection, durable: bool, deadline: float) -> None:
        raw.execute(f"pragma synchronous={'full' if durable else 'normal'}")
        pause_seconds = 0.001
        while True:
            try:
                raw.execute("begin immediate")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or self._clock.monotonic() > deadline:
                    raise
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, 0.05)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[_Connection]:
        if self._writer is None:
            raise StoreFailed(f"database {self.shown} is not open")
        with self._plain_errors():
            reader = self._readers.pop() if self._readers else self._connect("query_only=on")
            try:
                reader.raw.execute("begin")
                yield reader
            finally:
                if reader.raw.in_transaction:
                    reader.raw.execute("rollback")
                if len(self._readers) < _IDLE_READERS and self._writer is not None:
                    self._readers.append(reader)
                else:
                    reader.close()

    def on_wake(self, callback: Callable[[str | None, bool], None]) -> None:
        """Nobody else: a data directory belongs to one control plane."""

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            code = getattr(cause, "sqlite_errorcode", 0)
            raise StoreFailed(
                f"database {self.shown}: {_WORDS.get(code & 0xFF, 'failed')} ({cause}). Nothing of this change was kept."
            ) from error


_BUSY = f"another process has been writing for {BUSY_SECONDS:g} seconds"
_WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_READONLY: "it may not be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup",
    sqlite3.SQLITE_NOTADB: "this file is no database, or a damaged one",
}
