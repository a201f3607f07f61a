"""Another cluster mode for a group that serves: clients of both kinds, a writer that does not stop, failovers in between."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_group, wanted_shard
from tests.live.test_cluster import agreed, astray, healthy, slots_at
from tests.live.writer import Writer

from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Convert, Wanted

pytestmark = pytest.mark.anyio
ENGINES = pytest.mark.parametrize(("engine", "major"), [pair for pair in REDIS_LIKE if pair != ("redis", 6)], ids=str)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def mode(to: str) -> object:
    def change(wanted: Wanted) -> Wanted:
        on = to != "disabled"
        return replace(wanted, cluster_mode=to, parameters={"cluster-enabled": "yes"} if on else {})

    return change


async def whole(live: LiveCache) -> Cache:
    """Everything is as it should be, every replica in sync."""

    async def settled(cache: Cache) -> bool:
        told = await live.condition()
        shard = cache.decided.shards[0] if cache.decided.shards else None
        in_sync = shard is not None and len(shard.in_sync) == len(cache.decided.nodes) - 1
        return in_sync and told is not None and told.settled and told.version == cache.version

    return await live.until(settled, "whole")


async def switched(live: LiveCache, to: str) -> Cache:
    await live.change(mode(to))  # type: ignore[arg-type]
    await live.until(lambda c: c.cluster_mode == to, to)
    return await whole(live)


@contextlib.asynccontextmanager
async def writing(live: LiveCache, address: str, prefix: str) -> AsyncIterator[Writer]:
    """What is acknowledged is with a replica: a crash may not lose it."""
    writer = Writer((address, 6379), prefix=prefix, replicas=1)
    try:
        await live.until(lambda _: writer.count > 50, "writes")
        yield writer
    finally:
        await asyncio.to_thread(writer.stop)


async def goes_on(live: LiveCache, *writers: Writer) -> None:
    for writer in writers:
        before = writer.count
        await live.until(lambda _, w=writer, b=before: w.count > b + 50, "writes again")


@ENGINES
async def test_writers_of_both_kinds_lose_nothing_while_the_mode_and_the_lead_change(
    tmp_path: Path, engine: str, major: int
) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3)) as live:
        cache = await whole(live)
        pids = [await live.pid(n.name) for n in cache.decided.nodes]
        primary = cache.decided.shards[0].primary_address or ""
        async with writing(live, primary, "plain") as plain:
            cache = await switched(live, "compatible")
            assert [await live.pid(n.name) for n in cache.decided.nodes] == pids
            assert plain.connections == 1  # nobody noticed
            configuration = cache.decided.configuration_address or ""
            async with writing(live, configuration, "clustered") as clustered:
                await live.errand("promote", nodes=("demo-002",), shard="0001")
                await live.until(lambda c: live.primary_of(c) == "demo-002", "the planned move")
                await goes_on(live, plain, clustered)
                cache = await whole(live)
                await live.signal(live.primary_of(cache), signal.SIGKILL)
                await goes_on(live, plain, clustered)
                cache = await whole(live)
                await live.signal("configuration", signal.SIGKILL)
                await goes_on(live, plain, clustered)
                await both_kinds(cache)
            assert await asyncio.to_thread(clustered.missing, primary) == []
            cache = await switched(live, "disabled")
            assert cache.decided.configuration_address is None
            await goes_on(live, plain)
        assert await asyncio.to_thread(plain.missing, primary) == []
        with pytest.raises(OSError):
            await asyncio.open_connection(configuration, 6379)


async def both_kinds(cache: Cache) -> None:
    """What one kind of client writes, the other reads; a plain client's commands may have keys of several slots."""
    shard = cache.decided.shards[0]
    clustered = valkey.asyncio.ValkeyCluster(host=cache.decided.configuration_address, port=6379, decode_responses=True)
    plain = valkey.asyncio.Valkey(host=shard.primary_address, decode_responses=True)
    reader = valkey.asyncio.Valkey(host=shard.reader_address, decode_responses=True)
    try:
        await plain.mset({"a": "1", "b": "2", "c": "3"})
        assert [await clustered.get(key) for key in "abc"] == ["1", "2", "3"]
        await clustered.set("d", "4")
        assert await plain.mget("a", "b", "c", "d") == ["1", "2", "3", "4"]
        await plain.wait(1, 15_000)
        await reader.ping()
        assert [node.name for node in clustered.get_nodes()] == [f"{cache.decided.configuration_address}:6379"]
    finally:
        for client in (clustered, plain, reader):
            await client.aclose()


