"""Auto discovery at every node of a Memcached cluster, as at its configuration endpoint: by text, binary and real clients."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import elasticache_auto_discovery
import emcache
import pytest
from msgspec.structs import replace
from pymemcache.client.base import Client
from pymemcache.client.hash import HashClient
from tests.live.harness import ZONES, LiveCache
from tests.toolchain.test_preload import frame, listed

from cachekeep.engines import discovery
from cachekeep.model import Cache, Member, Wanted, WantedShard
from cachekeep.toolchain.installed import discover

PORT = 11211


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def members(*numbers: int) -> tuple[WantedShard, ...]:
    return (WantedShard(id="1", members=tuple(Member(name=f"demo.{n:04}", zone=ZONES[n % 3]) for n in numbers)),)


@contextlib.asynccontextmanager
async def cluster(place: Path, *numbers: int) -> AsyncIterator[LiveCache]:
    """A cluster that is available, of a build that was given the library."""
    builds = [b for b in discover([], place).builds if b.engine == "memcached"]
    if not builds or shutil.which("cc") is None:
        pytest.skip("needs memcached and a C compiler")
    assert builds[-1].preload, builds[-1].preload_problem
    wanted = Wanted(engine="memcached", version="1.6.6", node_type="cache.t3.micro", port=PORT, shards=members(*numbers))
    live = LiveCache(place, wanted)
    live.catalogue = discover([], place)
    async with live:
        await live.available()
        yield live


def everywhere(cache: Cache) -> list[str]:
    return [n.address for n in cache.decided.nodes] + [f.address for f in cache.decided.fronts]


def asked(address: str, question: bytes, end: int) -> bytes:
    with socket.create_connection((address, PORT), 5) as s:
        s.settimeout(30)
        s.sendall(question)
        got = b""
        while len(got) < end and (piece := s.recv(65536)):
            got += piece
        return got


def payload_of(cache: Cache) -> str:
    nodes = [n for n in cache.decided.nodes if n.name in cache.decided.discovery_nodes]
    return discovery.payload(cache.decided.discovery_version, nodes)


async def agree(cache: Cache) -> None:
    """Every node and the endpoint tell what is decided: in text, by the older key, in binary."""
    text = payload_of(cache)
    for address in everywhere(cache):
        for name, question in (("CONFIG cluster", "config get cluster"), (f"VALUE {discovery.KEY}", f"get {discovery.KEY}")):
            want = f"{name} 0 {len(text)}\r\n{text}\r\nEND\r\n".encode()
            assert await asyncio.to_thread(asked, address, f"{question}\r\n".encode(), len(want)) == want
        want = listed(text, 3)
        assert await asyncio.to_thread(asked, address, frame(0x60, b"cluster", opaque=3), len(want)) == want


async def test_the_same_list_everywhere_when_nodes_come_go_and_come_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1, 2) as live:
        cache = await live.cache()
        await agree(cache)
        versions = [cache.decided.discovery_version]

        await live.change(lambda w: replace(w, shards=members(1, 2, 3)))
        await live.available()
        cache = await live.until(lambda c: len(c.decided.discovery_nodes) == 3 and c.decided.available_at)
        await live.until(told_by_all(live), "told")
        await agree(await live.cache())
        versions.append((await live.cache()).decided.discovery_version)

        await live.change(lambda w: replace(w, shards=members(2, 3)))
        await live.until(lambda c: len(c.decided.nodes) == 2, "the first is gone")
        await live.until(told_by_all(live), "told")
        await agree(await live.cache())
        versions.append((await live.cache()).decided.discovery_version)
        assert versions == sorted(set(versions))

        node = await live.node("demo.0002")
        await live.signal("demo.0002", signal.SIGKILL)
        told = payload_of(await live.cache())
        want = f"CONFIG cluster 0 {len(told)}\r\n{told}\r\nEND\r\n".encode()

        def first_words() -> bytes:
            while True:
                with contextlib.suppress(OSError):
                    return asked(node.address, b"config get cluster\r\n", len(want))

        assert await asyncio.wait_for(asyncio.to_thread(first_words), 20) == want, "from its first moment on"
        await live.until(told_by_all(live), "told")
        await agree(await live.cache())


def told_by_all(live: LiveCache):  # type: ignore[no-untyped-def]
    async def told(cache: Cache) -> bool:
        view = await live.view()
        return all(view.node(n.name).discovery_version == cache.decided.discovery_version for n in cache.decided.nodes) and all(
            f.version == cache.decided.discovery_version for f in view.fronts.values()
        )

    return told


async def test_clients_cannot_take_the_list_away(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as live:
        cache = await live.cache()
        (node,) = cache.decided.nodes
        client, text = Client((node.address, PORT), timeout=30), payload_of(cache)
        want = f"CONFIG cluster 0 {len(text)}\r\n{text}\r\nEND\r\n".encode()
        for harm in (client.flush_all, lambda: client.set(discovery.KEY, b"1\nevil|6.6.6.6|11211\n")):
            await asyncio.to_thread(harm)
            assert await asyncio.to_thread(asked, node.address, b"config get cluster\r\n", len(want)) == want
            await live.until(told_by_all(live), "the older key is restored")
            await agree(await live.cache())
        await live.stop_control_plane()
        assert await asyncio.to_thread(asked, node.address, b"config get cluster\r\n", len(want)) == want
        await live.start_control_plane()
        await live.change(lambda w: replace(w, shards=members(1, 2)))
        await live.until(lambda c: len(c.decided.discovery_nodes) == 2)
        await live.until(told_by_all(live), "an adopted node is told, too")
        await agree(await live.cache())


async def test_real_clients_poll_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1, 2, 3) as live:
        cache = await live.cache()
        addresses = {n.address for n in cache.decided.nodes}
        for address in addresses:
            found = await asyncio.to_thread(elasticache_auto_discovery.discover, f"{address}:{PORT}", 5)
            assert {ip.decode() for _, ip, _ in found} == addresses
            answer = await asyncio.to_thread(
                lambda a=address: Client((a, PORT)).raw_command(b"config get cluster", end_tokens=b"\n\r\nEND\r\n")
            )
            ring = HashClient([(ip, int(port)) for _, ip, port in re.findall(r"([\w.-]+)\|([\d.]*)\|(\d+)", answer.decode())])
            assert await asyncio.to_thread(ring.set, "key", "value")
            client = await emcache.create_client(
                [emcache.MemcachedHostAddress(address, PORT)], autodiscovery=True, autodiscovery_poll_interval=0.05
            )
            assert {h.address for h in client.cluster_managment().nodes()} == addresses
            await client.close()
