"""Worlds in which a link is tried: engines that can be started, frozen, killed and written to from outside.

A simulated twin joins by adding itself to ``WORLDS``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest
import valkey.asyncio
from tests.addresses import new_address
from tests.engines.servers import REDIS_LIKE, Orders, Server, build_of, cache_of, node_of

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Key, Link, Target
from cachekeep.compute.link import EngineLink


class World(Protocol):
    """Two nodes or three that started as replicas of nobody, and a link to them."""

    link: Link
    memory: Orders
    targets: list[Target]

    async def start(self, count: int) -> list[Target]: ...
    async def freeze(self, target: Target) -> None: ...
    async def thaw(self, target: Target) -> None: ...
    async def kill(self, target: Target) -> None: ...
    async def restart(self, target: Target) -> None: ...
    async def write(self, address: str, key: str, value: str) -> None:
        """As an ordinary client. Raises when it is refused."""

    async def read(self, address: str, key: str) -> str | None: ...
    def new_address(self) -> str: ...


class RealWorld:
    """Real processes."""

    def __init__(self, engine: str, major: int, place: Path) -> None:
        self._build, self._place = build_of(engine, major), place
        self._servers: dict[Key, Server] = {}
        self.memory = Orders()
        self.link: Link = EngineLink(self.memory, SystemClock())
        self.targets: list[Target] = []

    async def start(self, count: int) -> list[Target]:
        nodes = [node_of(self._build, f"demo-{i:03}") for i in range(1, count + 1)]
        cache = cache_of(*nodes)
        for node in nodes:
            server = Server(self._build, cache, node, self._place / node.name)
            self._servers[server.target.key] = server
            await asyncio.to_thread(server.start)
            self.targets.append(server.target)
        return self.targets

    async def freeze(self, target: Target) -> None:
        self._servers[target.key].freeze()

    async def thaw(self, target: Target) -> None:
        self._servers[target.key].thaw()

    async def kill(self, target: Target) -> None:
        self._servers[target.key].kill()

    async def restart(self, target: Target) -> None:
        await self.kill(target)
        await asyncio.to_thread(self._servers[target.key].start)

    async def write(self, address: str, key: str, value: str) -> None:
        async with valkey.asyncio.Valkey(host=address, port=6379) as client:
            await client.set(key, value)

    async def read(self, address: str, key: str) -> str | None:
        async with valkey.asyncio.Valkey(host=address, port=6379, decode_responses=True) as client:
            return await client.get(key)

    def new_address(self) -> str:
        return new_address()

    async def aclose(self) -> None:
        await self.link.aclose()
        for server in self._servers.values():
            server.kill()


WORLDS: dict[str, Callable[[Path], RealWorld]] = {
    f"{engine}{major}": lambda place, engine=engine, major=major: RealWorld(engine, major, place)  # type: ignore[misc]
    for engine, major in REDIS_LIKE
}


@pytest.fixture(params=list(WORLDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealWorld]:
    there = WORLDS[request.param](tmp_path)
    try:
        yield there
    finally:
        await there.aclose()
