"""Who lives, of those that hold leases: each counts up its *beat* in the store, and everybody sees by a clock of its own for how
long one has not. So no clock is ever compared with another's, and none of them that can be set matters."""

from __future__ import annotations

from cachekeep.clock import Clock


class Beats:
    """What this process has seen of the holders' beats."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        """Holder → its beat, and since when that has been seen, in seconds of our moments."""

    def silent_seconds(self, holder: str, beat: int) -> float:
        """For how long a holder has not counted up, at least: from when this beat was first seen."""
        now = self._clock.moment().seconds
        known, since = self._seen.get(holder, (None, now))
        if known != beat:
            self._seen[holder] = (beat, now)
            return 0.0
        return now - since

    def keep(self, holders: set[str]) -> None:
        """Forget all but these."""
        for gone in self._seen.keys() - holders:
            del self._seen[gone]
