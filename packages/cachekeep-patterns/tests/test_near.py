"""The near cache stays right: other writers, own writes, lost and silent connections, failover, cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import valkey
from hypothesis import given
from hypothesis import strategies as st

from cachekeep_patterns import AsyncCache, Cache, Msgspec, NearCache, Policy, connect, connect_async
from cachekeep_patterns.tinylfu import TinyLfu
from patterns_rig.servers import Server, cluster, engine, wait_for


def url(server: Server) -> str:
    return f"valkey://127.0.0.1:{server.port}"


def near_cache(server: Server, timeout_seconds: float = 30.0, **options: Any) -> tuple[Cache, NearCache]:
    client = connect(url(server), deadline_seconds=0, timeout_seconds=timeout_seconds)
    near = NearCache(client, **options)
    cache = Cache(client, namespace="n", near=near, policy=Policy(fresh_seconds=600))
    near.wait_trusted()
    return cache, near


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Cache, NearCache]]:
    cache, near = near_cache(server)
    yield cache, near
    near.close()


def warm(cache: Cache, key: str, load: Any) -> Any:
    """Until a get is answered from memory."""
    before = cache.counters.near_hits
    return wait_for(lambda: (cache.get(key, load), cache.counters.near_hits > before)[1], f"{key} to be near") and cache.get(
        key, load
    )


def test_a_hit_asks_nobody(server: Server, pair: tuple[Cache, NearCache]) -> None:
    cache, _ = pair
    assert warm(cache, "k", lambda: [1]) == [1]
    admin = valkey.Valkey(port=server.port)
    gets = admin.info("commandstats")["cmdstat_get"]["calls"]
    for _ in range(100):
        assert cache.get("k", lambda: [2]) == [1]
    assert admin.info("commandstats")["cmdstat_get"]["calls"] == gets


def test_other_peoples_writes_are_noticed(server: Server, pair: tuple[Cache, NearCache]) -> None:
    cache, _ = pair
    other = Cache(connect(url(server)), namespace="n")
    warm(cache, "k", lambda: 1)
    other.invalidate("k")
    wait_for(lambda: cache.get("k", lambda: 2) == 2, "the notice of the invalidation")
    warm(cache, "k", lambda: 2)
    other.write("k", lambda: 3)
    wait_for(lambda: cache.get("k", lambda: 0) == 3, "the notice of the write")
    warm(cache, "k", lambda: 3)
    valkey.Valkey(port=server.port).flushall()
    wait_for(lambda: cache.get("k", lambda: 4) == 4, "the notice of the flush")


def test_own_writes_do_not_use_up_the_notice_of_others(server: Server, pair: tuple[Cache, NearCache]) -> None:
    """In default tracking mode with NOLOOP the key is forgotten by an own write, and the next foreign write goes unnoticed."""
    cache, _ = pair
    other = Cache(connect(url(server)), namespace="n")
    for i in range(20):
        cache.write("k", lambda i=i: f"mine {i}")
        assert cache.get("k", lambda: None) == f"mine {i}"  # own writes are seen at once
        warm(cache, "k", lambda: None)
        other.write("k", lambda i=i: f"theirs {i}")
        wait_for(lambda i=i: cache.get("k", lambda: None) == f"theirs {i}", "the notice of the other's write")


def test_tags_reach_into_memory(server: Server, pair: tuple[Cache, NearCache]) -> None:
    cache, near = pair
    other = Cache(connect(url(server)), namespace="n")
    before = cache.counters.near_hits
    wait_for(lambda: (cache.get("k", lambda: 1, tags=["red"]), cache.counters.near_hits > before)[1], "the tagged key to be near")
    other.invalidate(tags=["red"])
    wait_for(lambda: cache.get("k", lambda: 2, tags=["red"]) == 2, "the notice of the tag")
    near.flush()
    assert not near._by_tag


def test_an_answer_overtaken_by_a_notice_is_not_kept(pair: tuple[Cache, NearCache]) -> None:
    _, near = pair
    ticket = near.ticket("n:k")
    near.drop("n:k")
    near.keep("n:k", ticket, "old", b"mark", 10, 60)
    assert not near.peek("n:k")
    ticket = near.ticket("n:k")
    near.flush()
    near.keep("n:k", ticket, "old", b"mark", 10, 60)
    assert not near.peek("n:k")


def test_memory_is_bounded(server: Server) -> None:
    cache, near = near_cache(server, max_entries=50)
    for i in range(200):
        cache.get(f"k{i}", lambda: "x")
        cache.get(f"k{i}", lambda: "x")
        assert len(near) <= 50
    near.close()
    cache, near = near_cache(server, max_bytes=20_000)
    for i in range(200):
        cache.get(f"l{i}", lambda: "x" * 500)
        cache.get(f"l{i}", lambda: "x" * 500)
        assert near.size_bytes <= 20_000
    assert len(near) > 5
    near.close()
    assert near.size_bytes == len(near) == 0


def test_a_dead_server_empties_the_memory(frail: Server) -> None:
    cache, near = near_cache(frail)
    warm(cache, "k", lambda: 1)
    frail.kill()
    wait_for(lambda: len(near) == 0 and near.trusted_until == 0, "the flush")
    assert cache.get("k", lambda: 2) == 2
    frail.start()
    near.wait_trusted()
    assert warm(cache, "k", lambda: 3) == 3
    near.close()


def test_a_killed_tracking_connection_empties_the_memory(server: Server, pair: tuple[Cache, NearCache]) -> None:
    cache, near = pair
    warm(cache, "k", lambda: 1)
    flushes = near.flushes
    admin = valkey.Valkey(port=server.port)
    for client in admin.client_list():
        if client["name"] == "cachekeep-near":
            admin.client_kill_filter(_id=client["id"])
    wait_for(lambda: near.flushes > flushes, "the flush")
    admin.set("n:k", admin.get("n:k").replace(b"1", b"1"))
    near.wait_trusted()
    assert warm(cache, "k", lambda: None) == 1


def test_a_frozen_server_is_trusted_no_longer_than_promised(frail: Server) -> None:
    cache, near = near_cache(frail, timeout_seconds=0.3, max_stale_seconds=0.3)
    warm(cache, "k", lambda: 1)
    frail.freeze()
    frozen = time.monotonic()
    wait_for(lambda: not near.peek("n:k"), "trust to run out")
    assert near.trusted_until <= frozen + 0.3
    assert cache.get("k", lambda: 2) == 2
    frail.thaw()
    near.wait_trusted()
    near.close()


def test_memory_without_a_recent_heartbeat_is_not_believed(server: Server) -> None:
    """As after this process was itself asleep: the tracker had no chance to notice anything."""
    cache, near = near_cache(server, max_stale_seconds=60)
    warm(cache, "k", lambda: 1)
    near.trusted_until = time.monotonic() - 1
    assert not near.peek("n:k")
    near.close()


def test_a_crowd_of_writers_never_leaves_memory_behind(server: Server) -> None:
    """After the last write every near cache comes to the last value, and none goes back to an earlier one on the way."""
    pairs = [near_cache(server) for _ in range(3)]
    truth = {"k": 0}
    writing = threading.Lock()
    began = time.monotonic()

    def going() -> bool:
        """Long enough for a race to show, and for memory to have been asked at all."""
        passed_seconds = time.monotonic() - began
        return passed_seconds < 1.5 or (passed_seconds < 60 and sum(cache.counters.near_hits for cache, _ in pairs) <= 100)

    def write(cache: Cache) -> None:
        while going():

            def commit() -> int:
                truth["k"] += 1
                return truth["k"]

            with writing:
                cache.write("k", commit, strict=True)

    def read(cache: Cache) -> int:
        last = back = 0
        while going():
            value = cache.get("k", lambda: truth["k"])
            back += value < last
            last = value
        return back

    with ThreadPoolExecutor(9) as pool:
        readers = [pool.submit(read, cache) for cache, _ in pairs for _ in range(2)]
        writers = [pool.submit(write, cache) for cache, _ in pairs]
        assert sum(one.result() for one in readers) == 0
        for one in writers:
            one.result()
    for cache, near in pairs:
        wait_for(lambda c=cache: c.get("k", lambda: truth["k"]) == truth["k"], "the last value")
        near.close()
    assert sum(cache.counters.near_hits for cache, _ in pairs) > 100


async def test_under_asyncio(server: Server) -> None:
    client = connect_async(url(server))
    near = NearCache(client)
    cache = AsyncCache(client, namespace="n", near=near)
    near.wait_trusted()
    until = time.monotonic() + 10
    while not cache.counters.near_hits:  # the notice of our own fill may come in late, and drop it once
        assert await cache.get("k", lambda: 1) == 1
        assert time.monotonic() < until
    Cache(connect(url(server)), namespace="n").invalidate("k")
    until = time.monotonic() + 10
    while await cache.get("k", lambda: 2) != 2:
        assert time.monotonic() < until
    near.close()
    await client.aclose()


def test_a_failover_of_the_primary() -> None:
    with engine() as old, engine("--replicaof", "127.0.0.1", str(old.port)) as new:
        wait_for(lambda: valkey.Valkey(port=new.port).info("replication")["master_link_status"] == "up", "replication")
        cache, near = near_cache(old)
        warm(cache, "k", lambda: 1)
        with valkey.Valkey(port=old.port, single_connection_client=True) as writer:
            writer.set("last", 1)
            assert writer.wait(1, 30_000)  # "link up" is not yet "has it": the primary streams only after the first ACK
        port = old.port
        old.kill()
        wait_for(lambda: not near.peek("n:k"), "the flush")
        admin = valkey.Valkey(port=new.port)
        admin.replicaof("NO", "ONE")
        # The endpoint's address moves to the new primary: here, a server at the old port that starts from the new one's data.
        with engine("--replicaof", "127.0.0.1", str(new.port), port=port):
            wait_for(lambda: valkey.Valkey(port=port).info("replication")["master_link_status"] == "up", "replication")
            valkey.Valkey(port=port).replicaof("NO", "ONE")
            near.wait_trusted()
            assert warm(cache, "k", lambda: None) == 1
            Cache(connect(f"valkey://127.0.0.1:{port}"), namespace="n").write("k", lambda: 2)
            wait_for(lambda: cache.get("k", lambda: None) == 2, "the notice of the new primary")
        near.close()


def test_cluster() -> None:
    with cluster(3) as servers:
        client = connect(url(servers[0]), cluster=True)
        near = NearCache(client)
        cache = Cache(client, namespace="n", near=near)
        near.wait_trusted()
        other = Cache(connect(url(servers[1]), cluster=True), namespace="n")
        keys = [f"k{i}" for i in range(12)]
        for key in keys:
            warm(cache, key, lambda: 1)
        assert len({client.keyslot(f"n:{key}") * 3 // 16384 for key in keys}) == 3
        for key in keys:
            other.write(key, lambda: 2)
        for key in keys:
            wait_for(lambda k=key: cache.get(k, lambda: None) == 2, "the notice")
        flushes = near.flushes
        valkey.Valkey(port=servers[2].port).execute_command("CLUSTER", "BUMPEPOCH")  # as a finished slot migration does
        valkey.Valkey(port=servers[0].port).execute_command("CLUSTER", "BUMPEPOCH")
        wait_for(lambda: near.flushes > flushes, "the flush after the cluster changed")
        servers[2].kill()
        wait_for(lambda: len(near) == 0, "the flush after the loss of a node")
        assert cache.get_many(["a", "b"], lambda ks: dict.fromkeys(ks, 1), tags=[]) == {"a": 1, "b": 1}
        near.close()


def test_a_tag_invalidated_while_its_value_is_decoded_is_noticed(server: Server) -> None:
    class Slow(Msgspec):
        def decode(self, data: bytes, key: str) -> Any:
            value = super().decode(data, key)
            if during:
                heard = near._changes[bucket]
                other.invalidate(tags=["red"])
                during.clear()
                wait_for(lambda: near._changes[bucket] > heard, "the notice")
            return value

    bucket = hash("t:#red") % 4096
    during: list[int] = []
    other = Cache(connect(url(server)), namespace="t")
    with NearCache(connect(url(server))) as near:
        cache = Cache(connect(url(server)), namespace="t", near=near, codec=Slow())
        near.wait_trusted()
        assert cache.get("k", lambda: "old", tags=["red"]) == "old"
        near.flush()
        during.append(1)
        assert cache.get("k", lambda: "new", tags=["red"]) in ("old", "new")
        assert cache.get("k", lambda: "new", tags=["red"]) == "new"


def test_a_namespace_that_is_not_tracked_is_refused(server: Server) -> None:
    client = connect(url(server))
    near = NearCache(client)
    Cache(client, namespace="one", near=near)
    Cache(client, namespace="one", near=near)
    with pytest.raises(ValueError, match="one of its own"):
        Cache(client, namespace="two", near=near)
    with pytest.raises(ValueError, match="one of its own"):
        Cache(client, near=near)
    Cache(client, namespace="two", near=NearCache(client, prefix=""))


def test_what_a_replica_answered_is_not_kept(server: Server) -> None:
    """The replica lags: it may answer what the notice was about, after the notice."""
    client = connect(url(server), reader=url(server))
    with NearCache(connect(url(server))) as near:
        cache = Cache(client, namespace="t", near=near)
        near.wait_trusted()
        assert [cache.get("k", lambda: 1) for _ in range(3)] == [1, 1, 1]
        assert (len(near), cache.counters.hits) == (0, 2)


def test_a_scan_does_not_push_out_what_is_asked_for_often(server: Server) -> None:
    with NearCache(connect(url(server)), max_entries=100) as near:
        cache = Cache(connect(url(server)), namespace="t", near=near, policy=Policy(fresh_seconds=600))
        near.wait_trusted()
        hot, scanned = [f"hot{i}" for i in range(50)], [f"once{i}" for i in range(1000)]
        cache.get_many(hot + scanned, lambda names: dict.fromkeys(names, 1))
        for _ in range(5):
            assert set(cache.get_many(hot, dict.fromkeys).values()) == {1}
        for name in scanned:
            assert cache.get(name, lambda: 0) == 1
        near.wait_trusted()
        before = cache.counters.near_hits
        assert set(cache.get_many(hot, dict.fromkeys).values()) == {1}
        assert cache.counters.near_hits - before >= 45
        assert len(near) <= 100


@given(st.lists(st.tuples(st.sampled_from(["add", "touch", "remove", "victim"]), st.integers(0, 30)), max_size=200))
def test_whoever_has_to_go_is_there(steps: list[tuple[str, int]]) -> None:
    worth, held = TinyLfu(8), set()
    for step, number in steps:
        key = str(number)
        if step == "add" and key not in held:
            worth.add(key)
            held.add(key)
        elif step == "touch":
            worth.touch(key)
        elif step == "remove":
            worth.remove(key)
            held.discard(key)
        while len(held) > (0 if step == "victim" else 8):
            gone = worth.victim()
            assert gone in held
            worth.remove(gone)
            held.discard(gone)
