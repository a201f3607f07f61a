"""What any ``Link`` must do in cluster mode: looking, elections, moves of the lead, acquaintance, slots."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.contract.cluster_fixtures import ONE, OTHER, OWNED, THIRD, TWO, Cluster, cluster
from tests.engines.servers import until

from cachekeep.engines.catalogue import capabilities_of
from cachekeep.errors import OrderFailed
from cachekeep.model import Disown, Elect, Introduce, Meet, MoveSlots, Own, Replicate, Settle, Swap
from cachekeep.plan.slots.ranges import SLOTS, count

__all__ = ["cluster"]
ALL = (ONE, TWO, OTHER, THIRD)
LEADS = {ONE: OWNED[0], OTHER: OWNED[1], THIRD: OWNED[2]}
LOST = ((100, 199),)


async def serves(cluster: Cluster, *names: str) -> bool:
    return all([(await cluster.believes(name)).ok for name in names])


async def fed(cluster: Cluster, replica: str, primary: str) -> bool:
    """It follows that one, and both say that it is fed."""
    seen, feeds, at = await cluster.seen(replica), await cluster.seen(primary), cluster.target(primary).address
    online = any(r.online and r.address == cluster.target(replica).address for r in feeds.replicas)
    return (seen.role, seen.follows, seen.link_up) == ("replica", at, True) and online


async def up(cluster: Cluster) -> None:
    """It serves, and the replica has what there is."""
    await until(lambda: serves(cluster, ONE, OTHER, THIRD))
    await until(lambda: fed(cluster, TWO, ONE))


async def leads(cluster: Cluster, name: str) -> bool:
    return (await cluster.seen(name)).role == "primary"


async def owns(cluster: Cluster, name: str, slots: object) -> bool:
    return (await cluster.believes(name)).slots == slots


async def reads(cluster: Cluster, name: str, slot: int, value: int | None) -> bool:
    return await cluster.read(name, slot) == value


async def writes(cluster: Cluster, name: str, slot: int, value: int) -> bool:
    return await cluster.write(name, slot, value)


# -- looking


async def test_a_cluster_begins_as_it_is_decided_and_each_says_what_it_owns(cluster: Cluster) -> None:
    await up(cluster)
    everybody = {cluster.id(name) for name in ALL}
    for name, slots in LEADS.items():
        seen, belief = await cluster.seen(name), await cluster.believes(name)
        assert (seen.role, seen.follows, belief.id) == ("primary", None, cluster.id(name))
        assert (belief.slots, belief.inherits, belief.migrating, belief.importing) == (slots, (), {}, {})
        assert belief.knows == everybody
    replica = await cluster.believes(TWO)
    assert (replica.slots, replica.inherits, replica.knows) == ((), OWNED[0], everybody)
    assert await cluster.write(ONE, 7, 1)
    await until(lambda: reads(cluster, TWO, 7, 1))
    assert not await cluster.write(OTHER, 7, 2), "it sends clients on"
    assert not await cluster.write(TWO, 7, 2), "so does a replica"


async def test_a_replica_that_is_introduced_is_told_of_everywhere(cluster: Cluster) -> None:
    await up(cluster)
    await cluster.carry(Introduce(TWO, ONE, (ONE, OTHER, THIRD)))

    async def told() -> bool:
        return not any([(await cluster.believes(name)).untold for name in (ONE, OTHER, THIRD)])

    await until(told)


# -- who leads


async def test_a_replica_that_is_elected_has_all_that_its_primary_had(cluster: Cluster) -> None:
    await up(cluster)
    await cluster.write(ONE, 7, 1)
    await until(lambda: reads(cluster, TWO, 7, 1))
    before = (await cluster.believes(ONE)).epoch
    await cluster.kill(ONE)
    await cluster.carry(Elect(TWO, 3))
    await until(lambda: leads(cluster, TWO))
    belief = await cluster.believes(TWO)
    assert belief.slots == OWNED[0]
    assert belief.epoch > max(before, (await cluster.believes(OTHER)).epoch)
    assert await cluster.read(TWO, 7) == 1
    await until(lambda: serves(cluster, TWO))
    assert await cluster.write(TWO, 7, 2)

    cluster.led_by(TWO)
    await cluster.restart(ONE)
    await cluster.carry(Replicate(ONE, TWO, 4))
    await until(lambda: fed(cluster, ONE, TWO))
    await until(lambda: reads(cluster, ONE, 7, 2))
    with pytest.raises(OrderFailed, match="later order"):
        await cluster.carry(Elect(ONE, 3))
    await cluster.carry(Replicate(ONE, TWO, 4))
    await until(lambda: fed(cluster, ONE, TWO))  # told again, it follows on


async def test_nobody_is_elected_without_a_majority_but_may_take_over(cluster: Cluster) -> None:
    await up(cluster)
    for name in (ONE, THIRD):
        await cluster.kill(name)
    await cluster.carry(Elect(TWO, 2))
    assert not await leads(cluster, TWO), "one of three primaries votes"
    await cluster.carry(Elect(TWO, 3, seize=True, others=(OTHER,)))
    await until(lambda: leads(cluster, TWO))
    assert await owns(cluster, TWO, OWNED[0])


async def test_a_primary_stands_for_nothing(cluster: Cluster) -> None:
    await up(cluster)
    for seize in (False, True):
        with pytest.raises(OrderFailed):
            await cluster.carry(Elect(ONE, 2, seize=seize))
    assert await owns(cluster, ONE, OWNED[0])


async def test_who_has_not_heard_that_slots_are_anothers_by_now_does_not_take_over(cluster: Cluster) -> None:
    await up(cluster)
    await cluster.freeze(TWO)
    await cluster.lose(ONE, LOST)
    await cluster.carry(Own(OTHER, LOST, 2, (ONE,)))
    await cluster.kill(ONE)
    await cluster.freeze(OTHER)
    await cluster.freeze(THIRD)  # nobody is there to tell it
    await cluster.thaw(TWO)
    with pytest.raises(OrderFailed):
        await asyncio.wait_for(cluster.carry(Elect(TWO, 2, seize=True, others=(OTHER,))), 30)
    assert not await leads(cluster, TWO)
    await cluster.thaw(OTHER)
    await cluster.thaw(THIRD)

    async def taken() -> bool:
        try:
            await cluster.carry(Elect(TWO, 2, seize=True, others=(OTHER,)))
        except OrderFailed:
            return False
        return True

    await until(taken)
    await until(lambda: leads(cluster, TWO))
    assert await owns(cluster, TWO, ((0, 99), (200, 5461)))
    assert await owns(cluster, OTHER, (*LOST, *OWNED[1]))


async def test_a_swap_moves_lead_and_slots_and_loses_nothing(cluster: Cluster) -> None:
    await up(cluster)
    assert await cluster.write(ONE, 7, 1)
    for _ in range(2):
        await cluster.carry(Swap(ONE, TWO, 2, 5.0))
        assert await leads(cluster, TWO)
        assert await cluster.read(TWO, 7) == 1
        assert await owns(cluster, TWO, OWNED[0])
        assert await owns(cluster, ONE, ())
        await until(lambda: fed(cluster, ONE, TWO))
    await until(lambda: writes(cluster, TWO, 7, 2))
    await until(lambda: reads(cluster, ONE, 7, 2))
    with pytest.raises(OrderFailed, match="later order"):
        await cluster.carry(Swap(TWO, ONE, 1, 5.0))


async def test_of_a_swap_that_fails_nothing_is_left(cluster: Cluster) -> None:
    await up(cluster)
    with pytest.raises(OrderFailed, match="does not follow"):
        await cluster.carry(Swap(OTHER, TWO, 2, 1.0))
    await cluster.freeze(TWO)
    with pytest.raises(OrderFailed):
        await cluster.carry(Swap(ONE, TWO, 3, 0.5))
    await until(lambda: writes(cluster, ONE, 7, 1))
    await cluster.thaw(TWO)
    assert await leads(cluster, ONE)
    assert not await leads(cluster, TWO)
    await until(lambda: reads(cluster, TWO, 7, 1))


async def test_who_owns_slots_becomes_nobodys_replica(cluster: Cluster) -> None:
    await up(cluster)
    with pytest.raises(OrderFailed, match="owns slots"):
        await cluster.carry(Replicate(OTHER, ONE, 2))
    assert await owns(cluster, OTHER, OWNED[1])


# -- acquaintance


async def test_who_is_disowned_is_not_known_until_it_is_met_again(cluster: Cluster) -> None:
    await up(cluster)
    gone, left = cluster.id(TWO), (ONE, OTHER, THIRD)
    await cluster.kill(TWO)
    for name in left:
        for _ in range(2):
            await cluster.carry(Disown(name, (gone, "0" * 40)))  # an id that nobody knows is no matter
    for _ in range(20):
        assert not any([gone in (await cluster.believes(name)).knows for name in left]), "gossip brings it back"
        await asyncio.sleep(0.02)
    await cluster.restart(TWO)

    async def known() -> bool:
        """A greeting that is not answered in time is forgotten: as the planner does, it is said again."""
        if all([gone in (await cluster.believes(name)).knows for name in left]):
            return True
        await cluster.carry(Meet(TWO, left))
        return False

    await until(known)
    await until(lambda: fed(cluster, TWO, ONE))


async def test_a_replica_does_not_disown_its_primary(cluster: Cluster) -> None:
    await up(cluster)
    with pytest.raises(OrderFailed, match="forget my master"):
        await cluster.carry(Disown(TWO, (cluster.id(ONE),)))
    assert cluster.id(ONE) in (await cluster.believes(TWO)).knows


# -- slots


async def test_slots_that_nobody_owns_are_given_and_those_of_somebody_are_not(cluster: Cluster) -> None:
    await up(cluster)
    with pytest.raises(OrderFailed, match="somebody owns"):
        await cluster.carry(Own(OTHER, LOST, 2, (ONE, THIRD)))
    await cluster.lose(ONE, LOST)
    with pytest.raises(OrderFailed):
        await cluster.carry(Own(TWO, LOST, 2, (ONE, OTHER, THIRD)))
    await cluster.carry(Own(OTHER, LOST, 3, (ONE, THIRD)))
    assert await owns(cluster, OTHER, (*LOST, *OWNED[1]))
    assert await owns(cluster, ONE, ((0, 99), (200, 5461)))
    with pytest.raises(OrderFailed, match="later order"):
        await cluster.carry(Own(OTHER, LOST, 2, (ONE, THIRD)))
    await until(lambda: writes(cluster, OTHER, 150, 1))
    assert not await cluster.write(ONE, 150, 1)
    await until(lambda: serves(cluster, ONE, OTHER, THIRD))


async def test_slots_that_are_half_open_are_seen_and_closed(cluster: Cluster) -> None:
    await up(cluster)
    await cluster.half_open(ONE, OTHER, 42)
    assert (await cluster.believes(ONE)).migrating == {42: cluster.id(OTHER)}
    assert (await cluster.believes(OTHER)).importing == {42: cluster.id(ONE)}
    for _ in range(2):
        for name in (ONE, OTHER):
            await cluster.carry(Settle(name, ((42, 42),)))
    assert ((await cluster.believes(ONE)).migrating, (await cluster.believes(OTHER)).importing) == ({}, {})
    assert await owns(cluster, ONE, OWNED[0])


def moves_whole(cluster: Cluster) -> bool:
    one = cluster.target(ONE)
    return "atomic-slot-migration" in capabilities_of(one.engine, one.version)


async def moved(cluster: Cluster, effect: MoveSlots, slots: object) -> None:
    """Carried out, again where time was too short."""

    async def there() -> bool:
        await cluster.carry(effect)
        return await owns(cluster, effect.target, slots)

    await until(there)


async def test_slots_move_with_their_keys_and_with_what_is_written_meanwhile(cluster: Cluster) -> None:
    await up(cluster)
    for slot in (50, 99, 100, 199, 200):
        assert await cluster.write(ONE, slot, slot)
    move = MoveSlots(ONE, THIRD, LOST, source_order=5, target_order=6, seconds=10.0)
    await moved(cluster, move, (*LOST, *OWNED[2]))
    await until(lambda: owns(cluster, ONE, ((0, 99), (200, 5461))))
    for slot in (100, 199):
        assert await cluster.read(THIRD, slot) == slot
        assert await cluster.write(THIRD, slot, slot + 1)
        assert await cluster.read(ONE, slot) is None
    assert [await cluster.read(ONE, slot) for slot in (50, 99, 200)] == [50, 99, 200]
    assert ((await cluster.believes(ONE)).migrating, (await cluster.believes(THIRD)).importing) == ({}, {})
    for orders in ((4, 6), (5, 5)):
        with pytest.raises(OrderFailed, match="later order"):
            await cluster.carry(MoveSlots(ONE, THIRD, ((0, 9),), *orders, 10.0))
    assert count((await cluster.believes(ONE)).slots) == count(OWNED[0]) - 100


async def test_of_slots_that_have_gone_in_part_the_rest_moves_or_is_left_half_open(cluster: Cluster) -> None:
    """An engine that moves slots whole is told of those that it has left. Others refuse, and what they have opened is seen."""
    await up(cluster)
    assert await cluster.write(ONE, 99, 1)
    await moved(cluster, MoveSlots(ONE, THIRD, LOST, 2, 2, 10.0), (*LOST, *OWNED[2]))
    await until(lambda: owns(cluster, ONE, ((0, 99), (200, 5461))))
    again = MoveSlots(ONE, THIRD, ((95, 104),), 3, 3, 10.0)
    if not moves_whole(cluster):
        with pytest.raises(OrderFailed):
            await cluster.carry(again)
        assert (await cluster.believes(ONE)).migrating == dict.fromkeys(range(95, 100), cluster.id(THIRD))
        assert (await cluster.believes(THIRD)).importing == dict.fromkeys(range(95, 100), cluster.id(ONE))
        assert await cluster.read(ONE, 99) == 1
        again = MoveSlots(ONE, THIRD, ((95, 99),), 3, 3, 10.0)
    await moved(cluster, again, ((95, 199), *OWNED[2]))
    assert await cluster.read(THIRD, 99) == 1
    assert ((await cluster.believes(ONE)).migrating, (await cluster.believes(THIRD)).importing) == ({}, {})


async def test_nothing_moves_that_the_source_does_not_own(cluster: Cluster) -> None:
    """A third node's slots would be taken from it."""
    await up(cluster)
    foreign = ((SLOTS - 2, SLOTS - 1),)
    assert await cluster.write(THIRD, SLOTS - 1, 1)
    with contextlib.nullcontext() if moves_whole(cluster) else pytest.raises(OrderFailed):
        await cluster.carry(MoveSlots(ONE, OTHER, foreign, 2, 2, 5.0))
    for name, slots in LEADS.items():
        assert await owns(cluster, name, slots)
    assert await cluster.read(THIRD, SLOTS - 1) == 1
    assert (await cluster.believes(ONE)).migrating == {}


async def test_slots_do_not_move_from_or_to_a_replica(cluster: Cluster) -> None:
    await up(cluster)
    for source, to in ((OTHER, TWO), (ONE, TWO)):
        with pytest.raises(OrderFailed):
            await cluster.carry(MoveSlots(source, to, ((6000, 6009),) if source == OTHER else LOST, 2, 2, 2.0))
    for name, slots in LEADS.items():
        assert await owns(cluster, name, slots)
