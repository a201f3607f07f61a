"""A control plane that dies at a given step, and hands that do everything twice.

``at_every_step`` tells a story once. At each step a child of this process (``fork``) goes on with one in which the control plane is
killed there: what came before a step is told once for all of them, and not once for each.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from cachekeep.control import Hands
from cachekeep.model import Cache, Decided, Effect
from cachekeep.sim.run import Run
from cachekeep.sim.store import WitnessedStore
from cachekeep.sim.timeless import run
from cachekeep.store.contract import Along, Lease


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
        if not self.blown and self.blows(number, after):
            self.blown = True
            self.kill()
            await asyncio.Event().wait()  # nothing is carried out any more

    def blows(self, number: int, after: bool) -> bool:
        return (number, after) == (self.left, self.at_its_end)


class ForkingFuse(Fuse):
    """Blows at every step, in a child of this process each; here it does not."""

    def __init__(self, after: bool) -> None:
        super().__init__(-1, after)
        self.is_child = False
        self.failed: list[str] = []
        """What became of the stories that did not end well, in words."""

    def blows(self, number: int, after: bool) -> bool:
        if after is not self.at_its_end:
            return False
        loop = asyncio.get_running_loop()
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            events._set_running_loop(loop)  # it is known by the number of its process
            self.is_child, self._writes = True, writes
            return True
        os.close(writes)
        with open(reads, "rb") as pipe:
            said = pipe.read().decode()
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            self.failed.append(f"{'after' if after else 'before'} step {number}: {said}")
        return False

    def end(self, error: BaseException | None) -> NoReturn:
        """Tell the parent, and leave everything else as it is."""
        if error is not None:
            os.write(self._writes, "".join(traceback.format_exception(error))[-4000:].encode())
        os._exit(error is not None)


def at_every_step(tell: Callable[[Fuse], Coroutine[Any, Any, object]], *, after: bool, least: int) -> None:
    """Tell a story in which the control plane dies, for each of its steps, which are more than ``least``; all end well."""
    fuse, error = ForkingFuse(after), None
    try:
        run(tell(fuse))
    except BaseException as raised:
        error = raised
    if fuse.is_child:
        fuse.end(error)
    if error is not None:
        raise error
    assert fuse.steps > least, "the story is long enough to mean something"
    assert not fuse.failed, f"{len(fuse.failed)} of {fuse.steps}: {fuse.failed[0]}"


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

        async def save(cache: Cache, lease: Lease, along: Along) -> Cache:
            number = await fuse.before()
            saved = await WitnessedStore.save_decided(store, cache, lease, along)
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
