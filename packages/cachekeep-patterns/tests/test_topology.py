"""Clients live through what endpoints do: failover, demotion, lag, rotating passwords, nodes that come and go."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import valkey
from pymemcache.exceptions import MemcacheError
from tests.addresses import free_port

from cachekeep_patterns import AsyncCache, Breaker, Cache, connect, connect_async, connect_async_memcached
from cachekeep_patterns.near import NearCache
from cachekeep_patterns.topology.memcached import MemcachedCluster, parse_cluster, wait_for_version
from cachekeep_patterns.topology.retry import pause_seconds
from cachekeep_patterns.topology.split import RecentWrites, read_keys, written_keys
from patterns_rig.servers import Server, cluster, engine, memcached, wait_for


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


def in_sync(replica: Server) -> None:
    wait_for(lambda: valkey.Valkey(port=replica.port).info("replication")["master_link_status"] == "up", "replication")


# --------------------------------------------------------------------------- retries


def test_pauses_are_jittered_and_bounded() -> None:
    pauses = [pause_seconds(n, 0.01, 0.25) for n in range(1, 200)]
    assert all(0 <= pause <= 0.25 for pause in pauses)
    assert len(set(pauses)) == len(pauses)


def test_writes_go_on_through_a_restart(frail: Server) -> None:
    client = connect(url(frail), deadline_seconds=20)
    client.set("before", 1)
    frail.kill()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(client.set, "after", 1)
        time.sleep(0.05)
        assert not writing.done()
        frail.start()
        assert writing.result(20)


async def test_async_writes_go_on_through_a_restart(frail: Server) -> None:
    client = connect_async(url(frail), deadline_seconds=20)
    await client.set("before", 1)
    frail.kill()
    writing = asyncio.create_task(client.set("after", 1))
    await asyncio.sleep(0.05)
    assert not writing.done()
    frail.start()
    assert await writing
    await client.aclose()


def test_a_demoted_node_is_left_when_it_says_readonly() -> None:
    """The endpoint's address moved, but the connection still leads to the old primary."""
    with engine() as primary, engine("--replicaof", "127.0.0.1", str(primary.port)) as replica:
        in_sync(replica)
        forward = Forward(replica.port)
        with forward.running():
            client = connect(f"valkey://127.0.0.1:{forward.port}", deadline_seconds=20)
            assert client.get("k") is None
            with ThreadPoolExecutor(1) as pool:
                writing = pool.submit(client.set, "k", 1)
                time.sleep(0.05)
                assert not writing.done()  # READONLY, again and again
                forward.target = primary.port
                assert writing.result(20)
            assert valkey.Valkey(port=primary.port).get("k") == b"1"


def test_deadline_zero_never_retries(frail: Server) -> None:
    client = connect(url(frail), deadline_seconds=0)
    frail.kill()
    with pytest.raises(valkey.exceptions.ConnectionError):
        client.get("k")


