"""What any ``Fronts`` must do: fronts of each kind are started pointed, pointed anew, asked, killed, frozen and started again."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.addresses import new_address
from tests.contract.driver_fixtures import LocalWorld, SimWorld
from tests.engines.servers import until

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Driver
from cachekeep.compute.local import LocalDriver
from cachekeep.control.fronts import Fronts
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Decided, Front, Node, Shard, Wanted
from cachekeep.network.fronts import LocalFronts, find_haproxy, programs
from cachekeep.sim.fronts import SimFronts

NAMES = ("demo-001", "demo-002", "demo-003")
KINDS = ("balancer", "discovery", "compatible")


class Place:
    """A driver, fronts over it, and a cache with a front of one kind. Nothing is behind it: what a front is pointed at is its own
    word, and nobody's health."""

    def __init__(self, kind: str, driver: Driver, fronts: Fronts, world: LocalWorld | SimWorld) -> None:
        self.kind, self.driver, self.fronts, self.world = kind, driver, fronts, world
        engine, port = ("memcached", 11211) if kind == "discovery" else ("valkey", 6379)
        nodes = tuple(
            Node(
                name=n,
                shard="0001",
                zone="a",
                address=new_address(),
                port=port,
                engine=engine,
                version="1.6.22" if engine == "memcached" else "8.0",
                node_type="cache.t3.micro",
            )
            for n in NAMES
        )
        self.front = Front(name="front", kind=kind, address=new_address(), port=port)  # type: ignore[arg-type]
        self.cache = Cache(
            uid="uid-1",
            name="demo",
            kind="group",
            region="us-east-1",
            created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            wanted=Wanted(engine=engine, version=nodes[0].version, node_type="cache.t3.micro", port=port, shards=()),
            decided=Decided(
                nodes=nodes,
                fronts=(self.front,),
                shards=(Shard(id="0001", primary=NAMES[0], primary_address=new_address()),),
                discovery_version=1,
            ),
        )

    def told(self, version: int, *names: str) -> tuple[tuple[str, ...], int]:
        """What a front of this kind says when it was pointed at these nodes."""
        return () if self.kind == "compatible" else names, version if self.kind == "discovery" else 0

    def nodes(self, *names: str) -> tuple[Node, ...]:
        return tuple(n for name in names for n in self.cache.decided.nodes if n.name == name)

    async def start(self, *names: str) -> None:
        await self.driver.start(self.fronts.spec(self.cache, self.front, self.nodes(*names)))

    async def again(self, *names: str) -> None:
        """In another incarnation."""
        self.front = replace(self.front, incarnation=self.front.incarnation + 1)
        await self.start(*names)

    async def point(self, version: int, *names: str) -> None:
        await self.fronts.point(self.cache, self.front, self.nodes(*names), version)

    async def pointed(self) -> tuple[tuple[str, ...], int]:
        return await self.fronts.pointed(self.cache, self.front)

    async def works(self) -> bool:
        try:
            await self.pointed()
        except OrderFailed:
            return False
        return True

    @property
    def key(self) -> tuple[str, str]:
        return self.cache.uid, self.front.name


class LocalFrontWorld(LocalWorld):
    """The local driver, which runs the fronts' own programs."""

    async def driver(self, *, start_deadline_seconds: float = 60.0) -> LocalDriver:
        if self._driver is not None:
            await self._driver.aclose()
        there = programs(lambda: Catalogue(()))
        self._driver = LocalDriver(self.directory, SystemClock(), programs=there, start_deadline_seconds=start_deadline_seconds)
        await self._driver.open()
        return self._driver


@pytest.fixture(params=[(side, kind) for side in ("local", "sim") for kind in KINDS], ids="-".join)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    side, kind = request.param
    if side == "sim":
        simulated = SimWorld(tmp_path)
        driver = await simulated.driver()
        made = Place(kind, driver, SimFronts(simulated.world), simulated)
    else:
        if kind == "balancer" and find_haproxy() is None:
            pytest.skip("needs haproxy")
        local = LocalFrontWorld(tmp_path)
        there = await local.driver()
        made = Place(kind, there, LocalFronts(lambda key: there.log_path(key).parent), local)
    try:
        yield made
    finally:
        await made.world.aclose()


async def test_a_front_is_started_pointed(place: Place) -> None:
    await place.start("demo-002", "demo-001")
    assert await place.pointed() == place.told(1, "demo-001", "demo-002")


async def test_a_front_is_pointed_anew_and_says_where(place: Place) -> None:
    await place.start("demo-001")
    for version, names in ((2, ("demo-003", "demo-002")), (3, ("demo-003",)), (3, ("demo-003",)), (4, ("demo-001", "demo-003"))):
        await place.point(version, *names)
        assert await place.pointed() == place.told(version, *sorted(names))


async def test_a_front_that_has_ended_says_nothing_and_takes_no_order(place: Place) -> None:
    with pytest.raises(OrderFailed):
        await place.pointed()
    await place.start("demo-001")
    await place.world.kill(place.key)
    with pytest.raises(OrderFailed):
        await place.pointed()
    if place.kind != "compatible":  # it is never told anything
        with pytest.raises(OrderFailed):
            await place.point(2, "demo-002")
    await place.again("demo-002")
    assert await place.pointed() == place.told(1, "demo-002")


async def test_a_front_that_is_started_anew_begins_with_what_it_is_given(place: Place) -> None:
    await place.start("demo-001")
    await place.point(5, "demo-001", "demo-002")
    await place.world.kill(place.key)
    await place.again("demo-003")
    assert await place.pointed() == place.told(1, "demo-003")


async def test_a_front_outlives_the_control_plane_and_is_what_it_was(place: Place) -> None:
    await place.start("demo-001")
    await place.point(2, "demo-002")
    place.driver = await place.world.driver()
    assert await place.pointed() == place.told(2, "demo-002")


async def test_a_frozen_front_does_not_answer_and_goes_on_as_it_was(place: Place) -> None:
    await place.start("demo-001")
    await place.world.freeze(place.key)
    if place.kind == "compatible":
        assert await place.pointed() == ((), 0), "its host takes the connection, which is all that it is asked for"
        return
    with pytest.raises(OrderFailed):
        await place.pointed()
    with pytest.raises(OrderFailed):
        await place.point(2, "demo-002")
    await place.world.thaw(place.key)
    await until(place.works)
    heard = place.kind == "discovery"  # by way of a file, which is there when it goes on
    assert await place.pointed() == (place.told(2, "demo-002") if heard else place.told(1, "demo-001"))
