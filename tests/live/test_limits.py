"""Limits that move with what they limit: node types and parameters of running caches, filled to the last byte, on real engines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
from pathlib import Path

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_group
from tests.live.test_driver_limits import writable_groups

from cachekeep.compute.line import resp
from cachekeep.engines.config import bounds
from cachekeep.engines.limits import limits
from cachekeep.model import Cache, Member, Wanted, WantedShard
from cachekeep.model.limits import lowered, raised

MIB = 1 << 20
VALUE = 100 * 1024


def of_type(name: str, **more: object):  # type: ignore[no-untyped-def]
    return lambda wanted: replace(wanted, node_type=name, **more)


def group_of(live: LiveCache, name: str) -> Path:
    """The memory group of a node."""
    record = live.driver._ledger.get((live.uid, name))
    assert record is not None
    return next(g for g in map(Path, record.cgroups) if (g / "memory.limit_in_bytes").exists() or (g / "memory.max").exists())


def kills(live: LiveCache, cache: Cache) -> int:
    """How many processes the kernel has ended for want of memory."""
    return sum(live.driver._limiter.memory_kills((str(group_of(live, n.name)),)) for n in cache.decided.nodes)


async def in_place(live: LiveCache) -> Cache:
    """Wait until every node's limits and bounds are what is decided."""

    async def met(cache: Cache) -> bool:
        view = await live.observer.look(cache)
        for n in cache.decided.nodes:
            v, decided = view.node(n.name), limits(cache, n)
            if v.limits is None or raised(decided, v.limits) or lowered(decided, v.limits):
                return False
            if v.settings != bounds(cache, n, v.limits.held.open_files):
                return False
        return all(n.node_type == cache.wanted.node_type for n in cache.decided.nodes)

    return await live.until(met, "limits in place")


