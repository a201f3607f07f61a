"""The fronts of the simulated world."""

from __future__ import annotations

from cachekeep.compute.contract import ProcessSpec
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node
from cachekeep.sim.world import Engine, World


class SimFronts:
    """Balancers and discovery relays of the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        targets, version = _told(front, nodes, cache.decided.discovery_version)
        return ProcessSpec(
            key=(cache.uid, front.name),
            incarnation=front.incarnation,
            argv=("front", str(version), *targets),
            address=front.address,
            port=front.port,
        )

    async def point(self, cache: Cache, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        told = _told(front, nodes, version)
        engine = self._world.processes.get((cache.uid, front.name))
        if engine is not None and front.kind == "discovery":
            engine.told = told  # its list is a file, and is written whether or not anybody reads it just now
        (await self._answering(cache, front)).told = told

    async def pointed(self, cache: Cache, front: Front) -> tuple[tuple[str, ...], int]:
        engine = await self._answering(cache, front)
        _, version, *targets = engine.spec.argv
        return engine.told or (tuple(targets), int(version))

    async def _answering(self, cache: Cache, front: Front) -> Engine:
        await self._world.progress((cache.uid, front.name))
        engine = self._world.processes.get((cache.uid, front.name))
        taken = engine is not None and (engine.alive if front.kind == "compatible" else engine.works)
        if engine is None or not taken:  # a host takes connections to what is frozen there, and no more is asked of that kind
            raise OrderFailed(f"{front.name} does not answer")
        return engine

    async def post(self, cache: Cache, node: Node, payload: str) -> None:
        """Nodes of this world have no board."""


def _told(front: Front, nodes: tuple[Node, ...], version: int) -> tuple[tuple[str, ...], int]:
    """Its targets, and the version of its list if it has one."""
    names = () if front.kind == "compatible" else tuple(sorted(n.name for n in nodes))
    return names, version if front.kind == "discovery" else 0
