"""Cluster mode: an engine that is none of ours says hello on the cluster bus, and claims slots."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkey
from tests.addresses import new_address
from tests.engines.servers import REDIS_LIKE, build_of, listens
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_cluster import healthy, replicated

from cachekeep.engines.catalogue import Build
from cachekeep.model import Cache

pytestmark = pytest.mark.anyio
engines = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Stray:
    """An engine that anybody could start."""

    def __init__(self, build: Build, place: Path) -> None:
        self.address = new_address()
        place.mkdir()
        where = ["--bind", self.address, "--bind-source-addr", self.address, "--cluster-announce-ip", self.address]
        argv = [build.server, *where, "--port", "6379", "--cluster-enabled", "yes", "--save", "", "--dir", str(place)]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not listens(self.address, 6379):
            assert time.monotonic() < until
            time.sleep(0.005)
        self.client = valkey.Valkey(self.address, decode_responses=True)
        self.id = self.client.execute_command("CLUSTER", "MYID")

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def strays() -> Iterator[list[Stray]]:
    made: list[Stray] = []
    yield made
    for stray in made:
        stray.kill()


@pytest.mark.parametrize("watched", [True, False])
@engines
async def test_whoever_comes_to_the_bus_is_forgotten_and_its_slots_go_back(
    engine: str, major: int, watched: bool, tmp_path: Path, strays: list[Stray]
) -> None:
    """Where a keeper watches, before anybody believes what it claims."""
    build = build_of(engine, major)
    async with LiveCache(None, wanted_cluster(build, shards=3, replicas=1)) as live:
        cache = await healthy(live)
        await live.until(lambda _: replicated(live), "everything is replicated")
        stray = Stray(build, tmp_path / "stray")
        strays.append(stray)
        stray.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 1000)  # the greatest is right
        stray.client.execute_command("CLUSTER", "ADDSLOTS", *range(200), *range(9000, 9200))
        if not watched:
            await live.stop_control_plane()
        for shard in cache.decided.shards:
            node = cache.node(shard.primary or "")
            assert node is not None
            stray.client.execute_command("CLUSTER", "MEET", node.address, node.port)

        async def believed(cache: Cache) -> bool:
            told = [str(await live.ask(n.name, "CLUSTER", "NODES")) for n in cache.decided.nodes]
            return all(re.search(rf"{stray.id} .* 0-199 9000-9199", text) for text in told)

        async def told(_: Cache) -> bool:
            return any("came to its cluster bus" in e.message for e in await live.events())

        async def forgotten(cache: Cache) -> bool:
            told = [str(await live.ask(n.name, "CLUSTER", "NODES")) for n in cache.decided.nodes]
            return not any(stray.id in text or "handshake" in text for text in told)

        async def whole(cache: Cache) -> bool:
            told = [(await live.view()).node(x.primary or "").cluster for x in cache.decided.shards]
            return [x.slots for x in cache.decided.shards] == [c.slots for c in told if c is not None and c.ok]

        if not watched:
            await live.until(believed, "it is believed to own slots", seconds=20)
            await live.start_control_plane()
        await live.until(told, "an event tells of it")
        await live.until(forgotten, "nobody knows it")
        after = await live.until(whole, "all slots belong to the shards that they belonged to")
        assert [x.primary for x in after.decided.shards] == [x.primary for x in cache.decided.shards]
