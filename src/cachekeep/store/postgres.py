"""PostgreSQL through asyncpg: several control planes may share one database."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cachekeep.clock import Clock
from cachekeep.errors import Conflict, Unusable
from cachekeep.store.contract import StoreFailed
from cachekeep.store.database import finish
from cachekeep.store.migrate import Seal, migrate
from cachekeep.store.wakes import Touched

T = TypeVar("T")
log = logging.getLogger(__name__)

CHANNEL = "cachekeep"
_TOLD = " told"
"""Behind the uid of a cache of which nothing but the condition is new."""
SERIAL_LOCK = 0x63616368656B6565
"""Advisory lock of API transactions: they read, check and write across rows, as they may on SQLite. Keepers never take it."""
SILENCE_SECONDS = 10
"""A control plane that freezes inside a transaction loses it after this long, and with it what it had locked."""
LOCK_SECONDS = 10
"""How long the server lets a statement wait for a lock that somebody else has: a shell, a backup, a frozen client."""
ANSWER_SECONDS = 12.0
"""A statement that has no answer by now has no server any more: one that is there gives up waiting for locks before."""
CONNECT_SECONDS = 5.0
PULSE_SECONDS = 15.0
"""How often the server is asked, where nothing comes by itself, whether it is there: one that is cut off sends no reset."""
_GOODBYE_SECONDS = 1.0


class _Connection:
    def __init__(self, connection: AsyncConnection, shown: str) -> None:
        self._connection = connection
        self._shown = shown
        self.unanswered = False
        """Something was sent and what came of it is not known: no more can be said on this connection."""

    async def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        return await self._answered(self._connection.execute(statement, parameters))

    async def commit(self) -> None:
        """Raises ``StoreFailed``, ``unsure`` where it may have been committed."""
        await self._answered(self._connection.commit(), committing=True)

    async def _answered(self, work: Awaitable[T], *, committing: bool = False) -> T:
        self.unanswered = True
        with _plain_errors(self._shown, committing=committing):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await work
            except sa.exc.SQLAlchemyError:
                self.unanswered = False
                raise
        self.unanswered = False
        return answer

    async def driver(self) -> Any:
        """asyncpg's own connection."""
        return (await self._connection.get_raw_connection()).driver_connection

    async def close(self) -> None:
        """Give it back, or cut it off where a rollback would wait for a server that does not answer."""
        if not self.unanswered:
            with suppress(StoreFailed):
                await self._answered(self._connection.rollback())
                await self._connection.close()
                return
        if not self._connection.invalidated:  # as SQLAlchemy does when a statement is cancelled
            (await self.driver()).terminate()
            await self._connection.invalidate()
        await self._connection.close()


