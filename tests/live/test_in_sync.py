"""What is known of a replica ages: nobody is promoted by what was true before its keeper went away, or before another led.

Each story would lose acknowledged writes without a word. Engines and writes are real; the control plane is ours to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import valkey
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_group

from cachekeep.compute.contract import LinkEffect, Targets
from cachekeep.model import Cache, Follow, Promote
from cachekeep.plan import Policy

ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
MANY = 100_000
"""More than what sockets hold between two nodes."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def group(tmp_path: Path, engine: str, major: int, policy: Policy | None = None) -> AsyncIterator[LiveCache]:
    """Three nodes, both replicas in sync."""
    async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3), policy=policy) as live:
        await live.available()
        await live.until(lambda c: len(c.decided.shards[0].in_sync) == 2, "all in sync")
        yield live


def endpoint(cache: Cache) -> str:
    address = cache.decided.shards[0].primary_address
    assert address is not None
    return address


def _each(address: str, count: int) -> Iterator[tuple[valkey.Valkey, range]]:
    with valkey.Valkey(host=address, port=6379) as client:
        for start in range(0, count, 1000):
            yield client, range(start, min(start + 1000, count))


def write(address: str, count: int, *, replicas: int = 0) -> None:
    """So many acknowledged writes, which so many replicas have."""
    for client, numbers in _each(address, count):
        client.mset({f"k:{n}": "x" * 100 for n in numbers})
        assert not replicas or client.wait(replicas, 10_000) == replicas


def there(address: str, count: int) -> int:
    """How many of them are there."""
    return sum(int(client.exists(*(f"k:{n}" for n in numbers))) for client, numbers in _each(address, count))


async def processes(live: LiveCache) -> dict[str, int]:
    return {n.name: await live.pid(n.name) for n in (await live.cache()).decided.nodes}


def reaches(live: LiveCache, kind: type[Follow] | type[Promote]) -> asyncio.Event:
    """Set when the control plane is about to give such an order; it never comes to that."""
    reached, never, carry = asyncio.Event(), asyncio.Event(), live.link.carry

    async def carry_others(effect: LinkEffect, at: Targets) -> None:
        if isinstance(effect, kind):
            reached.set()
            await never.wait()
        await carry(effect, at)

    live.link.carry = carry_others  # type: ignore[method-assign]
    return reached


async def refused(live: LiveCache, primary: str) -> Cache:
    """Wait for the refusal, in status and event. Fails if anybody is promoted instead."""
    cache = await live.until(lambda c: c.decided.refusals or live.primary_of(c) != primary, "a refusal")
    assert [r.lead for r in cache.decided.refusals] == [primary], "somebody was promoted, and nobody was asked"
    messages = [e.message for e in await live.events()]
    assert any(f"what {primary} acknowledged" in m and "--allow-data-loss" in m for m in messages)

    async def told(_: Cache) -> bool:
        condition = await live.condition()
        return condition is not None and condition.refused and not any(n.in_sync for n in condition.nodes)

    return await live.until(told, "the refusal is in its status, and nobody counts as in sync")


async def stalled(live: LiveCache) -> str:
    """Nobody looks, both replicas stall, the primary takes writes and dies, and the replicas go on. Returns who led."""
    cache, pids = await live.cache(), await processes(live)
    old = live.primary_of(cache)
    await live.stop_control_plane()
    for name in pids.keys() - {old}:
        os.kill(pids[name], signal.SIGSTOP)
    await asyncio.sleep(Policy().in_flight_seconds)  # what is acknowledged from here on is more than what was on its way
    await asyncio.to_thread(write, endpoint(cache), MANY)
    os.kill(pids[old], signal.SIGKILL)
    for name in pids.keys() - {old}:
        os.kill(pids[name], signal.SIGCONT)
    return old


