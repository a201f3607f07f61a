"""A second driver, in memory, of a platform where little is as on one machine: processes run on hosts that nobody names, are
reached by names that a service hands out in its own time, and what a name leads to is written into slices a moment later. Nothing
above ``compute`` knows of it. Engines are those of the simulated world: a driver has nothing to say about replication.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection

from cachekeep.compute.contract import Key, LinkEffect, ProcessSpec, Targets
from cachekeep.errors import OrderFailed
from cachekeep.model import Limits
from cachekeep.sim.doors import SimDriver, SimLink
from cachekeep.sim.world import Engine, World

LAG_SECONDS = 0.02
"""So long after it was asked for, a slice is written."""
IMAGES = frozenset({"valkey", "redis", "memcached", "front"})
_ISSUED = itertools.count(1)


def new_name() -> str:
    """One that nobody has."""
    return f"svc-{next(_ISSUED)}.caches.elsewhere"


class Platform(World):
    """What a name leads to is what the slices say, and no process listens anywhere by its own will."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.asked: dict[str, Key] = {}
        """What each name is to lead to."""
        self.slices: dict[str, Key] = {}
        """What it leads to."""
        self.writing: set[asyncio.Task[None]] = set()

    def publish(self, key: Key, names: Collection[str]) -> None:
        """Have exactly these names lead to a process, in a moment. Raises ``OrderFailed`` for one that is another's."""
        for name in names:
            holder = self.processes.get(self.asked.get(name, key))
            if holder is not None and holder.alive and holder.spec.key != key:
                raise OrderFailed(f"{key[1]}: {name} leads to {holder.spec.key[1]}")
        self.asked = {name: led for name, led in self.asked.items() if led != key} | dict.fromkeys(names, key)
        task = asyncio.get_running_loop().create_task(self._write_slices())
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def _write_slices(self) -> None:
        await asyncio.sleep(LAG_SECONDS)
        self.slices = dict(self.asked)
        for engine in self.processes.values():
            engine.bound = {name for name, led in self.slices.items() if led == engine.spec.key} if engine.alive else set()

    async def published(self) -> None:
        """Wait until what has been asked for is written."""
        await asyncio.gather(*self.writing)


class ElsewhereDriver(SimDriver):
    """``compute.contract.Driver``."""

    def __init__(self, platform: Platform, *, start_deadline_seconds: float = 10.0) -> None:
        super().__init__(platform, start_deadline_seconds=start_deadline_seconds)
        self._platform = platform

    def capacity(self) -> Limits:
        """Nobody knows: hosts come and go."""
        return Limits()

    async def start(self, spec: ProcessSpec) -> None:
        if spec.argv[0] not in IMAGES:
            raise OrderFailed(f"{spec.key[1]}: there is no image of {spec.argv[0]}")
        if not spec.address.endswith(".elsewhere"):
            raise OrderFailed(f"{spec.key[1]}: {spec.address} was not handed out here")
        await super().start(spec)
        self._platform.publish(spec.key, [spec.address])
        await self._platform.published()


class ElsewhereLink(SimLink):
    """``compute.contract.Link``: an order by which names come to lead elsewhere is confirmed when they do."""

    def __init__(self, platform: Platform, keeper: str = "keeper") -> None:
        super().__init__(platform, keeper)
        self._platform = platform

    async def carry(self, effect: LinkEffect, at: Targets) -> None:
        await super().carry(effect, at)
        await self._platform.published()

    def _bind(self, engine: Engine, addresses: tuple[str, ...]) -> None:
        self._platform.publish(engine.spec.key, addresses)


class Registry:
    """``compute.contract.Places``: asks a service for names, which takes a while."""

    def __init__(self) -> None:
        self._held: dict[str, list[str]] = {}

    async def free(self, uid: str, count: int, *, taken: Collection[str]) -> tuple[str, ...]:
        await asyncio.sleep(0.05)
        held = [name for name in self._held.get(uid, []) if name not in taken]
        held += [new_name() for _ in range(count - len(held))]
        self._held[uid] = held
        return tuple(held[:count])
