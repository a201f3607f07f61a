"""The cache beside a real database: PostgreSQL and SQLite, sync and async sessions."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import valkey
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cachekeep_patterns import AsyncCache, Cache, CacheDown, Policy, connect, connect_async
from cachekeep_patterns.database import AsyncQueryCache, AsyncWriteBehind, Outbox, QueryCache, WriteBehind
from cachekeep_patterns.database.outbox import table_tag
from cachekeep_patterns.errors import Backlogged
from patterns_rig.servers import Server, engine, wait_for


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    born: Mapped[datetime.date | None]
    balance: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(10, 2), default=decimal.Decimal(0))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))


def url(server: Server) -> str:
    return f"valkey://127.0.0.1:{server.port}"


def outbox_for(cache: Any) -> Outbox:
    Base.metadata.remove(Base.metadata.tables["cachekeep_outbox"]) if "cachekeep_outbox" in Base.metadata.tables else None
    outbox = Outbox(cache, Base.metadata, lease_seconds=1)
    outbox.watch(User, lambda user: [f"user:{user.id}"])
    return outbox


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/db"
    server: Server = request.getfixturevalue("postgres_server")
    return f"postgresql+psycopg://test@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def db(database: str) -> Iterator[sa.Engine]:
    made = sa.create_engine(database)
    yield made
    Base.metadata.drop_all(made)
    made.dispose()


def name_of(db: sa.Engine, user_id: int) -> str | None:
    with Session(db) as session:
        user = session.get(User, user_id)
        return None if user is None else user.name


def unreachable() -> str:
    raise AssertionError("this was to come from the cache")


# --------------------------------------------------------------------------- one load, over a real database


def test_fifty_callers_one_query(server: Server, db: sa.Engine) -> None:
    Base.metadata.create_all(db)
    with Session(db) as session:
        session.add(User(id=1, name="Ada"))
        session.commit()
    queries = []
    sa.event.listen(db, "before_cursor_execute", lambda *args: queries.append(args[2]))
    cache = Cache(connect(url(server)))
    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(lambda _: cache.get("user:1", lambda: name_of(db, 1)), range(50))) == {"Ada"}
    assert len([query for query in queries if "SELECT" in query]) == 1


# --------------------------------------------------------------------------- outbox


def test_a_commit_invalidates_what_it_touched(server: Server, db: sa.Engine) -> None:
    cache = Cache(connect(url(server)))
    outbox = outbox_for(cache)
    Base.metadata.create_all(db)
    make = sessionmaker(db)
    outbox.attach(make)

    def read() -> str | None:
        return cache.get("user:1", lambda: name_of(db, 1))

    with make() as session:
        session.add(User(name="Ada"))  # its key is known only after the flush
        session.commit()
    assert read() == "Ada"
    assert cache.get("user:1", unreachable) == "Ada"
    with make() as session:
        session.get_one(User, 1).name = "Grace"
        session.flush()
        assert read() == "Ada"  # not committed
        session.rollback()
    assert cache.get("user:1", unreachable) == "Ada"
    with make() as session:
        session.get_one(User, 1).name = "Grace"
        session.commit()
    assert read() == "Grace"
    with make.begin() as session:
        with session.begin_nested():
            session.get_one(User, 1).name = "Emmy"
        assert cache.get("user:1", unreachable) == "Grace"  # a savepoint is not a commit
    assert read() == "Emmy"
    with make() as session:
        session.delete(session.get_one(User, 1))
        session.commit()
    assert read() is None
    assert outbox.sweep(db) == 0  # all of it was done; its rows go
    with db.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(outbox.table)) == 0


def test_the_cache_is_away_during_the_commit_and_the_sweep_makes_up_for_it(frail: Server, db: sa.Engine) -> None:
    frail.argv += ["--appendonly", "yes", "--appendfsync", "always"]
    frail.kill()
    frail.start()
    cache = Cache(connect(url(frail), deadline_seconds=0))
    outbox = outbox_for(cache)
    Base.metadata.create_all(db)
    make = sessionmaker(db)
    outbox.attach(make)
    with make.begin() as session:
        session.add(User(id=1, name="Ada"))
    assert cache.get("user:1", lambda: name_of(db, 1)) == "Ada"
    frail.kill()
    with make.begin() as session:
        session.get_one(User, 1).name = "Grace"
    with pytest.raises(CacheDown):
        outbox.sweep(db, grace_seconds=0)
    frail.start()  # with its old data
    wait_for(lambda: _sweeps(outbox, db), "the sweep to get through")
    assert cache.get("user:1", lambda: name_of(db, 1)) == "Grace"
    assert outbox.sweep(db, grace_seconds=0) == 0


def _sweeps(outbox: Outbox, db: sa.Engine) -> bool:
    try:
        return outbox.sweep(db, grace_seconds=0) >= 1
    except CacheDown:
        return False


DIES = """
import os, sys
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker
from cachekeep_patterns import Cache, connect
from test_database import Base, User, outbox_for
outbox = outbox_for(Cache(connect(sys.argv[1])))
make = sessionmaker(sa.create_engine(sys.argv[2]))
outbox.attach(make)
sa.event.listen(make, "after_commit", lambda session: os._exit(9), insert=True)  # committed, and not a step further
with make.begin() as session:
    session.get_one(User, 1).name = "Grace"
