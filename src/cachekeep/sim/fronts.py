"""The fronts of the simulated world."""

from __future__ import annotations

from cachekeep.compute.contract import ProcessSpec
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node
from cachekeep.sim.world import World


class SimFronts:
    """Balancers and discovery relays of the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        return ProcessSpec(
            key=(cache.uid, front.name), incarnation=front.incarnation, argv=("front",), address=front.address, port=front.port
        )

    async def point(self, cache: Cache, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        await self._world.progress((cache.uid, front.name))
        engine = self._world.processes.get((cache.uid, front.name))
        if engine is None or not engine.works:
            raise OrderFailed(f"{front.name} does not answer")
        engine.targets, engine.version = tuple(n.name for n in nodes), version

    async def pointed(self, cache: Cache, front: Front) -> tuple[tuple[str, ...], int]:
        await self._world.progress((cache.uid, front.name))
        engine = self._world.processes.get((cache.uid, front.name))
        if engine is None or not engine.works:
            raise OrderFailed(f"{front.name} does not answer")
        return engine.targets, engine.version

    async def post(self, cache: Cache, node: Node, payload: str) -> None:
        """Nodes of this world have no board."""
