"""Entries in this process's memory: `Cache(MemoryStore())` has all of a cache's semantics without a server, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachekeep_patterns import entry as entries
from cachekeep_patterns import forks
from cachekeep_patterns.entry import Entry


class MemoryStore:
    """For `Cache` and `AsyncCache`; give several of them the same one and they share it, as they would a server."""

    def __init__(self) -> None:
        self.quick: Callable[[str], Any] | None = None
        self.quick_many: Callable[[Sequence[str]], Any] | None = None
        self.down: tuple[type[BaseException], ...] = ()
        self.refused: tuple[type[BaseException], ...] = ()
        self.lags = False
        self._held: dict[str, tuple[bytes, float]] = {}
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self._changing = threading.Lock()

    def _at(self, key: str) -> bytes | None:
        raw, until = self._held.get(key, (None, 0.0))
        return raw if time.monotonic() < until else None

    async def read(self, key: str) -> bytes | None:
        return self._at(key)

    async def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._at(key) for key in keys]

    async def swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        with self._changing:
            found = self._at(key)
            if (found is None) != (expected is None) or (found or b"")[: len(expected or b"")] != (expected or b""):
                return False
            self._put(key, new, ttl_seconds)
            return True

    def _put(self, key: str, new: bytes | None, ttl_seconds: float) -> None:
        if new is None:
            self._held.pop(key, None)
        else:
            self._held[key] = new, time.monotonic() + ttl_seconds

    async def relabel(self, key: str, expected: bytes, header: bytes, ttl_seconds: float) -> bool:
        with self._changing:
            found = self._at(key)
            if found is None or found[: len(expected)] != expected:
                return False
            self._put(key, header + found[len(header) :], ttl_seconds)
            return True

    async def swap_many(self, swaps: Sequence[tuple[str, bytes | None, bytes | None, float]]) -> list[bool]:
        return [await self.swap(*one) for one in swaps]

    async def clock(self) -> tuple[float, float] | None:
        return time.time(), 0.0

    async def drop(self, keys: Sequence[str]) -> None:
        with self._changing:
            for key in keys:
                seen = entries.parse(self._at(key))
                if seen is not None and seen.kind == entries.Kind.BARRIER:
                    self._put(key, *entries.taint_barrier(seen, time.time()))
                else:
                    self._held.pop(key, None)

    def _change(self, key: str, transition: Callable[[Entry | None], tuple[bytes | None, float] | None]) -> None:
        with self._changing:
            if (becomes := transition(entries.parse(self._at(key)))) is not None:
                self._put(key, *becomes)

    async def raise_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        for key in keys:
            self._change(key, lambda seen: entries.raise_barrier(seen, writer, now, lease_seconds))

    async def renew_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        for key in keys:
            self._change(key, lambda seen: entries.renew_barrier(seen, writer, now, lease_seconds))

    async def lower_barriers(
        self, keys: Sequence[str], writer: bytes, now: float, publish: Mapping[str, tuple[bytes, float]]
    ) -> None:
        for key in keys:
            new, ttl = publish.get(key, (None, 0.0))
            self._change(key, lambda seen, new=new, ttl=ttl: entries.lower_barrier(seen, writer, now, new, ttl))  # type: ignore[misc]

    def clear(self) -> None:
        """Everything, of every namespace: as if the server were new."""
        with self._changing:
            self._held.clear()