async def fill(live: LiveCache, address: str, port: int, *, to: float = 1.0) -> int:
    """Write until ``maxmemory`` (or that part of it) is full. How many keys were acknowledged."""
    client = valkey.asyncio.Valkey(host=address, port=port)
    written = 0
    try:
        info = await client.info("memory")
        while (await client.info("memory"))["used_memory"] < info["maxmemory"] * to:
            pipe = client.pipeline(transaction=False)
            for key in range(written, written + 100):
                pipe.set(f"key:{key}", os.urandom(1024) * (VALUE // 1024))
            answers = await pipe.execute(raise_on_error=False)
            written += sum(answer is True for answer in answers)
            if not all(answer is True for answer in answers):
                break
    finally:
        await client.aclose()
    return written


class Overwriter:
    """Writes to every page of every value, again and again, so that all of them are copied while a fork is there; but
    few bytes, or the stream to a new replica would not fit its buffer."""

    def __init__(self, address: str, port: int, keys: int) -> None:
        self._task = asyncio.create_task(self._write(address, port, keys))

    async def _write(self, address: str, port: int, keys: int) -> None:
        reader, writer = await asyncio.open_connection(address, port)
        pages = range(0, VALUE, 4096)
        batches = [
            resp(*(("SETRANGE", f"key:{key}", str(page), "x") for key in range(start, min(start + 40, keys)) for page in pages))
            for start in range(0, keys, 40)
        ]
        try:
            while True:
                for batch in batches:
                    writer.write(batch)
                    await reader.readexactly(len(f":{VALUE}\r\n") * batch.count(b"SETRANGE"))
        finally:
            writer.close()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    if shutil.disk_usage(tmp_path).free < 4 << 30:
        pytest.skip("needs 4 GiB of disk")
    writable_groups()
    return tmp_path


HALF = {"reserved-memory-percent": "50", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_scaled_up_filled_and_synchronised_in_full(engine: str, major: int, place: Path) -> None:
    """The limit moves with maxmemory: nobody is ended, no key is lost, with a fork's copy and all."""
    wanted = wanted_group(build_of(engine, major), parameters=HALF | {"reserved-memory-percent": "80"})
    async with LiveCache(place, wanted) as live:
        before = await live.available()
        small = limits(before, before.decided.nodes[0])
        await live.change(of_type("cache.t3.medium"))
        cache = await in_place(live)
        assert (limits(cache, cache.decided.nodes[0]).memory_bytes or 0) > (small.memory_bytes or 0)
        address, port = cache.decided.shards[0].primary_address or "", wanted.port
        written = await fill(live, address, port)
        assert written * VALUE > 500 * MIB
        await live.ask(live.primary_of(cache), "CONFIG", "SET", "rdb-key-save-delay", 1000)  # long enough to copy all
        writer = Overwriter(address, port, written)
        try:
            await live.change(more_members(3))
            cache = await live.available()
        finally:
            await writer.stop()
        assert kills(live, cache) == 0
        for node in cache.decided.nodes:
            assert await live.ask(node.name, "DBSIZE") == written, node.name


def more_members(count: int):  # type: ignore[no-untyped-def]
    def more(wanted: Wanted) -> Wanted:
        shard = wanted.shards[0]
        names = [replace(shard.members[0], name=f"demo-{i + 1:03}") for i in range(count)]
        return replace(wanted, shards=(replace(shard, members=(*shard.members, *names[len(shard.members) :])),))

    return more


async def test_scaled_down_the_engine_first(place: Path) -> None:
    wanted = wanted_group(build_of("valkey", 8), parameters=HALF, node_type="cache.t3.small")
    async with LiveCache(place, wanted) as live:
        cache = await live.available()
        written = await fill(live, cache.decided.shards[0].primary_address or "", wanted.port, to=0.2)
        await live.change(of_type("cache.t3.micro"))
        cache = await in_place(live)
        assert kills(live, cache) == 0
        assert [await live.ask(n.name, "DBSIZE") for n in cache.decided.nodes] == [written, written]
        told = next(i for i, line in enumerate(live.said) if "get changed settings" in line)
        assert any("may use less" in line for line in live.said[told:])
        assert not any("may use less" in line for line in live.said[:told])


async def test_what_does_not_fit_is_not_scaled_down_until_it_does(place: Path) -> None:
    wanted = wanted_group(build_of("valkey", 8), parameters=HALF, node_type="cache.t3.small")
    async with LiveCache(place, wanted) as live:
        cache = await live.available()
        address = cache.decided.shards[0].primary_address or ""
        written = await fill(live, address, wanted.port, to=0.6)
        await live.change(of_type("cache.t3.micro"))

        async def refused(cache: Cache) -> bool:
            told = await live.condition()
            return told is not None and told.refused and "stays cache.t3.small" in told.because

        cache = await live.until(refused, "a refusal")
        assert {n.node_type for n in cache.decided.nodes} == {"cache.t3.small"}
        client = valkey.asyncio.Valkey(host=address, port=wanted.port)
        assert await client.dbsize() == written
        await client.delete(*(f"key:{i}" for i in range(written // 2, written)))
        await client.aclose()
        cache = await in_place(live)
        assert await live.ask(cache.decided.nodes[0].name, "DBSIZE") == written // 2


async def test_what_was_changed_behind_our_back_is_put_right(place: Path) -> None:
    """An adopted process with other limits, one outside its groups, an engine with other bounds than it was told."""
    async with LiveCache(place, wanted_group(build_of("valkey", 8), nodes=3)) as live:
        await live.available()
        cache = await in_place(live)
        one, two, three = (n.name for n in cache.decided.nodes)
        pids = {name: await live.pid(name) for name in (one, two, three)}
        files = next(n for n in ("memory.limit_in_bytes", "memory.max") if (group_of(live, one) / n).exists())
        await live.stop_control_plane()
        (group_of(live, one) / files).write_text(str(3 << 30))
        (group_of(live, two).parents[2] / "cgroup.procs").write_text(str(pids[two]))
        _, hard = resource.prlimit(pids[three], resource.RLIMIT_NOFILE)
        resource.prlimit(pids[three], resource.RLIMIT_NOFILE, (8000, hard))
        await live.ask(three, "CONFIG", "SET", "maxmemory", "1234567890", "maxclients", "4000")
        await live.ask(one, "CONFIG", "SET", "client-output-buffer-limit", "replica 1mb 1mb 60")
        await live.start_control_plane()
        cache = await in_place(live)
        node = cache.decided.nodes[0]

        async def told(cache: Cache) -> bool:
            bound = await live.ask(one, "CONFIG", "GET", "client-output-buffer-limit")
            return "53687091 53687091 60" in str(bound)

        await live.until(told, "the output buffers' bound")
        assert str(pids[two]) in (group_of(live, two) / "cgroup.procs").read_text().split()
        assert {name: await live.pid(name) for name in pids} == pids, "nobody was restarted for it"
        assert node.node_type == "cache.t3.micro"


async def test_a_fork_that_does_not_fit_is_ended_and_not_the_server(place: Path) -> None:
    """Should memory run out all the same, a replica has to try again, and no data are lost."""
    async with LiveCache(place, wanted_group(build_of("valkey", 8), nodes=1, parameters=HALF)) as live:
        cache = await live.available()
        primary = cache.decided.nodes[0]
        written = await fill(live, primary.address, primary.port)
        pid = await live.pid(primary.name)
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        group = group_of(live, primary.name)
        limit = next(group / n for n in ("memory.limit_in_bytes", "memory.max") if (group / n).exists())
        keeper = live._keeping
        assert keeper is not None
        keeper.cancel()  # or it would put the limit right
        limit.write_text(str(used + 40 * MIB))
        writer = Overwriter(primary.address, primary.port, written)
        try:
            await live.ask(primary.name, "CONFIG", "SET", "rdb-key-save-delay", 1000)  # it takes seconds, whatever the disk
            await live.ask(primary.name, "BGSAVE")
            await live.until(lambda cache: kills(live, cache) > 0, "a fork that is ended")
        finally:
            await writer.stop()
        assert await live.pid(primary.name) == pid
        assert await live.ask(primary.name, "DBSIZE") == written


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_clients_that_send_half_of_a_value_are_bounded(engine: str, major: int, place: Path) -> None:
    """No eviction can free what they hold: without a bound they take all that there is, and the data with them."""
    async with LiveCache(place, wanted_group(build_of(engine, major), nodes=1, parameters=HALF)) as live:
        cache = await live.available()
        node = cache.decided.nodes[0]
        bound = int(bounds(cache, node, None)["maxmemory-clients"])
        written = await fill(live, node.address, node.port, to=0.5)
        half = b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$16777216\r\n" + b"y" * (8 * MIB)
        lines = []
        for _ in range(4 * bound // (8 * MIB)):
            _, writer = await asyncio.open_connection(node.address, node.port)
            lines.append(writer)
            with contextlib.suppress(ConnectionError, TimeoutError):
                writer.write(half)
                await asyncio.wait_for(writer.drain(), 5)
            # It counts once in each turn of its loop. On a busy machine dozens of them would be read in one.
            await live.ask(node.name, "PING")
        info = await live.ask(node.name, "INFO", "memory")
        assert isinstance(info, dict)
        assert info["mem_clients_normal"] <= bound + 16 * MIB
        assert await live.ask(node.name, "DBSIZE") == written
        assert kills(live, cache) == 0
        for line in lines:
            line.close()


async def test_memcacheds_item_memory_is_not_for_clients_to_raise(place: Path) -> None:
    build_of("memcached", 1)
    shard = WantedShard(id="0001", members=(Member(name="demo.0001", zone="us-east-1a"),))
    wanted = Wanted(engine="memcached", version="1.6.17", node_type="cache.t3.micro", port=11211, shards=(shard,))
    async with LiveCache(place, wanted) as live:
        cache = await live.available()
        (node,) = cache.decided.nodes
        expected = bounds(cache, node, None)
        assert expected == {"cache_memlimit": "412"}
        reader, writer = await asyncio.open_connection(node.address, node.port)
        writer.write(b"cache_memlimit 9000\r\n")
        assert await reader.readline() == b"OK\r\n"
        writer.close()
        assert (await live.view()).node(node.name).settings == {"cache_memlimit": "9000"}

        async def right(cache: Cache) -> bool:
            return (await live.view()).node(node.name).settings == expected

        await live.until(right, "its item memory")
