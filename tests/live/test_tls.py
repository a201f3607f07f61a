"""Caches whose clients come by TLS, and whose nodes speak to each other by it: they go on as others do, whatever fails."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest
import valkey
from tests.engines.servers import build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_alive import ANYBODY, full_is_left_alone, let_in_where_everything_is_full
from tests.live.test_cluster_resharding import fill, shards, wrong
from tests.live.test_failover import endpoint, goes_on, group, lost, whole, writing

from cachekeep.model import Resharded

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


def hangs_up(where: tuple[str, int]) -> bool:
    """Whether a client without a certificate is sent away."""
    with socket.create_connection(where, timeout=60) as line:
        try:
            with ANYBODY.wrap_socket(line) as by_tls:
                return by_tls.recv(1) == b""
        except OSError as error:
            return not isinstance(error, TimeoutError)
