"""A control plane that dies at every step of a cluster's life, and effects that are carried out twice: all the same in the end.

The story: a cluster of one shard grows to two and to three, fails over, and shrinks to one again, while clients write. It is told once to
count its steps; then once for each step, with the control plane killed just before it and just after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from cachekeep.control import Hands
from cachekeep.model import Act, Cache, Errand, Event, Wanted
from cachekeep.sim.cluster_run import ClusterRun, ClusterScenario, wanted_shard
from cachekeep.sim.run import _Witness
from cachekeep.sim.timeless import run
from cachekeep.store.contract import Lease

VERSIONS = ("8.0.1", "9.1.2")
"""Slots go key by key, and as a whole."""


class Killed(BaseException):
    """kill -9: nothing catches it."""


class Fuse:
    """Blows once, at the given moment: (step, after)."""

    def __init__(self, step: int, after: bool) -> None:
        self.left, self.after, self.blown, self.steps = step, after, False, 0

    def tick(self, after: bool) -> None:
        self.steps += not after
        if self.steps == self.left and after is self.after and not self.blown:
            self.blown = True
            raise Killed


class Story(ClusterRun):
    """The life of one cluster, told to keepers of which the first one dies."""

    def __init__(self, version: str, fuse: Fuse, *, twice: bool = False) -> None:
        super().__init__(ClusterScenario(7, faults=False, two_keepers=False, flaky=0.0, shards=1, version=version))
        self.fuse, self.twice = fuse, twice
        self.world.slowness = 1.0
        store = self.store

        async def save(cache: Cache, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]) -> Cache:
            fuse.tick(False)
            saved = await _Witness.save_decided(store, cache, lease, events=events, addresses=addresses)
            fuse.tick(True)
            return saved

        store.save_decided = save  # type: ignore[method-assign]

    def _hands(self, **parts: Any) -> Hands:
        story = self

        class Fragile(Hands):
            async def carry(self, cache: Cache, act: Act) -> None:
                for stage in act.stages:
                    story.fuse.tick(False)
                    try:
                        for _ in range(2 if story.twice else 1):
                            await super().carry(cache, Act((stage,), act.because))
                    finally:  # one that was refused has been tried as well
                        story.fuse.tick(True)

        return Fragile(**parts)

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

    async def _guard(self) -> None:
        """Starts a control plane, and another one when it is killed."""
        self.keepers = [self._keeper("keeper")]
        while not self.fuse.blown:
            await asyncio.sleep(0.02)
        self.keepers[0].cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        self.keepers = [self._keeper("keeper")]


def _of_shards(wanted: Wanted, number: int) -> Wanted:
    return replace(wanted, shards=tuple(wanted_shard(f"{i + 1:04}", 2) for i in range(number)))


def _failing_over(wanted: Wanted) -> Wanted:
    return replace(wanted, errands=(Errand(serial=1, kind="test-failover", shard="0001"),))


def steps(version: str) -> int:
    """How many saves and acts the story takes when nothing goes wrong."""
    fuse = Fuse(-1, False)
    run(Story(version, fuse).tell())
    return fuse.steps


@pytest.mark.parametrize("version", VERSIONS)
def test_the_story_is_long_enough_to_mean_something(version: str) -> None:
    assert steps(version) > 40


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("version", VERSIONS)
def test_killed_at_every_step(version: str, after: bool) -> None:
    total = steps(version)
    for step in range(1, total + 1):
        fuse = Fuse(step, after)
        run(Story(version, fuse).tell())
        # The story is over when all is well: the keeper may be in the middle of its last steps then.
        assert fuse.blown or step > total - 3, f"step {step} of {total} was never reached"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_effect_twice(version: str) -> None:
    run(Story(version, Fuse(-1, False), twice=True).tell())
