"""Passwords of our own users are changed under a writer, whatever else happens: nobody is locked out, nothing is lost, and the old
one opens nothing afterwards."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.engines.servers import PASSWORD, REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_cluster_resharding import fill, shards, wrong
from tests.live.test_failover import goes_on, group, lost, whole, writing

from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import ADMIN, MOVER, REPLICA, secret_of
from cachekeep.model import Cache, Resharded, Resharding, Secret, Wanted

ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))
NEW = Secret("another-password-for-tests-only-9876543210")
WAY = ((1, None), (1, 2), (2, 1), (2, None))
DONE = "Rotated the passwords of Cachekeep's own users"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask_for(live: LiveCache) -> None:
    """As the desk does."""

    def with_one_more(wanted: Wanted) -> Wanted:
        return replace(wanted, credentials=(*wanted.credentials, live.sealing.credential(live.uid, 2, NEW)))

    await live.change(with_one_more)


def at(cache: Cache) -> tuple[int, int | None]:
    return cache.decided.credential, cache.decided.other_credential


def a_replica(live: LiveCache, cache: Cache) -> str:
    return next(n.name for n in cache.decided.nodes if n.name != live.primary_of(cache))


async def comes_in(live: LiveCache, name: str, user: str, secret: Secret) -> bool:
    node = await live.node(name)
    async with valkey.asyncio.Valkey(host=node.address, port=node.port, username=user, password=secret_of(user, secret)) as client:
        try:
            await client.ping()
        except valkey.exceptions.AuthenticationError:
            return False
        except valkey.exceptions.NoPermissionError:
            pass
        return True


async def ended(live: LiveCache) -> None:
    """Nothing but the new password opens anything, and replicas come by it."""

    async def told(cache: Cache) -> bool:
        view = await live.view()
        return at(cache) == WAY[-1] and all(view.node(n.name).digests == runtime(cache, n).digests for n in cache.decided.nodes)

    cache = await live.until(told, "the change of passwords")
    for node in cache.decided.nodes:
        for user in (ADMIN, REPLICA, MOVER):
            assert not await comes_in(live, node.name, user, PASSWORD), (node.name, user)
            assert await comes_in(live, node.name, user, NEW), (node.name, user)
        told_to_primaries = str(await live.ask(node.name, "CONFIG", "GET", "masterauth"))
        assert secret_of(REPLICA, NEW) in told_to_primaries
    leads = {live.primary_of(cache, shard.id) for shard in cache.decided.shards}
    for primary in leads:
        await live.ask(primary, "CLIENT", "KILL", "TYPE", "replica")

    async def linked(cache: Cache) -> bool:
        view = await live.view()
        return all(view.node(n.name).link_up for n in cache.decided.nodes if n.name not in leads)

    await live.until(linked, "links by the new password")
    assert [e.message for e in await live.events()].count(DONE) == 1


@ENGINES
async def test_a_primary_fails_in_the_middle(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        await ask_for(live)
        await live.until(lambda c: at(c) != WAY[0], "the first step")
        await live.signal(old)
        await live.until(lambda c: live.primary_of(c) != old, "a successor")
        await goes_on(live, writer)
        await whole(live)
        await ended(live)
        await goes_on(live, writer)
        assert await lost(live, writer) == 0


@ENGINES
async def test_no_client_and_no_replica_notices(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live, writing(live) as writer:
        connections, before = writer.connections, await live.view()
        await ask_for(live)
        await live.until(lambda c: at(c) == WAY[-1], "the end")
        await goes_on(live, writer)
        after = await live.view()
        assert writer.connections == connections
        assert {n: v.incarnation for n, v in after.nodes.items()} == {n: v.incarnation for n, v in before.nodes.items()}
        full = [await live.ask(name, "INFO", "stats") for name in after.nodes]
        assert sum(int(stats["sync_full"]) for stats in full if isinstance(stats, dict)) == len(full) - 1, "those of the creation"
        await ended(live)
        assert await lost(live, writer) == 0


@ENGINES
async def test_a_node_that_is_silent_is_waited_for_and_comes_in(engine: str, major: int, tmp_path: Path) -> None:
    """Frozen before it could be told anything: until it is told, it knows the old password alone."""
    async with group(tmp_path, engine, major) as live:
        replica = a_replica(live, await live.cache())
        pid = await live.pid(replica)
        await live.signal(replica, signal.SIGSTOP)
        await ask_for(live)
        await live.until(lambda c: at(c) == WAY[1], "the first step")
        await live.until(lambda _: live.said_any(replica, "has not been told of the new password yet"), "that it says so")
        assert at(await live.cache()) == WAY[1]
        await live.signal(replica, signal.SIGCONT)
        await ended(live)
        assert await live.pid(replica) == pid


@ENGINES
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_control_plane_ends_at_each_step_and_a_node_meanwhile(engine: str, major: int, step: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live, writing(live, replicas=1) as writer:
        replica = a_replica(live, await live.cache())
        await ask_for(live)
        await live.until(lambda c: WAY.index(at(c)) >= step, "the step")
        await live.stop_control_plane()
        await live.start_control_plane()
        await live.signal(replica)
        await live.until(lambda c: (node := c.node(replica)) is not None and node.incarnation > 1, "another process")
        await whole(live)
        await ended(live)
        await goes_on(live, writer)
        assert await lost(live, writer) == 0


@pytest.mark.parametrize(("engine", "major"), [("redis", 7), ("valkey", 8), ("valkey", 9)], ids=lambda x: str(x))
async def test_slots_move_meanwhile(engine: str, major: int) -> None:
    """Whoever moves them comes by a password, too: of its own at the target, and by way of the source's login on Valkey 9."""
    wanted = wanted_cluster(build_of(engine, major), shards=1, replicas=1, node_type="cache.m5.large")
    async with LiveCache(None, wanted) as live:
        cache = await live.available()
        await asyncio.to_thread(fill, cache.decided.configuration_address or "")
        await live.change(shards(2, 1))
        await live.until(lambda c: isinstance(c.decided.reshard, Resharding), "slots on their way")
        await ask_for(live)
        await ended(live)
        cache = await live.until(lambda c: isinstance(c.decided.reshard, Resharded), "slots where they are wanted")
        assert not await asyncio.to_thread(wrong, cache.decided.configuration_address or "")
