"""A control plane that dies at a given step, and hands that do everything twice."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from cachekeep.control import Hands
from cachekeep.model import Act, Cache, Event
from cachekeep.sim.run import Run, _Witness
from cachekeep.store.contract import Lease


class Killed(BaseException):
    """kill -9: nothing catches it."""


class Fuse:
    """Blows once, at the given moment: (step, after)."""

    def __init__(self, step: int, after: bool) -> None:
        self.left, self.after, self.blown, self.steps = step, after, False, 0

    def tick(self, after: bool) -> None:
        self.steps += not after
        if self.steps == self.left and after is self.after and not self.blown:
            self.blown = True
            raise Killed


def fragile(fuse: Fuse, *, twice: bool, **parts: Any) -> Hands:
    """Hands that die with the fuse; ``twice``: everything they do, they do again."""

    class Fragile(Hands):
        async def carry(self, cache: Cache, act: Act) -> None:
            for stage in act.stages:
                fuse.tick(False)
                try:
                    for _ in range(2 if twice else 1):
                        await super().carry(cache, Act((stage,), act.because))
                finally:  # one that was refused has been tried as well
                    fuse.tick(True)

    return Fragile(**parts)


class Interrupted(Run):
    """A run whose first keeper dies when the fuse blows, and is replaced."""

    def burn(self, fuse: Fuse, *, twice: bool) -> None:
        """Every save, and every stage of an act, is a step."""
        self.fuse, self.twice = fuse, twice
        store = self.store

        async def save(cache: Cache, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]) -> Cache:
            fuse.tick(False)
            saved = await _Witness.save_decided(store, cache, lease, events=events, addresses=addresses)
            fuse.tick(True)
            return saved

        store.save_decided = save  # type: ignore[method-assign]

    def _hands(self, **parts: Any) -> Hands:
        return fragile(self.fuse, twice=self.twice, **parts)

    async def _guard(self) -> None:
        """Starts a control plane, and another one when it is killed."""
        self.keepers = [self._keeper("keeper")]
        while not self.fuse.blown:
            await asyncio.sleep(0.02)
        self.keepers[0].cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        self.keepers = [self._keeper("keeper")]
