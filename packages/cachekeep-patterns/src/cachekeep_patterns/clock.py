"""The server's clock, kept here. Lifetimes are judged by it: hosts whose own clocks differ agree on what is fresh.

Asked for now and then, and carried on by this machine's monotonic clock in between, which nobody sets.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

_EVERY_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
_SLOW_SECONDS = 0.25  # an answer that took longer may be wrong by half of that


class ServerClock:
    """``due`` (monotonic): until then the offset is good. Before the first answer this host's own clock stands in."""

    __slots__ = ("_known", "due", "offset")

    def __init__(self) -> None:
        self.offset = time.time() - time.monotonic()
        self.due = 0.0
        self._known = False

    def now(self) -> float:
        """Seconds since 1970, as the server has it."""
        return time.monotonic() + self.offset

    def doubt(self) -> None:
        """Another server may answer from now on."""
        self.due = 0.0

    async def keep(self, ask: Callable[[], Awaitable[tuple[float, float] | None]]) -> None:
        """Ask if it is time to. ``ask`` answers (seconds since 1970, by how many they may be wrong), or None if it cannot tell."""
        began = time.monotonic()
        if began < self.due:
            return
        self.due = began + _AGAIN_SECONDS  # the others need not ask meanwhile
        answer = await ask()
        ended = time.monotonic()
        if answer is not None and (ended - began <= _SLOW_SECONDS or not self._known):
            seconds, doubt = answer
            offset = seconds - (began + ended) / 2
            if abs(offset - self.offset) > doubt:
                self.offset = offset
            self._known = True
            self.due = ended + _EVERY_SECONDS
        elif answer is None:
            self.due = ended + _EVERY_SECONDS
