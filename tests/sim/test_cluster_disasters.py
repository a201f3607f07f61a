"""Cluster mode: what happens to many at once, in a world where nothing else happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from cachekeep.sim.cluster_run import ClusterRun, ClusterScenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID

VERSIONS = ("8.0.1", "9.1.2")


class Disaster(ClusterRun):
    """Three shards of one primary and one replica, clients that write, and one thing that goes wrong."""

    def __init__(self, seed: int, version: str, strike: Callable[[Disaster], None]) -> None:
        super().__init__(ClusterScenario(seed, faults=True, two_keepers=False, flaky=0.0, version=version))
        self.strike = strike

    def processes(self) -> list[str]:
        assert self.cache is not None
        return [n.name for n in self.cache.decided.nodes]

    def primaries(self) -> list[str]:
        assert self.cache is not None
        return [x.primary for x in self.cache.decided.shards if x.primary]

    def kill(self, names: list[str]) -> None:
        for name in names:
            self.world.kill((UID, name))

    async def tell(self) -> None:
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper")]
        writer = asyncio.get_running_loop().create_task(self._write())
        await self._until(self._healthy, "creation")
        await asyncio.sleep(2.0)
        self.strike(self)
        await asyncio.sleep(0.5)
        await self._until(self._healthy, "recovery")
        if writer.done():
            writer.result()
        before = len(self.acknowledged)
        await self._until(lambda: len(self.acknowledged) > before + 20, "writes")
        for task in (writer, *self.keepers):
            task.cancel()
        self._judge()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(4))
def test_most_primaries_at_once(seed: int, version: str, caplog: pytest.LogCaptureFixture) -> None:
    """No vote can be had: the replicas take over because all who could object are confirmed stopped, and that is said."""
    caplog.set_level(logging.INFO)
    run(Disaster(seed, version, lambda d: d.kill(d.primaries()[:2])).tell())
    assert "all others are confirmed stopped: it takes over without a vote" in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(4))
def test_all_primaries_at_once(seed: int, version: str) -> None:
    run(Disaster(seed, version, lambda d: d.kill(d.primaries())).tell())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(4))
def test_everything_at_once(seed: int, version: str) -> None:
    """What was held in memory is gone; every slot has its owner again."""
    run(Disaster(seed, version, lambda d: d.kill(d.processes())).tell())
