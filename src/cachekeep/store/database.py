"""What ``SqlStore`` needs of a database. SQLite and PostgreSQL differ in this and in nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from cachekeep.store.wakes import Touched

T = TypeVar("T")


class Session(Protocol):
    """An open transaction."""

    async def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run one statement. The result is read before the next one runs."""


class Database(Protocol):
    """Connections and transactions."""

    shown: str
    """For messages: without passwords."""

    async def open(self) -> None:
        """Connect and migrate; ``Unusable`` if that cannot be."""

    async def aclose(self) -> None:
        """Disconnect."""

    def writing(self, touched: Touched, *, serial: bool = False, durable: bool = True) -> AbstractAsyncContextManager[Session]:
        """A read-write transaction, committed at the end; sets ``touched.committed``, even when cancelled while committing.

        ``serial``: no other serial one runs meanwhile. ``durable`` False: may be forgotten by a power cut, not by a crash.
        """

    def reading(self) -> AbstractAsyncContextManager[Session]:
        """A read-only snapshot."""

    def on_wake(self, callback: Any) -> None:
        """Call ``callback(uid, told)`` for what other processes touched (``Touched``); None: some may have been missed."""


async def finish(future: asyncio.Future[T]) -> T:
    """Wait for ``future`` to the end, even when cancelled meanwhile; the cancellation goes on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    result = future.result()
    if cancelled is not None:
        raise cancelled
    return result
