"""What the answer to one request may cost: one short expression could otherwise take all memory."""

from __future__ import annotations

from typing import Final

from cachekeep.metrics.math.tree import Invalid

POINTS_MAX: Final = 5_000_000
"""Data points that are read and reckoned for one request. All of them at once take about 650 MB."""


class Budget:
    """How many data points may still be reckoned."""

    def __init__(self, points: int = POINTS_MAX) -> None:
        self._left = points

    def spend(self, points: int) -> None:
        """Before they are made, where they may be many. Raises Invalid."""
        self._left -= points
        if self._left < 0:
            raise Invalid(f"it takes more than {POINTS_MAX:,} data points: ask for less time, longer periods, or less at once")
