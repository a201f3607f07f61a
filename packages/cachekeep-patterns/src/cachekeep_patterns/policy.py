"""How long things are kept and how hard we try. Values only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Per function or per call. All times in seconds.

    ``fresh_seconds``    served without a question
    ``stale_seconds``    after that, still served while one caller reloads in the background (0: callers wait)
    ``missing_seconds``  how long a loader's ``None`` is remembered (0: not at all; None: like any value)
    ``jitter``           each lifetime is shortened by a random share up to this, so that keys filled together expire apart
    ``early_beta``       0 turns early refresh off; 1 is the published default of XFetch; more is earlier
    ``lease_seconds``    how long a dead loader blocks the others. A live one renews, so it may be much slower than this
    ``wait_seconds``     patience while another caller loads; None waits as long as that caller is alive
    ``max_bytes``        larger encoded values are served but not stored
    ``lifetime``         a function of the loaded value that answers for how many seconds it is fresh: 0 does not store it, None
                         leaves it to the fields above
    """

    fresh_seconds: float = 300.0
    stale_seconds: float = 0.0
    missing_seconds: float | None = None
    jitter: float = 0.1
    early_beta: float = 0.0
    lease_seconds: float = 5.0
    wait_seconds: float | None = None
    max_bytes: int = 1_000_000
    lifetime: Callable[[Any], float | None] | None = None

    def __post_init__(self) -> None:
        if not (self.fresh_seconds > 0 and self.lease_seconds > 0 and self.max_bytes > 0):
            raise ValueError("fresh_seconds, lease_seconds and max_bytes must be above 0")
        if self.wait_seconds is not None and not self.wait_seconds >= 0:
            raise ValueError("wait_seconds must not be negative")
        if not 0 <= self.jitter < 1:
            raise ValueError("jitter must be in [0, 1)")
        if self.stale_seconds < 0 or self.early_beta < 0 or (self.missing_seconds or 0) < 0:
            raise ValueError("stale_seconds, missing_seconds and early_beta must not be negative")

    def lifetime_seconds(self, value: Any) -> float:
        """A lifetime drawn for one fill; 0 means do not keep it."""
        whole = self.lifetime(value) if self.lifetime is not None else None
        if whole is None:
            whole = self.missing_seconds if value is None and self.missing_seconds is not None else self.fresh_seconds
        return whole * (1.0 - self.jitter * random.random())


class Breaker:
    """Stops asking a cache that does not answer. Opens after ``failures`` in a row;
    one question is let through every ``rest_seconds``."""

    __slots__ = ("_failed", "_open_until", "closed", "failures", "rest_seconds")

    def __init__(self, failures: int = 3, rest_seconds: float = 1.0) -> None:
        self.failures = failures
        self.rest_seconds = rest_seconds
        self._failed = 0
        self._open_until = 0.0
        self.closed = True  # everything is well; a plain attribute, for the hot path reads it

    def allows(self, now: float) -> bool:
        if self.closed:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + self.rest_seconds  # this one asks; the others wait for its answer
        return True

    def succeeded(self) -> None:
        if self._failed:
            self._failed = 0
            self.closed = True

    def failed(self, now: float) -> None:
        self._failed += 1
        self.closed = self._failed < self.failures
        self._open_until = now + self.rest_seconds
