"""The link to Memcached: looks, the discovery list, heartbeats; everything else is refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from tests.engines.servers import Orders, Server, build_of, carry, servers, until

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Key, PublishDiscovery
from cachekeep.compute.link import EngineLink
from cachekeep.errors import OrderFailed
from cachekeep.model import Bind, Promote

PAYLOAD = "7\nmc.0001.local|127.0.0.1|11211 mc.0002.local|127.0.0.2|11211\n"


async def test_memcached_holds_the_discovery_list(tmp_path: Path) -> None:
    link = EngineLink(Orders(), SystemClock())
    tmp_path.chmod(0o755)
    with servers(build_of("memcached", 1), tmp_path, 1) as (node,):
        view = await link.look(node.target, deadline_seconds=30)
        assert (view.answering, view.discovery_version, view.bound) == (True, 0, {node.node.address})
        await carry(link, PublishDiscovery(node.target.name, PAYLOAD), node.target)
        assert (await link.look(node.target, deadline_seconds=30)).discovery_version == 7
        with pytest.raises(OrderFailed, match="no replication"):
            await carry(link, Promote(node.target.name, 1, (node.node.address,)), node.target)
        with pytest.raises(OrderFailed, match="cannot be told"):
            await carry(link, Bind(node.target.name, (node.node.address,)), node.target)

        woken: asyncio.Queue[Key] = asyncio.Queue()
        link.watch(node.target, interval_seconds=0.02, deadline_seconds=30, wake=woken.put_nowait)
        assert await asyncio.wait_for(woken.get(), 60) == node.target.key
        # A client that flushes takes the discovery list along: that is news, and so is its return.
        for change in (_flush_all(node), carry(link, PublishDiscovery(node.target.name, PAYLOAD), node.target)):
            await change
            assert await asyncio.wait_for(woken.get(), 60) == node.target.key
        node.kill()
        assert await asyncio.wait_for(woken.get(), 60) == node.target.key
        assert (await link.look(node.target, deadline_seconds=30)).answering is False
        node.start()

        async def answers() -> bool:
            return (await link.look(node.target, deadline_seconds=30)).answering is True

        await until(answers)
        assert (await link.look(node.target, deadline_seconds=30)).discovery_version == 0
    await link.aclose()


async def _flush_all(node: Server) -> None:
    reader, writer = await asyncio.open_connection(node.node.address, node.node.port)
    writer.write(b"flush_all\r\n")
    assert await reader.readline() == b"OK\r\n"
    writer.close()


@pytest.mark.parametrize(("fast", "told"), [("1", "crowded"), ("0", None)])
async def test_a_full_memcached_is_there_whether_it_refuses_or_lets_wait(fast: str, told: str | None, tmp_path: Path) -> None:
    """``maxconns_fast``: it refuses with an error; without, who is too many waits for a place and hears nothing."""
    tmp_path.chmod(0o755)
    limit = {"max_simultaneous_connections": "50", "maxconns_fast": fast}
    with servers(build_of("memcached", 1), tmp_path, 1, parameters=limit) as (node,):
        crowd = []
        while len(crowd) < 60:
            client = socket.create_connection((node.node.address, node.node.port), timeout=0.5)
            crowd.append(client)
            client.sendall(b"version\r\n")
            with contextlib.suppress(TimeoutError):
                if client.recv(64).startswith(b"VERSION"):
                    continue
            break
        assert len(crowd) < 60, "it is full"
        link = EngineLink(Orders(), SystemClock())
        view = await link.look(node.target, deadline_seconds=0.25)
        assert view.answering is False
        assert view.reachable is True
        assert (view.excuse.plight if view.excuse else None) == told
        for client in crowd:
            client.close()

        async def answers() -> bool:
            return (await link.look(node.target, deadline_seconds=0.25)).answering is True

        await until(answers)
        await link.aclose()
