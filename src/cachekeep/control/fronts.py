"""The door to fronts: the readers' balancer, the discovery relay, the cluster of one that a compatible group presents."""

from __future__ import annotations

from typing import Protocol

from cachekeep.compute.contract import ProcessSpec
from cachekeep.model import Cache, Front, Node


class Fronts(Protocol):
    """What control needs of ``network``: how a front is started, and what it passes on to."""

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        """How to start the front, already pointed at ``nodes``."""

    async def point(self, cache: Cache, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        """Pass on to these nodes from now on. Raises ``OrderFailed`` when that is not confirmed."""

    async def pointed(self, cache: Cache, front: Front) -> tuple[tuple[str, ...], int]:
        """Names of the nodes it passes on to, and the version of its list. Raises ``OrderFailed`` if it does not answer."""

    async def post(self, cache: Cache, node: Node, payload: str) -> None:
        """Put a discovery list on the board of a Memcached node, if it has one. Raises ``OrderFailed``."""