async def test_a_control_plane_that_starts_anew_finds_the_front(tmp_path: Path) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=2)) as live:
        await whole(live)
        cache = await switched(live, "compatible")
        pid = await live.pid("configuration")
        async with writing(live, cache.decided.configuration_address or "", "clustered") as writer:
            await live.stop_control_plane()
            await goes_on(live, writer)
            await live.start_control_plane()
            await whole(live)
            assert await live.pid("configuration") == pid
            assert writer.connections == 1


# -- to enabled


@ENGINES
async def test_cluster_mode_is_enabled_without_losing_a_write_and_shards_are_added(tmp_path: Path, engine: str, major: int) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3)) as live:
        await whole(live)
        before = await switched(live, "compatible")
        configuration, old = before.decided.configuration_address or "", before.decided
        writer = Writer((configuration, 6379), prefix="through", pause_seconds=0.002)
        try:
            await goes_on(live, writer)
            writer.longest_pause_seconds = 0.0
            cache = await switched(live, "enabled")
            await goes_on(live, writer)
            print(f"{engine} {major}: writes waited for {writer.longest_pause_seconds * 1000:.0f} ms at most")
            decided = cache.decided
            assert (decided.successors, decided.retired, decided.fronts) == ((), (), ())
            assert (decided.configuration_address, decided.shards[0].primary_address) == (configuration, None)
            assert [n.member for n in decided.nodes] == [n.name for n in old.nodes]
            assert cache.member(decided.nodes[0].member) is decided.nodes[0]
            assert await astray(cache) == []
            assert await agreed(live, cache)
            settings = [await live.ask(n.name, "CONFIG", "GET", "cluster-node-timeout") for n in decided.nodes]
            assert settings == [["cluster-node-timeout", "15000"]] * 3
            for gone in (*(n.address for n in old.nodes), old.shards[0].primary_address, old.shards[0].reader_address):
                with pytest.raises(OSError):
                    await asyncio.open_connection(gone, 6379)
            await live.change(lambda w: replace(w, shards=(*w.shards, wanted_shard("0002", 1))))
            await healthy(live)
            await goes_on(live, writer)
        finally:
            await asyncio.to_thread(writer.stop)
        assert len(await slots_at(configuration)) == 2
        assert await lost(configuration, writer) == []


async def lost(configuration: str, writer: Writer) -> list[int]:
    """What was acknowledged and a cluster client does not find."""
    client = valkey.asyncio.ValkeyCluster(host=configuration, port=6379)
    try:
        return [number for number in writer.acknowledged if not await client.exists(f"through:{number}")]
    finally:
        await client.aclose()


@ENGINES
async def test_keys_in_another_database_keep_a_group_compatible_until_they_are_gone(
    tmp_path: Path, engine: str, major: int
) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=2)) as live:
        await whole(live)
        cache = await switched(live, "compatible")
        primary = cache.decided.shards[0].primary_address
        third = valkey.asyncio.Valkey(host=primary, db=3)
        first = valkey.asyncio.Valkey(host=primary)
        try:
            await third.set("a", "third")
            await first.set("a", "first")
            await live.change(mode("enabled"))  # type: ignore[arg-type]
            await live.until(lambda _: live.said_any("databases other than 0 hold keys (3)"), "it is refused")
            assert (await live.cache()).decided.successors == ()
            assert [e.message for e in await live.events() if "hold keys" in e.message]
            real, live.link.carried_by[Convert] = live.link.carried_by[Convert], never
            await third.flushdb()
            await live.until(lambda c: len(c.decided.fed) == 2, "the successors are fed")
            # There is nothing in it a moment later, but no successor can have followed what came and went.
            await third.set("a", "third")
            await third.delete("a")
            live.link.carried_by[Convert] = real
            # It refuses, or ends (Redis 7.0): of no use in either case.
            await live.until(lambda _: live.said_any("start anew") or live.said_any("starts anew"), "it starts anew")
            assert not (await live.cache()).clustered
            if engine == "valkey":
                assert [e.message for e in await live.events() if "could not follow" in e.message]
            await live.until(lambda c: c.clustered, "enabled")
        finally:
            for client in (first, third):
                await client.aclose()
        cache = await whole(live)
        clustered = valkey.asyncio.ValkeyCluster(host=cache.decided.configuration_address, port=6379, decode_responses=True)
        try:
            assert await clustered.get("a") == "first"
        finally:
            await clustered.aclose()


