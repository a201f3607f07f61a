"""A control plane that was halted for longer than its lease: what it was about to do is not done when it goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachekeep.compute.contract import Key
from cachekeep.control import Hands, Keeper
from cachekeep.model import Cache, Effect, Stop
from cachekeep.sim.doors import SimDriver
from cachekeep.sim.run import UID, Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run

HALT_SECONDS = 9.0
"""Longer than the lease, and than it takes until another looks for it; shorter than an effect may take."""


class Watched(Hands):
    """Keeps which effects it carried out, of whose, and when; may have an ear at the beginning of one."""

    def __init__(self, story: Halted, **parts: Any) -> None:
        super().__init__(**parts)
        self._story, self._keeper = story, story.starting

    async def _carry(self, cache: Cache, effect: Effect) -> None:
        self._story.carried.append((self._keeper, asyncio.get_running_loop().time()))
        await self._story.before(self._keeper, effect)
        self._story.went_on.append((self._keeper, asyncio.get_running_loop().time()))
        await super()._carry(cache, effect)


class Halted(Run):
    """Two control planes and three nodes. The first is halted when it is about to act on the primary's death, or in the middle."""

    def __init__(self, *, midway: bool) -> None:
        super().__init__(Scenario(1, faults=False, moves=False, flaky=0.0, vocabulary=frozenset({"halt-keeper"})))
        assert self.scenario.lease_seconds < HALT_SECONDS
        self.midway, self.starting = midway, ""
        self.carried: list[tuple[str, float]] = []
        self.went_on: list[tuple[str, float]] = []
        self.halted_at, self.struck = 0.0, False

    def _hands(self, **parts: Any) -> Hands:
        return Watched(self, **parts)

    def _keeper(self, name: str) -> asyncio.Task[None]:
        self.starting = name
        return super()._keeper(name)

    async def before(self, keeper: str, effect: Effect) -> None:
        """The first one is halted in the middle of its first effect after the primary's death."""
        if self.struck and self.midway and keeper == "keeper0" and not self.halted_at:
            self.halted_at = asyncio.get_running_loop().time()
            self.hosts.halt("keeper0")
            await asyncio.sleep(0)

    async def two_keepers(self) -> None:
        """One has created the cache, another stands by."""
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper0")]
        await self._until(self._healthy, "creation")
        self.keepers.append(self._keeper("keeper1"))
        await asyncio.sleep(1.0)

    async def tell(self) -> None:
        await self.two_keepers()
        if not self.midway:
            self.halted_at = asyncio.get_running_loop().time()
            self.hosts.halt("keeper0")
        self.struck = True
        self.world.kill((UID, self._primary() or ""))
        await asyncio.sleep(HALT_SECONDS)
        self.hosts.go_on("keeper0")
        await self._until(self._healthy, "recovery")
        await asyncio.sleep(5.0)
        await self.hosts.kill()


@pytest.mark.parametrize("midway", [False, True], ids=["between effects", "in the middle of one"])
def test_who_was_halted_for_longer_than_its_lease_does_nothing_more(midway: bool) -> None:
    story = Halted(midway=midway)
    run(story.tell())
    heir = [at for keeper, at in story.carried if keeper == "keeper1"]
    assert heir, "the other has taken over"
    assert story.halted_at < heir[0] < story.halted_at + HALT_SECONDS
    late = [at for keeper, at in story.went_on if keeper == "keeper0" and at > story.halted_at]
    assert late == [], "it acts beside the one that has its lease by now"


def test_without_the_deadline_it_would_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "_may_act", lambda self: True)
    story = Halted(midway=True)
    run(story.tell())
    assert [keeper for keeper, at in story.went_on if keeper == "keeper0" and at > story.halted_at]


class HaltedInAStop(Halted):
    """The first is halted when it is about to stop a replica that a user has rebooted. The other one does that, and starts it."""

    def __init__(self) -> None:
        super().__init__(midway=True)
        self.left: dict[str, int] = {}
        self.found: dict[str, int] = {}

    async def before(self, keeper: str, effect: Effect) -> None:
        if isinstance(effect, Stop):
            await super().before(keeper, effect)

    def pids(self) -> dict[str, int]:
        return {name: engine.pid for (_, name), engine in self.world.processes.items() if engine.alive}

    async def tell(self) -> None:
        await self.two_keepers()
        self.struck, running = True, self.pids()
        await self._errand("reboot", "demo-003")
        await self._until(lambda: self.pids().get("demo-003", 0) > running["demo-003"], "restart")
        await self._until(self._healthy, "recovery")
        self.left = self.pids()
        self.hosts.go_on("keeper0")
        await asyncio.sleep(5.0)
        self.found = self.pids()
        await self.hosts.kill()


def test_a_late_stop_ends_no_process_that_was_started_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing at the keeper itself keeps it from going on."""
    monkeypatch.setattr(Keeper, "_may_act", lambda self: True)
    story = HaltedInAStop()
    run(story.tell())
    assert [keeper for keeper, at in story.went_on if keeper == "keeper0" and at > story.halted_at], "it has gone on"
    assert story.found == story.left


def test_without_an_order_of_decisions_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stop(self: SimDriver, key: Key, *, grace_seconds: float, decision: int | None = None) -> None:
        self._world.kill(key, by_order=True)

    monkeypatch.setattr(Keeper, "_may_act", lambda self: True)
    monkeypatch.setattr(SimDriver, "stop", stop)
    story = HaltedInAStop()
    run(story.tell())
    assert story.found != story.left
