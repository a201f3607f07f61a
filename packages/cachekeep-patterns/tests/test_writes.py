"""Writing through: every partial failure has the outcome that write.py promises."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import valkey

from cachekeep_patterns import AsyncCache, Cache, CacheDown, Outcome, Policy, connect, connect_async
from cachekeep_patterns.entry import is_barrier
from patterns_rig.servers import Server, wait_for
from patterns_rig.stalls import unless_stalled


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture(params=["valkey", "memcached"])
def client(request: pytest.FixtureRequest) -> Any:
    return connect(url(request.getfixturevalue("server" if request.param == "valkey" else "memory"), request.param))


def unreachable() -> int:
    raise AssertionError("this was to come from the cache")


def test_write_through_and_around(client: Any) -> None:
    cache = Cache(client)
    assert cache.get("k", lambda: 1) == 1
    assert cache.write("k", lambda: 2) == 2
    assert cache.get("k", unreachable) == 2
    assert cache.write_around("k", lambda: 3) == 3
    assert cache.get("k", lambda: 3) == 3


def test_while_a_write_is_under_way_nothing_old_is_served_or_filled(client: Any) -> None:
    cache, other = Cache(client), Cache(client)
    truth = {"k": 1}
    assert other.get("k", lambda: truth["k"]) == 1
    with cache.writing("k") as write:
        assert other.get("k", lambda: truth["k"]) == 1  # not committed: this is right, and not stored
        truth["k"] = 2
        assert other.get("k", lambda: truth["k"]) == 2
        write.publish("k", 2)
    assert write.outcome is Outcome.PUBLISHED
    assert other.get("k", unreachable) == 2


def test_a_load_from_before_the_write_cannot_be_stored_after_it(client: Any) -> None:
    cache, other = Cache(client), Cache(client)
    gate, asked = threading.Event(), threading.Event()

    def slow() -> int:
        asked.set()
        assert gate.wait(30)
        return 1

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(other.get, "k", slow)
        assert asked.wait(30)
        cache.write("k", lambda: 2)
        gate.set()
        assert loading.result() == 1
    assert other.get("k", unreachable) == 2


def test_two_writers_at_once_publish_nothing(client: Any) -> None:
    """They may have committed in either order, and neither knows."""
    one, two = Cache(client), Cache(client)
    with one.writing("k") as first:
        with two.writing("k") as second:
            second.publish("k", "second")
        assert one.get("k", lambda: "database") == "database"
        first.publish("k", "first")
    assert one.get("k", lambda: "database, again") == "database, again"
    assert one.get("k", unreachable) == "database, again"


def test_an_invalidation_during_a_write_keeps_it_from_publishing(client: Any) -> None:
    cache, other = Cache(client), Cache(client)
    with cache.writing("k") as write:
        other.invalidate("k")
        write.publish("k", "perhaps old")
    assert cache.get("k", lambda: "database") == "database"


def test_the_database_refuses(client: Any) -> None:
    cache = Cache(client)
    with pytest.raises(ZeroDivisionError):
        cache.write("k", lambda: 1 // 0)
    assert cache.get("k", lambda: 1) == 1
    assert cache.get("k", unreachable) == 1


def test_the_outcome_of_the_commit_is_unknown(client: Any) -> None:
    """The barrier stays and lapses: readers get what the database has, and it is not stored."""
    cache = Cache(client)
    values = iter(range(1_000_000))

    def attempt(lease_seconds: float) -> None:
        with pytest.raises(ConnectionResetError), cache.writing("k", lease_seconds=lease_seconds) as write:
            raise ConnectionResetError("while committing")
        assert write.outcome is Outcome.LAPSING
        first, *others = (cache.get("k", lambda: next(values)) for _ in range(3))
        assert others == [first + 1, first + 2]

    unless_stalled(client, 1, attempt)
    wait_for(lambda: cache.get("k", lambda: next(values)) == cache.get("k", lambda: next(values)), "the barrier to lapse")


WRITER = """
import os, sys, time
from cachekeep_patterns import Cache, connect
cache = Cache(connect(sys.argv[1]))
with cache.writing("k", lease_seconds=1):
    print("committed", flush=True)
    time.sleep(60)
