"""The guards of ``tests/plan/test_named_guards.py``: without any of them a seed breaks a promise of safety, after a healthy
creation."""

from __future__ import annotations

from typing import Any

import pytest
from tests.plan.test_named_guards import GUARDS

from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import SafetyViolation, Scenario

ALONE: dict[str, Any] = {"flaky": 0.0, "harm_seconds": 20.0, "two_keepers": False}
"""One keeper, whose orders all arrive, for long enough."""
TRIED = 60
NOTICED: dict[str, tuple[dict[str, Any], int]] = {
    "the user's consent to a loss is never used up": (
        {"harm_seconds": 25.0, "two_keepers": False, "vocabulary": frozenset({"stalls-unseen", "fatal-promotions", "accept-loss"})},
        26,
    ),
    "a taker out of sync is handed to": (ALONE | {"nodes": 2, "vocabulary": frozenset({"sever-replica", "tear"})}, 15),
    "one witness of several suffices": (ALONE | {"nodes": 4, "vocabulary": frozenset({"sever-some"})}, 0),
    "the link need not be up by the replica's word": (ALONE | {"moves": False, "vocabulary": frozenset({"tear", "kill"})}, 1),
    "a silent node stays in sync for ever": (ALONE | {"moves": False, "vocabulary": frozenset({"slow-replicas", "kill"})}, 10),
    "a silent node joins": (
        ALONE | {"moves": False, "harm_seconds": 30.0, "vocabulary": frozenset({"slow-sync", "slow-replicas", "kill"})},
        1,
    ),
    "a node that loads counts as alive": (
        ALONE | {"harm_seconds": 40.0, "vocabulary": frozenset({"crowd", "fatal-promotions"})},
        10,
    ),
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
"""What happens there, and a seed."""


@pytest.mark.parametrize("without", NOTICED, ids=lambda w: w.replace(" ", "-"))
def test_a_seed_notices(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one it is changes with everything that takes its time; the first that is known is tried first."""
    scenario, first = NOTICED[without]
    (guard,) = (g for g in GUARDS if g.without == without)
    for seed in range(first, first + TRIED):
        with monkeypatch.context() as patch:
            guard.take_away(patch)
            try:
                simulate(Scenario(seed, **scenario))
                continue
            except SafetyViolation as noticed:
                print(noticed)
        simulate(Scenario(seed, **scenario))
        return
    pytest.fail(f"{TRIED} seeds and none noticed")


def test_a_seed_is_known_for_each() -> None:
    assert set(NOTICED) == {g.without for g in GUARDS}
