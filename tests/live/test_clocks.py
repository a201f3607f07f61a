"""Somebody sets the control plane's wall clock around a failover, by an hour: nothing is waited for, hurried, or lost by that."""

from __future__ import annotations

import datetime as dt
import signal
from pathlib import Path

import pytest
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_cluster, wanted_group
from tests.live.test_cluster import healthy, missing, replicated, write
from tests.live.test_failover import goes_on, lost, whole, writing

from cachekeep.clock import SystemClock
from cachekeep.model import Cache

pytestmark = pytest.mark.anyio
HOUR = dt.timedelta(hours=1)
ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
SET_BY = pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["ahead", "back"])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wall(SystemClock):
    """The machine's clocks, but for a wall clock that can be set."""

    ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        return super().now() + self.ahead


def beside(live: LiveCache) -> Wall:
    """The wall clock of the control plane that is about to be started. The store's is another."""
    live.clock = wall = Wall()
    return wall


@SET_BY
@ENGINES
async def test_a_failover_goes_by_no_wall_clock(engine: str, major: int, by: dt.timedelta, tmp_path: Path) -> None:
    live = LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3))
    wall = beside(live)
    async with live:
        await whole(live)
        async with writing(live, replicas=1) as writer:
            old = live.primary_of(await live.cache())
            wall.ahead = by
            await live.signal(old, signal.SIGSTOP)  # hangs: it has to be confirmed stopped before another leads
            await live.until(lambda c: (n := c.node(old)) is not None and (n.condemned or n.incarnation > 1), "it is given up")
            wall.ahead = -by
            await live.until(lambda c: live.primary_of(c) != old, "another primary")
            await goes_on(live, writer)
            cache = await whole(live)
            assert len(cache.decided.shards[0].in_sync) == 2
            assert await lost(live, writer) == 0


@SET_BY
@ENGINES
async def test_an_election_goes_by_no_wall_clock(engine: str, major: int, by: dt.timedelta) -> None:
    """One that was begun in the future does not wait until then; one that was begun long ago is not over by that."""
    live = LiveCache(None, wanted_cluster(build_of(engine, major), shards=3, replicas=1))
    wall = beside(live)
    async with live:
        cache = await healthy(live)
        await write(cache, range(200))
        await live.until(lambda _: replicated(live), "everything is replicated")
        led = cache.decided.shards[0].primary
        assert led is not None
        wall.ahead = by
        await live.signal(led, signal.SIGKILL)

        def begun(cache: Cache) -> bool:
            shard = cache.decided.shards[0]
            return shard.lost == led or shard.primary != led

        await live.until(begun, "a successor is chosen")
        wall.ahead = -by
        await live.until(lambda c: c.decided.shards[0].primary != led, "it leads")
        assert not await missing(await healthy(live), range(200))
