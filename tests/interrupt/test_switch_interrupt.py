"""A control plane that dies at every step of a switch to cluster mode, and effects that are carried out twice: all the same in the
end.

The story: a group of three becomes compatible and then enabled, while clients write. Planned moves alone lose nothing, so nothing
may be lost, and at every moment there is one node at most that takes writes.
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.interrupt.fuse import Fuse, Interrupted, at_every_step

from cachekeep.sim.switch_run import SwitchRun, SwitchScenario
from cachekeep.sim.timeless import run


class Story(Interrupted, SwitchRun):
    """One switch, told to keepers of which the first one dies."""

    def __init__(self, fuse: Fuse, *, twice: bool = False) -> None:
        super().__init__(SwitchScenario(7, faults=False, two_keepers=False, flaky=0.0, nodes=3))
        self.burn(fuse, twice=twice)

    async def tell(self) -> None:
        await self.store.open()
        await self._create()
        guard = asyncio.get_running_loop().create_task(self._guard())
        writer = asyncio.get_running_loop().create_task(self._write())
        await self._until(self._healthy, "creation")
        for mode in ("compatible", "enabled"):
            await self._change(lambda w, mode=mode: replace(w, cluster_mode=mode))  # type: ignore[misc]
            await self._until(self._healthy, mode)
            before = len(self.acknowledged)
            await self._until(lambda before=before: len(self.acknowledged) > before + 5, "writes")  # type: ignore[misc]
            if writer.done():
                writer.result()
        for task in (writer, guard, *self.keepers):
            task.cancel()
        self._judge()
        assert self.cache is not None
        assert self.cache.clustered


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step(after: bool) -> None:
    at_every_step(lambda fuse: Story(fuse).tell(), after=after, least=25)


def test_every_effect_twice() -> None:
    run(Story(Fuse(-1, False), twice=True).tell())
