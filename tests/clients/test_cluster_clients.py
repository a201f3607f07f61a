"""Unmodified cluster clients through the life of a cluster: made, grown, shrunk, a primary lost, everything restarted."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import glide
import pytest
import redis.cluster
import valkey.cluster
from tests.engines.servers import build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_cluster import healthy, lose_everything, replicated, started_anew
from tests.live.test_cluster_resharding import shards

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def use(make: type, host: str, rounds: int = 300) -> None:
    """What an application does; a client's own retries are all that helps it."""
    client = make(host=host, port=6379)
    try:
        for i in range(rounds):
            assert client.set(f"{make.__module__}:{i}", i)
            assert int(client.get(f"{make.__module__}:{i}")) == i
    finally:
        client.close()


async def use_glide(host: str, rounds: int = 300) -> None:
    """The same with valkey-glide, which reads from replicas too when it is told to."""
    for read_from in (glide.ReadFrom.PRIMARY, glide.ReadFrom.PREFER_REPLICA):
        where = glide.GlideClusterClientConfiguration([glide.NodeAddress(host, 6379)], read_from=read_from)
        client = await glide.GlideClusterClient.create(where)
        try:
            for i in range(rounds):
                assert await client.set(f"glide:{i}", str(i)) == "OK"
            if read_from is glide.ReadFrom.PREFER_REPLICA:
                await client.wait(1, 5000, route=glide.AllPrimaries())
            assert await client.mget([f"glide:{i}" for i in range(rounds)]) == [str(i).encode() for i in range(rounds)]
        finally:
            await client.close()


def benchmark(program: str, host: str) -> None:
    """Its report on both commands, and no error."""
    run = [program, "--cluster", "-h", host, "-n", "5000", "-c", "10", "-t", "set,get", "-q"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert "GET: " in done.stdout
    assert "SET: " in done.stdout
    assert "error" not in (done.stdout + done.stderr).lower()


@pytest.mark.skipif(
    not all(map(shutil.which, ("redis-benchmark", "valkey-benchmark"))), reason="needs redis-benchmark and valkey-benchmark"
)
async def test_clients_live_through_it_all() -> None:
    async with LiveCache(None, wanted_cluster(build_of("valkey", 9), shards=1, replicas=1)) as live:
        endpoint = (await healthy(live)).decided.configuration_address or ""

        async def all_of_them() -> None:
            await asyncio.to_thread(use, valkey.cluster.ValkeyCluster, endpoint)
            await asyncio.to_thread(use, redis.cluster.RedisCluster, endpoint)
            await use_glide(endpoint)
            await asyncio.to_thread(benchmark, "valkey-benchmark", endpoint)
            if len((await live.cache()).decided.shards) > 1:  # redis-benchmark takes one primary for no cluster
                await asyncio.to_thread(benchmark, "redis-benchmark", endpoint)

        await all_of_them()
        for number in (2, 5, 2):
            await live.change(shards(number, 1))
            cache = await healthy(live)
            await all_of_them()

        await live.until(lambda c: replicated(live), "replicas have it all")
        lost = live.primary_of(cache, "0002")
        await live.signal(lost)
        await live.until(lambda c: live.primary_of(c, "0002") != lost, "another leads")
        cache = await healthy(live)
        await all_of_them()

        await lose_everything(live, cache)
        await live.start_control_plane()
        await live.until(lambda c: started_anew(cache, c), "all start anew")
        await healthy(live)
        await all_of_them()