"""


def test_the_writer_is_killed_after_its_commit(server: Server) -> None:
    cache = Cache(connect(url(server)))
    assert cache.get("k", lambda: "old") == "old"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url(server)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"committed\n"
    writer.kill()
    writer.communicate()
    assert cache.get("k", lambda: "new") == "new"
    admin = valkey.Valkey(port=server.port)
    wait_for(lambda: not is_barrier(admin.get("k")), "the barrier to lapse")
    assert cache.get("k", lambda: "new") == "new"
    assert cache.get("k", unreachable) == "new"


def test_a_write_slower_than_its_barrier_keeps_it(server: Server) -> None:
    cache = Cache(connect(url(server)))
    admin = valkey.Valkey(port=server.port)

    def attempt(lease_seconds: float) -> None:
        with cache.writing("k", lease_seconds=lease_seconds):
            mark = admin.get("k")
            time.sleep(1.5 * lease_seconds)
            assert admin.get("k") == mark

    unless_stalled(connect(url(server)), 1, attempt)
    assert not admin.exists("k")


def test_the_cache_dies_before_the_commit(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0))
    frail.kill()
    with pytest.raises(CacheDown), cache.writing("k", strict=True):
        raise AssertionError("the database was touched")
    with cache.writing("k") as write:
        pass
    assert write.outcome is Outcome.UNREACHED


def test_the_cache_is_away_at_first_and_back_after_the_commit(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0))
    frail.kill()
    with cache.writing("k") as write:
        frail.start()
    assert write.outcome is Outcome.INVALIDATED


def test_the_cache_dies_after_the_commit(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0))
    with cache.writing("k") as write:
        frail.kill()
        write.publish("k", 2)
    assert write.outcome is Outcome.LAPSING


def test_tags_of_a_write(client: Any) -> None:
    cache = Cache(client)
    assert cache.get("list", lambda: [1], tags=["users"]) == [1]
    with cache.writing(tags=["users"]):
        assert cache.get("list", lambda: [1, 2], tags=["users"]) == [1, 2]  # not stored
        assert cache.get("list", lambda: [3], tags=["users"]) == [3]
    assert cache.get("list", lambda: [1, 2], tags=["users"]) == [1, 2]
    assert cache.get("list", unreachable, tags=["users"]) == [1, 2]


async def test_async_writes(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), policy=Policy(fresh_seconds=60))

    async def save() -> str:
        return "saved"

    assert await cache.write("k", save) == "saved"
    assert await cache.get("k", unreachable) == "saved"
    async with cache.writing("k", "other") as write:
        write.publish("other", 5)
        with pytest.raises(ValueError, match="not opened"):
            write.publish("third", 5)
    assert write.outcome is Outcome.PUBLISHED
    assert await cache.get("other", unreachable) == 5
    assert await cache.get("k", lambda: "loaded") == "loaded"


@dataclasses.dataclass
class Person:
    name: str


def test_a_write_through_helps_the_cached_function(client: Any) -> None:
    cache = Cache(client)
    loads: list[int] = []

    @cache.cached(key="person:{number}", tags=["people"], version=2)
    def person(number: int) -> Person:
        loads.append(number)
        return Person("loaded")

    assert person.write(lambda: Person("written"), 7) == Person("written")
    assert person(7) == Person("written")
    assert loads == []
    cache.invalidate(tags=["people"])
    assert person(7) == Person("loaded")


async def test_a_write_through_helps_the_async_cached_function(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)))

    @cache.cached(key="person:{number}", tags=["people"])
    async def person(number: int) -> Person:
        raise AssertionError("it was published")

    async def save() -> Person:
        return Person("written")

    await person.write(save, 7)
    assert await person(7) == Person("written")
