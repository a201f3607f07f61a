"""The hand-over to a node in cluster mode, between real engines: everything or nothing, and nothing that was refused on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.addresses import new_address
from tests.engines.servers import PASSWORD, REDIS_LIKE, Orders, Server, build_of, cache_of, carry, node_of, until
from tests.live.writer import Writer

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Target
from cachekeep.compute.link import EngineLink
from cachekeep.control.observe import target
from cachekeep.errors import OrderFailed
from cachekeep.model import (
    Convert,
    Elect,
    Preparing,
    Promote,
    Shard,
)

ENGINES = pytest.mark.parametrize(("engine", "major"), [pair for pair in REDIS_LIKE if pair != ("redis", 6)], ids=str)


class Pair:
    """A primary without cluster mode, and the successor in cluster mode that it feeds."""

    def __init__(self, engine: str, major: int, place: Path) -> None:
        build = build_of(engine, major)
        giver, taker = node_of(build, "demo-001"), node_of(build, "demo-001.cluster")
        self.endpoint = new_address()
        shard = Shard(id="0001", primary="demo-001", order=1, primary_address=self.endpoint)
        cache = cache_of(giver, shards=(shard,), cluster_mode="enabled")
        self.cache = replace(cache, decided=replace(cache.decided, mode="disabled", switch=Preparing(successors=(taker,))))
        self.orders = Orders()
        self.link = EngineLink(self.orders, SystemClock())
        self.give = Server(build, self.cache, giver, place / "giver")
        self.take = Server(build, self.cache, taker, place / "taker")

    @property
    def giver(self) -> Target:
        return target(self.cache, self.cache.decided.nodes[0], lambda cache: PASSWORD)

    @property
    def taker(self) -> Target:
        return target(self.cache, self.cache.decided.successors[0], lambda cache: PASSWORD)

    async def fed(self) -> bool:
        primary, replica = [await self.link.look(t, deadline_seconds=30) for t in (self.giver, self.taker)]
        return bool(replica.link_up) and any(r.online for r in primary.replicas)

    async def convert(self, order: int = 2, seconds: float = 10.0) -> None:
        given = (self.giver.address,)
        await carry(self.link, Convert(self.giver.name, self.taker.name, order, given, seconds), self.giver, self.taker)

    async def leads(self, which: Target) -> bool:
        return (await self.link.look(which, deadline_seconds=30)).role == "primary"


@contextlib.asynccontextmanager
async def pair(engine: str, major: int, place: Path) -> AsyncIterator[Pair]:
    two = Pair(engine, major, place)
    try:
        two.give.start()
        await carry(two.link, Promote(two.giver.name, 1, (two.giver.address, two.endpoint)), two.giver)
        two.take.start()
        await until(two.fed)
        yield two
    finally:
        await two.link.aclose()
        for server in (two.give, two.take):
            server.kill()


async def still_serves(two: Pair) -> None:
    """The giver leads on, at its endpoint too, and nobody is kept waiting."""
    assert await two.leads(two.giver)
    async with valkey.asyncio.Valkey(host=two.endpoint, socket_timeout=60) as client:
        assert await client.set("after", "1")


@ENGINES
async def test_every_write_that_was_acknowledged_goes_along(engine: str, major: int, tmp_path: Path) -> None:
    async with pair(engine, major, tmp_path) as two:
        writer = Writer((two.endpoint, 6379))
        try:
            await until(lambda: writer.count > 200)
            await two.convert()
        finally:
            await asyncio.to_thread(writer.stop)
        seen = await two.link.look(two.taker, deadline_seconds=30)
        assert seen.cluster is not None
        assert (seen.role, seen.cluster.slots, seen.cluster.ok) == ("primary", ((0, 16383),), True)
        assert not await two.leads(two.giver)
        assert await asyncio.to_thread(writer.missing, two.taker.address) == []
        with pytest.raises(OSError):
            await asyncio.open_connection(two.endpoint, 6379)
        await two.convert(order=3)  # again: it is done already


@ENGINES
@pytest.mark.parametrize(
    "command", [("SET", "a", "1"), ("MOVE", "b", "0"), ("COPY", "b", "c", "DB", "0"), ("SWAPDB", "0", "3")], ids=str
)
async def test_who_has_refused_a_command_does_not_lead(engine: str, major: int, command: tuple[str, ...], tmp_path: Path) -> None:
    """What is meant for another database is carried out in database 0 there, or not at all."""
    async with pair(engine, major, tmp_path) as two, valkey.asyncio.Valkey(host=two.endpoint, db=3) as third:
        await third.set("b", "1")
        await third.execute_command(*command)
        with pytest.raises(OrderFailed, match=r"has refused \d+ commands of what it was fed; demo-001 leads on"):
            await two.convert()
        seen = await two.link.look(two.taker, deadline_seconds=30)
        assert seen.cluster is not None
        assert seen.cluster.refused > 0
        if command[0] == "SET":
            assert (await two.link.look(two.giver, deadline_seconds=30)).other_databases == (3,)
        await still_serves(two)


@ENGINES
async def test_a_frozen_taker_takes_nothing_and_the_giver_leads_on(engine: str, major: int, tmp_path: Path) -> None:
    async with pair(engine, major, tmp_path) as two:
        two.take.freeze()
        with pytest.raises(OrderFailed, match="leads on"):
            await two.convert(seconds=0.5)
        await still_serves(two)
        two.take.thaw()
        await until(two.fed)
        assert not await two.leads(two.taker)


@ENGINES
async def test_a_taker_that_leads_already_beside_its_giver_is_refused_without_having_seen_the_order(
    engine: str, major: int, tmp_path: Path
) -> None:
    """By its having seen this order and leading, the planner knows that the giver has stepped down for it."""
    async with pair(engine, major, tmp_path) as two:
        await carry(two.link, Elect(two.taker.name, 2, seize=True), two.taker)
        assert await two.leads(two.taker)
        with pytest.raises(OrderFailed, match="does not follow"):
            await two.convert(order=7)
        assert two.orders.last[two.taker.key] == 2
        await still_serves(two)