class Postgres:
    """``Database`` over a server. READ COMMITTED with row locks."""

    def __init__(self, url: sa.URL, clock: Clock, seal: Seal) -> None:
        self.shown = url.render_as_string(hide_password=True)
        self._seal = seal
        self._url = url.set(drivername="postgresql+asyncpg")
        self._clock = clock
        self._me = uuid.uuid4().hex
        self._engine: AsyncEngine | None = None
        self._ear: asyncio.Task[None] | None = None
        self._callback: Callable[[str | None, bool], None] = lambda _, __: None

    async def open(self) -> None:
        settings = {
            "application_name": "cachekeep",
            "idle_in_transaction_session_timeout": f"{SILENCE_SECONDS}s",
            "lock_timeout": f"{LOCK_SECONDS}s",
            "jit": "off",
        }
        try:
            engine = create_async_engine(
                self._url,
                pool_size=5,
                max_overflow=15,
                pool_timeout=ANSWER_SECONDS,
                hide_parameters=True,
                connect_args={"server_settings": settings, "timeout": CONNECT_SECONDS},
            )
        except ImportError as error:
            raise Unusable("PostgreSQL needs the asyncpg package: install cachekeep[postgres]") from error
        try:
            with _plain_errors(self.shown):
                async with engine.begin() as connection:
                    await connection.execute(_SERIAL)
                    stays = await connection.run_sync(migrate, f"database {self.shown}", self._seal)
                if stays:  # in rows that nobody sees
                    async with engine.connect() as connection:
                        await connection.execution_options(isolation_level="AUTOCOMMIT")
                        await connection.execute(sa.text("vacuum full caches"))
        except (StoreFailed, Conflict, Unusable) as error:
            await engine.dispose()
            raise Unusable(str(error)) from error
        self._engine = engine
        heard = asyncio.Event()
        self._ear = asyncio.create_task(self._listen(heard), name="store-listen")
        with suppress(TimeoutError):
            await asyncio.wait_for(heard.wait(), 5)

    async def aclose(self) -> None:
        if self._ear is not None:
            self._ear.cancel()
            with suppress(asyncio.CancelledError):
                await self._ear
            self._ear = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            with suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await engine.dispose()

    @asynccontextmanager
    async def _connection(self, **options: Any) -> AsyncIterator[_Connection]:
        if self._engine is None:
            raise StoreFailed(f"database {self.shown} is not open")
        with _plain_errors(self.shown):
            connection = await self._engine.connect()
        session = _Connection(connection, self.shown)
        try:
            if options:
                await connection.execution_options(**options)
            yield session
        finally:
            await finish(asyncio.ensure_future(session.close()))

    @asynccontextmanager
    async def writing(self, touched: Touched, *, serial: bool = False, durable: bool = True) -> AsyncIterator[_Connection]:
        async with self._connection() as session:
            if serial:
                await session.execute(_SERIAL)
            yield session
            if touched.told_only:
                payloads = [f"{self._me} {uid}{_TOLD if told else ''}" for uid, told in touched.told_only.items()]
                await session.execute(_NOTIFY, {"channel": CHANNEL, "payloads": payloads})
            await finish(asyncio.ensure_future(self._commit(session, touched)))

    @staticmethod
    async def _commit(session: _Connection, touched: Touched) -> None:
        await session.commit()
        touched.committed = True

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[_Connection]:
        async with self._connection(isolation_level="REPEATABLE READ", postgresql_readonly=True) as session:
            yield session

    def on_wake(self, callback: Callable[[str | None, bool], None]) -> None:
        self._callback = callback

    async def _listen(self, heard: asyncio.Event) -> None:
        pause_seconds = 0.1
        while True:
            try:
                async with self._connection() as session:
                    session.unanswered = (
                        True  # SQLAlchemy does not see what happens here, and must not hand out the connection again
                    )
                    raw = await session.driver()
                    broken = asyncio.Event()
                    raw.add_termination_listener(lambda _, broken=broken: broken.set())
                    await raw.add_listener(CHANNEL, self._heard)
                    if heard.is_set():
                        self._callback(None, False)
                    heard.set()
                    pause_seconds = 0.1
                    while not broken.is_set():
                        with suppress(TimeoutError):
                            async with asyncio.timeout(PULSE_SECONDS):
                                await broken.wait()
                                break
                        await raw.fetchval("SELECT 1", timeout=CONNECT_SECONDS)
            except Exception as error:  # Whatever it is, listening is not worth dying for: keepers look by themselves, only later.
                log.warning("wakes of other control planes are not heard for now: %s", error)
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, 10.0)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        sender, _, uid = payload.partition(" ")
        if sender != self._me:
            self._callback(uid.removesuffix(_TOLD), uid.endswith(_TOLD))


_SERIAL = sa.select(sa.func.pg_advisory_xact_lock(SERIAL_LOCK))
_NOTIFY = sa.text("SELECT count(pg_notify(:channel, payload)::text) FROM unnest(CAST(:payloads AS text[])) AS payload")


@contextmanager
def _plain_errors(shown: str, *, committing: bool = False) -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        # No detail and no chain: PostgreSQL's "DETAIL: Failing row contains (…)" quotes passwords that the row holds.
        reason = str(error.orig).partition("\n")[0]
        if getattr(error.orig, "sqlstate", None) in ("40001", "40P01"):
            raise Conflict(f"database {shown}: {reason}") from None
        unsure = committing and error.connection_invalidated
        raise StoreFailed(f"database {shown}: {reason}. {_kept(unsure)}", unsure=unsure) from None
    except (OSError, TimeoutError) as error:
        raise StoreFailed(
            f"database {shown} does not answer: {str(error) or 'nothing in time'}. {_kept(committing)} Start the database, or name "
            "another with --database.",
            unsure=committing,
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreFailed(f"database {shown}: {error}", unsure=committing) from error


def _kept(unsure: bool) -> str:
    return "This change may have been kept, or not." if unsure else "Nothing of this change was kept."