@ENGINES
async def test_replicas_that_stalled_while_nobody_looked_are_promoted_only_when_the_user_accepts_it(
    engine: str, major: int, tmp_path: Path
) -> None:
    async with group(tmp_path, engine, major) as live:
        old = await stalled(live)
        await live.start_control_plane()
        await refused(live, old)
        await live.errand("promote-stale", shard="0001")
        await live.until(lambda c: live.primary_of(c) != old, "another leads")
        cache = await live.available()
        assert not cache.decided.refusals
        assert await asyncio.to_thread(there, endpoint(cache), MANY) < MANY, "the writes were more than what sockets hold"


@ENGINES
async def test_a_loss_budget_goes_by_what_was_heard_and_not_by_how_long_a_link_is_down(
    engine: str, major: int, tmp_path: Path
) -> None:
    """Whoever stalls reads what its socket held, and sees its link go down a moment later."""
    async with group(tmp_path, engine, major, Policy(loss_budget_seconds=3.1)) as live:
        old = await stalled(live)
        await live.start_control_plane()
        await refused(live, old)


@ENGINES
async def test_a_loss_budget_that_is_large_enough_promotes_by_itself_and_says_so(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, Policy(loss_budget_seconds=3600)) as live:
        old = await stalled(live)
        await live.start_control_plane()
        await live.until(lambda c: live.primary_of(c) != old, "another leads")
        await live.available()
        assert any("within the loss budget" in e.message for e in await live.events())


@ENGINES
async def test_whoever_never_followed_the_lost_primary_is_not_promoted_unasked(engine: str, major: int, tmp_path: Path) -> None:
    """The control plane dies between promoting one and telling the other to follow it."""
    async with group(tmp_path, engine, major) as live:
        cache, pids = await live.cache(), await processes(live)
        about_to_follow = reaches(live, Follow)
        os.kill(pids[live.primary_of(cache)], signal.SIGKILL)
        await asyncio.wait_for(about_to_follow.wait(), 60)
        await live.stop_control_plane()
        new = live.primary_of(await live.cache())
        await asyncio.sleep(Policy().in_flight_seconds)
        await asyncio.to_thread(write, endpoint(cache), MANY)
        os.kill(pids[new], signal.SIGKILL)
        await live.start_control_plane()
        await refused(live, new)


@ENGINES
async def test_who_was_decided_on_and_never_told_leaves_its_place_to_another(engine: str, major: int, tmp_path: Path) -> None:
    """It has not led, so who has all of the primary before has all that there is, however long ago that was."""
    async with group(tmp_path, engine, major) as live:
        cache, pids = await live.cache(), await processes(live)
        await asyncio.to_thread(write, endpoint(cache), 1000, replicas=2)
        about_to_promote = reaches(live, Promote)
        old = live.primary_of(cache)
        os.kill(pids[old], signal.SIGKILL)
        await asyncio.wait_for(about_to_promote.wait(), 60)
        await live.stop_control_plane()
        decided = live.primary_of(await live.cache())
        assert decided != old
        os.kill(pids[decided], signal.SIGKILL)
        await asyncio.sleep(Policy().in_flight_seconds)
        await live.start_control_plane()
        (third,) = pids.keys() - {old, decided}
        await live.until(lambda c: live.primary_of(c) == third, "the third leads")
        cache = await live.available()
        assert await asyncio.to_thread(there, endpoint(cache), 1000) == 1000


@ENGINES
async def test_a_short_absence_is_no_reason_to_ask(engine: str, major: int, tmp_path: Path) -> None:
    """What the control plane before it heard is on disk, and is as good as its own word for as long."""
    async with group(tmp_path, engine, major, Policy(in_flight_seconds=300.0)) as live:
        cache, pids = await live.cache(), await processes(live)
        old = live.primary_of(cache)
        await asyncio.to_thread(write, endpoint(cache), 1000, replicas=2)
        await live.stop_control_plane()
        os.kill(pids[old], signal.SIGKILL)
        await live.start_control_plane()
        cache = await live.until(lambda c: c.decided.refusals or live.primary_of(c) != old, "another leads")
        assert not cache.decided.refusals
        cache = await live.available()
        assert await asyncio.to_thread(there, endpoint(cache), 1000) == 1000
