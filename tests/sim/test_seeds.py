"""Seeds: safety while faults last, liveness when they stop. ``make sim`` runs 20,000 of them; these are the first."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from cachekeep.sim.__main__ import scenario
from cachekeep.sim.faults import CLASSIC
from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import Scenario

SEEDS = int(os.environ.get("CACHEKEEP_SEEDS", "240"))
CHUNK = 20
FOUND = (4, 11, 44, 62, 163, 168, 209, 1014, 1080, 1105, 1117, 1886, 9662, 12287, 12586, 13054, 20003, 20018, 20189)
"""Seeds that broke a promise once, with the classic faults."""

FOUND_AMONG: tuple[tuple[int, set[str]], ...] = ((22, {"kill-primary", "pauses", "tear", "crowd"}),)
"""And with these faults alone."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(scenario(seed))


@pytest.mark.parametrize("first", range(0, SEEDS // 4, CHUNK))
def test_seeds_with_a_cluster_mode_that_changes(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(replace(scenario(seed), compatible=True))


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    simulate(replace(scenario(seed), vocabulary=CLASSIC))


@pytest.mark.parametrize(("seed", "words"), FOUND_AMONG)
def test_seeds_that_found_something_among_few_faults(seed: int, words: set[str]) -> None:
    simulate(Scenario(seed, vocabulary=frozenset(words)))


def test_a_seed_is_a_seed() -> None:
    """The same seed, the same story: or the number in a failure line would be worth nothing."""
    assert simulate(scenario(3)) == simulate(scenario(3))
