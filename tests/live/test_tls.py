"""Caches whose clients come by TLS, and whose nodes speak to each other by it: they go on as others do, whatever fails."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from pathlib import Path

import pytest
import valkey
from msgspec.structs import replace
from tests.engines.servers import build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_alive import ANYBODY, full_is_left_alone, let_in_where_everything_is_full
from tests.live.test_cluster_resharding import fill, shards, wrong
from tests.live.test_failover import endpoint, goes_on, group, lost, whole, writing

from cachekeep.engines.runtime import runtime
from cachekeep.model import Cache, Member, Resharded, Wanted

ENGINES = pytest.mark.parametrize(("engine", "major"), [("redis", 7), ("valkey", 8)], ids=lambda x: str(x))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@ENGINES
async def test_a_killed_and_a_frozen_primary_are_succeeded_by_tls(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, transit="required") as live, writing(live, replicas=1) as writer:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            old = live.primary_of(await live.cache())
            await live.signal(old, number)
            await live.until(lambda c, old=old: live.primary_of(c) != old, "another primary")  # type: ignore[misc]
            await goes_on(live, writer)
            await live.stop_control_plane()
            await live.start_control_plane()
            cache = await whole(live)
        assert live.said_any("is frozen", "stopped for certain")
        assert await lost(live, writer) == 0
        reader = cache.decided.shards[0].reader_address or ""
        for address in (endpoint(cache), reader, *(n.address for n in cache.decided.nodes)):
            with valkey.Valkey(host=address, port=6379, **live.by_tls(cache)) as client:
                client.ping()
            with valkey.Valkey(host=address, port=6379) as client, pytest.raises(valkey.exceptions.ConnectionError):
                client.ping()
        for node in cache.decided.nodes:
            replication = await live.ask(node.name, "INFO", "replication")
            assert "master_link_status" not in replication or replication["master_link_status"] == "up"  # type: ignore[operator,index]
            assert await live.ask(node.name, "CONFIG", "GET", "tls-replication") == ["tls-replication", "yes"]


@ENGINES
async def test_at_full_engines_a_control_plane_is_let_in(engine: str, major: int, tmp_path: Path) -> None:
    """It is told of nothing there but by a closed door; the connection that was kept for it goes through."""
    await let_in_where_everything_is_full(engine, major, tmp_path, transit="required")


async def test_a_full_engine_is_alive(tmp_path: Path) -> None:
    await full_is_left_alone("valkey", 8, tmp_path, transit="required")


@ENGINES
async def test_cluster_mode_by_tls(engine: str, major: int) -> None:
    """The bus, a failover, slots that move, and clients that are told of ports where they are served."""
    wanted = wanted_cluster(build_of(engine, major), shards=1, replicas=1, node_type="cache.m5.large", transit="required")
    async with LiveCache(None, wanted) as live:
        cache = await live.available()
        by_tls, configuration = live.by_tls(cache), cache.decided.configuration_address or ""
        await asyncio.to_thread(fill, configuration, **by_tls)
        old = live.primary_of(cache)
        await live.signal(old)
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        await live.available()
        if engine == "redis":  # Valkey 8 asks its replicas for each slot, which takes minutes on a machine that many share
            await live.change(shards(2, 1))
            await live.until(lambda c: isinstance(c.decided.reshard, Resharded), "slots where they are wanted")
        cache = await live.available()
        assert not await asyncio.to_thread(wrong, cache.decided.configuration_address or "", **by_tls)
        for node in cache.decided.nodes:
            assert await live.ask(node.name, "CONFIG", "GET", "tls-cluster") == ["tls-cluster", "yes"]
            assert await asyncio.to_thread(hangs_up, (node.address, node.port + 10000)), "the bus is for those with a certificate"


@ENGINES
async def test_a_node_more_and_no_connection_notices_another_certificate(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2, transit="required") as live, writing(live) as writer:
        cache = await live.cache()
        first, connections = cache.decided.certificate, writer.connections
        pids = {n.name: await live.pid(n.name) for n in cache.decided.nodes}
        await live.change(with_one_more)

        async def told(cache: Cache) -> bool:
            view = await live.view()
            return len(cache.decided.nodes) == 3 and all(
                view.node(n.name).digests == runtime(cache, n).digests for n in cache.decided.nodes
            )

        await live.until(told, "three nodes that have been told")
        cache = await whole(live)
        now = cache.decided.certificate
        assert first is not None
        assert now is not None
        assert now.serial > first.serial
        for node in cache.decided.nodes:
            assert set(now.names) == await asyncio.to_thread(shown, live, (node.address, node.port))
        await goes_on(live, writer)
        assert {name: await live.pid(name) for name in pids} == pids
        assert writer.connections == connections
        assert await lost(live, writer) == 0


def with_one_more(wanted: Wanted) -> Wanted:
    (shard,) = wanted.shards
    return replace(wanted, shards=(replace(shard, members=(*shard.members, Member(name="demo-003", zone="us-east-1c"))),))


def shown(live: LiveCache, where: tuple[str, int]) -> set[str]:
    """Addresses and names in the certificate that is shown to a client there."""
    trusting = ssl.create_default_context(cadata=live.authorities.pem())
    with socket.create_connection(where, timeout=60) as line, trusting.wrap_socket(line, server_hostname=where[0]) as by_tls:
        certificate = by_tls.getpeercert() or {}
        return {str(value) for _, value in certificate["subjectAltName"]}


def hangs_up(where: tuple[str, int]) -> bool:
    """Whether a client without a certificate is sent away."""
    with socket.create_connection(where, timeout=60) as line:
        try:
            with ANYBODY.wrap_socket(line) as by_tls:
                return by_tls.recv(1) == b""
        except OSError as error:
            return not isinstance(error, TimeoutError)
