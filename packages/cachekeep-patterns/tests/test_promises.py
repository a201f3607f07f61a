"""What callers may rely on at the edges: hits and misses alike, nobody's value is another's, loads within loads, forks."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import decimal
import logging
import os
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import attrs
import pytest
import valkey

from cachekeep_patterns import AsyncCache, Breaker, Cache, Compressed, Msgspec, NearCache, Policy, Trouble, connect, connect_async
from cachekeep_patterns.errors import RecursiveLoad
from patterns_rig.servers import Server, wait_for

if TYPE_CHECKING:
    from nowhere import Absent


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture
def client(server: Server) -> Any:
    return connect(url(server))


@dataclass
class Point:
    x: int
    y: int


@attrs.define
class Pair:
    one: int
    two: datetime.date


NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=ZoneInfo("Europe/Berlin"))
ODD: list[Any] = [
    *((1, 2), [(1,)], {"a": {1}}, float("nan"), float("inf"), decimal.Decimal("1.0"), uuid.UUID(int=7), NOON, NOON.date(), {1: 2}),
    *(b"x", Point(1, 2), [Point(1, 2)], Pair(1, NOON.date()), object(), frozenset({1}), datetime.timedelta(1), 1.0, -0.0),
]


# --------------------------------------------------------------------------- a hit and a miss


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("codec", ["json", "msgpack", "plain-json", "exact"])
def test_a_hit_is_of_the_type_of_the_miss(client: Any, value: Any, codec: str) -> None:
    for strict in (True, False):
        cache = Cache(client, namespace=f"strict-{strict}", codec=codec, strict=strict)
        seen = [cache.get("k", lambda: value) for _ in range(3)]
        assert len({type(one) for one in seen}) == 1
        assert len({repr(one) for one in seen}) == 1
        assert not strict or seen[0] is value


def test_the_exact_codec_stores_plain_data_of_every_built_in_type(client: Any) -> None:
    cache = Cache(client, codec="exact")
    plain = [value for value in ODD if not isinstance(value, Point | Pair) and value != [Point(1, 2)] and type(value) is not object]
    for number, value in enumerate(plain):
        assert repr(cache.get(f"k{number}", lambda: value)) == repr(cache.get(f"k{number}")) == repr(value)  # noqa: B023
    assert cache.counters.unstored == 0


def test_what_is_not_stored_is_said_once_a_minute_with_what_to_do(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    troubles: list[Trouble] = []
    cache = Cache(client, on_trouble=troubles.append)
    with caplog.at_level(logging.WARNING, "cachekeep_patterns"):
        for i in range(20):
            cache.get(f"k{i}", lambda: {"at": [(1, 2)]})
    assert [record.message for record in caplog.records if "list" in record.message] == [caplog.records[0].message]
    assert "it['at'][0]: tuple comes back as list" in caplog.records[0].message
    assert "annotate the function" in caplog.records[0].message
    assert {trouble.what for trouble in troubles} == {"unstored"}
    assert [trouble.key for trouble in troubles] == [f"k{i}" for i in range(20)]
    assert cache.counters.unstored == 20


def test_a_hook_that_fails_harms_nobody(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    def hook(_trouble: Trouble) -> None:
        raise ZeroDivisionError

    assert Cache(client, on_trouble=hook).get("k", lambda: (1,)) == (1,)
    assert "the hook for troubles failed" in caplog.text


def test_annotations_reach_through_wrapping_codecs_and_late_names(client: Any) -> None:
    cache = Cache(client, namespace="c", codec=Compressed(Msgspec()))

    @cache.cached(key="late")
    def late() -> Later:
        return Later(1)

    @cache.cached(key="many")
    def many() -> dict[str, tuple[Pair, ...]]:
        return {"a": (Pair(1, NOON.date()),)}

    assert [late(), late(), many(), many()] == [Later(1), Later(1), *[{"a": (Pair(1, NOON.date()),)}] * 2]
    assert (cache.counters.loads, cache.counters.hits) == (2, 2)


@dataclass
class Later:
    x: int


def test_an_annotation_for_type_checkers_only_never_makes_a_dict_of_an_object(client: Any) -> None:
    cache = Cache(client, namespace="t")

    @cache.cached(key="point")
    def point() -> Absent:
        return Point(1, 2)

    assert [point(), point()] == [Point(1, 2)] * 2
    assert cache.counters.unstored == 2


def test_pydantic_values_come_back_as_models(client: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("model", name=(str, ...), at=(datetime.datetime, ...))
    cache = Cache(client, namespace="p")

    def load() -> Any:
        return model(name="Ada", at=datetime.datetime.now(datetime.timezone.utc))

    load.__annotations__["return"] = model
    cached = cache.cached(key="ada")(load)
    assert cached() == cached()
    assert type(cached()) is model
    assert cache.counters.loads == 1


# --------------------------------------------------------------------------- who waits


def test_who_waits_has_an_object_and_an_error_of_his_own(client: Any) -> None:
    cache = Cache(client, namespace="w")
    gate = threading.Event()

    class Broken(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)
            self.two = two

    def load() -> dict[str, list[int]]:
        assert gate.wait(30)
        return {"a": []}

    def fail() -> int:
        assert gate.wait(30)
        raise Broken(1, two=2)

    def ask(key: str, load: Any) -> Any:
        try:
            return cache.get(key, load)
        except Broken as error:
            return error

    with ThreadPoolExecutor(20) as pool:
        for key, loader in (("value", load), ("error", fail)):
            gate.clear()
            before = cache.counters.waits
            asked = [pool.submit(ask, key, loader) for _ in range(20)]
            wait_for(lambda: cache.counters.waits == before + 19, "all the others to wait")  # noqa: B023
            gate.set()
            got = [one.result() for one in asked]
            assert len({id(one) for one in got}) == 20
            if key == "error":
                assert {(type(one), one.args, one.two) for one in got} == {(Broken, (1,), 2)}
                assert sum("raise Broken" in "".join(traceback.format_exception(one)) for one in got) == 20
            else:
                got[0]["a"].append(1)
                assert got[1:] == [{"a": []}] * 19


async def test_a_load_that_nobody_wants_any_more_is_stopped(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), namespace="x")
    began, ended = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 1

    asked = [asyncio.create_task(cache.get("k", load)) for _ in range(3)]
    await began.wait()
    while cache.counters.waits < 2:
        await asyncio.sleep(0.001)
    asked[0].cancel()
    await asyncio.sleep(0.05)
    assert not ended.is_set(), "others wait for it"
    asked[1].cancel()
    asked[2].cancel()
    await asyncio.wait_for(ended.wait(), 30)

    async def again() -> int:
        return 2

    assert await asyncio.wait_for(cache.get("k", again), 4) == 2, "its claim is gone, too"


async def test_what_a_cancelled_callers_loader_raises_is_not_the_others_business(server: Server) -> None:
    """Its session is closed with the request that was cancelled."""
    cache = AsyncCache(connect_async(url(server)), namespace="y")
    began, closed = asyncio.Event(), asyncio.Event()

    async def of_the_cancelled() -> int:
        began.set()
        await closed.wait()
        raise RuntimeError("this session is closed")

    async def of_the_other() -> int:
        return 2

    first = asyncio.create_task(cache.get("k", of_the_cancelled))
    await began.wait()
    second = asyncio.create_task(cache.get("k", of_the_other))
    while not cache.counters.waits:
        await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.sleep(0)
    closed.set()
    assert await asyncio.wait_for(second, 30) == 2


# --------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("scheme", ["valkey", "memcached"])
@pytest.mark.parametrize("ahead", [30, -30])
def test_a_host_whose_clock_is_wrong_fills_and_reads_as_others_do(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, scheme: str, ahead: int
) -> None:
    server = request.getfixturevalue("server" if scheme == "valkey" else "memory")
    policy = Policy(fresh_seconds=15, stale_seconds=600, jitter=0)
    right = Cache(connect(url(server, scheme)), namespace="c", policy=policy)
    real = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + ahead)
        wrong = Cache(connect(url(server, scheme)), namespace="c", policy=policy)
    wrong.get("first", lambda: 1)
    assert abs(wrong._aside.now() - real()) < 2
    wrong.get("of-the-wrong", lambda: 1)
    right.get("of-the-right", lambda: 1)
    assert [wrong.get("of-the-right", lambda: 2), right.get("of-the-wrong", lambda: 2)] == [1, 1]
    assert (wrong.counters.stale, right.counters.stale) == (0, 0)


# --------------------------------------------------------------------------- loads within loads


def test_pages_that_share_a_part_do_not_wait_for_each_other(client: Any) -> None:
    cache = Cache(client, namespace="n", max_loads=4, load_wait_seconds=5)

    def part() -> str:
        time.sleep(0.01)
        return "part"

    with ThreadPoolExecutor(100) as pool:
        pages = pool.map(lambda i: cache.get(f"page{i}", lambda: f"{i} {cache.get('part', part)}"), range(100))
        assert list(pages) == [f"{i} part" for i in range(100)]
    assert cache.counters.overloaded == 0


def test_a_loader_that_asks_for_its_own_key_is_told_so(client: Any) -> None:
    cache, again = Cache(client, namespace="r"), Cache(client, namespace="r")

    def through(one: Cache) -> Any:
        return one.get("k", lambda: one.get("other", lambda: one.get("k", lambda: 1)))

    for asking in (lambda: through(cache), lambda: cache.get("k", lambda: again.get("k", lambda: 1))):
        began = time.monotonic()
        with pytest.raises(RecursiveLoad, match="k"):
            asking()
        assert time.monotonic() - began < 3
    assert cache.get("k", lambda: 1) == 1


def test_two_loaders_that_ask_for_each_other_are_told_so(client: Any) -> None:
    cache = Cache(client, namespace="ab")
    both = threading.Barrier(2)

    def load(other: str) -> Any:
        def body() -> Any:
            both.wait(30)
            return cache.get(other, lambda: "never")

        return body

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(cache.get, "a", load("b")), pool.submit(cache.get, "b", load("a"))]
        errors = [one.exception(30) for one in asked]
    assert RecursiveLoad in {type(error) for error in errors}, "the other may then load for itself"


async def test_two_tasks_that_ask_for_each_other_are_told_so(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), namespace="ab")
    there = [asyncio.Event(), asyncio.Event()]

    def load(me: int, other: str) -> Any:
        async def body() -> Any:
            there[me].set()
            await there[1 - me].wait()
            return await cache.get(other, body)

        return body

    asked = asyncio.gather(cache.get("a", load(0, "b")), cache.get("b", load(1, "a")), return_exceptions=True)
    assert {type(error) for error in await asyncio.wait_for(asked, 30)} == {RecursiveLoad}


async def test_work_that_outlives_its_load_is_no_part_of_it(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), namespace="o")
    left: list[asyncio.Task[int]] = []
    go = asyncio.Event()

    async def later() -> int:
        await go.wait()
        await cache.invalidate("k")
        return await cache.get("k", lambda: 2)

    async def load() -> int:
        left.append(asyncio.create_task(later()))
        return 1

    assert await cache.get("k", load) == 1
    go.set()
    assert await asyncio.wait_for(left[0], 30) == 2


# --------------------------------------------------------------------------- reloads in the background


def test_many_stale_keys_take_few_threads_and_the_callers_context(client: Any) -> None:
    cache = Cache(client, namespace="s", policy=Policy(fresh_seconds=0.02, stale_seconds=600, jitter=0))
    keys = [f"k{i}" for i in range(1500)]
    cache.get_many(keys, lambda names: dict.fromkeys(names, "old"))
    who = contextvars.ContextVar("who", default="nobody")
    who.set("me")
    seen: set[str] = set()
    gate = threading.Event()

    def load() -> str:
        seen.add(who.get())
        assert gate.wait(30)
        return "new"

    wait_for(lambda: cache.get("k0", load) == "old" and cache.counters.stale, "staleness")
    assert {cache.get(key, load) for key in keys} == {"old"}
    assert sum(thread.name == "cachekeep-refresh" for thread in threading.enumerate()) <= 16
    assert cache.counters.refreshes_put_off > 0
    gate.set()
    wait_for(lambda: cache.counters.refreshes >= 1000, "those that could wait")
    wait_for(lambda: not any(thread.name == "cachekeep-refresh" for thread in threading.enumerate()), "their end")
    assert seen == {"me"}


def test_a_reload_that_fails_is_said(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(client, namespace="f", policy=Policy(fresh_seconds=0.02, stale_seconds=600, jitter=0))
    cache.get("k", lambda: "old")

    def broken() -> str:
        raise OSError("the database is away")

    wait_for(lambda: cache.get("k", broken) == "old" and cache.counters.refresh_errors, "the reload to fail")
    assert "refresh_errors: OSError: the database is away (f:k)" in caplog.text


# --------------------------------------------------------------------------- forks


def in_child(work: Any) -> str:
    """What ``work`` answers in a forked child, or how it failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(work())
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("scheme", ["valkey", "memcached"])
def test_a_forked_child_begins_anew(request: pytest.FixtureRequest, scheme: str) -> None:
    server = request.getfixturevalue("server" if scheme == "valkey" else "memory")
    cache = Cache(connect(url(server, scheme)), namespace="fork", max_loads=1, policy=Policy(lease_seconds=0.3, wait_seconds=20))
    gate, loading = threading.Event(), threading.Event()

    def load() -> str:
        loading.set()
        assert gate.wait(30)
        return "parent's"

    assert cache.get("warm", lambda: "warm") == "warm"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.get, "k", load)
        assert loading.wait(30)
        assert in_child(lambda: cache.get("other", lambda: "child's")) == repr("child's"), "the one place is the parent's"
        assert in_child(lambda: [cache.get("warm", lambda: "") for _ in range(50)]) == repr(["warm"] * 50)
        many = [cache.get] * 50
        children = [threading.Thread(target=in_child, args=(lambda: [get("warm", str) for get in many],)) for _ in "ab"]
        for child in children:
            child.start()
        assert [cache.get("warm", lambda: "") for _ in range(200)] == ["warm"] * 200
        for child in children:
            child.join()
        gate.set()
        assert asked.result() == "parent's"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_near_cache_in_a_forked_child_is_empty_until_it_hears_for_itself(server: Server) -> None:
    with NearCache(connect(url(server))) as near:
        cache = Cache(connect(url(server)), namespace="near", near=near)
        near.wait_trusted()
        wait_for(lambda: cache.get("k", lambda: 1) == 1 and cache.counters.near_hits, "the value to be near")

        def child() -> tuple[int, int]:
            kept = len(near)
            near.wait_trusted()
            wait_for(lambda: cache.get("k", lambda: 2) == 1 and len(near), "the value to be near again")
            return kept, cache.get("k", lambda: 2)

        assert in_child(child) == "(0, 1)"
        assert cache.get("k", lambda: 2) == 1


