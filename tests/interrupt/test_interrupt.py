"""A control plane that dies at every step of a cache's life, and effects that are carried out twice: all the same in the end.

The story: a group of three is created, grown, resized, fails over, becomes compatible with cluster clients, is rebooted, is
compatible no more, shrinks and is deleted. It is told once to count its steps; then once for each step, with the control plane
killed just before it and just after it.
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.interrupt.fuse import Fuse, Interrupted, at_every_step

from cachekeep.model import Member, Wanted
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import NAME, UID


class Story(Interrupted):
    """The life of one group, told to keepers of which the first one dies."""

    def __init__(self, fuse: Fuse, *, twice: bool = False) -> None:
        super().__init__(Scenario(7, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.burn(fuse, twice=twice)

    async def tell(self) -> Run:
        await self.store.open()
        await self._create()
        guard = asyncio.get_running_loop().create_task(self._guard())
        writer = asyncio.get_running_loop().create_task(self._write())
        for chapter in (
            None,
            self._grow,
            self._bigger,
            self._fail_over,
            self._compatible,
            self._smaller,
            self._reboot,
            self._disabled,
            self._shrink,
        ):
            if chapter is not None:
                await self._change(chapter)
            await self._until(self._settled, str(chapter))
        if missing := set(self.acknowledged) - set(self.world.processes[UID, self._primary() or ""].writes):
            self._broken(f"{len(missing)} acknowledged writes were lost")
        writer.cancel()
        await self._change(lambda w: replace(w, deleted=True))
        await self._until(lambda: UID not in self.store_uids() and not self.world.processes, "deletion")
        guard.cancel()
        return self

    def store_uids(self) -> set[str]:
        return set(self.seen)

    async def _guard(self) -> None:
        """Starts a control plane, and another one when it is killed. Watches what is stored."""
        self.seen: set[str] = {UID}
        while True:
            self.keepers = [self._keeper("keeper")]
            while not self.fuse_blown():
                await asyncio.sleep(0.02)
                self.seen = {UID} if await self.store.load(UID) else set()
            self.keepers[0].cancel()
            await asyncio.gather(*self.keepers, return_exceptions=True)
            self.restarted = True

    def fuse_blown(self) -> bool:
        return self.fuse.blown and not getattr(self, "restarted", False)

    def _settled(self) -> bool:
        wanted_type = self.cache and self.cache.wanted.node_type
        return (
            self._healthy()
            and self.cache is not None
            and not self.cache.errands_left
            and all(j.ended for j in self.cache.decided.jobs)
            and all(n.node_type == wanted_type for n in self.cache.decided.nodes)
        )

    @staticmethod
    def _grow(w: Wanted) -> Wanted:
        return replace(w, shards=(replace(w.shards[0], members=(*w.shards[0].members, Member(name=f"{NAME}-004", zone="a"))),))

    @staticmethod
    def _bigger(w: Wanted) -> Wanted:
        return replace(w, node_type="cache.t3.small")

    @staticmethod
    def _smaller(w: Wanted) -> Wanted:
        """Back again: were a limit lowered before its engine may hold less, or raised after it may hold more, the
        engine would end."""
        return replace(w, node_type="cache.t3.micro")

    @staticmethod
    def _fail_over(w: Wanted) -> Wanted:
        return w.asking("test-failover", shard="0001")

    @staticmethod
    def _compatible(w: Wanted) -> Wanted:
        return replace(w, cluster_mode="compatible")

    @staticmethod
    def _disabled(w: Wanted) -> Wanted:
        return replace(w, cluster_mode="disabled")

    @staticmethod
    def _reboot(w: Wanted) -> Wanted:
        names = tuple(m.name for m in w.shards[0].members)
        return w.asking("reboot", nodes=names)

    @staticmethod
    def _shrink(w: Wanted) -> Wanted:
        return replace(w, shards=(replace(w.shards[0], members=w.shards[0].members[2:]),))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step(after: bool) -> None:
    at_every_step(lambda fuse: Story(fuse).tell(), after=after, least=40)


def test_every_effect_twice() -> None:
    run(Story(Fuse(-1, False), twice=True).tell())
