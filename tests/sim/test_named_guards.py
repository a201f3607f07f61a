"""The guards of ``tests/plan/test_named_guards.py``: without one, a seed breaks a promise of safety, after a healthy creation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.plan.test_named_guards import GUARDS

from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import SafetyViolation, Scenario

NOTICED: dict[str, tuple[dict[str, Any], int]] = {
    "the lead returns to a node out of sync": (
        {"automatic_failover": False, "vocabulary": frozenset({"kill-primary", "tear", "pauses"})},
        0,
    ),
    "frozen replicas are stopped although nobody leads": ({"vocabulary": frozenset({"stalls", "freeze", "kill-primary"})}, 3),
    "in-sync replicas that do not answer yet are not waited for": (
        {"vocabulary": frozenset({"kill-primary", "pauses", "slow-command", "crowd"})},
        4,
    ),
    "an empty primary does not wait for silent nodes": (
        {"nodes": 2, "flaky": 0.0, "vocabulary": frozenset({"kill-primary", "slow-command", "tear", "reboot-all"})},
        21,
    ),
    "the next node restarts while the last is not back": ({"vocabulary": frozenset({"reboot-all", "slow-sync"})}, 0),
    "the next node restarts while the last is being stopped": ({"vocabulary": frozenset({"reboot-all", "stuck"})}, 3),
}
"""What happens there, and the seed."""


@pytest.mark.parametrize("without", NOTICED, ids=lambda w: w.replace(" ", "-"))
def test_a_seed_notices(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, seed = NOTICED[without]
    simulate(Scenario(seed, **scenario))
    (guard,) = (g for g in GUARDS if g.without == without)
    guard.take_away(monkeypatch)
    with pytest.raises(SafetyViolation):
        simulate(Scenario(seed, **scenario))


def test_the_page_says_how_many() -> None:
    """And of how many no seed is known."""
    words = (
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
    )
    page = " ".join((Path(__file__).parents[2] / "docs" / "mutations.md").read_text().split())
    assert f"lists {words[len(GUARDS)]} guards that nothing noticed" in page
    assert f"keep it with the guard: {words[len(NOTICED)]} of them" in page
    assert f"for the other {words[len(GUARDS) - len(NOTICED)]}:" in page
