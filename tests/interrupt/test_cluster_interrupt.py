"""A control plane that dies at every step of a cluster's life, and effects that are carried out twice: all the same in the end.

The story: a cluster of one shard grows to two and to three, fails over, and shrinks to one again, while clients write. It is told
once to count its steps; then once for each step, with the control plane killed just before it and just after it.
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.interrupt.fuse import Fuse, Interrupted, at_every_step

from cachekeep.model import Wanted
from cachekeep.sim.cluster_run import ClusterRun, ClusterScenario, wanted_shard
from cachekeep.sim.timeless import run

VERSIONS = ("8.0.1", "9.1.2")
"""Slots go key by key, and as a whole."""


class Story(Interrupted, ClusterRun):
    """The life of one cluster, told to keepers of which the first one dies."""

    def __init__(self, version: str, fuse: Fuse, *, twice: bool = False) -> None:
        super().__init__(ClusterScenario(7, faults=False, two_keepers=False, flaky=0.0, shards=1, version=version))
        self.burn(fuse, twice=twice)
        self.world.slowness = 1.0

    async def tell(self) -> None:
        await self.store.open()
        await self._create()
        guard = asyncio.get_running_loop().create_task(self._guard())
        writer = asyncio.get_running_loop().create_task(self._write())
        for shards in (1, 2, 3, 0, 1):
            await self._change(_failing_over if not shards else lambda w, n=shards: _of_shards(w, n))  # type: ignore[misc]
            await self._until(self._healthy, f"{shards} shards")
            if writer.done():
                writer.result()
        for task in (writer, guard, *self.keepers):
            task.cancel()
        self._judge()
        assert self.acknowledged


def _of_shards(wanted: Wanted, number: int) -> Wanted:
    return replace(wanted, shards=tuple(wanted_shard(f"{i + 1:04}", 2) for i in range(number)))


def _failing_over(wanted: Wanted) -> Wanted:
    return wanted.asking("test-failover", shard="0001")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("version", VERSIONS)
def test_killed_at_every_step(version: str, after: bool) -> None:
    at_every_step(lambda fuse: Story(version, fuse).tell(), after=after, least=40)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_effect_twice(version: str) -> None:
    run(Story(version, Fuse(-1, False), twice=True).tell())
