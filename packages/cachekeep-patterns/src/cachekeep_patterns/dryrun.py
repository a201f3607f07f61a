"""What would a cache save here? Loads every time, keeps only digests, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cachekeep_patterns.policy import Policy
from cachekeep_patterns.ports import Port

_MAX_KEYS = 100_000


class DryRun:
    """``calls``, ``would_hit``, ``saved_seconds`` (loader time of the would-be hits) and ``would_be_stale``: would-be hits whose
    value had in truth changed since, which is what a lifetime that long would have cost.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.would_hit = 0
        self.would_be_stale = 0
        self.saved_seconds = 0.0
        self.load_seconds = 0.0
        self._kept: dict[str, tuple[float, int]] = {}

    async def measure(self, port: Port, key: str, load: Callable[[], Any], policy: Policy) -> Any:
        began = time.monotonic()
        value = await port.call(load)
        now = time.monotonic()
        self.calls += 1
        self.load_seconds += now - began
        until, digest = self._kept.get(key, (0.0, 0))
        seen = _digest(value)
        if began < until:
            self.would_hit += 1
            self.saved_seconds += now - began
            self.would_be_stale += seen != digest
        else:
            if len(self._kept) >= _MAX_KEYS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = (now + policy.lifetime_seconds(value), seen)
        return value

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._kept.pop(key, None)


def _digest(value: Any) -> int:
    try:
        return hash(msgspec.json.encode(value, order="deterministic"))
    except (TypeError, ValueError, msgspec.MsgspecError):
        return hash(repr(value))