# --------------------------------------------------------------------------- what is not reached


@pytest.mark.parametrize(
    ("options", "setting", "advice"),
    [
        ({"password": "wrong"}, None, "user name or password"),
        ({}, ("maxmemory", "1"), "the engine is full"),
        ({"timeout_seconds": 0.2}, "frozen", "is the engine overloaded or frozen"),
        ({}, "dead", "is the engine running"),
    ],
    ids=["password", "full", "frozen", "dead"],
)
def test_what_is_not_reached_is_said_with_what_to_do(
    frail: Server, options: Any, setting: Any, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0, **options), breaker=Breaker(failures=100))
    if isinstance(setting, tuple):
        with valkey.Valkey(port=frail.port) as admin:
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set(*setting)
    elif setting == "frozen":
        frail.freeze()
    elif setting == "dead":
        frail.kill()
    assert [cache.get(f"k{i}", lambda: i) for i in range(3)] == [0, 1, 2]  # noqa: B023
    said = [record.message for record in caplog.records if advice in record.message]
    assert len(said) == 1, caplog.text
    assert cache.counters.cache_errors >= 3


def test_a_long_or_foreign_namespace_is_cached(memory: Server) -> None:
    for namespace in ("n" * 300, "größe", "a b"):
        cache = Cache(connect(url(memory, "memcached")), namespace=namespace)
        assert [cache.get("k" * 300, lambda: 1), cache.get("k" * 300, lambda: 2)] == [1, 1]
