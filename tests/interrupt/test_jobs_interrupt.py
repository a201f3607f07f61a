"""A control plane that dies at every step of a job that lasts for minutes, fails once, and is tried again, or ends with its cache.
It is done once in the end, and what it leaves is there with the decision that it is done, or not at all.
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.interrupt.fuse import Fuse, Interrupted, at_every_step

from cachekeep.model import Cache, Done, Tags
from cachekeep.plan import planner
from cachekeep.sim.jobs import REHEARSAL_ID, rehearse
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID
from cachekeep.store.contract import Lease

KEY = (UID, REHEARSAL_ID)


class Story(Interrupted):
    """A group of two that rehearses; ``deleted``: it is deleted when that has just begun."""

    def __init__(self, fuse: Fuse, *, outlives: bool, deleted: bool, twice: bool = False) -> None:
        super().__init__(Scenario(7, nodes=2, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.tasks_go_on, self.deleted = outlives, deleted
        self.burn(fuse, twice=twice)

    async def _saved(self, saved: Cache, lease: Lease) -> None:
        await super()._saved(saved, lease)
        job = saved.decided.job(REHEARSAL_ID)
        if (job is not None and isinstance(job.state, Done)) != bool(await self.left()):
            self._broken(f"{job} and {await self.left()} do not fit")

    async def left(self) -> list[Tags]:
        async with self.store.reading() as tx:
            return await tx.list(Tags)

    async def tell(self) -> Run:
        await self.store.open()
        await self._create()
        guard = asyncio.get_running_loop().create_task(self._guard())
        if self.deleted:
            await self.until(lambda: KEY in self.tasks.seen)
            await self._change(lambda wanted: replace(wanted, deleted=True))
            async with asyncio.timeout(120):
                while await self.store.load(UID) is not None:
                    await asyncio.sleep(0.05)
            assert KEY not in self.tasks.seen
            assert await self.left() == []
        else:
            await self.until(lambda: self._over() and KEY not in self.tasks.seen)
            assert len(await self.left()) == 1
        begun = [attempt for _, attempt in self.tasks.begun]
        assert begun == sorted(set(begun)) or self.fuse.blown, "no attempt is begun twice where nobody dies"
        guard.cancel()
        return self

    async def until(self, met):  # type: ignore[no-untyped-def]
        async with asyncio.timeout(900):
            while not met():
                if self.broken:
                    raise self.broken
                await asyncio.sleep(0.05)

    def _over(self) -> bool:
        job = self.cache.decided.job(REHEARSAL_ID) if self.cache is not None else None
        return job is not None and isinstance(job.state, Done)


@pytest.fixture(autouse=True)
def rehearsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "RULES", (*planner.RULES, planner.Row(rehearse, "all", "after the others")))


@pytest.mark.parametrize("deleted", [False, True], ids=["to its end", "deleted"])
@pytest.mark.parametrize("outlives", [False, True], ids=["dies too", "goes on"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step(after: bool, outlives: bool, deleted: bool) -> None:
    at_every_step(lambda fuse: Story(fuse, outlives=outlives, deleted=deleted).tell(), after=after, least=10)


def test_every_effect_twice() -> None:
    story = Story(Fuse(-1, False), outlives=False, deleted=False, twice=True)
    run(story.tell())
    assert [attempt for _, attempt in story.tasks.begun] == [1, 2]
