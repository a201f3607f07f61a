"""Addresses that cannot be bound at this moment, as when an engine's child still shares its listening sockets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path

import pytest
import valkey.asyncio
from tests.addresses import new_address
from tests.engines.servers import REDIS_LIKE, Orders, build_of, carry, servers

from cachekeep.clock import SystemClock
from cachekeep.compute.link import EngineLink
from cachekeep.compute.local.sockets import unable
from cachekeep.errors import OrderFailed
from cachekeep.model import Bind, Follow, Promote, Witness


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def holding(address: str) -> socket.socket:
    """Somebody who listens there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((address, 6379))
    holder.listen()
    return holder


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_an_address_that_is_free_in_a_moment_is_bound_then(engine: str, major: int, tmp_path: Path) -> None:
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 1) as (only,):
        holder = holding(endpoint)
        asyncio.get_running_loop().call_later(0.05, holder.close)
        await carry(link, Promote(only.target.name, 1, (only.node.address, endpoint)), only.target)
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            assert await client.set("k", "v")
    await link.aclose()


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_an_address_that_stays_taken_is_refused_and_the_node_serves_its_own(engine: str, major: int, tmp_path: Path) -> None:
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 1) as (only,), holding(endpoint):
        await carry(link, Promote(only.target.name, 1, (only.node.address,)), only.target)
        with pytest.raises(OrderFailed, match="bind"):
            await carry(link, Bind(only.target.name, (only.node.address, endpoint)), only.target)
        async with valkey.asyncio.Valkey(host=only.node.address, port=6379) as client:
            assert await client.set("k", "v")
    await link.aclose()


@pytest.mark.skipif(unable() is not None, reason="needs root and ss")
@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_an_address_that_the_engine_only_says_that_it_serves(engine: str, major: int, tmp_path: Path) -> None:
    """Its listening socket is gone, and it does not know; told once more, it serves there again."""
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 1) as (only,):
        both = (only.node.address, endpoint)
        await carry(link, Promote(only.target.name, 1, both), only.target)
        assert (await link.look(only.target, deadline_seconds=5)).bound == {*both}
        subprocess.run(["ss", "-K", "-H", "-t", "-n", "state", "listening", "src", f"{endpoint}:6379"], check=True)
        assert (await link.look(only.target, deadline_seconds=5)).bound == {only.node.address}
        await carry(link, Bind(only.target.name, both), only.target)
        assert (await link.look(only.target, deadline_seconds=5)).bound == {*both}
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            assert await client.set("k", "v")
    await link.aclose()


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_a_replica_that_is_made_to_connect_anew_resumes_where_it_was(engine: str, major: int, tmp_path: Path) -> None:
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await carry(link, Promote(first.target.name, 1, (first.node.address, endpoint)), first.target)
        await carry(link, Follow(second.target.name, first.target.name, 1), second.target, first.target)
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            await client.set("k", "v")
            assert await client.wait(1, 10_000) == 1
            full = (await client.info("stats"))["sync_full"]
            await carry(link, Witness(second.target.name, first.target.name), second.target)
            assert (await link.look(second.target, deadline_seconds=30)).reaches is True
            await client.set("k", "w")
            assert await client.wait(1, 10_000) == 1
            assert (await client.info("stats"))["sync_full"] == full
    await link.aclose()
