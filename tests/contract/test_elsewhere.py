"""A second driver needs no change above ``compute``: the keeper brings a cache up with it, and has it survive its primary."""

from __future__ import annotations

import asyncio
import configparser
from pathlib import Path

from tests.contract.elsewhere import ElsewhereDriver, ElsewhereLink, Platform, Registry

from cachekeep.sim.run import UID, Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run

ROOMS_OF_DRIVERS = {"cachekeep.compute.local", "cachekeep.compute.link", "cachekeep.compute.lines", "cachekeep.compute.line"}


class Story(Run):
    """A group of three, elsewhere."""

    def __init__(self) -> None:
        super().__init__(Scenario(3, nodes=3, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.places = Registry()

    def _world(self, seed: int) -> Platform:
        self.platform = Platform(seed)
        return self.platform

    def _doors(self, keeper: str) -> tuple[ElsewhereDriver, ElsewhereLink]:
        return ElsewhereDriver(self.platform), ElsewhereLink(self.platform, keeper)

    async def go(self) -> None:
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper")]
        try:
            await self._until(self._healthy, "creation")
            assert self.cache is not None
            decided = self.cache.decided
            assert all(n.address.endswith(".elsewhere") for n in decided.nodes)
            lost, endpoint = decided.shards[0].primary, decided.shards[0].primary_address
            assert endpoint is not None
            assert self.platform.slices[endpoint] == (UID, lost)
            self.world.kill((UID, lost or ""))
            await self._until(lambda: self.led() != lost and self._healthy(), "failover, and a new replica")
            assert self.platform.slices[endpoint] == (UID, self.led())
        finally:
            for task in (*self.keepers, *self.world.tasks):
                task.cancel()
            await asyncio.gather(*self.keepers, return_exceptions=True)

    def led(self) -> str | None:
        return self.cache.decided.shards[0].primary if self.cache else None


def test_a_keeper_brings_a_cache_up_elsewhere_and_has_it_survive_its_primary() -> None:
    run(Story().go())


def test_nobody_above_compute_may_know_which_driver_there_is() -> None:
    """What the linter holds everybody to."""
    rules = configparser.ConfigParser()
    rules.read(Path(__file__).parents[2] / ".importlinter")
    rule = rules["importlinter:contract:driver"]
    assert set(rule["forbidden_modules"].split()) >= ROOMS_OF_DRIVERS
    above = {"control", "network", "plan", "services", "sim", "store", "web", "wire"}
    assert {f"cachekeep.{room}" for room in above} <= set(rule["source_modules"].split())
