"""Primaries that crash, hang or are busy, under a client that writes without a pause: who leads next, and what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_group
from tests.live.writer import Writer

from cachekeep.model import Cache, Done, Errand, ErrandKind
from cachekeep.plan import Policy

ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def group(
    tmp_path: Path, engine: str, major: int, nodes: int = 3, policy: Policy | None = None, **wanted: object
) -> AsyncIterator[LiveCache]:
    """A group that is available."""
    async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=nodes, **wanted), policy=policy) as live:
        await whole(live)
        yield live


def endpoint(cache: Cache) -> str:
    address = cache.decided.shards[0].primary_address
    assert address is not None
    return address


@contextlib.asynccontextmanager
async def writing(live: LiveCache, *, replicas: int = 0) -> AsyncIterator[Writer]:
    """A client that has begun to write at the primary endpoint. ``replicas``:
    only what so many have is acknowledged, and may not be lost."""
    cache = await live.cache()
    writer = Writer((endpoint(cache), 6379), replicas=replicas, trust=live.authorities.trust_of(cache))
    try:
        await live.until(lambda _: writer.count > 100, "writes")
        yield writer
    finally:
        await asyncio.to_thread(writer.stop)


async def goes_on(live: LiveCache, writer: Writer) -> None:
    """Wait for writes that were acknowledged from now on."""
    before = writer.count
    await live.until(lambda _: writer.count > before + 100, "writes again")


async def whole(live: LiveCache) -> Cache:
    """Wait until every node runs, is announced, and plays its part."""

    def met(cache: Cache) -> bool:
        if cache.decided.available_at is None:
            return False
        shard = cache.decided.shards[0]
        return (
            all(n.announced and not n.due for n in cache.decided.nodes)
            and len(shard.in_sync) == len(cache.decided.nodes) - 1
            and not shard.moving_to
            and not cache.errands_left
            and all(job.ended for job in cache.decided.jobs)
        )

    await live.until(met, "all nodes in sync")
    return await live.available()


async def lost(live: LiveCache, writer: Writer) -> int:
    """How many acknowledged writes are not at the primary endpoint. Stops the writer."""
    await asyncio.to_thread(writer.stop)
    return len(await asyncio.to_thread(writer.missing, endpoint(await live.cache())))


@ENGINES
async def test_a_killed_primary_is_succeeded_and_comes_back_as_a_replica(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        await live.signal(old, signal.SIGKILL)
        cache = await live.until(lambda c: live.primary_of(c) != old, "another primary")
        new = live.primary_of(cache)
        await goes_on(live, writer)
        cache = await whole(live)
        assert live.primary_of(cache) == new
        assert old in cache.decided.shards[0].in_sync
        view = await live.view()
        assert (view.node(old).role, view.node(old).incarnation) == ("replica", 2)
        assert view.node(old).bound == {(await live.node(old)).address}, "it has lost the primary endpoint"
        assert await lost(live, writer) == 0
        told = [e.message for e in await live.events()]
        done = f"Failover from primary node {old} to replica node {new} completed"
        assert told.index("Recovering cache nodes 0001") < told.index("Finished recovery for cache nodes 0001")
        assert told.count(done) == 2, "once for the group, once for the cluster"


@ENGINES
async def test_a_frozen_primary_is_stopped_for_certain_and_succeeded(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        pid = await live.pid(old)
        await live.signal(old, signal.SIGSTOP)
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        await goes_on(live, writer)
        assert live.said_any(old, "is frozen", "stopped for certain")
        await whole(live)
        assert await live.pid(old) != pid, "the frozen process is gone for good"
        assert await lost(live, writer) == 0


def script(where: tuple[str, int], rounds: float) -> threading.Thread:
    """A client whose script keeps the engine busy. It ends with the connection."""
    text = "for i = 1, tonumber(ARGV[1]) do end return 1"

    def run() -> None:
        with contextlib.suppress(valkey.ValkeyError), valkey.Valkey(host=where[0], port=where[1], socket_timeout=60) as client:
            client.eval(text, 0, rounds)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@ENGINES
async def test_a_long_script_is_no_failure(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2, policy=Policy(silence_seconds=60.0)) as live:
        cache = await live.cache()
        old, pid = live.primary_of(cache), await live.pid(live.primary_of(cache))
        running = script((endpoint(cache), 6379), 5e8)
        await live.until(lambda _: live.said_any(old, "does not answer; it is not known to be down"), "it is seen to be silent")
        await asyncio.to_thread(running.join)
        await live.available()
        assert (live.primary_of(await live.cache()), await live.pid(old)) == (old, pid)
        assert not live.said_any("to reach it"), "its host acknowledges all the while: no replica has to be asked"


@ENGINES
async def test_an_endless_script_is(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2, policy=Policy(silence_seconds=1.0, command_seconds=2.0)) as live:
        cache = await live.cache()
        old = live.primary_of(cache)
        running = script((endpoint(cache), 6379), 1e15)
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        assert live.said_any(old, "has not answered for")
        await whole(live)
        await asyncio.to_thread(running.join)


@ENGINES
async def test_planned_moves_lose_nothing(engine: str, major: int, tmp_path: Path) -> None:
    """TestFailover, a new PrimaryClusterId, a reboot of the primary: one after the other, under a client that writes."""
    async with group(tmp_path, engine, major) as live, writing(live) as writer:
        led: list[str] = [live.primary_of(await live.cache())]
        kinds: tuple[ErrandKind, ...] = ("test-failover", "promote", "reboot")
        for kind in kinds:
            cache = await whole(live)
            old = live.primary_of(cache)
            other = next(n.name for n in cache.decided.nodes if n.name != old)
            await live.errand(kind, nodes=(other,) if kind == "promote" else (old,), shard="0001")
            cache = await live.until(lambda c, old=old: live.primary_of(c) != old, kind)  # type: ignore[misc]
            led.append(live.primary_of(cache))
            await goes_on(live, writer)
        cache = await whole(live)
        assert [(type(job.work), job.state) for job in cache.decided.jobs] == [(Errand, Done())] * 3
        assert await lost(live, writer) == 0
        assert sum(e.message.startswith("Failover from primary node") for e in await live.events()) == 6, led


@ENGINES
async def test_readers_are_sent_to_in_sync_replicas_only(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live:
        cache = await live.cache()
        old, reader = live.primary_of(cache), cache.decided.shards[0].reader_address
        assert reader is not None
        gone = sorted(cache.decided.shards[0].in_sync)[0]
        await live.signal(gone, signal.SIGSTOP)
        await live.until(lambda c: gone not in c.decided.shards[0].in_sync, "a frozen replica is out of sync")
        left = sorted((await live.cache()).decided.shards[0].in_sync)
        await live.until(lambda _: _balanced(live, left), "readers go to the other")
        assert _run_behind(reader) == _run_behind((await live.node(left[0])).address)
        await live.signal(gone, signal.SIGCONT)
        await live.signal(old, signal.SIGKILL)
        cache = await whole(live)
        await live.until(lambda c: _balanced(live, sorted(c.decided.shards[0].in_sync)), "readers follow the failover")
        assert _run_behind(endpoint(cache)) not in {_run_behind(reader) for _ in range(8)}


async def _balanced(live: LiveCache, names: list[str]) -> bool:
    return sorted((await live.view()).fronts["readers"].targets or ()) == names


def _run_behind(address: str) -> str:
    """Of the process that answers there."""
    with valkey.Valkey(host=address, port=6379, decode_responses=True) as client:
        return str(client.info("server")["run_id"])


@ENGINES
async def test_a_killed_replica_comes_back_and_the_primary_stays(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live, writing(live) as writer:
        old = live.primary_of(await live.cache())
        (replica,) = (await live.cache()).decided.shards[0].in_sync
        await live.signal(replica, signal.SIGKILL)
        await live.until(lambda c: c.node(replica).incarnation == 2, "it is started again")  # type: ignore[union-attr]
        cache = await whole(live)
        assert live.primary_of(cache) == old
        assert await lost(live, writer) == 0
        assert not any("Failover" in e.message for e in await live.events())


@ENGINES
async def test_a_group_that_lost_everything_comes_back_empty_at_the_same_endpoint(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live:
        cache = await live.cache()
        with valkey.Valkey(host=endpoint(cache), port=6379) as client:
            client.set("k", "v")
        (replica, *_) = cache.decided.shards[0].in_sync
        await live.signal(replica, signal.SIGKILL)  # its way back leaves files of the data
        await live.until(lambda c: c.node(replica).incarnation == 2, "it is started again")  # type: ignore[union-attr]
        cache = await whole(live)
        before = {n.name: n.incarnation for n in cache.decided.nodes}
        for node in cache.decided.nodes:
            await live.signal(node.name, signal.SIGKILL)
        await live.until(lambda c: all(n.incarnation > before[n.name] for n in c.decided.nodes), "all are started again")
        after = await whole(live)
        assert endpoint(after) == endpoint(cache)
        with valkey.Valkey(host=endpoint(after), port=6379) as client:
            assert client.get("k") is None
            client.set("k", "again")
        assert live.said_any("held is lost")


@ENGINES
async def test_control_plane_and_engines_killed_together_converge(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live:
        cache = await live.cache()
        pids = [await live.pid(n.name) for n in cache.decided.nodes]
        await live.stop_control_plane()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await live.start_control_plane()
        await live.until(lambda c: all(n.incarnation > 1 for n in c.decided.nodes), "all are started again")
        after = await whole(live)
        async with writing(live) as writer:
            await goes_on(live, writer)
        assert endpoint(after) == endpoint(cache)


@ENGINES
async def test_a_primary_that_dies_without_a_control_plane_is_succeeded_when_there_is_one(
    engine: str, major: int, tmp_path: Path
) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        await live.stop_control_plane()
        await goes_on(live, writer)  # nobody needs the control plane to write
        await asyncio.to_thread(writer.stop)
        await live.start_control_plane()
        await live.signal(old, signal.SIGKILL)
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        await whole(live)
        assert await lost(live, writer) == 0


async def _only_stale_data_left(live: LiveCache) -> tuple[str, str]:
    """The replica lacks a write that the primary acknowledged; then the primary dies. (primary, replica)"""
    cache = await live.cache()
    old = live.primary_of(cache)
    (replica,) = cache.decided.shards[0].in_sync
    pids = {name: await live.pid(name) for name in (old, replica)}
    with valkey.Valkey(host=endpoint(cache), port=6379) as client:
        client.set("before", "1")
        client.wait(1, 5000)
    await live.signal(replica, signal.SIGSTOP)
    await live.until(lambda c: replica not in c.decided.shards[0].in_sync, "it is out of sync")
    await live.ask(old, "CLIENT", "KILL", "TYPE", "replica")  # nothing more reaches it, not even what waits in its socket
    with valkey.Valkey(host=endpoint(cache), port=6379) as client:
        client.set("after", "1")
    await live.stop_control_plane()  # so that it does not catch up in the moment between
    os.kill(pids[old], signal.SIGKILL)
    os.kill(pids[replica], signal.SIGCONT)
    await live.start_control_plane()
    return old, replica


@ENGINES
async def test_stale_data_is_promoted_only_when_the_user_accepts_the_loss(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live:
        old, replica = await _only_stale_data_left(live)
        cache = await live.until(lambda c: c.decided.refusals, "a refusal")
        assert live.primary_of(cache) == old
        assert any("--allow-data-loss" in e.message for e in await live.events())

        async def told(_: Cache) -> bool:
            condition = await live.condition()
            return condition is not None and condition.refused

        await live.until(told, "the refusal is in its status")
        await live.errand("promote-stale", shard="0001")
        await live.until(lambda c: live.primary_of(c) == replica, "the stale replica leads")
        cache = await whole(live)
        with valkey.Valkey(host=endpoint(cache), port=6379, decode_responses=True) as client:
            assert client.mget("before", "after") == ["1", None]
        assert not cache.decided.refusals


@ENGINES
async def test_a_loss_budget_promotes_stale_data_by_itself(engine: str, major: int, tmp_path: Path) -> None:
    """What the lost primary had is known only to the control plane that saw it: the budget holds while that lives."""
    policy = Policy(loss_budget_bytes=1 << 20)
    async with group(tmp_path, engine, major, nodes=2, policy=policy) as live:
        cache = await live.cache()
        old = live.primary_of(cache)
        (replica,) = cache.decided.shards[0].in_sync
        await live.signal(replica, signal.SIGSTOP)
        await live.until(lambda c: replica not in c.decided.shards[0].in_sync, "it is out of sync")
        await live.ask(old, "CLIENT", "KILL", "TYPE", "replica")
        pids = {name: await live.pid(name) for name in (old, replica)}
        os.kill(pids[old], signal.SIGKILL)
        os.kill(pids[replica], signal.SIGCONT)
        await live.until(lambda c: live.primary_of(c) == replica, "it leads")
        assert live.said_any(replica, "within the loss budget") or live.said_any(replica, "has the most of what it wrote")


@ENGINES
async def test_without_automatic_failover_a_frozen_primary_is_left_alone(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2, automatic_failover=False) as live:
        old = live.primary_of(await live.cache())
        pid = await live.pid(old)
        await live.signal(old, signal.SIGSTOP)
        await live.until(lambda _: live.said_any(old, "automatic failover is off"), "it says why")
        await live.signal(old, signal.SIGCONT)
        await live.available()
        assert (live.primary_of(await live.cache()), await live.pid(old)) == (old, pid)


@ENGINES
async def test_without_automatic_failover_the_lead_goes_back(engine: str, major: int, tmp_path: Path) -> None:
    """A crashed primary is replaced in its own place; the replica stands in for it meanwhile, or nothing could be kept."""
    async with group(tmp_path, engine, major, nodes=2, automatic_failover=False) as live, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        await live.signal(old, signal.SIGKILL)
        await live.until(lambda c: live.primary_of(c) != old, "the replica stands in")
        await live.until(lambda c: live.primary_of(c) == old, "and gives the lead back")
        await whole(live)
        assert await lost(live, writer) == 0