class Forward:
    """A TCP forwarder whose target can be changed: an endpoint that moves."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()

    @contextmanager
    def running(self) -> Iterator[None]:
        import socket

        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", outer.target)) as onward:
                    back = threading.Thread(target=_pump, args=(onward, self.request), daemon=True)
                    back.start()
                    _pump(self.request, onward)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        with Server(("127.0.0.1", self.port), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()


def _pump(source: object, sink: object) -> None:
    import contextlib
    import socket

    assert isinstance(source, socket.socket)
    assert isinstance(sink, socket.socket)
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


# --------------------------------------------------------------------------- who and how


def test_passwords_and_rotating_tokens() -> None:
    with engine("--requirepass", "one") as server:
        assert connect(f"valkey://:one@127.0.0.1:{server.port}").ping()
        assert connect(url(server), password="one").ping()
        tokens = ["one"]
        client = connect(url(server), token=lambda: tokens[-1], username="default", deadline_seconds=0)
        assert client.ping()
        valkey.Valkey(port=server.port, password="one").config_set("requirepass", "two")
        tokens.append("two")
        client.connection_pool.disconnect()
        assert client.ping()
        with pytest.raises(ValueError, match="ftp"):
            connect("ftp://x")


def test_tls_checks_who_it_talks_to(tmp_path: Path) -> None:
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-keyout", "key.pem", "-out", "cert.pem", "-addext", "subjectAltName=DNS:localhost"),
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("needs openssl")
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", f"{tmp_path}/cert.pem", "--tls-key-file", f"{tmp_path}/key.pem"]
    with engine(*options, "--tls-ca-cert-file", f"{tmp_path}/cert.pem", "--tls-auth-clients", "no"):
        ca = str(tmp_path / "cert.pem")
        assert connect(f"valkeys://localhost:{port}", ca_file=ca).ping()
        for stranger in (f"valkeys://127.0.0.1:{port}", f"valkeys://localhost:{port}"):
            with pytest.raises((valkey.exceptions.ConnectionError, ssl.SSLError)):
                connect(stranger, ca_file=ca if "127" in stranger else None, deadline_seconds=0).ping()


# --------------------------------------------------------------------------- readers


def test_reads_go_to_the_reader_and_own_writes_are_read_from_the_primary() -> None:
    with engine() as primary, engine("--replicaof", "127.0.0.1", str(primary.port)) as replica:
        in_sync(replica)
        plain = connect(url(primary), reader=url(replica), timeout_seconds=30)
        careful = connect(url(primary), reader=url(replica), read_your_writes_seconds=60)
        for client in (plain, careful):
            client.set("seen", 1)
        wait_for(lambda: plain.get("seen"), "the replica to have it")
        replica.freeze()  # as if it lagged for ever
        careful.set("mine", 1)
        assert careful.get("mine") == b"1"
        assert careful.mget("mine", "other") == [b"1", None]
        replica.thaw()
        before = valkey.Valkey(port=primary.port).info("commandstats")["cmdstat_get"]["calls"]
        for _ in range(10):
            plain.get("seen")
        assert valkey.Valkey(port=primary.port).info("commandstats")["cmdstat_get"]["calls"] == before
        replica.kill()
        assert plain.get("seen") == b"1"  # the primary stands in
        cache = Cache(careful)
        assert cache.get("k", lambda: 1) == 1
        assert cache.get("k", lambda: 2) == 1


async def test_async_reader() -> None:
    with engine() as primary, engine("--replicaof", "127.0.0.1", str(primary.port)) as replica:
        in_sync(replica)
        client = connect_async(url(primary), reader=url(replica), read_your_writes_seconds=60)
        await client.set("k", 1)
        assert await client.get("k") == b"1"
        cache = AsyncCache(client)
        assert await cache.get("c", lambda: 1) == 1
        assert await cache.get("c", lambda: 2) == 1
        replica.kill()
        assert await client.get("other") is None
        await client.aclose()


def test_which_keys_commands_touch() -> None:
    assert read_keys(("GET", "a")) == ("a",)
    assert read_keys(("mget", "a", "b")) == ("a", "b")
    assert read_keys(("SET", "a", 1)) is None
    assert written_keys(("MSET", "a", 1, "b", 2)) == ("a", "b")
    assert written_keys(("EVALSHA", "x", 2, "a", "b", "arg")) == ("a", "b")
    assert written_keys(("PING",)) == ()
    assert written_keys(("FLUSHALL",)) is None
    recent = RecentWrites(60)
    recent.note(["a"])
    assert recent.covers(["x", b"a"])
    assert not recent.covers(["b"])
    recent.note(None)
    assert recent.covers(["b"])


# --------------------------------------------------------------------------- cluster


def test_cluster_and_cache_through_the_loss_of_a_node() -> None:
    with cluster(3) as servers:
        client = connect(url(servers[0]), cluster=True, deadline_seconds=1)
        cache = Cache(client, namespace="c", clearable=True)
        keys = [f"k{i}" for i in range(30)]

        def load_many(wanted: list[str]) -> dict[str, str]:
            return {key: key.upper() for key in wanted}

        expected = {key: key.upper() for key in keys}
        assert cache.get_many(keys, load_many) == expected
        assert cache.get_many(keys, load_many) == expected
        assert cache.counters.loads == 1
        assert cache.get("tagged", lambda: 1, tags=["red", "blue"]) == 1
        cache.invalidate(tags=["red"])
        assert cache.get("tagged", lambda: 2, tags=["red", "blue"]) == 2
        assert cache.write("k1", lambda: "new") == "new"
        assert cache.get("k1", lambda: "old") == "new"
        cache.clear()
        assert cache.get("k1", lambda: "newest") == "newest"
        servers[1].kill()
        for key in keys:
            assert cache.get(key, lambda k=key: k.upper()) in (key.upper(), "newest")


async def test_async_cluster() -> None:
    with cluster(3) as servers:
        client = connect_async(url(servers[0]), cluster=True)
        cache = AsyncCache(client, namespace="c")
        for i in range(10):
            assert await cache.get(f"k{i}", lambda: 1, tags=["red"]) == 1
        await cache.invalidate("k1", tags=["red"])
        for i in range(10):
            assert await cache.get(f"k{i}", lambda: 2, tags=["red"]) == 2
        await client.aclose()


# --------------------------------------------------------------------------- memcached


class Configuration:
    """A configuration endpoint: answers `config get cluster` for real nodes, as AWS does."""

    def __init__(self) -> None:
        self.version, self.nodes, self.port = 1, [0], free_port()

    def text(self) -> bytes:
        listed = " ".join(f"node{port}.test|127.0.0.1|{port}" for port in self.nodes)
        payload = f"{self.version}\n{listed}\n".encode()
        return b"CONFIG cluster 0 %d\r\n%s\r\nEND\r\n" % (len(payload), payload)

    @contextmanager
    def running(self) -> Iterator[None]:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    self.wfile.write(outer.text() if line.startswith(b"config get cluster") else b"ERROR\r\n")

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        with Server(("127.0.0.1", self.port), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()


def test_discovery_replies() -> None:
    sample = (
        b"CONFIG cluster 0 136\r\n12\nmyCluster.pc4ldq.0001.use1.cache.amazonaws.com|10.82.235.120|11211 "
        b"myCluster.pc4ldq.0002.use1.cache.amazonaws.com|10.80.249.27|11211\n\r\nEND\r\n"
    )
    assert parse_cluster(sample) == (12, [("10.80.249.27", 11211), ("10.82.235.120", 11211)])
    assert parse_cluster(b"VALUE AmazonElastiCache:cluster 0 15\r\n3\nhost.test||11\n\r\nEND\r\n") == (3, [("host.test", 11)])
    for bad in (b"ERROR\r\n", b"CONFIG cluster 0 2\r\n1\n\r\nEND\r\n", b""):
        with pytest.raises(ValueError):
            parse_cluster(bad)


def test_discovery_rebalances_and_ignores_older_lists() -> None:
    config = Configuration()
    with memcached() as one, memcached() as two, memcached() as three, config.running():
        config.nodes = [one.port, two.port]
        client = connect(f"memcached://127.0.0.1:{config.port}", poll_seconds=0.02)
        assert isinstance(client, MemcachedCluster)
        keys = [f"k{i}" for i in range(300)]
        for key in keys:
            client.set(key, key.encode())
        assert client.get_many(keys) == {key: key.encode() for key in keys}
        config.version, config.nodes = 2, [one.port, two.port, three.port]
        assert wait_for_version(client, 2, 20)
        kept = len(client.get_many(keys))
        assert 0.5 * len(keys) < kept < 0.8 * len(keys)  # about a third moved to the new node, and no more
        config.version, config.nodes = 1, [one.port]
        time.sleep(0.1)
        assert len(client.nodes) == 3
        config.version, config.nodes = 3, [two.port, three.port]
        assert wait_for_version(client, 3, 20)
        assert ("127.0.0.1", one.port) not in client.nodes
        client.close()


def test_a_program_starts_while_its_memcached_cluster_is_away_and_uses_it_when_it_is_back() -> None:
    config = Configuration()
    client = connect(f"memcached://127.0.0.1:{config.port}", poll_seconds=0.02)
    cache = Cache(client, breaker=Breaker(rest_seconds=0.01))
    assert cache.get("k", lambda: 1) == 1
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{config.port}.*cannot be asked"):
        client.get("k")
    with memcached() as one, memcached() as two:
        config.nodes = [one.port]
        with config.running():
            numbers = itertools.count()
            wait_for(lambda: cache.get("k", lambda: next(numbers)) == cache.get("k", lambda: next(numbers)), "a hit")
            assert client.nodes == [("127.0.0.1", one.port)]
            config.version, config.nodes = 2, [two.port]
            assert wait_for_version(client, 2, 20)
    client.close()


def test_a_dead_node_raises_and_its_keys_do_not_move() -> None:
    """A client that moves them would read, after the node's return, values from before its death."""
    with memcached() as one, memcached() as two:
        client = connect(f"memcached://127.0.0.1:{one.port},127.0.0.1:{two.port}", timeout_seconds=0.5)
        cache = Cache(client)
        keys = [f"k{i}" for i in range(20)]
        for key in keys:
            assert cache.get(key, lambda: 1) == 1
        two.kill()
        failed = 0
        for key in keys:
            try:
                client.get(key)
            except (OSError, MemcacheError):
                failed += 1
        assert 0 < failed < len(keys)
        assert [cache.get(key, lambda: 1) for key in keys] == [1] * 20
        client.close()


