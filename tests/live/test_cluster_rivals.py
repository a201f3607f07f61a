"""Cluster mode on real engines: who takes over without a vote, while no engine elects another in its place."""

from __future__ import annotations

import logging
import os
import signal

import pytest
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_cluster import healthy, missing, replicated, write

from cachekeep.model import Cache

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


engines = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))


async def abstaining(live: LiveCache, cache: Cache) -> set[str]:
    """Those that no engine would elect, by their own word."""
    said = {n.name: await live.ask(n.name, "CONFIG", "GET", "cluster-replica-no-failover") for n in cache.decided.nodes}
    return {name for name, answer in said.items() if "yes" in str(answer)}


@engines
async def test_rivals_abstain_while_another_takes_over(engine: str, major: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cachekeep.keeper")
    async with LiveCache(None, wanted_cluster(build_of(engine, major), shards=3, replicas=2)) as live:
        cache = await healthy(live)
        await write(cache, range(200))
        await live.until(lambda _: replicated(live), "everything is replicated")
        lost = [x.primary or "" for x in cache.decided.shards[:2]]
        for pid in [await live.pid(name) for name in lost]:
            os.kill(pid, signal.SIGKILL)
        await live.until(lambda c: not {x.primary for x in c.decided.shards} & set(lost), "two others lead")
        cache = await healthy(live)
        assert not await missing(cache, range(200))
        assert "abstains from elections while" in caplog.text

        async def none_abstains(cache: Cache) -> bool:
            return not await abstaining(live, cache)

        await live.until(none_abstains, "all may be elected again")