async def test_back_to_compatible_where_that_is_what_is_wanted_after_all(tmp_path: Path) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=2)) as live:
        await whole(live)
        before = await switched(live, "compatible")
        await live.ask("demo-001", "SET", "a", "1")
        third = valkey.asyncio.Valkey(host=before.decided.shards[0].primary_address, db=3)
        await third.set("a", "third")
        await live.change(mode("enabled"))  # type: ignore[arg-type]
        await live.until(lambda _: live.said_any("databases other than 0 hold keys"), "it is refused")
        await live.change(mode("compatible"))  # type: ignore[arg-type]
        cache = await whole(live)
        assert (cache.decided.nodes, cache.decided.fronts) == (before.decided.nodes, before.decided.fronts)
        assert await third.get("a") == b"third"
        await third.aclose()


@pytest.mark.parametrize(
    "moment", ["are appointed, in cluster mode", "have what demo-001 has", "hands over to", "is in cluster mode"]
)
async def test_a_primary_that_is_killed_at_any_moment_of_it_costs_no_write_that_a_replica_has(tmp_path: Path, moment: str) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=3)) as live:
        await whole(live)
        cache = await switched(live, "compatible")
        configuration = cache.decided.configuration_address or ""
        async with writing(live, configuration, "through") as writer:
            await live.change(mode("enabled"))  # type: ignore[arg-type]
            await live.until(lambda _: live.said_any(moment), moment)
            victim = live.primary_of(await live.cache())
            with contextlib.suppress(AssertionError, ProcessLookupError):  # it may be gone by then
                await live.signal(victim, signal.SIGKILL)
            await live.until(lambda c: c.clustered, "enabled")
            await goes_on(live, writer)
            await whole(live)
        assert await lost(configuration, writer) == []


async def test_without_any_of_its_nodes_a_group_goes_on_in_cluster_mode(tmp_path: Path) -> None:
    """The successors have everything, and are all that is left."""
    async with LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=2)) as live:
        await whole(live)
        cache = await switched(live, "compatible")
        configuration = cache.decided.configuration_address or ""
        async with writing(live, configuration, "through") as writer:
            real, live.link.carried_by[Convert] = live.link.carried_by[Convert], never
            await live.change(mode("enabled"))  # type: ignore[arg-type]
            await live.until(lambda c: len(c.decided.fed) == 2 and c.decided.shards[0].moving_to, "all is fed")
            for name in ("demo-001", "demo-002"):
                await live.signal(name, signal.SIGKILL)
            live.link.carried_by[Convert] = real
            await live.until(lambda c: c.clustered, "enabled")
            await goes_on(live, writer)
            await whole(live)
        assert await lost(configuration, writer) == []


async def never(*_: object, **__: object) -> None:
    raise OrderFailed("not now")


@pytest.mark.parametrize("moment", ["are appointed, in cluster mode", "hands over to", "leads in place of", "have been replaced"])
async def test_a_control_plane_that_dies_in_the_middle_is_succeeded_by_one_that_goes_on(tmp_path: Path, moment: str) -> None:
    async with LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=3)) as live:
        await whole(live)
        cache = await switched(live, "compatible")
        configuration = cache.decided.configuration_address or ""
        writer = Writer((configuration, 6379), prefix="through", pause_seconds=0.002)
        try:
            await live.until(lambda _: writer.count > 50, "writes")
            await live.change(mode("enabled"))  # type: ignore[arg-type]
            await live.until(lambda _: live.said_any(moment), moment)
            await live.stop_control_plane()
            await live.start_control_plane()
            await live.until(lambda c: c.clustered, "enabled")
            await goes_on(live, writer)
            await whole(live)
        finally:
            await asyncio.to_thread(writer.stop)
        assert await lost(configuration, writer) == []
