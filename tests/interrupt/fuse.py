"""A control plane that dies at a given step, and hands that do everything twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from cachekeep.control import Hands
from cachekeep.model import Cache, Decided, Effect, Event
from cachekeep.sim.run import Run
from cachekeep.sim.store import WitnessedStore
from cachekeep.store.contract import Lease


class Fuse:
    """Blows once, at the given moment: (step, after)."""

    def __init__(self, step: int, after: bool) -> None:
        self.left, self.at_its_end, self.blown, self.steps = step, after, False, 0
        self.kill: Callable[[], object] = lambda: None
        """Ends the control plane."""

    async def before(self) -> int:
        """A step begins; its number."""
        number = self.steps = self.steps + 1
        await self._tick(number, False)
        return number

    async def after(self, number: int) -> None:
        """That step has ended. Others may have begun meanwhile."""
        await self._tick(number, True)

    async def _tick(self, number: int, after: bool) -> None:
        if (number, after) == (self.left, self.at_its_end) and not self.blown:
            self.blown = True
            self.kill()
            await asyncio.Event().wait()  # nothing is carried out any more


def fragile(fuse: Fuse, *, twice: bool, **parts: Any) -> Hands:
    """Hands that die with the fuse; ``twice``: everything they do, they do again."""

    class Fragile(Hands):
        async def _stage(
            self, cache: Cache, stage: tuple[Effect, ...], decided: Callable[[], Decided | None], ended: Callable[[], None]
        ) -> bool:
            number = await fuse.before()
            if twice:
                await asyncio.gather(*(self._carry(cache, e) for e in stage), return_exceptions=True)
            worked = await super()._stage(cache, stage, decided, ended)
            await fuse.after(number)  # one that was refused has been tried as well
            return worked

    return Fragile(**parts)


class Interrupted(Run):
    """A run whose first keeper dies when the fuse blows, and is replaced."""

    def burn(self, fuse: Fuse, *, twice: bool) -> None:
        """Every save, and every stage of an act, is a step."""
        self.fuse, self.twice = fuse, twice
        fuse.kill = lambda: self.keepers[0].cancel()
        store = self.store

        async def save(cache: Cache, lease: Lease, *, events: Sequence[Event] = (), addresses: Collection[str]) -> Cache:
            number = await fuse.before()
            saved = await WitnessedStore.save_decided(store, cache, lease, events=events, addresses=addresses)
            await fuse.after(number)
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
