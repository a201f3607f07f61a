"""Who owns a slot, where nodes are of different opinions: what the link has real engines do about it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.engines.servers import PASSWORD, REDIS_LIKE, Orders, Server, build_of, cache_of, carry, node_of, until
from valkey import ResponseError, Valkey

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Target
from cachekeep.compute.link import EngineLink
from cachekeep.engines.launch import cluster_node_id
from cachekeep.engines.users import MOVER
from cachekeep.errors import OrderFailed
from cachekeep.model import Elect, MoveSlots, Node, Own, Shard, Swap
from cachekeep.plan.slots.ranges import SLOTS, Ranges, count

ONE, TWO, OTHER = "demo-0001-001", "demo-0001-002", "demo-0002-001"
LOST = ((100, 199),)


class Nodes:
    """Two shards, the first with a replica; a link to them."""

    def __init__(self, engine: str, major: int, place: Path) -> None:
        build = build_of(engine, major)
        owned: tuple[Ranges, ...] = (((0, 8191),), ((8192, SLOTS - 1),))
        shards = tuple(
            Shard(id=f"{i:04}", primary=f"demo-{i:04}-001", slots=s, owned=s, epoch=i) for i, s in enumerate(owned, start=1)
        )
        nodes = [msgspec.structs.replace(node_of(build, name), shard=name.split("-")[1]) for name in (ONE, TWO, OTHER)]
        cache = cache_of(*nodes, shards=shards, cluster_mode="enabled")
        self.servers = [Server(build, cache, node, place / node.name) for node in nodes]
        self.targets = {n.name: self._target(n, cluster_node_id(cache, n)) for n in nodes}
        self.admin = {n.name: Valkey(n.address, n.port, username="cachekeep-admin", password=PASSWORD.value) for n in nodes}
        self.link = EngineLink(Orders(), SystemClock())

    def _target(self, node: Node, id: str) -> Target:
        return Target(
            key=("u", node.name),
            address=node.address,
            port=node.port,
            engine=node.engine,
            version=node.version,
            password=PASSWORD,
            cluster_id=id,
            moving=True,
        )

    async def slots(self, name: str) -> Ranges:
        seen = (await self.link.look(self.targets[name], deadline_seconds=1.0)).cluster
        return seen.slots if seen else ()

    def told(self, name: str) -> bytes:
        return self.admin[name].execute_command("CLUSTER", "NODES")  # type: ignore[no-any-return]


@pytest.fixture(params=REDIS_LIKE, ids=lambda p: f"{p[0]}-{p[1]}")
async def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(*request.param, tmp_path)
    try:
        for server in nodes.servers:
            await asyncio.to_thread(server.start)
        await until(lambda: all(b"cluster_state:ok" in a.execute_command("CLUSTER", "INFO") for a in nodes.admin.values()))
        await until(lambda: nodes.admin[TWO].info("replication").get("master_link_status") == "up")
        yield nodes
    finally:
        await nodes.link.aclose()
        for admin in nodes.admin.values():
            admin.close()
        for server in nodes.servers:
            server.kill()


async def test_slots_that_nobody_owns_but_everybody_ascribes_to_somebody(nodes: Nodes) -> None:
    """Their owner came back without them. No engine forgets the owner that it knew of a slot, so ADDSLOTS is refused for ever."""
    nodes.admin[ONE].execute_command("CLUSTER", "DELSLOTS", *range(100, 200))
    with pytest.raises(ResponseError, match="busy"):
        nodes.admin[OTHER].execute_command("CLUSTER", "ADDSLOTS", 100)
    await carry(nodes.link, Own(OTHER, LOST, 2, (ONE, TWO)), nodes.targets[OTHER], nodes.targets[ONE], nodes.targets[TWO])
    assert count(await nodes.slots(OTHER)) == SLOTS // 2 + 100
    await until(lambda: all(b" 100-199 8192-16383" in nodes.told(name) for name in nodes.admin))
    with pytest.raises(OrderFailed, match="later order"):
        await carry(nodes.link, Own(OTHER, LOST, 1, (ONE, TWO)), nodes.targets[OTHER], nodes.targets[ONE], nodes.targets[TWO])


async def test_slots_that_somebody_owns_after_all_are_not_given_away(nodes: Nodes) -> None:
    with pytest.raises(OrderFailed, match="somebody owns after all"):
        await carry(nodes.link, Own(OTHER, LOST, 2, (ONE, TWO)), nodes.targets[OTHER], nodes.targets[ONE], nodes.targets[TWO])
    assert count(await nodes.slots(ONE)) == SLOTS // 2


async def test_who_has_not_heard_of_all_slots_is_not_handed_the_shard_before_it_has(nodes: Nodes) -> None:
    """It would take what it believes the giver to own, and the giver would lead on with the rest."""
    nodes.admin[TWO].execute_command("CLUSTER", "DELSLOTS", *range(100, 200))
    await carry(nodes.link, Swap(ONE, TWO, 2, 3.0), nodes.targets[ONE], nodes.targets[TWO])
    assert await nodes.slots(TWO) == ((0, 8191),)
    assert await nodes.slots(ONE) == ()


async def test_nobody_takes_over_what_another_owns_by_now(nodes: Nodes) -> None:
    """A replica that was away while slots moved to another shard takes them too, at a newer epoch, and their keys are gone."""
    two, other = nodes.targets[TWO], nodes.targets[OTHER]
    nodes.servers[1].freeze()
    await carry(nodes.link, Own(other.name, LOST, 1), other)  # as at the end of a move
    nodes.servers[0].kill()
    nodes.servers[1].thaw()
    with contextlib.suppress(OrderFailed):  # by then it has not heard of it, and is not let
        await carry(nodes.link, Elect(two.name, 2, seize=True, others=(other.name,)), two, other)
    assert count(await nodes.slots(OTHER)) == SLOTS // 2 + 100
    assert count(await nodes.slots(TWO)) in (0, SLOTS // 2 - 100)


async def test_slots_are_moved_by_a_user_for_that_alone(nodes: Nodes) -> None:
    """Where it is not let in, nothing moves: the administrator's password is said to no other node."""
    for i in range(100):
        nodes.admin[ONE].execute_command("SET", f"{{b}}{i}", i)
        nodes.admin[ONE].execute_command("RPUSH", f"{{b}}list{i}", *range(50))
    source, target, slot = nodes.targets[ONE], nodes.targets[OTHER], ((3300, 3300),)  # of {b}
    for one in (source, target):
        await nodes.link.look(one, deadline_seconds=1.0)
    nodes.admin[OTHER].execute_command("ACL", "SETUSER", MOVER, "off")
    with pytest.raises(OrderFailed):
        await carry(nodes.link, MoveSlots(ONE, OTHER, slot, 1, 1, 5.0), source, target)
    nodes.admin[OTHER].execute_command("ACL", "SETUSER", MOVER, "on")
    await carry(nodes.link, MoveSlots(ONE, OTHER, slot, 1, 1, 5.0), source, target)
    assert nodes.admin[OTHER].execute_command("CLUSTER", "COUNTKEYSINSLOT", 3300) == 200
    assert nodes.admin[ONE].config_get("masteruser")["masteruser"] == "cachekeep-replica"
