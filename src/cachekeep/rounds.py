"""What workers do: the same thing again and again, whatever passes by itself."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError


async def rounds(clock: Clock, seconds: float, work: Callable[[], Awaitable[object]], log: logging.Logger, failing: str) -> None:
    """Do the work, and again ``seconds`` after its end, until cancelled. A round that fails is told of: ``failing``, and why."""
    while True:
        try:
            await work()
        except CachekeepError as error:
            log.warning("%s: %s", failing, error)
        await clock.sleep(seconds)
