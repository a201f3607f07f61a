"""Which keys are worth a place in memory: W-TinyLFU (Einziger, Friedman, Manes: TinyLFU, ACM Transactions on Storage, 2017).

New keys come into a small window. From there they go on to probation, where whoever is asked for more often stays, by a sketch of
the recent past. What is asked for again on probation is protected. So a scan, of keys that are asked for once, pushes out nothing
that is hot.
"""

from __future__ import annotations

_MOST = 15  # a counter in the sketch
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


class TinyLfu:
    """For at most ``max_entries``. Not for several threads at once."""

    def __init__(self, max_entries: int) -> None:
        self._window_most = max(1, max_entries // 100)
        self._protected_most = max(1, (max_entries - self._window_most) * 4 // 5)
        self._mask = (1 << max(6, max_entries.bit_length())) - 1
        self._rows = [bytearray(self._mask + 1) for _ in _ODD]
        self._sample = 10 * max(64, max_entries)
        self.clear()

    def clear(self) -> None:
        """Forget the keys; how often they were asked for is still known."""
        self._window: dict[str, None] = {}
        self._probation: dict[str, None] = {}
        self._protected: dict[str, None] = {}
        self._counted = 0

    def add(self, key: str) -> None:
        self._count(key)
        self._window[key] = None
        if len(self._window) > self._window_most:
            eldest = next(iter(self._window))
            del self._window[eldest]
            self._probation[eldest] = None

    def touch(self, key: str) -> None:
        """It was asked for, and is here or not."""
        self._count(key)
        for place in (self._window, self._protected):
            if key in place:
                del place[key]
                place[key] = None
                return
        if key in self._probation:
            del self._probation[key]
            self._protected[key] = None
            if len(self._protected) > self._protected_most:
                eldest = next(iter(self._protected))
                del self._protected[eldest]
                self._probation[eldest] = None

    def remove(self, key: str) -> None:
        for place in (self._window, self._probation, self._protected):
            place.pop(key, None)

    def victim(self) -> str:
        """Who has to go: of the eldest and the newest on probation the one that is asked for less."""
        if self._probation:
            eldest, newest = next(iter(self._probation)), next(reversed(self._probation))
            return newest if self._often(newest) <= self._often(eldest) else eldest
        return next(iter(self._protected or self._window))

    def _count(self, key: str) -> None:
        at = hash(key)
        for row, odd in zip(self._rows, _ODD, strict=True):
            place = (at * odd >> 20) & self._mask
            if row[place] < _MOST:
                row[place] += 1
        self._counted += 1
        if self._counted >= self._sample:  # the past counts for half, again and again
            self._counted //= 2
            self._rows = [bytearray(count >> 1 for count in row) for row in self._rows]

    def _often(self, key: str) -> int:
        at = hash(key)
        return min(row[(at * odd >> 20) & self._mask] for row, odd in zip(self._rows, _ODD, strict=True))