"""


def test_the_process_dies_between_commit_and_invalidation(server: Server, database: str, db: sa.Engine) -> None:
    cache = Cache(connect(url(server)))
    outbox = outbox_for(cache)
    Base.metadata.create_all(db)
    with Session(db) as session:
        session.add(User(id=1, name="Ada"))
        session.commit()
    assert cache.get("user:1", lambda: name_of(db, 1)) == "Ada"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parents[2]}"}
    died = subprocess.run([sys.executable, "-c", DIES, url(server), database], env=environment, check=False)
    assert died.returncode == 9
    assert name_of(db, 1) == "Grace"
    assert cache.get("user:1", lambda: name_of(db, 1)) == "Grace"  # the barrier stands
    assert outbox.sweep(db, grace_seconds=0) == 1
    admin = valkey.Valkey(port=server.port)
    wait_for(lambda: not admin.exists("user:1"), "the barrier to lapse")
    assert cache.get("user:1", lambda: name_of(db, 1)) == "Grace"


@pytest.fixture
async def adb(database: str) -> AsyncIterator[Any]:
    from sqlalchemy.ext.asyncio import create_async_engine

    made = create_async_engine(database.replace("sqlite:", "sqlite+aiosqlite:").replace("+psycopg", "+asyncpg"))
    yield made
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await made.dispose()


async def test_async_sessions(server: Server, adb: Any) -> None:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    cache = AsyncCache(connect_async(url(server)))
    outbox = outbox_for(cache)
    async with adb.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    make = async_sessionmaker(adb)
    outbox.attach(make)
    queries = AsyncQueryCache(cache, adb)

    async def read() -> str | None:
        async with make() as session:
            user = await session.get(User, 1)
            return None if user is None else user.name

    async with make.begin() as session:
        session.add(User(id=1, name="Ada"))
    assert await cache.get("user:1", read) == "Ada"
    assert await queries.rows(sa.select(User.name)) == [("Ada",)]
    async with make.begin() as session:
        (await session.get_one(User, 1)).name = "Grace"
    assert await cache.get("user:1", read) == "Grace"
    assert await queries.rows(sa.select(User.name)) == [("Grace",)]
    assert await queries.rows(sa.select(User.name)) == [("Grace",)]
    async with make.begin() as session:
        outbox.invalidate(session, "user:1", tags=["elsewhere"])
    assert await cache.get("user:1", read) == "Grace"
    assert await outbox.sweep_async(adb) == 0


# --------------------------------------------------------------------------- query results


def test_query_results_hang_on_their_tables(server: Server, db: sa.Engine) -> None:
    cache = Cache(connect(url(server)), policy=Policy(fresh_seconds=600))
    outbox = outbox_for(cache)
    Base.metadata.create_all(db)
    make = sessionmaker(db)
    outbox.attach(make)
    queries = QueryCache(cache, db)
    born = datetime.date(1815, 12, 10)
    with make.begin() as session:
        session.add(User(id=1, name="Ada", born=born, balance=decimal.Decimal("1.50")))
    ran = []
    sa.event.listen(db, "before_cursor_execute", lambda *args: ran.append(args[2]))

    users = sa.select(User.id, User.name, User.born, User.balance).where(User.name == "Ada")
    counts = sa.select(User.name, sa.func.count(Order.id)).join(Order, isouter=True).group_by(User.name)
    nobody = sa.select(User.id).where(User.name == "Nobody")
    for _ in range(3):
        assert queries.rows(users) == [(1, "Ada", born, decimal.Decimal("1.50"))]
        assert queries.rows(counts) == [("Ada", 0)]
        assert queries.rows(nobody) == []
    assert len(ran) == 3
    with make.begin() as session:
        session.add(Order(user_id=1))
    ran.clear()
    assert queries.rows(counts) == [("Ada", 1)]
    assert queries.rows(users) == [(1, "Ada", born, decimal.Decimal("1.50"))]
    assert len(ran) == 1  # users did not change
    with make.begin() as session:
        session.execute(sa.update(User).values(name="Grace"))  # no object is touched, only the table
    assert queries.rows(counts) == [("Grace", 1)]
    assert queries.rows(users) == []
    cache.invalidate(tags=[table_tag("users")])
    ran.clear()
    assert queries.rows(users) == []
    assert len(ran) == 1
    with pytest.raises(ValueError, match="columns"):
        queries.rows(sa.select(User))
    with pytest.raises(ValueError, match="text"):
        queries.rows(sa.select(User.id).where(sa.text("1 = 1")))
    with pytest.raises(ValueError, match="no table"):
        queries.rows(sa.select(sa.literal(1)))


def test_tables_are_found_in_subqueries_unions_and_aliases() -> None:
    from sqlalchemy.orm import aliased

    from cachekeep_patterns.database.queries import tables_of

    other = aliased(Order)
    assert tables_of(sa.select(User.id).where(User.id.in_(sa.select(Order.user_id)))) == ["orders", "users"]
    assert tables_of(sa.select(sa.func.count()).select_from(User)) == ["users"]
    assert tables_of(sa.select(other.id)) == ["orders"]
    ctes = sa.select(Order.user_id).cte()
    assert tables_of(sa.select(User.name).join(ctes, ctes.c.user_id == User.id)) == ["orders", "users"]
    assert tables_of(sa.select(sa.exists(sa.select(Order.id)))) == ["orders"]


# --------------------------------------------------------------------------- write-behind


def test_write_behind_saves_the_last_value_of_each_key(server: Server, db: sa.Engine) -> None:
    Base.metadata.create_all(db)
    client = connect(url(server))
    cache = Cache(client)
    batches: list[dict[str, str]] = []
    fences: list[int] = []
    broken = True

    def save(values: Any, fence: int) -> None:
        if broken:
            raise OSError("the database is away")
        batches.append(dict(values))
        fences.append(fence)
        with Session(db) as session:
            for key, name in values.items():
                session.merge(User(id=int(key), name=name))
            session.commit()

    behind = WriteBehind(client, "users", save, cache, batch=2, max_pending=3)

    def read(key: str) -> Any:
        return behind.get(key, lambda: name_of(db, int(key)))

    assert read("1") is None
    for key, name in (("1", "Ada"), ("2", "Grace"), ("1", "Emmy"), ("3", "Hedy")):
        behind.put(key, name)
    with pytest.raises(Backlogged):
        behind.put("4", "too many")
    assert read("1") == "Emmy"  # though the database has nothing yet
    with pytest.raises(OSError, match="away"):
        behind.flush()
    assert len(behind) == 3
    broken = False
    assert behind.flush() == 3
    assert batches == [{"1": "Emmy", "2": "Grace"}, {"3": "Hedy"}]
    assert fences[0] > 1  # the failed flush had the first
    assert len(behind) == 0
    assert read("1") == "Emmy" == name_of(db, 1)
    assert behind.flush() == 0


def test_a_value_written_while_the_batch_is_saved_is_saved_again(server: Server) -> None:
    client = connect(url(server))
    saved: list[dict[str, int]] = []

    def save(values: Any, _fence: int) -> None:
        saved.append(dict(values))
        if len(saved) == 1:
            behind.put("k", 2)

    behind = WriteBehind(client, "numbers", save, Cache(client))
    behind.put("k", 1)
    assert behind.flush() == 2
    assert saved == [{"k": 1}, {"k": 2}]


async def test_async_write_behind() -> None:
    with engine() as server:
        client = connect_async(url(server))
        saved: dict[str, int] = {}

        async def save(values: Any, _fence: int) -> None:
            saved.update(values)

        behind = AsyncWriteBehind(client, "numbers", save, AsyncCache(client))
        await behind.put("k", 1)
        assert await behind.get("k", lambda: None) == 1
        assert await behind.size() == 1
        assert await behind.flush() == 1
        assert saved == {"k": 1}
        await client.aclose()


def test_who_sweeps_what_is_said_at_once(server: Server, db: sa.Engine) -> None:
    blocking, loop = outbox_for(Cache(connect(url(server)))), outbox_for(AsyncCache(connect_async(url(server))))
    for wrong in (lambda: loop.keep_swept(db), lambda: loop.sweep(db), lambda: blocking.sweep(object())):
        with pytest.raises(TypeError, match="keep_swept_async"):
            wrong()
    with pytest.raises(TypeError, match="keep_swept_async"):
        asyncio.run(loop.keep_swept_async(db))


def test_a_sweeper_lives_through_whatever_happens(frail: Server, db: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    outbox = outbox_for(Cache(connect(url(frail), deadline_seconds=0)))
    stop = outbox.keep_swept(db, every_seconds=0.01)  # its table is not even there yet
    try:
        wait_for(lambda: "could not be swept" in caplog.text, "the sweeper to say so")
        Base.metadata.create_all(db)
        with db.begin() as connection:
            connection.execute(sa.insert(outbox.table).values(what='{"keys": ["k"], "tags": []}', created=0))

        def empty() -> bool:
            with db.connect() as connection:
                return connection.scalar(sa.select(sa.func.count()).select_from(outbox.table)) == 0

        wait_for(empty, "the row to be swept")
    finally:
        stop()


async def test_an_async_sweeper(server: Server, adb: Any) -> None:
    outbox = outbox_for(AsyncCache(connect_async(url(server))))
    async with adb.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(sa.insert(outbox.table).values(what='{"keys": ["k"], "tags": []}', created=0))
    sweeper = asyncio.create_task(outbox.keep_swept_async(adb, every_seconds=0.01))
    left = 1
    while left:
        await asyncio.sleep(0.01)
        async with adb.connect() as connection:
            left = await connection.scalar(sa.select(sa.func.count()).select_from(outbox.table))
    sweeper.cancel()
