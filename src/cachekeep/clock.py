"""The only door to time, ids and chance: everything above takes a ``Clock``, so a seeded world can own them all."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import os
import random
import secrets
import time
import uuid
from pathlib import Path
from typing import Protocol

from cachekeep.model import Moment


class Clock(Protocol):
    """Wall time (UTC), moments, monotonic time, sleep, ids and chance."""

    def now(self) -> dt.datetime:
        """The wall-clock time, timezone-aware, UTC. It may be set at any time:
        for what users see and ask for, never for durations."""

    def moment(self) -> Moment:
        """For durations that outlive this process, or that go on while it, or its host, is halted."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences within this process mean anything. It may stand still while the
        host is suspended, as deadlines of the event loop do."""

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

    def moment(self) -> Moment:
        # Not CLOCK_MONOTONIC: it stands still while the host is suspended, and neither a database elsewhere nor the wall clock, by
        # which engines count, waits for that (clock_gettime(2)).
        return Moment(_running_clock(), time.clock_gettime(time.CLOCK_BOOTTIME))

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


@functools.cache
def boot_id() -> str:
    """Of the running kernel (proc(5)). Raises ``OSError`` where there is no /proc."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@functools.cache
def _running_clock() -> str:
    """A time namespace shifts the clock, so two of them do not compare (time_namespaces(7))."""
    with contextlib.suppress(OSError):  # kernels before 5.6
        return f"{boot_id()} {os.readlink('/proc/self/ns/time')}"
    return boot_id()