async def test_async_memcached(memory: Server) -> None:
    pytest.importorskip("emcache")
    client = await connect_async_memcached(url(memory, "memcached"), autodiscovery=False)
    cache = AsyncCache(client, namespace="e")
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.02)
        return 1

    assert await asyncio.gather(*(cache.get("k", load) for _ in range(50))) == [1] * 50
    assert loads == 1
    await cache.invalidate("k")
    assert await cache.get("k", lambda: 2, tags=["red"]) == 2
    await cache.invalidate(tags=["red"])
    assert await cache.get("k", lambda: 3, tags=["red"]) == 3

    async def save() -> int:
        return 4

    await cache.write("k", save)
    assert await cache.get("k", load) == 4
    assert await cache.get_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1)) == {"a": 1, "b": 1}
    await client.close()


async def test_glide(server: Server) -> None:
    glide = pytest.importorskip("glide")
    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration(
            [glide.NodeAddress("127.0.0.1", server.port)],
            request_timeout=30_000,
            advanced_config=glide.AdvancedGlideClientConfiguration(connection_timeout=30_000),
        )
    )
    cache = AsyncCache(client, namespace="g")
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.02)
        return loads

    assert await asyncio.gather(*(cache.get("k", load) for _ in range(50))) == [1] * 50
    await cache.invalidate("k")
    assert await cache.get("k", load) == 2
    assert await cache.get("t", load, tags=["red"]) == 3
    await cache.invalidate(tags=["red"])
    assert await cache.get("t", load, tags=["red"]) == 4
    assert loads == 4
    with pytest.raises(TypeError, match="async"):
        Cache(client)
    await client.close()


