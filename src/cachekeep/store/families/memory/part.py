"""What is stored in memory, and what each family has of a transaction over it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from cachekeep.clock import Clock
from cachekeep.model import Cache, Condition, Event, Moment
from cachekeep.store.wakes import Touched


class State:
    """All that is stored. A transaction works on a copy and swaps it in: everything inside is immutable, so copies are shallow."""

    def __init__(self) -> None:
        self.caches: dict[str, Cache] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.members: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self.released: dict[str, tuple[str, Moment]] = {}
        self.leases: dict[str, tuple[int, str | None]] = {}
        self.holders: dict[str, float] = {}
        self.work: dict[str, tuple[int, str]] = {}
        self.conditions: dict[str, tuple[int, Condition]] = {}
        self.resources: dict[tuple[str, str], Any] = {}
        self.events: list[tuple[dt.datetime, int, Event]] = []
        self.events_told = 0

    def copy(self) -> State:
        new = State()
        for key, value in vars(self).items():
            setattr(new, key, value if isinstance(value, int) else value.copy())
        return new


class MemoryPart:
    """``touched`` None: read only."""

    def __init__(self, clock: Clock, state: State, touched: Touched | None, linger_seconds: float) -> None:
        self._clock, self._linger_seconds = clock, linger_seconds
        self.state = state
        self.touched = touched

    def _write(self) -> Touched:
        if self.touched is None:
            raise RuntimeError("a reading transaction cannot write")
        return self.touched


def owned(index: dict[str, str], uid: str, own: set[str]) -> dict[str, str]:
    kept = {name: of for name, of in index.items() if of != uid}
    kept.update((name, uid) for name in own)
    return kept
