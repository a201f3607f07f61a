"""Plain reading and writing, and what a decorated function can besides being called; over servers and over memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cachekeep_patterns import (
    AsyncCache,
    Cache,
    CacheDown,
    MemoryStore,
    NearCache,
    Policy,
    Uncodable,
    connect,
    connect_async,
)
from patterns_rig.servers import Server, wait_for


@pytest.fixture(params=["valkey", "memcached", "memory"])
def client(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return MemoryStore()
    server = request.getfixturevalue("server" if request.param == "valkey" else "memory")
    return connect(f"{request.param}://127.0.0.1:{server.port}")


def test_plain_reading_and_writing(client: Any) -> None:
    cache = Cache(client, namespace="plain")
    assert (cache.get("k"), cache.get("k", default=7), cache.exists("k")) == (None, 7, False)
    cache.set("k", {"a": 1})
    assert (cache.get("k"), cache.exists("k"), cache.get("k", lambda: 2)) == ({"a": 1}, True, {"a": 1})
    cache.set("k", None)
    assert (cache.get("k", default=7), cache.exists("k")) == (None, True)
    cache.delete("k")
    assert not cache.exists("k")
    with pytest.raises(Uncodable):
        cache.set("k", (1, 2))
    cache.set("t", 1, tags=["red"])
    assert (cache.get("t", tags=["red"]), cache.exists("t", tags=["red"])) == (1, True)
    cache.invalidate(tags=["red"])
    assert cache.get("t", tags=["red"]) is None


def test_what_is_set_is_newer_than_what_is_being_loaded(client: Any) -> None:
    cache = Cache(client, namespace="plain")

    def load() -> str:
        cache.set("k", "set")
        return "loaded"

    assert cache.get("k", load) == "loaded"
    assert cache.get("k") == "set"


def test_what_is_set_while_it_is_written_leaves_the_key_empty(client: Any) -> None:
    cache = Cache(client, namespace="plain")
    with cache.writing("k") as write:
        cache.set("k", "set")
        write.publish("k", "written")
    assert not cache.exists("k")
    with cache.writing("k"), pytest.raises(CacheDown, match="not counted"):
        cache.incr("k")


def test_counting_is_exact_and_keeps_the_lifetime(client: Any) -> None:
    cache = Cache(client, namespace="plain", policy=Policy(fresh_seconds=1, jitter=0))
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: cache.incr("n"), range(40))) == list(range(1, 41))
    assert cache.incr("n", -40) == 0
    wait_for(lambda: cache.incr("n", 0, initial=100) == 100, "the count to expire, though it is asked for again and again")
    cache.set("text", "x")
    with pytest.raises(TypeError, match="whole number"):
        cache.incr("text")


def test_a_lifetime_by_the_value(client: Any) -> None:
    policy = Policy(jitter=0, lifetime=lambda value: {"brief": 0.05, "never": 0}.get(value))
    cache = Cache(client, namespace="plain", policy=policy)
    for value, loads in (("never", 2), ("long", 1)):
        before = cache.counters.loads
        assert [cache.get(value, lambda: value) for _ in range(2)] == [value, value]  # noqa: B023
        assert cache.counters.loads == before + loads
    cache.get("brief", lambda: "brief")
    wait_for(lambda: cache.get("brief") is None, "it to expire")


def test_a_function_that_is_cached_under_a_condition_and_a_version(client: Any) -> None:
    cache, ran = Cache(client, namespace="plain"), []

    def versioned(version: int | None, answer: int) -> Any:
        def function(user_id: int) -> int:
            ran.append(user_id)
            return answer

        return cache.cached(key="v:{user_id}", condition=lambda user_id: user_id > 0, version=version)(function)

    one, two = versioned(1, 1), versioned(2, 2)
    assert [one(-1), one(-1), one(1), one(1)] == [1] * 4
    assert ran == [-1, -1, 1]
    assert [two(1), two(1), one(1)] == [2, 2, 1], "what another version stored is loaded anew"
    cache.invalidate("v:1")
    before = len(ran)
    assert (one(1), one.refresh(1), one(1)) == (1, 1, 1)
    assert len(ran) == before + 2


def test_methods_are_cached_by_instance(client: Any) -> None:
    cache = Cache(client, namespace="plain")

    class Shop:
        def __init__(self, number: int) -> None:
            self.number = number

        @cache.cached(key="{self.number}:{item}", tags=["shop-{self.number}"])
        def price(self, item: str) -> float:
            return time.monotonic()

    one, two = Shop(1), Shop(2)
    first = one.price("tea")
    assert one.price("tea") == first != two.price("tea")
    assert one.price.key("tea") == Shop.price.key(one, "tea") == "1:tea"
    assert list(one.price.tags("tea")) == ["shop-1"]
    one.price.invalidate("tea")
    second = one.price("tea")
    assert second != first
    assert one.price.refresh("tea") != second
    assert one.price.uncached("tea") != one.price("tea")
    one.number = 3
    assert one.price("tea") != second, "what may change is not remembered"


def test_equal_arguments_of_other_types_are_other_calls(client: Any) -> None:
    cache = Cache(client, namespace="plain")

    @cache.cached()
    def shown(it: Any, *more: Any) -> str:
        return repr((it, *more))

    for _ in range(2):
        for it in (1, True, 1.0, "1", b"1", None, 0, False, [1], (1,), (True,)):
            assert shown(it) == repr((it,))
            assert shown(it, it) == repr((it, it))


def test_two_functions_of_one_name_are_not_one(client: Any) -> None:
    cache = Cache(client, namespace="plain")

    def make(table: str) -> Any:
        @cache.cached()
        def load(number: int) -> str:
            return f"{table} {number}"

        return load

    assert make("users")(1) == "users 1"
    with pytest.raises(ValueError, match="give key="):
        make("orders")


def test_misspelt_and_mistyped_options_are_errors_at_once(server: Server) -> None:
    client = connect(f"valkey://127.0.0.1:{server.port}")
    cache = Cache(client)
    for wrong in (
        lambda: Cache(client, name_space="x"),
        lambda: cache.cached(ttl=3),
        lambda: cache.cached(codec="msgpack")(wrong_function),
        lambda: cache.cached(tags="users")(wrong_function),
        lambda: cache.cached(skip="self")(wrong_function),
        lambda: cache.get("k", lambda: 1, codec="msgpack"),
        lambda: cache.get(b"k", lambda: 1),
        lambda: cache.cached(key=lambda a: 7)(wrong_function)(1),
        lambda: cache.cached()(async_function),
        lambda: AsyncCache(connect_async(f"valkey://127.0.0.1:{server.port}")).cached()(wrong_function),
        lambda: connect("valkey://127.0.0.1", sockettimeout=3),
        lambda: connect("valkey://127.0.0.1", cluster=True, sockettimeout=3),
        lambda: connect("valkey://127.0.0.1?sockettimeout=3"),
        lambda: connect_async("valkey://127.0.0.1", cluster=True, sockettimeout=3),
        lambda: NearCache(client, max_entires=3),
    ):
        with pytest.raises(TypeError):
            wrong()
    for values in ({"fresh_seconds": float("nan")}, {"wait_seconds": -1}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match="must"):
            Policy(**values)
    assert connect("valkey://127.0.0.1?socket_timeout=3").connection_pool.connection_kwargs["socket_timeout"] == 3.0


def wrong_function(a: int) -> int:
    return a


async def async_function(a: int) -> int:
    return a


async def test_the_same_awaited(server: Server) -> None:
    for client in (connect_async(f"valkey://127.0.0.1:{server.port}"), MemoryStore()):
        cache = AsyncCache(client, namespace="plain")
        await cache.set("k", 1)
        assert (await cache.get("k"), await cache.exists("k"), await cache.incr("n", 2)) == (1, True, 2)
        await cache.delete("k")
        assert await cache.get("k", default=7) == 7
        assert await cache.refresh("k", async_loader) == 3

        class Shop:
            number = 1

            @cache.cached(key="{self.number}:{item}")
            async def price(self, item: str) -> float:
                return time.monotonic()

        shop = Shop()
        first = await shop.price("tea")
        assert await shop.price("tea") == first != await shop.price.refresh("tea")
        await shop.price.invalidate("tea")
        assert await shop.price("tea") != first


async def async_loader() -> int:
    return 3
