"""Cache-aside in all its cases, against real engines: freshness, failures, tags, many keys, decorated functions."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import valkey

from cachekeep_patterns import (
    AsyncCache,
    Breaker,
    Cache,
    CacheDown,
    Compressed,
    Encrypted,
    Msgspec,
    Overloaded,
    Policy,
    connect,
    connect_async,
)
from cachekeep_patterns.errors import UncacheableArgument
from patterns_rig.servers import Server, engine, wait_for


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture(params=["valkey", "memcached"])
def client(request: pytest.FixtureRequest) -> Any:
    return connect(url(request.getfixturevalue("server" if request.param == "valkey" else "memory"), request.param))


class Source:
    """The database of these tests: one value, and how often it was asked for."""

    def __init__(self, value: Any = 1) -> None:
        self.value = value
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> Any:
        self.asked += 1
        value = self.value
        assert self.gate.wait(30)
        return value


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [1, "text", None, [1, {"a": None}], "ü" * 1000, 0, "", False])
def test_values_come_back_as_they_went(client: Any, value: Any) -> None:
    source = Source(value)
    cache = Cache(client, namespace="v")
    assert cache.get("k", source) == value
    assert cache.get("k", source) == value
    assert source.asked == 1


def test_none_is_remembered_for_its_own_time_or_not_at_all(server: Server) -> None:
    source, admin = Source(None), valkey.Valkey(port=server.port)
    briefly = Cache(connect(url(server)), policy=Policy(fresh_seconds=600, missing_seconds=60, jitter=0))
    assert briefly.get("k", source) is None
    assert briefly.get("k", source) is None
    assert source.asked == 1
    assert 0 < admin.pttl("k") <= 60_000
    assert admin.pexpire("k", 1)
    wait_for(lambda: not admin.exists("k"), "the absence to expire")
    never = Cache(connect(url(server)), policy=Policy(missing_seconds=0))
    assert never.get("k", source) is None
    assert never.get("k", source) is None
    assert source.asked == 3


def test_what_cannot_be_encoded_or_is_too_large_is_served_and_not_stored(client: Any) -> None:
    cache = Cache(client, policy=Policy(max_bytes=1000))
    for value in (object(), "x" * 2000):
        source = Source(value)
        assert cache.get("k", source) is value
        assert cache.get("k", source) is value
        assert source.asked == 2
    assert cache.counters.unstored == 4


def test_foreign_and_damaged_bytes_are_replaced(server: Server) -> None:
    admin = valkey.Valkey(port=server.port)
    cache = Cache(connect(url(server)))
    for junk in (b"", b"x", b"{}" * 40, b"\xc1" * 200, b"\xc1\0\0\0" + b"\x7f" * 40, b"\xf5", b"\xf6abc"):
        admin.set("k", junk)
        source = Source(junk.hex())
        assert cache.get("k", source) == junk.hex()
        assert cache.get("k", source) == junk.hex()
        assert source.asked == 1
    admin.delete("k")
    admin.lpush("k", 1)  # not even a string: the engine refuses, we serve
    assert cache.get("k", Source(5)) == 5


def test_codecs(client: Any) -> None:
    secret = Encrypted(Compressed(Msgspec(dict[str, str])), {"2026": b"k" * 32})
    value = {"a": "long " * 1000}
    source = Source(value)
    sealed = Cache(client, namespace="s", codec=secret)
    assert sealed.get("k", source) == value
    assert sealed.get("k", source) == value
    assert source.asked == 1
    raw = client.get("s:k")
    assert b"long" not in raw
    assert len(raw) < 500
    rotated = Encrypted(Compressed(Msgspec(dict[str, str])), {"2027": b"n" * 32, "2026": b"k" * 32})
    assert Cache(client, namespace="s", codec=rotated).get("k", Source(None)) == value
    stranger = Encrypted(Compressed(Msgspec()), {"2026": b"x" * 32})
    assert Cache(client, namespace="s", codec=stranger).get("k", Source("mine")) == "mine"
    client.set("s:moved", client.get("s:k"))  # a sealed value under another key is not believed
    assert sealed.get("moved", Source({"a": "own"})) == {"a": "own"}


# --------------------------------------------------------------------------- freshness


def test_stale_is_served_while_one_caller_reloads(client: Any) -> None:
    cache = Cache(client, policy=Policy(fresh_seconds=0.05, stale_seconds=60, jitter=0, lease_seconds=2))
    source = Source(1)
    assert cache.get("k", source) == 1
    source.value = 2
    source.gate.clear()
    wait_for(lambda: cache.get("k", source) == 1 and cache.counters.stale, "the value to go stale")
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda _: cache.get("k", source), range(100))) == {1}
    wait_for(lambda: source.asked == 2, "the one reload to begin")
    source.gate.set()
    wait_for(lambda: cache.get("k", source) == 2, "the new value to arrive")


def test_stale_is_served_when_the_loader_fails(server: Server) -> None:
    cache = Cache(connect(url(server)), policy=Policy(fresh_seconds=0.02, stale_seconds=60, jitter=0, lease_seconds=0.05))
    assert cache.get("k", Source("good")) == "good"

    def broken() -> str:
        raise OSError("the database is away")

    wait_for(lambda: cache.get("k", broken) == "good" and cache.counters.load_errors >= 2, "two reloads to fail")
    assert cache.get("k", broken) == "good"


def test_early_refresh_happens_before_expiry_and_once(server: Server) -> None:
    # A load that took 50 ms, beta 200: refresh is near certain seconds ahead of the expiry.
    caches = [Cache(connect(url(server)), policy=Policy(fresh_seconds=10, jitter=0, early_beta=200)) for _ in range(4)]
    source = Source(1)

    def slow() -> Any:
        time.sleep(0.05)
        return source()

    assert caches[0].get("k", slow) == 1
    source.value = 2
    wait_for(lambda: caches[0].get("k", slow) == 2 or None, "the early refresh")
    assert sum(cache.counters.stale for cache in caches) == 0


def test_lifetimes_are_spread(server: Server) -> None:
    cache = Cache(connect(url(server)), policy=Policy(fresh_seconds=1000, jitter=0.5))
    admin = valkey.Valkey(port=server.port)
    for i in range(40):
        cache.get(f"k{i}", lambda: 1)
    lives = [admin.pttl(f"k{i}") / 1000 for i in range(40)]
    assert 490 < min(lives) < 700 < 800 < max(lives) <= 1000


# --------------------------------------------------------------------------- invalidation


def test_a_fill_after_an_invalidation_is_refused(client: Any) -> None:
    """The loader read version 1; version 2 was committed and invalidated meanwhile; version 1 must not get in."""
    one, two = Cache(client), Cache(client)
    source = Source(1)
    source.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(one.get, "k", source)
        wait_for(lambda: source.asked, "the load to begin")
        two.invalidate("k")
        source.gate.set()
        assert loading.result() == 1  # it asked before the change was over
    assert one.counters.refused_fills == 1
    assert two.get("k", Source(2)) == 2


def test_who_comes_after_an_invalidation_does_not_join_an_older_load(client: Any) -> None:
    one, two = Cache(client), Cache(client)
    source = Source(1)
    source.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(one.get, "k", source)
        wait_for(lambda: source.asked, "the load to begin")
        source.value = 2
        two.invalidate("k")
        assert two.get("k", lambda: 2) == 2
        two.invalidate("k")  # so that the late one finds nothing on the server, but a load under way in its own process
        waits = one.counters.waits
        late = pool.submit(one.get, "k", source)
        wait_for(lambda: one.counters.waits > waits, "the late one to wait")
        source.gate.set()
        assert early.result() == 1
        assert late.result() == 2


def test_tags_and_the_namespace(client: Any) -> None:
    cache = Cache(client, namespace="t", clearable=True)
    source = Source(1)
    for key, tags in (("a", ["red"]), ("b", ["red", "blue"]), ("c", ["blue"]), ("d", [])):
        cache.get(key, source, tags=tags)
    assert source.asked == 4
    cache.invalidate(tags=["red"])
    source.value = 2
    assert [cache.get(k, source, tags=t) for k, t in (("a", ["red"]), ("b", ["red", "blue"]), ("c", ["blue"]), ("d", []))] == [
        2,
        2,
        1,
        1,
    ]
    cache.clear()
    source.value = 3
    assert [cache.get(k, source, tags=t) for k, t in (("a", ["red"]), ("d", []))] == [3, 3]
    with pytest.raises(CacheDown):
        Cache(client).clear()


def test_a_tag_invalidated_during_a_load_makes_its_result_old(client: Any) -> None:
    one, two = Cache(client), Cache(client)
    source = Source(1)
    source.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(one.get, "k", source, tags=["red"])
        wait_for(lambda: source.asked, "the load to begin")
        two.invalidate(tags=["red"])
        source.gate.set()
        loading.result()
    assert two.get("k", Source(2), tags=["red"]) == 2


# --------------------------------------------------------------------------- many keys


def test_many_keys_take_one_load(client: Any) -> None:
    cache = Cache(client, namespace="m")
    batches: list[list[str]] = []

    def load_many(keys: list[str]) -> dict[str, int]:
        batches.append(sorted(keys))
        return {key: len(key) for key in keys if key != "gone"}

    assert cache.get("a", lambda: 1) == 1
    assert cache.get_many(["a", "bb", "ccc", "gone"], load_many) == {"a": 1, "bb": 2, "ccc": 3, "gone": None}
    assert cache.get_many(["a", "bb", "ccc", "gone"], load_many) == {"a": 1, "bb": 2, "ccc": 3, "gone": None}
    assert batches == [["bb", "ccc", "gone"]]
    assert cache.get_many([], load_many) == {}


def test_overlapping_batches_load_each_key_once(client: Any) -> None:
    caches = [Cache(client) for _ in range(8)]
    loaded: list[str] = []

    def load_many(keys: list[str]) -> dict[str, str]:
        time.sleep(0.05)
        loaded.extend(keys)
        return {key: key.upper() for key in keys}

    def ask(i: int) -> dict[str, str | None]:
        return caches[i].get_many([f"k{j % 20}" for j in range(i * 3, i * 3 + 10)], load_many)

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(ask, range(8))):
            assert found == {f"k{j % 20}": f"K{j % 20}" for j in range(i * 3, i * 3 + 10)}
    assert sorted(loaded) == sorted({f"k{j}" for j in range(20)})


def test_a_failing_batch_frees_its_keys(client: Any) -> None:
    cache = Cache(client, policy=Policy(lease_seconds=30))

    def broken(_keys: list[str]) -> dict[str, int]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_many(["a", "b"], broken)
    assert Cache(client).get("a", lambda: 1) == 1


# --------------------------------------------------------------------------- the cache is away


def test_loads_go_on_while_the_cache_is_dead_and_stop_when_it_is_back(frail: Server) -> None:
    breaker = Breaker(failures=2, rest_seconds=3600)
    cache = Cache(connect(url(frail), deadline_seconds=0), breaker=breaker)
    source = Source(1)
    assert cache.get("k", source) == 1
    frail.kill()
    for expected in range(2, 30):
        assert cache.get("k", source) == 1
        assert source.asked == expected
    assert not cache.breaker_closed
    assert cache.counters.cache_errors == 2  # the breaker kept all others from trying
    with pytest.raises(CacheDown):
        cache.invalidate("k")
    breaker.rest_seconds = 0.05
    breaker.failed(0)  # long ago: it has rested
    frail.start()
    wait_for(lambda: cache.get("k", source) and cache.breaker_closed, "the breaker to close")
    asked = source.asked
    wait_for(lambda: cache.get("k", source) == 1 and cache.counters.hits, "a hit")
    assert source.asked <= asked + 1


def test_a_frozen_cache_costs_each_caller_a_timeout_at_most(frail: Server) -> None:
    cache = Cache(connect(url(frail), timeout_seconds=0.2, deadline_seconds=0), breaker=Breaker(failures=1, rest_seconds=60))
    assert cache.get("k", lambda: 1) == 1
    frail.freeze()
    assert cache.get("k", lambda: 2) == 2
    assert not cache.breaker_closed
    assert [cache.get("k", lambda: 3) for _ in range(50)] == [3] * 50
    assert cache.counters.cache_errors == 1


def test_without_a_cache_one_key_still_takes_few_loads_and_all_keys_few_at_once() -> None:
    with engine() as server:
        client = connect(url(server), deadline_seconds=0)
    cache = Cache(client, max_loads=3, breaker=Breaker(failures=1, rest_seconds=60))
    now, most = 0, 0
    counting = threading.Lock()

    def slow() -> int:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with counting:
            now -= 1
        return 1

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(lambda i: cache.get(f"k{i % 20}", slow), range(200))) == {1}
    assert most <= 3
    assert cache.counters.loads < 200
    narrow = Cache(client, max_loads=1, load_wait_seconds=0.01, breaker=Breaker(failures=1, rest_seconds=60))
    source = Source()
    source.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(narrow.get, "a", source)
        wait_for(lambda: source.asked, "the load to begin")
        with pytest.raises(Overloaded):
            narrow.get("b", lambda: 1)
        source.gate.set()
        assert loading.result() == 1


def test_the_cache_dies_during_the_load(frail: Server) -> None:
    cache = Cache(connect(url(frail), deadline_seconds=0))
    source = Source(1)
    source.gate.clear()
    with ThreadPoolExecutor(10) as pool:
        loading = [pool.submit(cache.get, "k", source) for _ in range(10)]
        wait_for(lambda: source.asked, "the load to begin")
        frail.kill()
        source.gate.set()
        assert [one.result() for one in loading] == [1] * 10


# --------------------------------------------------------------------------- functions


@dataclasses.dataclass
class User:
    id: int
    name: str
    born: datetime.date
    token: uuid.UUID


ADA = User(1, "Ada", datetime.date(1815, 12, 10), uuid.UUID(int=7))


def test_decorated_functions_decode_to_what_they_promise(client: Any) -> None:
    cache = Cache(client, namespace="f")
    calls = []

    @cache.cached(key="user:{user_id}", tags=["user-{user_id}"])
    def user(user_id: int, verbose: bool = False) -> User:
        calls.append(user_id)
        return ADA

    assert user(1) == ADA
    assert user(user_id=1, verbose=True) == ADA
    assert calls == [1]
    assert user.key(1) == "user:1"
    assert user.__name__ == "user"
    user.invalidate(1)
    assert user(1) == ADA
    cache.invalidate(tags=["user-1"])
    assert user(1) == ADA
    assert calls == [1, 1, 1]


def test_keys_tell_arguments_apart(client: Any) -> None:
    cache = Cache(client)
    calls = []

    class Shop:
        @cache.cached(skip=("self",))
        def price(self, item: Any, currency: str = "EUR") -> str:
            calls.append(item)
            return repr(item)

    shop = Shop()
    different: list[Any] = [1, "1", 1.5, True, None, "a:b", "a b", "ü", "x" * 500, (1, 2), {"b": 1, "a": 2}]
    for item in different:
        assert shop.price(item) == repr(item)
    assert len(calls) == len(different)
    for item in different:
        assert shop.price(item=item, currency="EUR") == repr(item)
    assert shop.price({"a": 2, "b": 1}) == repr({"b": 1, "a": 2})
    assert len(calls) == len(different)
    with pytest.raises(UncacheableArgument):
        shop.price(object())
    with pytest.raises(ValueError, match="nobody"):
        cache.cached(key="{nobody}")(lambda item: item)


async def test_async_functions(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), namespace="af", clearable=True)
    calls = []

    @cache.cached(key="user:{user_id}")
    async def user(user_id: int) -> User:
        calls.append(user_id)
        await asyncio.sleep(0.01)
        return ADA

    assert await asyncio.gather(*(user(1) for _ in range(50))) == [ADA] * 50
    assert calls == [1]
    await user.invalidate(1)
    await user(1)
    await cache.clear()
    await user(1)
    assert calls == [1, 1, 1]

    async def load_many(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    assert await cache.get_many(["x", "y"], load_many) == {"x": 1, "y": 1}


def test_blocking_and_async_are_not_mixed(server: Server) -> None:
    with pytest.raises(TypeError, match="blocking"):
        Cache(connect_async(url(server)))
    with pytest.raises(TypeError, match="async"):
        AsyncCache(connect(url(server)))
    with pytest.raises(TypeError, match="decode_responses"):
        Cache(valkey.Valkey(port=server.port, decode_responses=True))

    async def load() -> int:
        return 1

    with pytest.raises(TypeError, match="AsyncCache"):
        Cache(connect(url(server))).get("k", load)


# --------------------------------------------------------------------------- observing


def test_counters_and_exporters(server: Server) -> None:
    cache = Cache(connect(url(server)))
    for _ in range(4):
        cache.get("k", lambda: 1)
    seen = cache.counters.snapshot()
    assert (seen["hits"], seen["misses"], seen["loads"]) == (3, 1, 1)
    assert cache.counters.hit_ratio == 0.75

    prometheus = pytest.importorskip("prometheus_client")
    from cachekeep_patterns.observe import export_prometheus

    registry = prometheus.CollectorRegistry()
    export_prometheus(cache.counters, "shop", registry)
    assert 'cachekeep_patterns_hits_total{cache="shop"} 3.0' in prometheus.generate_latest(registry).decode()


def test_opentelemetry(server: Server) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    from cachekeep_patterns.observe import export_opentelemetry

    reader = export.InMemoryMetricReader()
    cache = Cache(connect(url(server)))
    export_opentelemetry(cache.counters, "shop", sdk.MeterProvider([reader]).get_meter("t"))
    cache.get("k", lambda: 1)
    cache.get("k", lambda: 1)
    metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    values = {metric.name: metric.data.data_points[0].value for metric in metrics}
    assert values["cachekeep_patterns.hits"] == 1
    assert values["cachekeep_patterns.loads"] == 1


def test_dry_run_touches_nothing_and_says_what_would_be_saved(server: Server) -> None:
    cache = Cache(connect(url(server)), namespace="dry", dry_run=True)
    source = Source(1)
    assert [cache.get("k", source) for _ in range(5)] == [1] * 5
    source.value = 2
    assert cache.get("k", source) == 2
    assert cache.saved is not None
    assert (cache.saved.calls, cache.saved.would_hit, cache.saved.would_be_stale) == (6, 5, 1)
    assert source.asked == 6
    cache.invalidate("k")
    assert cache.get("k", source) == 2
    assert cache.saved.would_hit == 5, "it would have been loaded anew"
    assert valkey.Valkey(port=server.port).dbsize() == 0


def test_importing_takes_only_what_is_needed() -> None:
    import subprocess
    import sys

    program = (
        # (valkey-py imports cryptography by itself where it is installed)
        "import sys, cachekeep_patterns as p; p.Cache, p.connect, p.NearCache;"
        "print([m for m in ('pymemcache', 'emcache', 'sqlalchemy', 'prometheus_client', 'opentelemetry',"
        " 'glide', 'redis', 'botocore', 'starlette') if m in sys.modules],"
        " [m for m in sys.modules if m.startswith('cachekeep.') and not m.startswith('cachekeep_patterns')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
