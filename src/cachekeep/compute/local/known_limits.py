"""What processes are held to, as it was read last.

That is several small files of the kernel's for each process, and a look that follows a death is one that a failover waits for. So
a look takes what is known, and has it read again in a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key
from cachekeep.compute.local.limits import Limiter
from cachekeep.model import Limits, LimitsSeen

FRESH_SECONDS = 0.2
LATER_SECONDS = 0.1
"""So long after a look that found it older it is read again."""


class _Reading(NamedTuple):
    pid: int
    at: float
    seen: LimitsSeen


class KnownLimits:
    """Of all processes of one driver. Its methods are called in the event loop."""

    def __init__(self, limiter: Limiter, clock: Clock) -> None:
        self._limiter, self._clock = limiter, clock
        self._read: dict[Key, _Reading] = {}
        self._due: dict[Key, asyncio.TimerHandle] = {}

    def seen(self, key: Key, pid: int, groups: Sequence[str]) -> LimitsSeen:
        """What it is held to now, or was at the last look."""
        known = self._read.get(key)
        if known is None or known.pid != pid:
            return self._anew(key, pid, groups)
        if key not in self._due and self._clock.monotonic() - known.at > FRESH_SECONDS:
            self._due[key] = asyncio.get_running_loop().call_later(LATER_SECONDS, self._anew, key, pid, groups)
        return known.seen

    async def change(self, key: Key, pid: int, groups: Sequence[str], limits: Limits) -> tuple[str, ...]:
        """See ``Limiter.change``."""
        try:
            return await asyncio.to_thread(self._limiter.change, key, pid, groups, limits)
        finally:
            self.forget(key)

    def forget(self, key: Key) -> None:
        """It is another process, or is held to something else: it is read anew by the next look."""
        self._read.pop(key, None)
        if (due := self._due.pop(key, None)) is not None:
            due.cancel()

    def close(self) -> None:
        """Read nothing any more."""
        for key in [*self._read]:
            self.forget(key)

    def _anew(self, key: Key, pid: int, groups: Sequence[str]) -> LimitsSeen:
        self.forget(key)
        seen = self._limiter.seen(key, pid, groups)
        self._read[key] = _Reading(pid, self._clock.monotonic(), seen)
        return seen
