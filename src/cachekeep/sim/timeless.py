"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import selectors
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from cachekeep.model import Moment
from cachekeep.sim.halts import factory

T = TypeVar("T")
START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
UP_SECONDS = 1000.0
"""For so long the host has been up when a run begins."""


class _Jump(selectors.SelectSelector):
    """Polls without waiting; where the loop would sleep, the loop's own clock is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits and nothing is due: the simulated world is deadlocked")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs coroutines in virtual time; no sockets, no threads, no waiting."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.set_task_factory(factory)

    def time(self) -> float:
        return self._jump.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` in a virtual loop of its own."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        while left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


class SimHost:
    """A machine, from boot to boot."""

    def __init__(self) -> None:
        self._boots, self._booted_at = 1, -UP_SECONDS

    def boot(self) -> None:
        """From now on moments are those of another boot, from its beginning."""
        self._boots, self._booted_at = self._boots + 1, asyncio.get_running_loop().time()

    def moment(self) -> Moment:
        """By its clock, which nobody sets."""
        return Moment(f"boot {self._boots}", asyncio.get_running_loop().time() - self._booted_at)


class SimClock:
    """The loop's virtual time as a ``Clock``, with a wall clock that can be set; ids and chance from the seed."""

    def __init__(self, chance: random.Random, host: SimHost | None = None) -> None:
        self._chance, self._host = chance, host or SimHost()
        self._set_by_seconds = 0.0

    def set(self, by_seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._set_by_seconds += by_seconds

    def now(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.monotonic() + self._set_by_seconds)

    def moment(self) -> Moment:
        return self._host.moment()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        chance = self._chance.getrandbits(64)
        return str(uuid.UUID(int=chance << 64 | chance, version=4))

    def new_secret(self) -> str:
        return f"{self._chance.getrandbits(64):016x}"

    def chance(self) -> float:
        return self._chance.random()
