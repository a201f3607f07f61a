"""Whether the machine let a lease be renewed in time. A test of renewals tells something only where it did."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

STEP_SECONDS = 0.01
TRIES = 5


class Stalls:
    """Does what a renewal does, again and again: wait, wake, ask the engine. ``longest_seconds``: what that took beyond the wait.

    ``client`` is of the engine, and nobody else's. Within a `with` block a thread does it; `watch` is the same for an event loop.
    """

    def __init__(self, client: Any) -> None:
        self.longest_seconds = 0.0
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def broke(self, lease_seconds: float) -> bool:
        """Whether a renewal, due after a third of the lease, may have come too late."""
        return self.longest_seconds > lease_seconds / 3

    def _watch(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(STEP_SECONDS)
            self._client.get("asked")
            self._note(began)

    async def watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(STEP_SECONDS)
            await self._client.get("asked")
            self._note(began)

    def _note(self, began: float) -> None:
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began - STEP_SECONDS)


def unless_stalled(client: Any, lease_seconds: float, attempt: Callable[[float], None]) -> None:
    """``attempt`` holds with such a lease. Its failure counts unless the machine stalled meanwhile: then it is made again, a few
    times at most, each with a lease twice as long."""
    for left in reversed(range(TRIES)):
        with Stalls(client) as stalls:
            try:
                attempt(lease_seconds)
                return
            except AssertionError:
                if not left or not stalls.broke(lease_seconds):
                    raise
        lease_seconds *= 2


async def unless_loop_stalled(client: Any, lease_seconds: float, attempt: Callable[[float], Awaitable[None]]) -> None:
    """The same on an event loop."""
    for left in reversed(range(TRIES)):
        stalls = Stalls(client)
        watching = asyncio.create_task(stalls.watch())
        try:
            await attempt(lease_seconds)
            return
        except AssertionError:
            if not left or not stalls.broke(lease_seconds):
                raise
        finally:
            watching.cancel()
        lease_seconds *= 2
