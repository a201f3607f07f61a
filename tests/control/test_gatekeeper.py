"""The gatekeeper: what is stored of security groups and caches is what the filter is told, soon, and again when it was lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace
from tests.plan.builders import group

from cachekeep.control.gatekeeper import ALL_SECONDS, CHECK_SECONDS, Gatekeeper
from cachekeep.errors import CachekeepError
from cachekeep.model import Cache
from cachekeep.model.security_group import ANY, EVERYBODY, SecurityGroup, SecurityGroupRule
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.reach.admission import Door
from cachekeep.sim.timeless import SimClock, run
from cachekeep.store import MemoryStore
from cachekeep.store.contract import Along

EVERYTHING = tuple(SecurityGroupRule(id=f"r{n}", protocol=ANY, peer=peer) for n, peer in enumerate(EVERYBODY))
DEFAULT = SecurityGroup(name="sg-d", group_name="default", description="", rules=EVERYTHING)
WEB = SecurityGroup(name="sg-web", group_name="web", description="")


class Table:
    """A filter that may be broken, or lose its doors."""

    def __init__(self) -> None:
        self.doors: tuple[Door, ...] | None = None
        self.told = self.asked = 0
        self.broken = False

    async def keep(self, doors: Sequence[Door]) -> None:
        if self.broken:
            raise CachekeepError("nft: broken")
        self.doors, self.told = tuple(doors), self.told + 1

    async def kept(self) -> bool:
        self.asked += 1
        return self.doors is not None


class World:
    def __init__(self) -> None:
        self.clock = SimClock(random.Random(1))
        self.store, self.table = MemoryStore(self.clock), Table()
        self.gatekeeper = Gatekeeper(self.store, self.table, self.clock, default=DEFAULT, lenient=False)

    async def add(self, cache: Cache) -> Cache:
        async with self.store.transaction() as tx:
            saved = await tx.insert(replace(cache, version=0))
            tx.wake(saved.uid)
        (lease,) = await self.store.claim("k", ttl_seconds=1000)
        return await self.store.save_decided(saved, lease, Along(addresses=addresses_used(saved.decided)))

    async def put(self, changed: SecurityGroup) -> SecurityGroup:
        async with self.store.transaction() as tx:
            tx.wake("security-groups")
            return await tx.put(changed)


def in_virtual_time(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def tried() -> None:
        async def main() -> None:
            world = World()
            working = asyncio.create_task(world.gatekeeper.run())
            await asyncio.sleep(0.01)
            await test(world)
            working.cancel()

        run(main())

    tried.__name__, tried.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return tried


@in_virtual_time
async def test_a_change_is_told_within_a_second(world: World) -> None:
    assert world.table.doors == ()  # what an earlier control plane left is taken away
    web = await world.put(WEB)
    cache = await world.add(group(2, security_group_ids=("sg-web",)))
    await asyncio.sleep(0.5)
    assert world.table.doors is not None
    assert {d.address for d in world.table.doors} == addresses_used(cache.decided)
    assert not any(d.admits(33) for d in world.table.doors)
    rule = SecurityGroupRule(id="r", protocol="tcp", from_port=1, to_port=9999, peer="127.0.0.0/8")
    await world.put(replace(web, rules=(rule,)))
    await asyncio.sleep(0.5)
    assert all(d.admits(33) for d in world.table.doors)


@in_virtual_time
async def test_what_is_lost_is_told_again_and_nothing_else_is(world: World) -> None:
    await world.put(WEB)
    await world.add(group(1, security_group_ids=("sg-web",)))
    await asyncio.sleep(0.5)
    told = world.table.told
    await asyncio.sleep(10 * CHECK_SECONDS)
    assert world.table.told == told
    asked = world.table.asked
    for _ in range(10):  # as a failover has them: no door is another, and nothing is asked of the kernel
        await world.put(replace(WEB, name="sg-other"))
        await asyncio.sleep(0.15)
        async with world.store.transaction() as tx:
            await tx.delete(SecurityGroup, "sg-other")
    assert world.table.asked <= asked + 1
    before, world.table.doors = world.table.doors, None  # nft flush ruleset
    await asyncio.sleep(2 * CHECK_SECONDS)
    assert world.table.doors == before


@in_virtual_time
async def test_what_the_filter_does_not_take_is_said_and_tried_again(world: World) -> None:
    await world.put(WEB)
    world.table.broken = True
    await world.add(group(1, security_group_ids=("sg-web",)))
    await asyncio.sleep(0.5)
    assert ["nft: broken" in said for said in world.gatekeeper.lacks()] == [True]
    world.table.broken = False
    await asyncio.sleep(2 * CHECK_SECONDS)
    assert world.table.doors
    assert world.gatekeeper.lacks() == ()


@in_virtual_time
async def test_what_was_read_is_what_is_now(world: World) -> None:
    """A change that comes while another is read, and one of which no word came."""
    await world.put(WEB)
    cache = await world.add(group(1, security_group_ids=("sg-web",)))
    await asyncio.sleep(0.5)
    assert world.table.doors
    load = world.store.load

    async def slowly(uid: str) -> Cache | None:
        found = await load(uid)
        world.store.load = load  # type: ignore[method-assign]
        async with world.store.transaction() as tx:
            now = await tx.cache(cache.name, "group")
            assert now is not None
            await tx.save_wanted(replace(now, wanted=replace(now.wanted, security_group_ids=())))
            tx.wake(uid)
        return found

    world.store.load = slowly  # type: ignore[method-assign]
    async with world.store.transaction() as tx:
        tx.wake(cache.uid)
    await asyncio.sleep(0.5)
    assert world.table.doors == ()
    async with world.store.transaction() as tx:
        now = await tx.cache(cache.name, "group")
        assert now is not None
        await tx.save_wanted(replace(now, wanted=replace(now.wanted, security_group_ids=("sg-web",))))
    world.gatekeeper._touched.clear()
    await asyncio.sleep(2 * ALL_SECONDS)
    assert world.table.doors
