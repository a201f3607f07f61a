"""The only door to time, ids and chance: everything above takes a ``Clock``, so a seeded world can own them all."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import secrets
import time
import uuid
from typing import Protocol


class Clock(Protocol):
    """Wall time (UTC), monotonic time, sleep, ids and chance."""

    def now(self) -> dt.datetime:
        """The wall-clock time, timezone-aware, UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""

    async def sleep(self, seconds: float) -> None:
        """Suspend the caller for ``seconds``."""

    def new_id(self) -> str:
        """A new UUID4 text."""

    def new_secret(self) -> str:
        """A new random password, URL-safe, 256 bits."""

    def chance(self) -> float:
        """A random number in [0, 1): jitter, never a decision that safety rests on."""


class SystemClock:
    """The real one."""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        return str(uuid.uuid4())

    def new_secret(self) -> str:
        return secrets.token_urlsafe(32)

    def chance(self) -> float:
        return random.random()
