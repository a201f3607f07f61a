"""A cached result stands for the whole of what decides its rows, and a hit equals a miss in value and type."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column
from sqlalchemy.pool import StaticPool

from cachekeep_patterns import Cache, connect
from cachekeep_patterns.database import QueryCache
from cachekeep_patterns.errors import UncacheableArgument
from patterns_rig.servers import Server

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))


@pytest.fixture
def cache(server: Server) -> Cache:
    return Cache(connect(f"valkey://127.0.0.1:{server.port}"))


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    url = f"postgresql+psycopg://test@127.0.0.1:{postgres_server.port}/postgres"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in ("create schema one", "create schema two", "create role alice login", "create role bob login"):
            connection.execute(sa.text(statement))
        connection.execute(sa.text("grant usage on schema one to alice, bob"))
    yield url
    with engine.begin() as connection:
        connection.execute(sa.text("drop schema one cascade; drop schema two cascade"))
        connection.execute(sa.text("drop table if exists things; drop owned by alice; drop owned by bob; drop role alice, bob"))
    engine.dispose()


def fill(engine: sa.Engine, name: str) -> sa.Engine:
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(things).values(id=1, name=name))
    return engine


NAMES = sa.select(things.c.name)


def test_two_databases(cache: Cache, tmp_path: Path) -> None:
    one, two = (fill(sa.create_engine(f"sqlite:///{tmp_path}/{name}"), name) for name in ("one", "two"))
    for _ in range(2):
        assert QueryCache(cache, one).rows(NAMES) == [("one",)]
        assert QueryCache(cache, two).rows(NAMES) == [("two",)]
    loads: list[str] = []
    again = sa.create_engine(f"sqlite:///{tmp_path}/../{tmp_path.name}/one")
    sa.event.listen(again, "before_cursor_execute", lambda *args: loads.append(args[2]))
    assert QueryCache(cache, again).rows(NAMES) == [("one",)]
    assert loads == []  # the same database by another name


def test_two_databases_in_memory(cache: Cache) -> None:
    memory: dict[str, Any] = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    one, two = (fill(sa.create_engine("sqlite://", **memory), name) for name in ("one", "two"))
    assert QueryCache(cache, one).rows(NAMES) == QueryCache(cache, one).rows(NAMES) == [("one",)]
    assert QueryCache(cache, two).rows(NAMES) == [("two",)]


def test_two_schemas_by_translation(cache: Cache, postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url)
    one, two = (
        fill(engine.execution_options(schema_translate_map={None: name}), name)  # as an engine's option
        for name in ("one", "two")
    )
    for _ in range(2):
        assert QueryCache(cache, one).rows(NAMES) == [("one",)]
        assert QueryCache(cache, two).rows(NAMES) == [("two",)]
    whole = QueryCache(cache, engine)
    for name in ("one", "two"):
        assert whole.rows(NAMES.execution_options(schema_translate_map={None: name})) == [(name,)]  # as a statement's
    engine.dispose()


def test_two_search_paths_and_two_roles(cache: Cache, postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url)
    for name in ("one", "two"):
        fill(engine.execution_options(schema_translate_map={None: name}), name)
    for name in ("one", "two"):  # in connect_args, which the URL does not show
        path = sa.create_engine(postgres_url, connect_args={"options": f"-c search_path={name}"})
        assert QueryCache(cache, path).rows(NAMES) == [(name,)]
        path.dispose()
    with engine.begin() as connection:
        connection.execute(sa.text("alter table one.things enable row level security"))
        connection.execute(sa.text("grant select on one.things to alice, bob"))
        connection.execute(sa.text("create policy own on one.things using (current_user = 'alice')"))
    by_url = postgres_url.replace("test@", "{}@") + "?options=-c%20search_path%3Done"
    for _ in range(2):
        for role, rows in (("alice", [("one",)]), ("bob", [])):
            role_engine = sa.create_engine(by_url.format(role))
            assert QueryCache(cache, role_engine).rows(NAMES) == rows
            role_engine.dispose()
    for role, rows in (("alice", [("one",)]), ("bob", [])):  # SET ROLE at connect
        role_engine = sa.create_engine(postgres_url, connect_args={"options": f"-c search_path=one -c role={role}"})
        assert QueryCache(cache, role_engine).rows(NAMES) == rows
        role_engine.dispose()
    engine.dispose()


def test_whose_rows_only_the_caller_knows(cache: Cache, tmp_path: Path) -> None:
    engine = fill(sa.create_engine(f"sqlite:///{tmp_path}/db"), "one")
    tenant = "a"
    queries = QueryCache(cache, engine, identity=lambda: tenant)
    assert queries.rows(NAMES) == [("one",)]
    with engine.begin() as connection:
        connection.execute(sa.update(things).values(name="two"))
    assert queries.rows(NAMES) == [("one",)]
    tenant = "b"
    assert queries.rows(NAMES) == [("two",)]


def test_one_sql_with_other_types_or_values(cache: Cache, tmp_path: Path) -> None:
    engine = fill(sa.create_engine(f"sqlite:///{tmp_path}/db"), "7")
    queries = QueryCache(cache, engine)

    class Doubled(sa.TypeDecorator[str]):
        impl = sa.String
        cache_ok = True

        def process_result_value(self, value: Any, dialect: Any) -> Any:
            return value * 2

    for _ in range(2):
        assert queries.rows(sa.select(things.c.name)) == [("7",)]
        assert queries.rows(sa.select(sa.type_coerce(things.c.name, Doubled()))) == [("77",)]
    counted = [queries.rows(sa.select(things.c.id).where(things.c.name == value)) for value in ("7", "8", "7")]
    assert counted == [[(1,)], [], [(1,)]]
    within = sa.select(things.c.name).where(things.c.id.in_([1, 2]))
    assert queries.rows(within) == [("7",)]
    assert queries.rows(sa.select(things.c.name).where(things.c.id.in_([3, 4]))) == []
    assert queries.rows(sa.select(sa.literal(1.0), things.c.id)) == [(1.0, 1)]
    assert isinstance(queries.rows(sa.select(sa.literal(1), things.c.id))[0][0], int)
    with pytest.raises(UncacheableArgument):
        queries.rows(sa.select(things.c.id).where(things.c.name == sa.literal(object(), sa.String)))


class Colour(enum.Enum):
    RED = "r"


def test_a_hit_equals_a_miss(cache: Cache, postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url)
    values: list[Any] = [
        sa.literal(2**40).label("big"),
        sa.literal(decimal.Decimal("1.50")),
        sa.func.sum(things.c.id, type_=sa.Integer),  # PostgreSQL answers another type than is said here
        sa.cast(sa.func.sum(things.c.id), sa.Numeric),
        sa.literal(dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.timezone.utc), sa.DateTime(timezone=True)),
        sa.literal(dt.timedelta(days=1, seconds=2)),
        sa.literal(uuid.UUID(int=7)),
        sa.literal(b"\0\xff"),
        sa.literal({"a": [1, None, "x"]}, sa.JSON),
        sa.literal(Colour.RED, sa.Enum(Colour, native_enum=False)),
        sa.literal(float("inf")),
        sa.null(),
    ]
    fill(engine, "x")
    statement = sa.select(*values).select_from(things)
    queries = QueryCache(cache, engine)
    ran: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: ran.append(args[2]))
    missed = queries.rows(statement)
    count = len(ran)
    hit = queries.rows(statement)
    assert len(ran) == count
    assert hit == missed
    assert [type(one) for one in hit[0]] == [type(one) for one in missed[0]]
    engine.dispose()


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_what_is_refused(cache: Cache, tmp_path: Path) -> None:
    queries = QueryCache(cache, fill(sa.create_engine(f"sqlite:///{tmp_path}/db"), "x"))
    light = sa.table("things", sa.column("name"))
    assert queries.rows(sa.select(light.c.name)) == [("x",)]
    assert queries.rows(sa.union_all(NAMES, NAMES)) == [("x",), ("x",)]
    refused: list[Any] = [
        sa.select(Thing),
        sa.select(aliased(Thing)),
        sa.select(things.c.id).with_for_update(),
        sa.update(things).values(name="y").returning(things.c.id),
        sa.select(sa.literal_column("(select max(id) from other)"), things.c.id),
        sa.select(sa.insert(things).values(id=9).returning(things.c.id).cte()),
    ]
    for statement in refused:
        with pytest.raises(ValueError):
            queries.rows(statement)
