"""Jobs that last for minutes, kept by a real keeper in the simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from cachekeep.model import Done, Job, Resting, Running, Tags, Working
from cachekeep.plan import planner
from cachekeep.sim import jobs as simulated
from cachekeep.sim.jobs import REHEARSAL_ID, rehearse
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID

KEY = (UID, REHEARSAL_ID)


@pytest.fixture(autouse=True)
def rehearsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "RULES", (*planner.RULES, planner.Row(rehearse, "all", "after the others")))


class Rehearsal(Run):
    """A group that is kept, and rehearses."""

    def __init__(self, *, outlives: bool = False) -> None:
        super().__init__(Scenario(5, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.tasks_go_on = outlives

    async def begin(self) -> None:
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper")]
        await self._until(lambda: isinstance(self.tasks.seen.get(KEY), Working), "the rehearsal goes on")

    async def until(self, met: Callable[[], bool], seconds: float = 400.0) -> None:
        async with asyncio.timeout(seconds):
            while not met():
                assert self.broken is None
                await asyncio.sleep(0.05)

    @property
    def job(self) -> Job:
        assert self.cache is not None
        found = self.cache.decided.job(REHEARSAL_ID)
        assert found is not None
        return found

    async def left(self) -> list[str]:
        async with self.store.reading() as tx:
            return [r.values["attempt"] for r in await tx.list(Tags)]

    async def die(self) -> None:
        self.keepers[0].cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        self.keepers = [self._keeper("keeper")]


def test_it_fails_is_tried_again_and_leaves_its_record() -> None:
    async def story(told: Rehearsal) -> None:
        await told.begin()
        await told.until(lambda: isinstance(told.job.state, Resting), 120)
        assert await told.left() == []
        await told.until(lambda: isinstance(told.job.state, Done), 120)
        assert await told.left() == ["2"]
        await told.until(lambda: KEY not in told.tasks.seen)
        assert [attempt for _, attempt in told.tasks.begun] == [1, 2]

    run(story(Rehearsal()))


def test_a_failover_does_not_wait_for_it() -> None:
    async def story(told: Rehearsal) -> None:
        await told.begin()
        assert told.cache is not None
        before = told._primary()
        killed_at = asyncio.get_running_loop().time()
        told.world.kill((UID, before or ""))
        await told.until(lambda: told._primary() != before)
        assert asyncio.get_running_loop().time() - killed_at < 1.0
        assert isinstance(told.tasks.seen[KEY], Working)
        await told.until(told._healthy, 30)
        assert isinstance(told.job.state, Running)

    run(story(Rehearsal()))


@pytest.mark.parametrize("outlives", [False, True])
def test_the_next_control_plane_finds_it_or_begins_it_anew(outlives: bool) -> None:
    async def story(told: Rehearsal) -> None:
        await told.begin()
        await told.until(lambda: isinstance(told.job.state, Running))
        await asyncio.sleep(30)
        await told.die()
        await told.until(lambda: isinstance(told.job.state, Done), 400)
        attempts = [attempt for _, attempt in told.tasks.begun]
        assert attempts == [1, 2], "the first fails, or is lost, and never is one begun twice"
        assert await told.left() == ["2"]

    run(story(Rehearsal(outlives=outlives)))


def test_it_ends_with_its_cache() -> None:
    async def story(told: Rehearsal) -> None:
        await told.begin()
        await told._change(lambda wanted: replace(wanted, deleted=True))
        gone: list[bool] = []

        async def watch() -> None:
            while await told.store.load(UID) is not None:
                await asyncio.sleep(0.1)
            gone.append(KEY in told.tasks.seen)

        async with asyncio.timeout(60):
            await watch()
        assert gone == [False]
        assert told.tasks.cancelled == {KEY: 1}
        assert await told.left() == []

    run(story(Rehearsal(outlives=True)))


def test_what_nobody_can_say_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door does not answer for a minute: it goes on all the while, and its end is seen."""
    away = [False]
    look = simulated.SimJobs.look

    async def mute(self: simulated.SimJobs, keys: list[tuple[str, str]]) -> dict[tuple[str, str], object]:
        if away[0]:
            await asyncio.Event().wait()
        return dict(await look(self, keys))

    monkeypatch.setattr(simulated.SimJobs, "look", mute)

    async def story(told: Rehearsal) -> None:
        await told.begin()
        await told.until(lambda: isinstance(told.job.state, Running))
        away[0] = True
        await asyncio.sleep(60)
        assert isinstance(told.job.state, Running)
        away[0] = False
        await told.until(lambda: isinstance(told.job.state, Done), 400)
        assert [attempt for _, attempt in told.tasks.begun] == [1, 2]

    run(story(Rehearsal()))
