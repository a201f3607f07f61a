"""A control plane that dies at every step of a snapshot: it is there in the end, once; and what is deleted with a last snapshot
goes after that, not before. A primary that is lost meanwhile is succeeded as if nothing else went on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import pytest
from msgspec.structs import replace
from tests.interrupt.fuse import Fuse, Interrupted, at_every_step

from cachekeep.model import Cache, Done, SnapshotEnd, Wanted
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID
from cachekeep.store.contract import Lease

SNAPSHOT = "5e7/nightly"
KEY = (UID, "errand-1")
Course = Literal["to its end", "deleted", "last", "primary lost"]


class Story(Interrupted):
    """A group of three of which a snapshot is taken."""

    def __init__(self, fuse: Fuse, course: Course, *, outlives: bool) -> None:
        super().__init__(Scenario(7, nodes=3, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.tasks_go_on, self.course = outlives, course
        self.burn(fuse, twice=False)

    async def _saved(self, saved: Cache, lease: Lease) -> None:
        await super()._saved(saved, lease)
        job = saved.decided.job(KEY[1])
        if (job is not None and isinstance(job.state, Done)) != bool(await self.ends()):
            self._broken(f"{job} and {await self.ends()} do not fit")

    async def ends(self) -> list[SnapshotEnd]:
        async with self.store.reading() as tx:
            return await tx.list(SnapshotEnd)

    async def tell(self) -> Run:
        await self.store.open()
        await self._create()
        guard = asyncio.get_running_loop().create_task(self._guard())

        def asked(wanted: Wanted) -> Wanted:
            wanted = wanted.asking("snapshot", snapshot=SNAPSHOT)
            return replace(wanted, deleted=True, last_snapshot=KEY[1]) if self.course == "last" else wanted

        await self._change(asked)
        await self.until(lambda: KEY in self.tasks.seen)
        if self.course == "deleted":
            await self._change(lambda wanted: replace(wanted, deleted=True))
        if self.course == "primary lost":
            assert self.cache is not None
            before = self.cache.decided.shards[0].primary
            self.world.kill((UID, before or ""))
            await self.until(lambda: self._primary() not in (None, before), seconds=30)  # less than a snapshot lasts
            assert KEY in self.tasks.seen
        if self.course in ("deleted", "last"):
            async with asyncio.timeout(900):
                while await self.store.load(UID) is not None:
                    await asyncio.sleep(0.05)
        else:
            await self.until(self._over)
        assert len(await self.ends()) == (0 if self.course == "deleted" else 1)
        assert KEY not in self.tasks.seen or self.course not in ("deleted", "last")
        guard.cancel()
        return self

    async def until(self, met: Callable[[], bool], *, seconds: float = 900) -> None:
        async with asyncio.timeout(seconds):
            while not met():
                if self.broken:
                    raise self.broken
                await asyncio.sleep(0.05)

    def _primary(self) -> str | None:
        return self.cache.decided.shards[0].primary if self.cache is not None else None

    def _over(self) -> bool:
        job = self.cache.decided.job(KEY[1]) if self.cache is not None else None
        return job is not None and isinstance(job.state, Done)


@pytest.mark.parametrize("course", ["to its end", "deleted", "last"])
@pytest.mark.parametrize("outlives", [False, True], ids=["dies too", "goes on"])
def test_killed_at_every_step(outlives: bool, course: Course) -> None:
    at_every_step(lambda fuse: Story(fuse, course, outlives=outlives).tell(), after=True, least=5)


def test_a_primary_that_is_lost_is_succeeded_meanwhile() -> None:
    run(Story(Fuse(-1, False), "primary lost", outlives=True).tell())
