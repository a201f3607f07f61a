"""Whatever way a session changes rows: their watched keys and the queries over their tables are invalidated, or it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from cachekeep_patterns import Cache, Policy, connect
from cachekeep_patterns.database import Outbox, QueryCache
from cachekeep_patterns.database.changes import tables_of_text
from cachekeep_patterns.errors import UnseenChange
from patterns_rig.servers import Server


class Base(DeclarativeBase):
    pass


membership = sa.Table(
    "membership",
    Base.metadata,
    sa.Column("person_id", sa.ForeignKey("person.id"), primary_key=True),
    sa.Column("team_id", sa.ForeignKey("team.id"), primary_key=True),
)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="person")
    notes: Mapped[list[Note]] = relationship(cascade="all, delete-orphan", passive_deletes=True)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Boss(Person):
    __tablename__ = "boss"
    id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    title: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "boss"}


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id", ondelete="CASCADE"))
    text: Mapped[str]


class Team(Base):
    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    members: Mapped[list[Person]] = relationship(secondary=membership)


class House:
    """A database with a cache beside it, and what is to be seen through both."""

    def __init__(self, server: Server, engine: sa.Engine) -> None:
        self.engine = engine
        self.cache = Cache(connect(f"valkey://127.0.0.1:{server.port}"), policy=Policy(fresh_seconds=600))
        metadata = sa.MetaData()
        for table in Base.metadata.sorted_tables:
            table.to_metadata(metadata)
        self.outbox = Outbox(self.cache, metadata, lease_seconds=1)
        self.outbox.watch(Person, lambda one: [f"person:{one.id}", f"named:{one.name}"])
        self.outbox.watch(Note, lambda one: [f"note:{one.id}"])
        metadata.create_all(engine)
        self.make = sessionmaker(engine)
        self.outbox.attach(self.make)
        self.queries = QueryCache(self.cache, engine)
        with self.make.begin() as session:
            session.add_all([Person(id=1, name="Ada", notes=[Note(id=1, text="n")]), Boss(id=2, name="Bob", title="Dr")])
            session.add(Team(id=1, name="T"))

    def truth(self, key: str) -> Any:
        kind, _, what = key.partition(":")
        with Session(self.engine) as session:
            if kind == "named":
                return session.scalar(sa.select(Person.id).where(Person.name == what))
            one: Any = session.get(Person if kind == "person" else Note, int(what))
            return None if one is None else one.name if kind == "person" else one.text

    def seen(self) -> dict[str, Any]:
        """Everything, as the cache tells it."""
        keys = ["person:1", "person:2", "person:3", "named:Ada", "named:Eve", "named:Bob", "note:1"]
        found: dict[str, Any] = {key: self.cache.get(key, lambda key=key: self.truth(key)) for key in keys}
        people = Person.__table__.c
        found["people"] = self.queries.rows(sa.select(people.id, people.name).order_by(people.id))
        found["notes"] = self.queries.rows(sa.select(Note.id, Note.text))
        found["members"] = self.queries.rows(sa.select(membership.c.person_id))
        return found

    def checked(self) -> dict[str, Any]:
        """The same, after it was compared with the database."""
        seen = self.seen()
        for key in seen:
            if ":" in key:
                assert seen[key] == self.truth(key), key
        with self.engine.connect() as connection:
            assert seen["people"] == [tuple(r) for r in connection.execute(sa.text("select id, name from person order by 1"))]
            assert seen["notes"] == [tuple(r) for r in connection.execute(sa.text("select id, text from note"))]
            assert seen["members"] == [tuple(r) for r in connection.execute(sa.text("select person_id from membership"))]
        return seen


def _foreign_keys(raw: Any, _record: object) -> None:
    raw.execute("pragma foreign_keys = on")
    raw.isolation_level = None  # else the driver commits at once what it does not know for a write, such as WITH … UPDATE


@pytest.fixture(params=["postgresql", "sqlite"])
def house(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[House]:
    if request.param == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/db")
        sa.event.listen(engine, "connect", _foreign_keys)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        port = request.getfixturevalue("postgres_server").port
        engine = sa.create_engine(f"postgresql+psycopg://test@127.0.0.1:{port}/postgres")
    made = House(server, engine)
    yield made
    made.outbox.table.metadata.drop_all(engine)
    engine.dispose()


# --------------------------------------------------------------------------- savepoints


def test_a_failing_savepoint_leaves_the_outer_ones_changes(house: House) -> None:
    house.seen()
    with house.make() as session:
        session.get_one(Person, 1).name = "Eve"
        session.flush()
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.get_one(Person, 2).name = "Rolled back"
            session.flush()
            raise ZeroDivisionError
        session.commit()
    assert house.checked()["person:1"] == "Eve"


def test_what_a_savepoint_rolled_back_is_not_invalidated(house: House) -> None:
    house.seen()
    with house.make() as session:
        session.get_one(Person, 1).name = "Eve"
        savepoint = session.begin_nested()
        session.get_one(Person, 2).name = "Rolled back"
        session.flush()
        savepoint.rollback()
        session.commit()
    loads: list[str] = []
    house.cache.get("person:2", lambda: loads.append("person:2") or "Bob")
    house.cache.get("person:1", lambda: loads.append("person:1") or "Eve")
    assert loads == ["person:1"]


def test_savepoints_within_savepoints(house: House) -> None:
    house.seen()
    with house.make() as session:
        with session.begin_nested():
            session.get_one(Person, 1).name = "Eve"
            with pytest.raises(ZeroDivisionError), session.begin_nested():
                session.execute(sa.update(Person).where(Person.id == 2).values(name="no"))
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            with session.begin_nested():
                session.add(Person(id=3, name="no"))
            raise ZeroDivisionError
        session.commit()
    assert house.checked()["person:1"] == "Eve"


def test_a_flush_that_fails_within_a_savepoint(house: House) -> None:
    house.seen()
    with house.make() as session:
        session.get_one(Person, 1).name = "Eve"
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Person(id=2, name="twice"))
        session.commit()
    assert house.checked()["person:1"] == "Eve"


def test_a_commit_over_savepoints_left_open(house: House) -> None:
    house.seen()
    with house.make() as session, session.begin():
        session.begin_nested()
        session.get_one(Person, 1).name = "Eve"
    assert house.checked()["person:1"] == "Eve"


def test_a_session_in_somebody_elses_transaction(house: House) -> None:
    house.seen()
    with house.engine.connect() as connection:
        outer = connection.begin()
        with house.make(bind=connection) as session:
            session.get_one(Person, 1).name = "Eve"
            session.commit()
        assert house.seen()["person:1"] == "Ada"  # nothing is committed yet
        outer.commit()
    assert house.outbox.sweep(house.engine, grace_seconds=0) == 1
    assert house.checked()["person:1"] == "Eve"


def test_two_outboxes_over_one_session(house: House, server: Server) -> None:
    cache = Cache(connect(f"valkey://127.0.0.1:{server.port}"), namespace="other")
    other = Outbox(cache, sa.MetaData(), table_name="other_outbox")
    other.watch(Person, lambda one: [f"person:{one.id}"])
    other.table.create(house.engine)
    try:
        other.attach(house.make)
        house.seen()
        assert cache.get("person:1", lambda: house.truth("person:1")) == "Ada"
        with house.make.begin() as session:
            session.get_one(Person, 1).name = "Eve"
        assert house.checked()["person:1"] == "Eve" == cache.get("person:1", lambda: house.truth("person:1"))
    finally:
        other.table.drop(house.engine)


def test_a_key_of_a_column_that_was_changed_before_it_was_loaded(house: House) -> None:
    house.seen()
    with house.make() as session:
        person = session.get_one(Person, 1)
        session.commit()  # expires it
        person.name = "Eve"
        session.commit()
    assert house.checked()["named:Eve"] == 1


def test_an_instance_that_was_flushed_twice(house: House) -> None:
    house.seen()
    with house.make.begin() as session:
        person = session.get_one(Person, 1)
        person.name = "Between"
        session.flush()
        person.name = "Eve"
    assert house.checked()["named:Eve"] == 1


# --------------------------------------------------------------------------- past the unit of work


def _raw(session: Session) -> None:
    connection = session.connection()
    connection.execute(sa.update(Person.__table__).where(Person.__table__.c.id == 1).values(name="Eve"))


def _join(session: Session) -> None:
    team = session.get_one(Team, 1)
    team.members.append(session.get_one(Person, 1))


def _orphan(session: Session) -> None:
    person = session.get_one(Person, 1)
    person.notes.clear()


WAYS: dict[str, Callable[[Session], Any]] = {
    "update": lambda s: s.execute(sa.update(Person).where(Person.name == "Ada").values(name="Eve")),
    "update with parameters": lambda s: s.execute(
        sa.update(Person).where(Person.name == sa.bindparam("old")).values(name="Eve"), {"old": "Ada"}
    ),
    "update of a table": lambda s: s.execute(sa.update(Person.__table__).values(name="Eve").where(Person.__table__.c.id == 1)),
    "update of everything": lambda s: s.execute(sa.update(Person).values(name="Eve").execution_options(synchronize_session=False)),
    "update through a subquery": lambda s: s.execute(
        sa.update(Person)
        .where(Person.id.in_(sa.select(Note.person_id)))
        .values(name="Eve")
        .execution_options(synchronize_session=False)
    ),
    "update by primary key": lambda s: s.execute(sa.update(Person), [{"id": 1, "name": "Eve"}, {"id": 2, "name": "Mallory"}]),
    "update of many": lambda s: s.connection().execute(
        sa.update(Person.__table__).where(Person.__table__.c.id == sa.bindparam("b")),
        [{"b": 1, "name": "Eve"}, {"b": 2, "name": "M"}],
    ),
    "update returning": lambda s: s.execute(sa.update(Person).where(Person.id == 1).values(name="Eve").returning(Person.id)).all(),
    "query.update": lambda s: s.query(Person).filter_by(id=1).update({"name": "Eve"}),
    "query.delete": lambda s: s.query(Note).filter_by(id=1).delete(),
    "delete": lambda s: s.execute(sa.delete(Note).where(Note.text == "n")),
    "delete that takes rows with it": lambda s: s.execute(sa.delete(Person.__table__).where(Person.__table__.c.id == 1)),
    "session.delete that takes rows with it": lambda s: s.delete(s.get_one(Person, 1)),
    "orphan": _orphan,
    "insert": lambda s: s.execute(sa.insert(Person).values(id=3, name="Eve")),
    "insert of many": lambda s: s.execute(sa.insert(Person), [{"id": 3, "name": "Eve"}, {"id": 4, "name": "Mallory"}]),
    "insert of several values": lambda s: s.execute(
        sa.insert(Person.__table__).values([{"id": 3, "name": "Eve", "kind": "person"}, {"id": 4, "name": "M", "kind": "person"}])
    ),
    "insert without a key": lambda s: s.execute(sa.insert(Person.__table__).values(name="Eve", kind="person", id=3)),
    "bulk_save_objects": lambda s: s.bulk_save_objects([Person(id=3, name="Eve")]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(Person, [{"id": 3, "name": "Eve"}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(Person, [{"id": 1, "name": "Eve"}]),
    "bulk_update_mappings of a subclass": lambda s: s.bulk_update_mappings(Boss, [{"id": 2, "name": "Eve", "title": "x"}]),
    "association append": _join,
    "association insert": lambda s: s.execute(sa.insert(membership).values(person_id=1, team_id=1)),
    "connection": _raw,
    "text on a table that is not watched": lambda s: s.execute(sa.text("insert into membership values (1, 1)")),
    "driver's own SQL": lambda s: s.connection().exec_driver_sql("insert into membership values (1, 1)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_seen(house: House, way: str) -> None:
    before = house.seen()
    with house.make.begin() as session:
        WAYS[way](session)
    assert house.checked() != before


UNSEEN: dict[str, Callable[[Session], Any]] = {
    "text": lambda s: s.execute(sa.text("update person set name = 'Eve' where id = 1")),
    "driver's own SQL": lambda s: s.connection().exec_driver_sql("UPDATE person SET name = 'Eve'"),
    "text within WITH": lambda s: s.execute(sa.text("with x as (select 1) update person set name = 'Eve'")),
    "insert from select": lambda s: s.execute(
        sa.insert(Person.__table__).from_select(
            ["id", "name", "kind"], sa.select(sa.literal(3), sa.literal("Eve"), sa.literal("person"))
        )
    ),
}


@pytest.mark.parametrize("way", UNSEEN)
def test_what_does_not_tell_its_rows_is_refused_unless_they_are_named(house: House, way: str) -> None:
    house.seen()
    with pytest.raises(UnseenChange, match="person"), house.make.begin() as session:
        UNSEEN[way](session)
    assert house.checked()["named:Eve"] is None
    with house.make.begin() as session:
        house.outbox.invalidate(session, "person:1", "person:2", "person:3", "named:Ada", "named:Eve", "named:Bob")
        UNSEEN[way](session)
    assert house.checked()["named:Eve"] is not None


def test_a_statement_may_name_its_keys(house: House) -> None:
    house.seen()
    with house.make.begin() as session:
        session.execute(
            sa.text("update person set name = 'Eve' where id = 1"),
            execution_options={"invalidates": ["person:1", "named:Ada", "named:Eve"]},
        )
    assert house.checked()["person:1"] == "Eve"


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("select * from users for update", []),
        ("SELECT 'update users'", []),
        ("with x as (select 1) select * from users for no key update of users", []),
        ('INSERT INTO "users" (id) VALUES (1) ON CONFLICT DO UPDATE SET id = 2', ["users"]),
        ("insert or replace into users values (1)", ["users"]),
        ("replace into `shop`.`users` values (1)", ["users"]),
        ("update only public.users set a = 1", ["users"]),
        ("/* delete from x */ delete from users -- where", ["users"]),
        ("truncate a, public.b", ["a", "b"]),
        ("with gone as (delete from a returning *) insert into b select * from gone", ["a", "b"]),
        ("merge into a using b on a.id = b.id when matched then update set x = 1", ["a"]),
        ("copy (select 1) to stdout", []),
        ("set role alice; update users set a = 1", ["users"]),
        ("explain analyze update users set a = 1", ["users"]),
        ("call shuffle()", None),
        ("do $$ begin update users set a = 1; end $$", None),
        ('update "two words" set a = 1', None),
    ],
)
def test_the_tables_of_text(sql: str, tables: list[str] | None) -> None:
    assert tables_of_text(sql) == tables
