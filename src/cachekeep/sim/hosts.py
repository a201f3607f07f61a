"""Control planes as processes of a host: halted and going on, with wall clocks that are set."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from cachekeep.sim.halts import Process
from cachekeep.sim.timeless import SimClock
from cachekeep.sim.world import World


class Hosts:
    """The control planes of a run, by name. All have the host's moments; each has a wall clock of its own, and so has the store."""

    def __init__(self, world: World, ids: random.Random) -> None:
        self._world, self._ids = world, ids
        self._processes: dict[str, Process] = {}
        self._clocks: dict[str, SimClock] = {}

    def clock(self, name: str) -> SimClock:
        """It stays what it is when the process begins anew."""
        return self._clocks.setdefault(name, SimClock(self._ids, self._world.host))

    def run(self, name: str, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin the process of that name."""
        self._processes[name] = Process()
        return self._processes[name].run(main)

    def halt(self, name: str) -> None:
        """SIGSTOP."""
        self._processes[name].halt()

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].go_on()

    def halt_all(self) -> None:
        """SIGSTOP of all."""
        for process in self._processes.values():
            process.halt()

    def go_on_all(self) -> None:
        """SIGCONT of all."""
        for process in self._processes.values():
            process.go_on()

    def awake(self) -> bool:
        """Whether some process is there to see what happens."""
        return any(not p.halted for p in self._processes.values())

    def attended(self) -> bool:
        """Whether all of them are."""
        return not any(p.halted or p.killed for p in self._processes.values())

    async def kill(self, *names: str) -> None:
        """SIGKILL of these, or of all: no release, no goodbye."""
        for name in names or tuple(self._processes):
            self._world.restarts += 1
            await self._processes[name].kill()

    def set_a_clock(self, chance: random.Random) -> None:
        """A wall clock goes forward or back, by seconds or hours. Those of hosts that are lost are left alone: nobody could see
        to that. Those of engines are set back by little, for these wait until theirs is where it was."""
        by_seconds = chance.choice((-1, 1)) * 10 ** (4 * chance.random())
        name = chance.choice(sorted(self._clocks if self._world.remote else {*self._clocks, "engines"}))
        if name == "engines":
            self._world.set_clock(max(by_seconds, -5.0))
        else:
            self._clocks[name].set(by_seconds)
