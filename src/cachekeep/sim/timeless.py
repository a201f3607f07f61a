"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from cachekeep.model import Moment

T = TypeVar("T")
START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


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


class SimClock:
    """The loop's virtual time as a ``Clock``; ids and chance from the seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def now(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.monotonic())

    def moment(self) -> Moment:
        return Moment("virtual", self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        return f"{self._chance.getrandbits(64):016x}"

    def new_secret(self) -> str:
        return f"{self._chance.getrandbits(64):016x}"

    def chance(self) -> float:
        return self._chance.random()
