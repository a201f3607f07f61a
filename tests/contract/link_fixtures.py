"""Worlds in which a link is tried: engines that can be started, frozen, killed and written to from outside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
import valkey.asyncio
from tests.addresses import new_address
from tests.contract.elsewhere import ElsewhereDriver, ElsewhereLink, Platform, new_name
from tests.engines.servers import REDIS_LIKE, Orders, Server, build_of, cache_of, node_of

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Key, Link, ProcessSpec, Target
from cachekeep.compute.link import EngineLink
from cachekeep.engines.users import ADMIN
from cachekeep.model import Moment, Secret
from cachekeep.sim import world as simulation
from cachekeep.sim.doors import SimDriver, SimLink


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

    def moment(self) -> Moment:
        """Now, by the clock of the machine that the processes are on."""

    def another_link(self) -> Link:
        """That of a control plane which starts now."""

    async def spin(self, target: Target, *, written: bool, function: bool = False) -> None:
        """A client runs a script or function that never ends, after a write or without one."""

    async def hold_back(self, target: Target, *, seconds: float) -> None:
        """A client has all clients wait (``CLIENT PAUSE … ALL``)."""

    async def crowd(self, target: Target) -> Callable[[], Awaitable[None]]:
        """As many clients as it may have come, and stay until they are told to leave."""

    async def cut_link(self, target: Target) -> None:
        """A client closes the connections of its replicas."""

    async def change_our_password(self, target: Target) -> None: ...

    async def queue_up(self, target: Target) -> None:
        """So many connections wait to be accepted that the host takes no more."""


class RealWorld:
    """Real processes."""

    def __init__(self, engine: str, major: int, place: Path) -> None:
        self._build, self._place = build_of(engine, major), place
        self._servers: dict[Key, Server] = {}
        self.memory = Orders()
        self.link: Link = EngineLink(self.memory, SystemClock())
        self.targets: list[Target] = []
        self._tasks: list[asyncio.Task[object]] = []
        self._sockets: list[socket.socket] = []
        self._crowds: dict[Key, list[socket.socket]] = {}
        self._clients: list[valkey.asyncio.Valkey] = []

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

    def moment(self) -> Moment:
        return SystemClock().moment()

    def another_link(self) -> Link:
        return EngineLink(self.memory, SystemClock())

    def _admin(self, target: Target) -> valkey.asyncio.Valkey:
        return valkey.asyncio.Valkey(host=target.address, port=target.port, username=ADMIN, password=target.password.value)

    async def _tell(self, target: Target, *command: str) -> None:
        async with self._admin(target) as client:
            await client.execute_command(*command)

    async def spin(self, target: Target, *, written: bool, function: bool = False) -> None:
        await self._tell(target, "CONFIG", "SET", "busy-reply-threshold", "100")  # the engines' own limit is 5 s
        write = "redis.call('SET', KEYS[1], '1')" if written else ""
        client = await self._client(target)
        if function:
            await client.function_load(
                f"#!lua name=spin\nredis.register_function('spin', function(KEYS) {write} while true do end end)"
            )
            spinning = asyncio.create_task(client.fcall("spin", 1, "k"))
        else:
            spinning = asyncio.create_task(client.eval(f"{write} while true do end", 1, "k"))
        spinning.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tasks.append(spinning)

    async def hold_back(self, target: Target, *, seconds: float) -> None:
        await (await self._client(target)).execute_command("CLIENT", "PAUSE", int(seconds * 1000), "ALL")

    async def crowd(self, target: Target) -> Callable[[], Awaitable[None]]:
        if target.key not in self._crowds:
            await self._tell(target, "CONFIG", "SET", "maxclients", "20")
        clients = self._crowds.setdefault(target.key, [])
        while True:
            client = socket.create_connection((target.address, target.port), timeout=30)
            client.sendall(b"PING\r\n")
            if not client.recv(64).startswith(b"+PONG"):
                client.close()
                break
            clients.append(client)
            self._sockets.append(client)

        async def leave() -> None:
            for client in clients:
                client.close()

        return leave

    async def cut_link(self, target: Target) -> None:
        self._crowds[target.key][0].sendall(b"CLIENT KILL TYPE replica\r\n")

    async def change_our_password(self, target: Target) -> None:
        await self._tell(target, "ACL", "SETUSER", ADMIN, "resetpass", ">another")

    async def queue_up(self, target: Target) -> None:
        full = 0
        while full < 3:  # the kernel tries again by itself, so what waits is waiting for good
            client = socket.socket()
            client.settimeout(0.1)
            self._sockets.append(client)
            full = full + 1 if client.connect_ex((target.address, target.port)) else 0

    async def _client(self, target: Target) -> valkey.asyncio.Valkey:
        client = valkey.asyncio.Valkey(host=target.address, port=target.port, single_connection_client=True)
        self._clients.append(client)
        return await client.initialize()

    async def aclose(self) -> None:
        await self.link.aclose()
        for task in self._tasks:
            task.cancel()
        for held in self._sockets:
            held.close()
        for server in self._servers.values():
            server.kill()
        for client in self._clients:
            with contextlib.suppress(valkey.ValkeyError, OSError):
                await client.aclose()


class SimMemory:
    """What the simulated world remembers of its processes, under the names of ``Orders``."""

    def __init__(self, simulated: simulation.World) -> None:
        simulated.heard, simulated.lead_orders = defaultdict(tuple), defaultdict(int)
        self.heard, self.last, self.lead = simulated.heard, simulated.orders, simulated.lead_orders


class SimWorld:
    """Simulated processes, in real time. A client's key and value are one number there."""

    def __init__(self, place: Path) -> None:
        self._world = self._made()
        self._world.unknown = lambda setting: setting == "no-such-setting"
        self._specs: dict[Key, ProcessSpec] = {}
        self._values: list[tuple[str, str]] = []
        self.memory = SimMemory(self._world)
        self.targets: list[Target] = []

    def _made(self) -> simulation.World:
        made = simulation.World(seed=0)
        self._driver = SimDriver(made)
        self.link: Link = SimLink(made)
        return made

    async def start(self, count: int) -> list[Target]:
        for number in range(1, count + 1):
            key, address = ("uid-1", f"demo-{number:03}"), self.new_address()
            self._specs[key] = ProcessSpec(key=key, incarnation=1, argv=("valkey", "8.0"), address=address, port=6379)
            await self._driver.start(self._specs[key])
            self.targets.append(
                Target(key=key, address=address, port=6379, engine="valkey", version="8.0", password=Secret("simulated"))
            )
        return self.targets

    def moment(self) -> Moment:
        return self._world.moment()

    async def freeze(self, target: Target) -> None:
        self._world.freeze(target.key)

    async def thaw(self, target: Target) -> None:
        self._world.thaw(target.key)

    async def kill(self, target: Target) -> None:
        self._world.kill(target.key)

    async def restart(self, target: Target) -> None:
        await self.kill(target)
        await self._driver.start(self._specs[target.key])

    async def write(self, address: str, key: str, value: str) -> None:
        engine = self._world.at(address)
        assert engine is not None, "nobody listens there"
        if engine.role != "primary":
            raise valkey.ReadOnlyError("You can't write against a read only replica.")
        self._values.append((key, value))
        if not self._world.write(address, len(self._values) - 1):
            raise valkey.ResponseError("NOREPLICAS Not enough good replicas to write.")

    async def read(self, address: str, key: str) -> str | None:
        engine = self._world.at(address)
        assert engine is not None, "nobody listens there"
        return next((self._values[at][1] for at in reversed(engine.writes) if self._values[at][0] == key), None)

    def new_address(self) -> str:
        return new_address()

    async def aclose(self) -> None:
        await self.link.aclose()
        for task in self._world.tasks:
            task.cancel()


class ElsewhereWorld(SimWorld):
    """The second driver's link, over simulated processes."""

    def _made(self) -> simulation.World:
        made = Platform(seed=0)
        self._driver, self.link = ElsewhereDriver(made), ElsewhereLink(made)
        return made

    def new_address(self) -> str:
        return new_name()


WORLDS: dict[str, Callable[[Path], RealWorld]] = {
    f"{engine}{major}": lambda place, engine=engine, major=major: RealWorld(engine, major, place)  # type: ignore[misc]
    for engine, major in REDIS_LIKE
}


SIMULATED: dict[str, Callable[[Path], SimWorld]] = {"sim": SimWorld, "elsewhere": ElsewhereWorld}
real_engines = pytest.mark.parametrize("world", list(WORLDS), indirect=True)
"""For what the simulated engines have no notion of."""


@pytest.fixture(params=[*WORLDS, "sim", "elsewhere"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealWorld | SimWorld]:
    there = (SIMULATED | WORLDS)[request.param](tmp_path)
    try:
        yield there
    finally:
        await there.aclose()
