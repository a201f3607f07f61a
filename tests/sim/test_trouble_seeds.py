"""One node or front gives trouble, and goes on giving it: the others live on. Take a guard away and a seed must notice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from cachekeep.control.keeper import Keeper
from cachekeep.model import Effect, collides
from cachekeep.plan import flights, planner, status
from cachekeep.plan.nodes import announce
from cachekeep.plan.situation import Situation
from cachekeep.sim.scenario import LivenessViolation
from cachekeep.sim.trouble_run import TROUBLES, Trouble, simulate_trouble, trouble_scenario

SEEDS = int(os.environ.get("CACHEKEEP_SEEDS", "240")) // 40
TRIED = 30


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda t: t.name)
def test_seeds(trouble: Trouble) -> None:
    for seed in range(SEEDS):
        simulate_trouble(trouble_scenario(seed), trouble)


Break = Callable[[pytest.MonkeyPatch], None]


def _to_the_end(patch: pytest.MonkeyPatch) -> None:
    """A pass waits for what it has begun, however long that takes."""

    async def usually(self: Keeper, acting: asyncio.Task[None], kept: Any) -> None:
        await acting

    patch.setattr(Keeper, "_usually", usually)


def _once_more(patch: pytest.MonkeyPatch) -> None:
    """What is in flight is ordered again."""
    rests = lambda s, e: any(f.again_seconds > 0 for f in s.view.failures if f.effect == e)  # noqa: E731
    patch.setattr(flights, "_held", rests)


def _one_for_all(patch: pytest.MonkeyPatch) -> None:
    """What waits for one node keeps every node waiting."""

    def held(s: Situation, effect: Effect) -> bool:
        return bool(s.view.flights) or any(f.again_seconds > 0 for f in s.view.failures)

    patch.setattr(flights, "_held", held)


def _settings_first(patch: pytest.MonkeyPatch) -> None:
    """Orders of the lead wait until the node has its settings."""

    def held(s: Situation, effect: Effect) -> bool:
        same = any(set(flights.subjects(effect)) & set(flights.subjects(f.effect)) for f in s.view.flights)
        return same or any(collides(effect, f.effect) for f in s.view.flights)

    patch.setattr(flights, "_held", held)


def _no_event(patch: pytest.MonkeyPatch) -> None:
    """Nobody is told."""
    patch.setattr(planner, "RULES", tuple(r for r in planner.RULES if r.rule is not announce.troubles))


def _the_last_step_only(patch: pytest.MonkeyPatch) -> None:
    """The status says what is being done, not what cannot be."""
    patch.setattr(status, "lasting", lambda s: [])


BREAKS: tuple[tuple[Break, str], ...] = (
    (_to_the_end, "starts-for-ever"),
    (_once_more, "starts-for-ever"),
    (_one_for_all, "cannot-start"),
    (_settings_first, "cannot-be-configured"),
    (_no_event, "cannot-start"),
    (_the_last_step_only, "cannot-start"),
)


@pytest.mark.parametrize(("remove", "name"), BREAKS, ids=[b.__name__.strip("_") for b, _ in BREAKS])
def test_a_missing_guard_is_noticed(remove: Break, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(monkeypatch)
    trouble = next(t for t in TROUBLES if t.name == name)
    for seed in range(TRIED):
        try:
            simulate_trouble(trouble_scenario(seed), trouble)
        except LivenessViolation:
            return
    pytest.fail(f"{TRIED} seeds and none noticed")
