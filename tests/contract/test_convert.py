"""What any ``Link`` must do about a hand-over to a node in cluster mode: everything or nothing, and again if it was half done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.addresses import new_address
from tests.engines.servers import PASSWORD, REDIS_LIKE, cache_of, carry, until
from tests.live.test_link_convert import Pair, pair

from cachekeep.compute.contract import File, ProcessSpec, Target
from cachekeep.control.observe import target
from cachekeep.engines.launch import nodes_conf
from cachekeep.errors import OrderFailed
from cachekeep.model import Convert, Elect, Node, Preparing, Promote, Shard
from cachekeep.sim.cluster_doors import SimClusterDriver
from cachekeep.sim.switch_run import MixedWorld, SimMixedLink

SIMULATED = "sim"


class SimPair:
    """The same two, simulated."""

    def __init__(self) -> None:
        self.endpoint = new_address()
        given = {"shard": "0001", "zone": "a", "port": 6379, "engine": "valkey", "version": "8.0", "node_type": "cache.t3.micro"}
        one, two = (Node(name=name, address=new_address(), **given) for name in ("demo-001", "demo-001.cluster"))  # type: ignore[arg-type]
        shard = Shard(id="0001", primary="demo-001", order=1, primary_address=self.endpoint)
        cache = cache_of(one, shards=(shard,), cluster_mode="enabled")
        self.cache = replace(cache, decided=replace(cache.decided, mode="disabled", switch=Preparing(successors=(two,))))
        self.world = MixedWorld(seed=0)
        self.link, self._driver = SimMixedLink(self.world), SimClusterDriver(self.world)
        self.giver, self.taker = (target(self.cache, n, lambda cache: PASSWORD) for n in (one, two))

    async def start(self) -> None:
        for at, node in ((self.giver, self.cache.decided.nodes[0]), (self.taker, self.cache.decided.successors[0])):
            files = {"nodes.conf": File(nodes_conf(self.cache, node))} if at is self.taker else {}
            await self._driver.start(
                ProcessSpec(key=at.key, incarnation=1, argv=("valkey",), files=files, address=at.address, port=at.port)
            )
            if at is self.giver:
                await carry(self.link, Promote(at.name, 1, (at.address, self.endpoint)), at)
        await until(self.fed)

    async def fed(self) -> bool:
        primary, replica = [await self.link.look(t, deadline_seconds=30) for t in (self.giver, self.taker)]
        return bool(replica.link_up) and any(r.online for r in primary.replicas)

    async def convert(self, order: int = 2, seconds: float = 10.0) -> None:
        given = (self.giver.address,)
        await carry(self.link, Convert(self.giver.name, self.taker.name, order, given, seconds), self.giver, self.taker)

    async def leads(self, which: Target) -> bool:
        return (await self.link.look(which, deadline_seconds=30)).role == "primary"

    async def aclose(self) -> None:
        await self.link.aclose()
        for task in self.world.tasks:
            task.cancel()


@pytest.fixture(params=[*REDIS_LIKE, SIMULATED], ids=str)
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair | SimPair]:
    if request.param == SIMULATED:
        simulated = SimPair()
        await simulated.start()
        yield simulated
        await simulated.aclose()
    else:
        async with pair(*request.param, tmp_path) as real:
            yield real


async def test_the_taker_owns_everything_and_the_giver_serves_nobody(two: Pair | SimPair) -> None:
    await two.convert()
    took, gave = [await two.link.look(t, deadline_seconds=30) for t in (two.taker, two.giver)]
    assert took.cluster is not None
    assert (took.role, took.cluster.slots, took.cluster.refused) == ("primary", ((0, 16383),), 0)
    assert (gave.role, gave.follows, gave.bound) == ("replica", None, {two.giver.address})
    await until(lambda: _serves(two))
    await two.convert(order=3)
    assert await two.leads(two.taker)
    with pytest.raises(OrderFailed, match="later order"):
        await two.convert(order=2)


async def _serves(two: Pair | SimPair) -> bool:
    seen = (await two.link.look(two.taker, deadline_seconds=30)).cluster
    return seen is not None and seen.ok


async def test_a_taker_that_leads_already_beside_its_giver_is_refused(two: Pair | SimPair) -> None:
    await carry(two.link, Elect(two.taker.name, 2, seize=True), two.taker)
    await until(lambda: two.leads(two.taker))
    with pytest.raises(OrderFailed):
        await two.convert(order=7)
    assert await two.leads(two.giver)
    assert (await two.link.look(two.giver, deadline_seconds=30)).bound == {two.giver.address, two.endpoint}
