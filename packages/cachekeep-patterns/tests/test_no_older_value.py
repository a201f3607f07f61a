"""Nobody gets an older value after a newer one was read through the same key: machines, threads and faults against a real engine.

The database of these tests only counts up, so "older" is "smaller". Every get must answer a value at least as large as every value
that any get, of any process or thread, had answered before this one began; and after `write` or `invalidate` returned, at least
what the database held when they did.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import cast

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachekeep_patterns import Breaker, Cache, CacheDown, Policy, connect
from patterns_rig.servers import Server, engine, memcached, wait_for

KEYS = st.sampled_from(["a", "b"])
CACHES = st.integers(0, 2)


class Database:
    """Numbers that only grow; can be made slow (a load holds what it read until told) and can fail."""

    def __init__(self) -> None:
        self.rows = {"a": 0, "b": 0}
        self.broken = False

    def read(self, key: str) -> int:
        if self.broken:
            raise OSError("the database is away")
        return self.rows[key]

    def commit(self, key: str) -> int:
        if self.broken:
            raise ValueError("the database refuses")
        self.rows[key] += 1
        return self.rows[key]

    def held(self, key: str) -> int:
        """What is there, whether it answers or not."""
        return self.rows[key]


class Stored(Database):
    """The same in PostgreSQL: a commit is a transaction, and a database that fails takes it back at its end."""

    def __init__(self, place: sa.Engine) -> None:
        super().__init__()
        self.place = place
        with place.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS counts"))
            connection.execute(sa.text("CREATE TABLE counts (key text PRIMARY KEY, value integer NOT NULL)"))
            connection.execute(
                sa.text("INSERT INTO counts SELECT key, 0 FROM unnest(CAST(:keys AS text[])) AS key"), {"keys": list(self.rows)}
            )

    def read(self, key: str) -> int:
        value = self.held(key)
        if self.broken:
            raise OSError("the database is away")
        return value

    def commit(self, key: str) -> int:
        with self.place.begin() as connection:
            value = connection.scalar(sa.text("UPDATE counts SET value = value + 1 WHERE key = :key RETURNING value"), {"key": key})
            if self.broken:
                raise ValueError("the database refuses")
        return cast(int, value)

    def held(self, key: str) -> int:
        with self.place.connect() as connection:
            return cast(int, connection.scalar(sa.text("SELECT value FROM counts WHERE key = :key"), {"key": key}))


class Held:
    """A load under way: it has read, and waits."""

    def __init__(self) -> None:
        self.read = threading.Event()
        self.gate = threading.Event()


class Patterns(RuleBasedStateMachine):
    """Three caches with nothing in common but the engine, as three processes would be."""

    server: Server
    scheme = "valkey"
    make_database: Callable[[], Database]

    @initialize()
    def begin(self) -> None:
        self.database = type(self).make_database()
        if self.server.process is None:
            self.server.start()
        address = f"{self.scheme}://127.0.0.1:{self.server.port}"
        options = {} if self.scheme == "memcached" else {"deadline_seconds": 0}
        namespace = uuid.uuid4().hex  # not from `random`: Hypothesis seeds that alike for every example
        self.caches = [
            Cache(
                connect(address, timeout_seconds=0.15, **options),
                namespace=namespace,
                policy=Policy(fresh_seconds=30, lease_seconds=0.5),
                breaker=Breaker(failures=2, rest_seconds=0.01),
            )
            for _ in range(3)
        ]
        self.seen = {"a": 0, "b": 0}
        self.pool = ThreadPoolExecutor(16)
        self.held: list[tuple[str, int, Held, Future[int]]] = []
        self.up = True

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        if not self.up:
            self.server.start() if self.server.process is None else self.server.thaw()
        for _, _, held, _ in self.held:
            held.gate.set()
        self.pool.shutdown()

    # -- readers

    def check(self, key: str, floor: int, value: int) -> None:
        assert value >= floor, f"{key}: {value} after {floor} was read"
        self.seen[key] = max(self.seen[key], value)

    @precondition(lambda self: len(self.held) < 10)
    @rule(key=KEYS, who=CACHES)
    def get(self, key: str, who: int) -> None:
        floor = self.seen[key]
        future = self.pool.submit(self.caches[who].get, key, lambda: self.database.read(key))
        # It may have to wait for a slow one: then it is looked at when those end.
        slow = any(held[0] == key for held in self.held)
        if wait([future], 0.05 if slow else 30).done:
            self.settle(key, floor, future)
        else:
            assert slow, "a get hangs though nobody loads"
            self.held.append((key, floor, Held(), future))

    def settle(self, key: str, floor: int, future: Future[int]) -> None:
        error = future.exception(30)
        if error is None:
            self.check(key, floor, future.result())
        else:
            assert isinstance(error, OSError), error  # the database was away

    @precondition(lambda self: len(self.held) < 6)
    @rule(key=KEYS, who=CACHES)
    def begin_a_slow_get(self, key: str, who: int) -> None:
        held = Held()

        def load() -> int:
            value = self.database.read(key)
            held.read.set()
            assert held.gate.wait(30)
            return value

        floor = self.seen[key]
        future = self.pool.submit(self.caches[who].get, key, load)
        until = time.monotonic() + 0.02
        while not (held.read.is_set() or future.done()) and time.monotonic() < until:
            held.read.wait(0.002)
        self.held.append((key, floor, held, future))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end_a_slow_get(self, data: st.DataObject) -> None:
        # All of them: one may be waiting for another.
        for _, _, held, _ in self.held:
            held.gate.set()
        for key, floor, _, future in self.held:
            self.settle(key, floor, future)
        self.held = []

    # -- writers

    @precondition(lambda self: self.up)
    @rule(key=KEYS, who=CACHES)
    def write_through(self, key: str, who: int) -> None:
        try:
            value = self.caches[who].write(key, lambda: self.database.commit(key), strict=True)
        except (ValueError, CacheDown):
            return
        self.seen[key] = max(self.seen[key], value)

    @precondition(lambda self: self.up)
    @rule(key=KEYS, who=CACHES)
    def commit_and_invalidate(self, key: str, who: int) -> None:
        try:
            value = self.database.commit(key)
        except ValueError:
            return
        self.invalidate_until_done(key, who)
        self.seen[key] = max(self.seen[key], value)

    @precondition(lambda self: self.up)
    @rule(key=KEYS, first=CACHES, second=CACHES, crossed=st.booleans())
    def two_writers_at_once(self, key: str, first: int, second: int, crossed: bool) -> None:
        if self.database.broken:
            return
        try:
            with self.caches[first].writing(key, strict=True) as one:
                with self.caches[second].writing(key, strict=True) as two:
                    values = [self.database.commit(key), self.database.commit(key)]
                    two.publish(key, values[crossed])
                one.publish(key, values[not crossed])
        except CacheDown:
            return
        self.seen[key] = max(self.seen[key], max(values))

    def invalidate_until_done(self, key: str, who: int) -> None:
        def done() -> bool:
            try:
                self.caches[who].invalidate(key)
            except CacheDown:
                return False
            return True

        wait_for(done, "the invalidation to get through")

    # -- faults

    @precondition(lambda self: self.up)
    @rule()
    def kill_the_cache(self) -> None:
        self.server.kill()
        self.up = False

    @precondition(lambda self: self.up)
    @rule()
    def freeze_the_cache(self) -> None:
        self.server.freeze()
        self.up = False

    @precondition(lambda self: not self.up)
    @rule()
    def the_cache_is_back(self) -> None:
        if self.server.process is None:
            self.server.start()
        else:
            self.server.thaw()
        self.up = True

    @rule()
    def the_database_fails_or_is_back(self) -> None:
        self.database.broken = not self.database.broken

    @invariant()
    def nobody_invents_values(self) -> None:
        if hasattr(self, "seen"):
            assert all(self.seen[key] <= self.database.held(key) for key in self.seen)


@pytest.fixture(params=["valkey", "memcached"])
def hurt(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    with (engine if request.param == "valkey" else memcached)() as server:
        yield request.param, server


def test_machine(hurt: tuple[str, Server]) -> None:
    run(*hurt, Database)


def test_machine_over_a_real_database(frail: Server, postgres_server: Server) -> None:
    place = sa.create_engine(f"postgresql+psycopg://test@127.0.0.1:{postgres_server.port}/postgres", pool_size=20)
    run("valkey", frail, lambda: Stored(place))
    place.dispose()


def run(scheme: str, server: Server, make_database: Callable[[], Database]) -> None:
    machine = type("Machine", (Patterns,), {"server": server, "scheme": scheme, "make_database": staticmethod(make_database)})
    machine.TestCase.settings = settings(
        max_examples=8,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase("runTest").runTest()


@pytest.mark.parametrize("scheme", ["valkey", "memcached"])
@pytest.mark.parametrize("barriers", [True, False], ids=["all writers raise barriers", "some only invalidate"])
def test_a_crowd(scheme: str, barriers: bool, request: pytest.FixtureRequest) -> None:
    """Threads over four caches, reading and writing one key as fast as they can.

    With barriers no answer is older than any answer given before it was asked for. With writers that only invalidate after their
    commit, none is older than what the last finished invalidation stood for (a load past the cache may see a commit before its
    invalidation).
    """
    server = request.getfixturevalue("server" if scheme == "valkey" else "memory")
    caches = [Cache(connect(f"{scheme}://127.0.0.1:{server.port}"), policy=Policy(fresh_seconds=30)) for _ in range(4)]
    database = Database()
    committing, noting = threading.Lock(), threading.Lock()
    newest = 0
    wrong: list[str] = []
    began = time.monotonic()
    done: Counter[str] = Counter()

    def going() -> bool:
        """Long enough for a race to show, and for enough of both."""
        passed_seconds = time.monotonic() - began
        return passed_seconds < 2 or (passed_seconds < 60 and (done["reads"] <= 100 or done["writes"] <= 20))

    def note(value: int) -> None:
        nonlocal newest
        with noting:
            newest = max(newest, value)

    def commit() -> int:
        with committing:
            return database.commit("a")

    def load() -> int:
        value = database.read("a")
        time.sleep(random.random() * 0.003)  # old by the time it is handed over
        return value

    def reader(i: int) -> None:
        while going():
            floor = newest
            value = caches[i % 4].get("a", load)
            if value < floor:
                wrong.append(f"{value} after {floor}")
            if barriers:
                note(value)
            with noting:
                done["reads"] += 1

    def writer(i: int) -> None:
        while going():
            if barriers or random.random() < 0.5:
                value = caches[i % 4].write("a", commit, strict=True)
            else:
                value = commit()
                caches[i % 4].invalidate("a")
            note(value)
            with noting:
                done["writes"] += 1
            time.sleep(random.random() * 0.02)

    with ThreadPoolExecutor(16) as pool:
        for one in [*(pool.submit(reader, i) for i in range(12)), *(pool.submit(writer, i) for i in range(4))]:
            one.result()
    assert not wrong, f"{len(wrong)} of {done['reads']} reads: {wrong[:5]}"
    assert done["reads"] > 100
    assert done["writes"] > 20
