"""Each writer of a barrier has a deadline of its own; raising many is one call; a cache that does not answer holds up no commit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
import valkey
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cachekeep_patterns import Cache, CacheDown, Outcome, connect
from cachekeep_patterns import entry as entries
from cachekeep_patterns.database import Outbox
from cachekeep_patterns.policy import Breaker
from cachekeep_patterns.write import certainly_undone
from patterns_rig.servers import Server, wait_for


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture(params=["valkey", "memcached"])
def where(request: pytest.FixtureRequest) -> str:
    return url(request.getfixturevalue("server" if request.param == "valkey" else "memory"), request.param)


def scripts_run(admin: valkey.Valkey) -> int:
    return sum(stats["calls"] for name, stats in admin.info("commandstats").items() if name.startswith("cmdstat_eval"))


DIES = """
import os, sys
from cachekeep_patterns import Cache, connect
with Cache(connect(sys.argv[1])).writing("k", lease_seconds=float(sys.argv[2])):
    os._exit(9)
"""


def test_a_dead_writer_holds_the_key_for_its_own_lease_however_many_write_after_it(where: str) -> None:
    cache = Cache(connect(where))
    assert subprocess.run([sys.executable, "-c", DIES, where, "2"], check=False).returncode == 9
    died = time.monotonic()
    assert cache.get("k", lambda: "not stored") == "not stored"
    hits = 0
    while not hits:
        assert time.monotonic() - died < 60, "a writer that died two seconds after its beginning still holds the key"
        with cache.writing("k", lease_seconds=30):
            pass
        cache.get("k", lambda: "loaded")
        hits += cache.get("k", lambda: "loaded again") == "loaded"
        time.sleep(0.1)


def test_a_refused_commit_holds_nothing(where: str) -> None:
    cache = Cache(connect(where))
    with pytest.raises(ZeroDivisionError), cache.writing("k", lease_seconds=600):
        raise ZeroDivisionError
    assert [cache.get("k", lambda n=n: n) for n in range(3)] == [0, 0, 0]


def test_who_overlaps_publishes_nothing_and_who_is_alone_again_does(where: str) -> None:
    cache = Cache(connect(where))
    with cache.writing("k") as first:
        with cache.writing("k") as second:
            second.publish("k", "second")
        first.publish("k", "first")
    assert cache.get("k", lambda: "the database's") == "the database's"
    cache.write("k", lambda: "third")
    assert cache.get("k", lambda: pytest.fail("it was published")) == "third"


def test_an_invalidation_in_the_middle_keeps_the_barrier_and_taints_it(where: str) -> None:
    cache = Cache(connect(where))
    with cache.writing("k") as write:
        cache.invalidate("k")
        assert [cache.get("k", lambda n=n: n) for n in range(2)] == [0, 1]
        write.publish("k", "published")
    assert cache.get("k", lambda: "loaded") == "loaded"


def test_a_barrier_that_was_lost_publishes_nothing(server: Server) -> None:
    cache = Cache(connect(url(server)))
    with cache.writing("k") as write:
        valkey.Valkey(port=server.port).delete("k")
        assert cache.get("k", lambda: "before the commit") == "before the commit"
        write.publish("k", "published")
    assert cache.get("k", lambda: "loaded") == "loaded"


def test_many_keys_are_one_call(server: Server) -> None:
    cache = Cache(connect(url(server)))
    admin = valkey.Valkey(port=server.port)
    keys = [f"k{n}" for n in range(1000)]
    cache.get_many(keys, lambda names: dict.fromkeys(names, 1))
    with cache.writing("warm"):
        pass
    before = scripts_run(admin)
    with cache.writing(*keys) as write:
        assert len(list(admin.scan_iter("k*", count=5000))) == 1000
        assert cache.get_many(keys, lambda names: dict.fromkeys(names, 2)) == dict.fromkeys(keys, 2)
    assert write.outcome is Outcome.INVALIDATED
    assert admin.dbsize() == 0
    assert scripts_run(admin) - before == 2


# --------------------------------------------------------------------------- the scripts and the pure rules are one


class Clock:
    now = 1000.0


@st.composite
def stories(draw: Any) -> list[tuple[str, int]]:
    return draw(st.lists(st.tuples(st.sampled_from(["raise", "renew", "lower", "drop", "wait"]), st.integers(0, 2)), max_size=12))


@given(stories())
def test_the_rules_of_a_barrier(story: list[tuple[str, int]]) -> None:
    """Against a model: who is a living writer, and whether anybody else ever was while the present ones were."""
    raw: bytes | None = None
    living: dict[int, float] = {}
    tainted: set[int] = set()  # writers who overlapped with another or with an invalidation
    now = 1000.0
    for act, who in story:
        living = {one: deadline for one, deadline in living.items() if deadline > now}
        writer = bytes([who]) * 8
        seen = entries.parse(raw)
        if act == "raise":
            raw, _ = entries.raise_barrier(seen, writer, now, 10)
            if others := [one for one in living if one != who]:
                tainted |= {who, *others}
            elif who not in living:
                tainted.discard(who)
            living[who] = now + 10
        elif act == "renew":
            if (renewed := entries.renew_barrier(seen, writer, now, 10)) is not None:
                raw = renewed[0]
                assert who in living
                living[who] = now + 10
        elif act == "drop":
            if seen is not None and seen.kind == entries.Kind.BARRIER:
                raw, _ = entries.taint_barrier(seen, now)
                tainted |= set(living)
            else:
                raw = None
        elif act == "lower":
            raw, _ = entries.lower_barrier(seen, writer, now, b"published", 5)
            if raw == b"published":
                assert living.keys() == {who}
                assert who not in tainted
                raw = None
            living.pop(who, None)
            tainted |= set(living)
        else:
            now += 4
        living = {one: deadline for one, deadline in living.items() if deadline > now}
        assert entries.is_barrier(raw) or not living


# --------------------------------------------------------------------------- outages


def test_writes_do_not_wait_for_a_cache_that_does_not_answer(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0.5), breaker=Breaker(failures=2, rest_seconds=60))
    frail.freeze()
    try:
        for _ in range(2):
            with pytest.raises(CacheDown):
                cache.invalidate("k")
        assert not cache.breaker_closed
        began = time.monotonic()
        for _ in range(50):
            with cache.writing("k") as write:
                pass
            assert write.outcome is Outcome.UNREACHED
        with pytest.raises(CacheDown):
            cache.invalidate("k")
        with pytest.raises(CacheDown), cache.writing("k", strict=True):
            raise AssertionError("the database was touched")
        assert time.monotonic() - began < 0.5 * 50
    finally:
        frail.thaw()


def test_the_breaker_lives_on_monotonic_time(frail: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0), breaker=Breaker(failures=1, rest_seconds=0.05))
    frail.kill()
    with pytest.raises(CacheDown):
        cache.invalidate("k")
    monkeypatch.setattr(time, "time", lambda real=time.time: real() - 86_400)
    frail.start()

    def comes_through() -> bool:
        try:
            cache.invalidate("k")
        except CacheDown:
            return False
        return True

    wait_for(comes_through, "the breaker to let a question through after the clock was set back")


def test_a_write_alone_closes_the_breaker_again(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0), breaker=Breaker(failures=1, rest_seconds=0.01))
    frail.kill()
    with cache.writing("k"):
        pass
    assert not cache.breaker_closed
    frail.start()

    def written() -> bool:
        with cache.writing("k") as write:
            pass
        return write.outcome is Outcome.INVALIDATED

    wait_for(written, "writes to reach the cache again")
    assert cache.breaker_closed


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "barrier_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[int | None] = mapped_column(sa.ForeignKey("barrier_items.id", deferrable=True, initially="DEFERRED"))


def test_a_commit_that_the_database_refuses_leaves_no_barrier(server: Server, postgres_server: Server) -> None:
    engine = sa.create_engine(f"postgresql+psycopg://test@127.0.0.1:{postgres_server.port}/postgres")
    cache = Cache(connect(url(server)))
    metadata = sa.MetaData()
    Item.__table__.to_metadata(metadata)  # type: ignore[attr-defined]
    outbox = Outbox(cache, metadata, table_name="barrier_outbox", lease_seconds=600)
    outbox.watch(Item, lambda item: [f"item:{item.id}"])
    metadata.create_all(engine)
    make = sessionmaker(engine)
    outbox.attach(make)
    try:
        with make() as session:  # which is only closed, not rolled back
            session.add(Item(id=1, parent=99))
            with pytest.raises(sa.exc.IntegrityError):
                session.commit()
        assert [cache.get("item:1", lambda n=n: n) for n in range(3)] == [0, 0, 0]
        with pytest.raises(sa.exc.IntegrityError), make.begin() as session:
            session.add(Item(id=2, parent=99))
        assert [cache.get("item:2", lambda n=n: n) for n in range(3)] == [0, 0, 0]
    finally:
        metadata.drop_all(engine)
        engine.dispose()


def test_committers_on_one_table_do_not_wait_for_each_other(server: Server) -> None:
    """They used to swap against each other, a pause after each defeat, and to give up after 64."""
    cache = Cache(connect(url(server)))
    before = scripts_run(valkey.Valkey(port=server.port))
    together = threading.Barrier(16)

    def commit(_: int) -> set[Outcome]:
        together.wait()
        outcomes = set()
        for _ in range(20):
            with cache.writing(tags=["table:t"]) as write:
                pass
            outcomes.add(write.outcome)
        return outcomes

    with ThreadPoolExecutor(16) as pool:
        assert set().union(*pool.map(commit, range(16))) == {Outcome.INVALIDATED}
    assert valkey.Valkey(port=server.port).dbsize() == 0
    # Two calls a write, and as many again of whoever had to send a script's text first.
    assert scripts_run(valkey.Valkey(port=server.port)) - before <= 2 * 16 * 20 + 2 * 16


class OperationalError(Exception):
    """As every DB-API driver names it."""


class InterfaceError(Exception): ...


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "certain"),
    [
        (ValueError(), True),
        (sa.exc.IntegrityError("", {}, Exception()), True),
        (sa.exc.OperationalError("", {}, Exception()), False),
        (sa.exc.DBAPIError("", {}, OperationalError()), False),
        (OperationalError(), False),
        (InterfaceError(), False),
        (_caused(RuntimeError("could not save"), OperationalError()), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_tell_that_nothing_was_committed(error: BaseException, certain: bool) -> None:
    assert certainly_undone(error) is certain


def test_psycopgs_lost_connection_is_perhaps_done(postgres_server: Server) -> None:
    import psycopg

    with psycopg.connect(f"host=127.0.0.1 port={postgres_server.port} user=test dbname=postgres") as connection:
        connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError) as lost:
            os.close(os.dup(connection.fileno()))
            import socket

            socket.socket(fileno=os.dup(connection.fileno())).shutdown(socket.SHUT_RDWR)
            connection.commit()
        assert not certainly_undone(lost.value)
        connection.close()
