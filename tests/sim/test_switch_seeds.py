"""Seeds of the switch to cluster mode enabled: no acknowledged write is lost,
nobody leads who took part of it for another database."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachekeep.model import Moment, Node, Shard
from cachekeep.plan import planner, situation
from cachekeep.plan.change import switch
from cachekeep.plan.situation import Situation
from cachekeep.sim.cluster_doors import SimClusteredLink
from cachekeep.sim.faults import CLASSIC
from cachekeep.sim.scenario import LivenessViolation, Violation
from cachekeep.sim.switch_run import SwitchScenario, simulate_switch, switch_scenario

SEEDS = int(os.environ.get("CACHEKEEP_SWITCH_SEEDS", "60"))
CHUNK = 20
FOUND = (63, 182, 599, 1102, 1584, 1697, 2451, 2531, 2817)
"""Seeds that broke a promise once, with the classic faults."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate_switch(switch_scenario(seed))


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    simulate_switch(replace(switch_scenario(seed), vocabulary=CLASSIC))


def test_a_seed_is_a_seed() -> None:
    """The same seed, the same story: or the number in a failure line would be worth nothing."""
    assert simulate_switch(switch_scenario(3)) == simulate_switch(switch_scenario(3))


def _whatever_was_refused(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether a successor has refused part of what it was fed."""
    patch.setattr(Situation, "refused", lambda self, node: False)
    patch.setattr(SimClusteredLink, "_has_refused", lambda self, takes: 0)


def _before_all_is_fed(patch: pytest.MonkeyPatch) -> None:
    """The lead is given away, not handed over: who answers takes it."""

    async def convert(self, giver, taker, *, order, giver_addresses, timeout_seconds):  # type: ignore[no-untyped-def]
        engine, takes = self._engine(giver), self.reached(taker)
        self.let_pass(order, giver)
        self.let_pass(order, taker)
        if engine is not None:
            engine.role, engine.follows = "replica", "nobody"
        self._take_all(takes)

    patch.setattr(SimClusteredLink, "convert", convert)


def _nobody_inherits(patch: pytest.MonkeyPatch) -> None:
    """A primary that is lost with all its replicas comes back, empty, whatever its successors hold."""
    patch.setattr(Situation, "heirs", lambda self, shard: [])


def _anybody_inherits(patch: pytest.MonkeyPatch) -> None:
    """Whoever runs in cluster mode takes over, fed or not, and before any replica does."""

    def heirs(self: Situation, shard: Shard) -> list[Node]:
        primary = self.primary(shard)
        lost = primary is not None and self.lost(primary)
        return [n for n in self.decided.successors if self.runs(n)] if lost else []

    patch.setattr(Situation, "heirs", heirs)


def _old_nodes_stay(patch: pytest.MonkeyPatch) -> None:
    """Those whose place was taken are not stopped."""
    patch.setattr(planner, "RULES", tuple(r for r in planner.RULES if r.rule is not switch.retire))


def test_without_a_boot_in_its_moments_what_was_begun_before_it_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of another boot are taken for ours: the clock begins anew, and so it takes as long as the host was up before."""

    def whichever_boot(since: Moment | None, now: Moment) -> float | None:
        return None if since is None else max(0.0, now.seconds - since.seconds)

    boots = frozenset({"boot"})
    booted = [SwitchScenario(n, moves=False, two_keepers=False, flaky=0.8, vocabulary=boots) for n in range(22, 52)]
    simulate_switch(booted[0])
    monkeypatch.setattr(situation, "elapsed", whichever_boot)
    with pytest.raises(LivenessViolation):
        for scenario in booted:  # the host has to go down while something is counted: not every seed has that
            simulate_switch(scenario)


@pytest.mark.parametrize(
    ("harm", "first", "changes"),
    [
        (_whatever_was_refused, 0, {}),
        (_before_all_is_fed, 20, {}),
        (_nobody_inherits, 31, {"vocabulary": CLASSIC}),
        (_anybody_inherits, 14, {}),
        (_old_nodes_stay, 0, {}),
    ],
)
def test_without_a_guard_some_seed_notices(
    harm: Callable[[pytest.MonkeyPatch], None], first: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``first`` is the first seed that is worth trying. That a successor which leads is not enough is tried in ``tests/plan``."""
    harm(monkeypatch)
    with pytest.raises(Violation):
        for seed in range(first, first + 150):
            simulate_switch(replace(switch_scenario(seed), **changes))
