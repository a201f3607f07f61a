"""Seeds in cluster mode: each slot has one writer, no acknowledged key is lost, and everything converges when faults stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cachekeep.model import ClusterSeen
from cachekeep.plan.lead import elect
from cachekeep.plan.nodes import cluster
from cachekeep.plan.situation import Situation
from cachekeep.plan.slots import reshard
from cachekeep.plan.slots.ranges import SlotMigration
from cachekeep.sim.cluster_doors import SimClusterOrders
from cachekeep.sim.cluster_run import cluster_scenario, simulate_cluster
from cachekeep.sim.faults import CLASSIC
from cachekeep.sim.scenario import HARM_SECONDS, SafetyViolation

SEEDS = int(os.environ.get("CACHEKEEP_CLUSTER_SEEDS", "24"))
CHUNK = 12
FOUND = (41, 49, 77, 113, 138, 173, 209, 221, 256, 283, 326, 342, 676, 695, 781, 917, 972, 995, 1119, 1166, 1257, 1309, 1427, 1663)
"""Seeds that broke a promise once, with the classic faults."""
RESHARDED: dict[str, Any] = {
    "faults": False,
    "nodes": 3,
    "shards": 2,
    "flaky": 0.0,
    "harm_seconds": 20.0,
    "vocabulary": frozenset(),
}
"""Users alone, for long, in a group with replicas."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate_cluster(cluster_scenario(seed))


def test_halts_boots_and_clocks() -> None:
    """Of both control planes and of engines, in each of these seeds; others have them by chance."""
    for seed in (1, 2, 3, 5):
        scenario = replace(cluster_scenario(seed), vocabulary=CLASSIC | {"halt-keeper", "boot", "set-clock"}, two_keepers=True)
        assert simulate_cluster(scenario).acknowledged


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    simulate_cluster(replace(cluster_scenario(seed), vocabulary=CLASSIC))


@pytest.mark.parametrize("seed", [37, 60])
def test_shards_that_come_and_go_lose_nothing(seed: int) -> None:
    """These lost what two moves in opposite directions had in their hands."""
    simulate_cluster(replace(cluster_scenario(seed), **RESHARDED))


def test_a_seed_is_a_seed() -> None:
    """The same seed, the same story: or the number in a failure line would be worth nothing."""
    assert simulate_cluster(cluster_scenario(5)) == simulate_cluster(cluster_scenario(5))


def _close_what_is_half_open(patch: pytest.MonkeyPatch) -> None:
    """Slots that were half open towards a primary of before are closed, not finished."""

    def closed(s: Situation, now: dict[str, ClusterSeen]) -> tuple[list[SlotMigration], dict[str, list[int]]]:
        stray = {s.cache.shard(id).primary: [*v.migrating, *v.importing] for id, v in now.items()}  # type: ignore[union-attr]
        return [], {name: slots for name, slots in stray.items() if name and slots}

    patch.setattr(reshard, "_open", closed)


def _nominate_anybody(patch: pytest.MonkeyPatch) -> None:
    """Whoever answers stands for election, in sync or not."""

    def succeed(s, shard, lost, appoint):  # type: ignore[no-untyped-def]
        alive = [n for n in s.replicas(shard) if s.alive(n)]
        return appoint(s, shard, lost, alive[0], "the first that answers") if alive else None

    patch.setattr(elect.promote, "succeed", succeed)


def _hand_over_what_the_taker_believes(patch: pytest.MonkeyPatch) -> None:
    """Whether the taker has heard of all that the giver owns, and of all that it gave away, is not asked."""
    patch.setattr(SimClusterOrders, "_agreed", lambda self, gives, takes: True)


def _send_emptied_shards_away_at_once(patch: pytest.MonkeyPatch) -> None:
    """Who has not heard yet where the slots are meets a closed door."""
    patch.setattr(cluster, "lingering_seconds", lambda s: 0.0)


DEAF = RESHARDED | {"harm_seconds": HARM_SECONDS, "vocabulary": frozenset({"deaf"})}
BREAKS: tuple[tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any], Sequence[int]], ...] = (
    (_close_what_is_half_open, {}, (*FOUND, *range(60))),
    (_nominate_anybody, {}, (*FOUND, *range(60))),
    (_hand_over_what_the_taker_believes, DEAF, range(37, 97)),
    (_send_emptied_shards_away_at_once, RESHARDED, range(37, 43)),
)
"""Where a guard is missed, and the seeds to try, from the first that is worth it."""


@pytest.mark.parametrize(("harm", "scenario", "seeds"), BREAKS, ids=[b.__name__.strip("_") for b, *_ in BREAKS])
def test_without_a_guard_some_seed_notices(
    harm: Callable[[pytest.MonkeyPatch], None], scenario: dict[str, Any], seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(monkeypatch)
    with pytest.raises(SafetyViolation):
        for seed in seeds:
            simulate_cluster(replace(cluster_scenario(seed), **scenario))