def test_connections_are_bounded_and_calls_wait_for_one(frail: Server) -> None:
    client = connect(url(frail), max_connections=3)
    with ThreadPoolExecutor(30) as pool:
        assert set(pool.map(lambda n: client.set(f"k{n}", n), range(300))) == {True}
    assert client.info("clients")["connected_clients"] <= 3


async def test_a_crowd_on_one_loop_has_no_more_connections_than_that(frail: Server) -> None:
    client = connect_async(url(frail), max_connections=3)
    await asyncio.gather(*(client.set(f"k{n}", n) for n in range(1000)))
    assert (await client.info("clients"))["connected_clients"] <= 3
    await client.aclose()


def test_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory(prefix="ck-") as directory, engine("--unixsocket", f"{directory}/s"):
        client = connect(f"unix://{directory}/s?db=1")
        assert client.set("k", 1)
        assert client.connection_pool.connection_kwargs["db"] == 1
        near = NearCache(connect(f"unix://{directory}/s"))
        assert Cache(connect(f"unix://{directory}/s"), near=near).get("k2", lambda: 5) == 5
        near.close()


def test_descriptors_above_a_thousand(server: Server) -> None:
    """`select()` takes none of them: the near cache must hear of invalidations all the same."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        near = NearCache(connect(url(server)))
        cache = Cache(connect(url(server)), near=near)
        cache.get("k", lambda: 1)
        wait_for(lambda: (cache.get("k", lambda: 1), len(near))[1], "the value to be kept near")
        valkey.Valkey(port=server.port).delete("k")
        wait_for(lambda: cache.get("k", lambda: 2) == 2, "the invalidation to be heard")
        near.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
