"""What a seeded run is given, what it reports, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cachekeep.control.workers import LEASE_SECONDS
from cachekeep.sim.faults import CLASSIC

HARM_SECONDS = 12.0


class Violation(AssertionError):
    """A promise was broken: one of the three below."""


class SafetyViolation(Violation):
    """Something happened that must never happen, whatever goes wrong:
    two writers, a write lost without need, an order that went back."""


class LivenessViolation(Violation):
    """Faults have stopped, and what must happen did not."""


class CreationViolation(LivenessViolation):
    """Nothing had gone wrong yet, and the group did not come up, or broke a promise by that."""


@dataclass
class Scenario:
    """What a seed does."""

    seed: int
    nodes: int = 3
    engine: str = "valkey"
    faults: bool = True
    moves: bool = True
    two_keepers: bool = True
    flaky: float = 0.15
    automatic_failover: bool = True
    fence: Literal["confirm", "starve"] = "confirm"
    """``starve``: hosts that are cut cannot be told to stop anything, and have clients of their own."""
    compatible: bool = False
    """Cluster clients are served too, from the first moment of harm on."""
    vocabulary: frozenset[str] = CLASSIC
    """Names of the faults that may happen."""
    harm_seconds: float = HARM_SECONDS

    @property
    def lease_seconds(self) -> float:
        """Of the control planes: less than they are halted for, if they are."""
        return 3.0 if "halt-keeper" in self.vocabulary else LEASE_SECONDS

    def __str__(self) -> str:
        """What to run again."""
        more = ", ".join(sorted(self.vocabulary - CLASSIC))
        return f"seed {self.seed}" + (f" with {more}" if more else "")


@dataclass
class Report:
    """What came of it."""

    seed: int
    acknowledged: int = 0
    lost: int = 0
    failovers: int = 0
    log: list[str] = field(default_factory=list)
