"""Worlds in which a link is tried in cluster mode: three shards, the first with a replica, real and simulated."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.addresses import new_address
from tests.contract.link_fixtures import SimMemory
from tests.engines.servers import PASSWORD, REDIS_LIKE, Orders, Server, build_of, cache_of, node_of
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.crc import key_slot

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import File, Link, LinkEffect, ProcessSpec, Target, named_by
from cachekeep.compute.link import EngineLink
from cachekeep.control.observe import target
from cachekeep.engines.launch import cluster_node_id, nodes_conf
from cachekeep.engines.users import ADMIN
from cachekeep.model import Cache, ClusterSeen, Node, NodeView, Shard
from cachekeep.plan.slots.ranges import SLOTS, Ranges, expand, without
from cachekeep.sim.cluster import ClusterWorld
from cachekeep.sim.cluster_doors import SimClusterDriver, SimClusteredLink

ONE, TWO, OTHER, THIRD = NAMES = "demo-0001-001", "demo-0001-002", "demo-0002-001", "demo-0003-001"
OWNED: tuple[Ranges, ...] = (((0, 5461),), ((5462, 10922),), ((10923, SLOTS - 1),))
DEADLINE_SECONDS = 30.0


def cluster_of(nodes: Iterable[Node]) -> Cache:
    """As it is decided when it is created."""
    shards = tuple(Shard(id=f"{i:04}", primary=f"demo-{i:04}-001", slots=s, owned=s, epoch=i) for i, s in enumerate(OWNED, start=1))
    return cache_of(*(replace(n, shard=n.name.split("-")[1]) for n in nodes), shards=shards, cluster_mode="enabled")


@functools.cache
def key_in(slot: int) -> str:
    """A key that lives there."""
    return next(key for n in range(1_000_000) if key_slot((key := f"k{n}").encode()) == slot)


class Nodes:
    """What both worlds have in common: the cache as it is decided, and what a link is told of it."""

    link: Link
    memory: Orders | SimMemory

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.cache = cluster_of(nodes)

    def node(self, name: str) -> Node:
        return next(n for n in self.cache.decided.nodes if n.name == name)

    def target(self, name: str) -> Target:
        return target(self.cache, self.node(name), lambda cache: PASSWORD)

    def id(self, name: str) -> str:
        """On the cluster bus."""
        return cluster_node_id(self.cache, self.node(name))

    async def carry(self, effect: LinkEffect) -> None:
        await self.link.carry(effect, {name: self.target(name) for name in named_by(effect)})

    async def seen(self, name: str) -> NodeView:
        return await self.link.look(self.target(name), deadline_seconds=DEADLINE_SECONDS)

    async def believes(self, name: str) -> ClusterSeen:
        found = (await self.seen(name)).cluster
        assert found is not None
        return found

    def led_by(self, name: str) -> None:
        """From now on it is decided that this node leads its shard, and that the cluster has been there before."""
        self.cache = replace(
            self.cache,
            decided=replace(
                self.cache.decided,
                shards=tuple(
                    replace(x, primary=name, epoch=9) if x.id == self.node(name).shard else x for x in self.cache.decided.shards
                ),
                available_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            ),
        )


class Cluster(Protocol):
    """What the tests need beside the link."""

    link: Link
    cache: Cache

    def target(self, name: str) -> Target: ...
    def id(self, name: str) -> str: ...
    def led_by(self, name: str) -> None: ...
    async def carry(self, effect: LinkEffect) -> None: ...
    async def seen(self, name: str) -> NodeView: ...
    async def believes(self, name: str) -> ClusterSeen: ...
    async def start(self) -> None: ...
    async def freeze(self, name: str) -> None: ...
    async def thaw(self, name: str) -> None: ...
    async def kill(self, name: str) -> None: ...
    async def restart(self, name: str) -> None:
        """With the cluster file of what is decided now."""

    async def write(self, name: str, slot: int, value: int) -> bool:
        """As an ordinary client, to the key of that slot. False: refused, or sent on to another node."""

    async def read(self, name: str, slot: int) -> int | None:
        """What the node has there, if it or its primary owns the slot."""

    async def lose(self, name: str, slots: Ranges) -> None:
        """It owns these no longer, and nobody else does; others may go on believing so."""

    async def half_open(self, source: str, to: str, slot: int) -> None:
        """As a move leaves it that is stopped in the middle."""


class RealNodes(Nodes):
    """Real processes."""

    def __init__(self, engine: str, major: int, place: Path) -> None:
        self._build, self._place = build_of(engine, major), place
        super().__init__(node_of(self._build, name) for name in NAMES)
        self.memory = Orders()
        self.link = EngineLink(self.memory, SystemClock())
        self._servers: dict[str, Server] = {}

    async def start(self) -> None:
        for node in self.cache.decided.nodes:
            self._servers[node.name] = Server(self._build, self.cache, node, self._place / node.name)
            await asyncio.to_thread(self._servers[node.name].start)

    async def freeze(self, name: str) -> None:
        self._servers[name].freeze()

    async def thaw(self, name: str) -> None:
        self._servers[name].thaw()

    async def kill(self, name: str) -> None:
        self._servers[name].kill()

    async def restart(self, name: str) -> None:
        await self.kill(name)
        (self._place / name / "nodes.conf").unlink()
        self._servers[name].cache = self.cache
        await asyncio.to_thread(self._servers[name].start)

    def _client(self, name: str, *, admin: bool = False) -> valkey.asyncio.Valkey:
        at = self.target(name)
        login = {"username": ADMIN, "password": PASSWORD.value} if admin else {}
        return valkey.asyncio.Valkey(host=at.address, port=at.port, socket_timeout=60, retry=Retry(NoBackoff(), 0), **login)

    async def write(self, name: str, slot: int, value: int) -> bool:
        async with self._client(name) as client:
            try:
                return bool(await client.set(key_in(slot), value))
            except (valkey.ResponseError, valkey.ConnectionError):
                return False

    async def read(self, name: str, slot: int) -> int | None:
        async with self._client(name) as client, client.pipeline(transaction=False) as pipe:
            _, found = await pipe.readonly().get(key_in(slot)).execute(raise_on_error=False)
            return int(found) if isinstance(found, bytes) else None

    async def _tell(self, name: str, *command: object) -> None:
        async with self._client(name, admin=True) as client:
            await client.execute_command("CLUSTER", *command)

    async def lose(self, name: str, slots: Ranges) -> None:
        await self._tell(name, "DELSLOTS", *expand(slots))

    async def half_open(self, source: str, to: str, slot: int) -> None:
        await self._tell(to, "SETSLOT", slot, "IMPORTING", self.id(source))
        await self._tell(source, "SETSLOT", slot, "MIGRATING", self.id(to))

    async def aclose(self) -> None:
        await self.link.aclose()
        for server in self._servers.values():
            server.kill()


class SimNodes(Nodes):
    """Simulated processes, in real time."""

    def __init__(self, version: str, seed: int) -> None:
        super().__init__(
            Node(
                name=name,
                shard="",
                zone="a",
                address=new_address(),
                port=6379,
                engine="valkey",
                version=version,
                node_type="cache.t3.micro",
            )
            for name in NAMES
        )
        self.world = ClusterWorld(seed)
        self.memory = SimMemory(self.world)
        self._driver, self.link = SimClusterDriver(self.world), SimClusteredLink(self.world)

    async def start(self) -> None:
        for name in NAMES:
            await self._start(name)

    async def _start(self, name: str) -> None:
        node = self.node(name)
        files = {"nodes.conf": File(nodes_conf(self.cache, node))}
        key = self.target(name).key
        await self._driver.start(
            ProcessSpec(key=key, incarnation=1, argv=("valkey",), files=files, address=node.address, port=node.port)
        )

    async def freeze(self, name: str) -> None:
        self.world.freeze(self.target(name).key)

    async def thaw(self, name: str) -> None:
        self.world.thaw(self.target(name).key)

    async def kill(self, name: str) -> None:
        self.world.kill(self.target(name).key)

    async def restart(self, name: str) -> None:
        await self.kill(name)
        await self._start(name)

    async def write(self, name: str, slot: int, value: int) -> bool:
        member = self.world.members[self.target(name).key]
        if not self.world.accepts(member, slot):
            return False
        self.world.write_op(member, slot, value)
        return True

    async def read(self, name: str, slot: int) -> int | None:
        member = self.world.members[self.target(name).key]
        owns = member.owner_of(slot) in (member.id, member.follows)
        return self.world.data(member).get(slot) if owns else None

    async def lose(self, name: str, slots: Ranges) -> None:
        member = self.world.members[self.target(name).key]
        member.owner[member.id] = without(member.slots, slots)

    async def half_open(self, source: str, to: str, slot: int) -> None:
        self.world.members[self.target(to).key].importing[slot] = self.id(source)
        self.world.members[self.target(source).key].migrating[slot] = self.id(to)

    async def aclose(self) -> None:
        await self.link.aclose()
        for task in self.world.tasks:
            task.cancel()


WORLDS = [
    *(
        pytest.param(lambda place, engine=engine, major=major: RealNodes(engine, major, place), id=f"{engine}{major}")
        for engine, major in REDIS_LIKE
    ),
    pytest.param(lambda _: SimNodes("8.0", seed=0), id="sim8"),
    pytest.param(lambda _: SimNodes("9.0", seed=1), id="sim9"),
]
"""The version says how simulated engines move slots, one by one or whole; the seed what becomes of an empty-handed primary."""


@pytest.fixture(params=WORLDS)
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealNodes | SimNodes]:
    there = request.param(tmp_path)
    try:
        await there.start()
        yield there
    finally:
        await there.aclose()
