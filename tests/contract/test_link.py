"""What any ``Link`` must do: looking, orders, hand-over, heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop
from tests.contract.link_fixtures import World, real_engines, world
from tests.engines.servers import carry, until

from cachekeep.compute.contract import ApplyParts, Key, Link, Target
from cachekeep.errors import OrderFailed
from cachekeep.model import Admit, Bind, Detach, Follow, HandOver, Interrupt, NodeView, Plight, Promote, Silence

__all__ = ["world"]
DEADLINE = 30.0


async def seen(world: World, target: Target) -> NodeView:
    return await world.link.look(target, deadline_seconds=DEADLINE)


async def pair(world: World, order: int = 1) -> tuple[Target, Target]:
    """A primary and a replica that the primary reports online."""
    first, second = await world.start(2)
    await carry(world.link, Promote(first.name, order, (first.address,)), first)
    await carry(world.link, Follow(second.name, first.name, order), second, first)
    await until(lambda: online(world, first, second))
    return first, second


async def online(world: World, primary: Target, replica: Target) -> bool:
    link_up = (await seen(world, replica)).link_up
    return bool(link_up) and any(r.address == replica.address and r.online for r in (await seen(world, primary)).replicas)


async def test_a_fresh_process_follows_nobody_takes_no_write_and_feeds_nobody(world: World) -> None:
    first, second = await world.start(2)
    view = await seen(world, first)
    assert (view.answering, view.role, view.follows, view.has_history, view.offset) == (True, "replica", None, False, 0)
    assert view.bound == {first.address}
    with pytest.raises(Exception, match="read only"):
        await world.write(first.address, "k", "v")
    await carry(world.link, Follow(second.name, first.name, 1), second, first)
    await until(lambda: _follows(world, second, first.address))
    view = await seen(world, second)
    assert view.link_up is False
    assert view.has_history is False
    assert (await seen(world, first)).replicas == ()


async def _follows(world: World, target: Target, address: str) -> bool:
    return (await seen(world, target)).follows == address


async def test_promote_serves_at_the_addresses_and_is_idempotent(world: World) -> None:
    (node,) = await world.start(1)
    endpoint = world.new_address()
    for _ in range(2):
        await carry(world.link, Promote(node.name, 3, (node.address, endpoint)), node)
        view = await seen(world, node)
        assert (view.role, view.bound, view.has_history) == ("primary", {node.address, endpoint}, True)
    await world.write(endpoint, "k", "v")
    assert await world.read(node.address, "k") == "v"


async def test_a_replica_gets_everything_and_shows_how_far_it_is(world: World) -> None:
    first, second = await world.start(2)
    await carry(world.link, Promote(first.name, 1, (first.address,)), first)
    await world.write(first.address, "before", "1")
    await carry(world.link, Follow(second.name, first.name, 1), second, first)
    await until(lambda: online(world, first, second))
    await world.write(first.address, "after", "2")

    async def level() -> bool:
        return (await seen(world, first)).offset == (await seen(world, second)).offset

    await until(level)
    view = await seen(world, second)
    assert (view.role, view.follows, view.link_up, view.has_history) == ("replica", first.address, True, True)
    assert [await world.read(second.address, k) for k in ("before", "after")] == ["1", "2"]
    with pytest.raises(Exception, match="read only"):
        await world.write(second.address, "k", "v")


async def test_a_replica_that_is_detached_keeps_what_it_holds_and_acknowledges_nothing(world: World) -> None:
    first, second = await pair(world)
    await world.write(first.address, "k", "v")

    async def level() -> bool:
        return (await seen(world, first)).offset == (await seen(world, second)).offset

    await until(level)
    for _ in range(2):
        await carry(world.link, Detach(second.name, 2), second)
        view = await seen(world, second)
        assert (view.role, view.follows, view.link_up, view.has_history) == ("replica", None, None, True)

    async def left() -> bool:
        return (await seen(world, first)).replicas == ()

    await until(left)
    with pytest.raises(OrderFailed):
        await carry(world.link, Follow(second.name, first.name, 1), second, first)
    await carry(world.link, Promote(second.name, 3, (second.address,)), second)
    assert await world.read(second.address, "k") == "v"


async def test_an_older_order_is_refused_and_changes_nothing(world: World) -> None:
    first, second = await pair(world, order=5)
    for late in (
        carry(world.link, Promote(second.name, 4, (second.address,)), second),
        carry(world.link, Follow(first.name, second.name, 4), first, second),
        carry(world.link, HandOver(first.name, second.name, 4, (first.address,), (second.address,), 5), first, second),
    ):
        with pytest.raises(OrderFailed, match="later order"):
            await late
    assert ((await seen(world, first)).role, (await seen(world, second)).role) == ("primary", "replica")


async def test_a_restarted_primary_has_no_history_and_its_replica_keeps_its_data(world: World) -> None:
    first, second = await pair(world)
    await world.write(first.address, "k", "v")
    await until(lambda: _reads(world, second, "k", "v"))
    await world.restart(first)
    view = await seen(world, first)
    assert (view.role, view.has_history) == ("replica", False)

    async def refused() -> bool:
        return (await seen(world, second)).link_up is False

    await until(refused)
    view = await seen(world, second)
    assert view.has_history is True
    assert await world.read(second.address, "k") == "v"


async def _reads(world: World, target: Target, key: str, value: str) -> bool:
    return await world.read(target.address, key) == value


async def test_bind_moves_an_address_and_a_taken_one_is_refused_in_the_engines_words(world: World) -> None:
    first, second = await world.start(2)
    endpoint = world.new_address()
    await carry(world.link, Bind(first.name, (first.address, endpoint)), first)
    with pytest.raises(OrderFailed, match=second.name):
        await carry(world.link, Bind(second.name, (second.address, endpoint)), second)
    assert (await seen(world, second)).bound == {second.address}
    assert await world.read(second.address, "k") is None
    await carry(world.link, Bind(first.name, (first.address,)), first)
    await carry(world.link, Bind(second.name, (second.address, endpoint)), second)
    assert (await seen(world, second)).bound == {second.address, endpoint}
    assert await world.read(endpoint, "k") is None


async def test_promote_with_a_taken_address_fails_and_the_node_still_serves_its_own(world: World) -> None:
    first, second = await world.start(2)
    with pytest.raises(OrderFailed):
        await carry(world.link, Promote(second.name, 1, (second.address, first.address)), second)
    await world.write(second.address, "k", "v")
    assert await world.read(second.address, "k") == "v"


async def test_settings_apply_all_or_none_and_leave_others_alone(world: World) -> None:
    (node,) = await world.start(1)
    await carry(world.link, Promote(node.name, 1, (node.address,)), node)
    await carry(world.link, ApplyParts(node=node.name, settings={"min-replicas-to-write": "1"}), node)
    await carry(world.link, ApplyParts(node=node.name, settings={"maxmemory": "104857600"}), node)
    with pytest.raises(Exception, match="NOREPLICAS"):
        await world.write(node.address, "k", "v")
    with pytest.raises(OrderFailed, match=r"no-such-setting|nsupported|nknown"):
        await carry(world.link, ApplyParts(node=node.name, settings={"min-replicas-to-write": "0", "no-such-setting": "1"}), node)
    with pytest.raises(Exception, match="NOREPLICAS"):
        await world.write(node.address, "k", "v")
    await carry(world.link, ApplyParts(node=node.name, settings={"min-replicas-to-write": "0"}), node)
    await world.write(node.address, "k", "v")


@real_engines
async def test_a_limit_of_memory_is_in_force_at_once(world: World) -> None:
    (node,) = await world.start(1)
    await carry(world.link, Promote(node.name, 1, (node.address,)), node)
    await carry(world.link, ApplyParts(node=node.name, settings={"maxmemory": "1048576", "maxmemory-policy": "noeviction"}), node)
    with pytest.raises(Exception, match="maxmemory"):
        await world.write(node.address, "k", "v" * 2_000_000)
        await world.write(node.address, "k2", "v")
    with pytest.raises(OrderFailed, match=r"no-such-setting|nsupported|nknown"):
        await carry(world.link, ApplyParts(node=node.name, settings={"maxmemory": "536870912", "no-such-setting": "1"}), node)
    with pytest.raises(Exception, match="maxmemory"):
        await world.write(node.address, "k2", "v")


async def test_an_order_to_a_dead_node_fails(world: World) -> None:
    (node,) = await world.start(1)
    assert (await seen(world, node)).answering
    await world.kill(node)
    assert (await world.link.look(node, deadline_seconds=0.25)).answering is False
    with pytest.raises(OrderFailed, match=node.name):
        await carry(world.link, Promote(node.name, 1, (node.address,)), node)
    await world.restart(node)
    await carry(world.link, Promote(node.name, 1, (node.address,)), node)


async def test_a_frozen_node_does_not_answer_and_does_again_when_thawed(world: World) -> None:
    (node,) = await world.start(1)
    assert (await seen(world, node)).answering
    await world.freeze(node)
    view = await world.link.look(node, deadline_seconds=0.1)
    assert view.answering is False
    assert view.role is None
    await world.thaw(node)
    assert (await seen(world, node)).answering


# -- what they say that they hold


async def test_histories_say_who_followed_whom(world: World) -> None:
    """Each lead has a history of its own, which goes on from the one before; whoever never followed it is seen not to have."""
    first, second, third = await world.start(3)
    assert (await seen(world, first)).stream is None
    await carry(world.link, Promote(first.name, 1, (first.address,)), first)
    for node in (second, third):
        await carry(world.link, Follow(node.name, first.name, 1), node, first)
        await until(lambda node=node: online(world, first, node))
    await world.write(first.address, "k", "v")

    async def level() -> bool:
        held = [(await seen(world, node)).stream for node in (first, second, third)]
        return held[0] == held[1] == held[2]

    await until(level)
    await world.kill(first)
    await carry(world.link, Promote(second.name, 2, (second.address,)), second)
    lead, stayed = (await seen(world, second)).stream, (await seen(world, third)).stream
    assert lead is not None
    assert stayed is not None
    assert (lead.before, lead.shared, lead.offset) == (stayed.history, stayed.offset, stayed.offset)
    assert stayed.includes(lead)
    await carry(world.link, Follow(third.name, second.name, 2), third, second)
    await until(lambda: online(world, second, third))
    await world.write(second.address, "k", "w")

    async def followed() -> bool:
        has, had = (await seen(world, third)).stream, (await seen(world, second)).stream
        return has is not None and had is not None and has.includes(had)

    await until(followed)
    assert not stayed.includes((await seen(world, second)).stream or stayed)


async def test_what_a_node_holds_is_remembered_from_looks_heartbeats_and_its_promotion(world: World) -> None:
    first, _second = await pair(world)
    memory = world.memory
    before = world.moment()
    held = (await seen(world, first)).stream
    newest = memory.heard[first.key][0]
    assert newest.stream == held
    assert before.seconds <= newest.asked_at.seconds <= world.moment().seconds
    memory.heard.clear()
    world.link.watch(first, interval_seconds=0.02, deadline_seconds=DEADLINE, wake=lambda key: None)
    await until(lambda: bool(memory.heard[first.key]))
    heartbeat = memory.heard[first.key][0].asked_at
    await until(lambda: memory.heard[first.key][0].asked_at.seconds > heartbeat.seconds)
    world.link.unwatch(first.key)
    memory.heard.clear()
    await carry(world.link, Promote(first.name, 2, (first.address,)), first)
    assert [h.stream for h in memory.heard[first.key]] == [held]
    assert (memory.last[first.key], memory.lead[first.key]) == (2, 2)


async def test_only_an_order_to_lead_counts_as_one(world: World) -> None:
    first, second = await pair(world)
    assert (world.memory.lead[first.key], world.memory.lead[second.key]) == (1, 0)
    await world.freeze(second)
    with pytest.raises(OrderFailed):
        await move(world, first, second, world.new_address(), order=2, timeout_seconds=0.3)
    assert (world.memory.last[second.key], world.memory.lead[second.key]) == (2, 0), "the move ended before it was told to lead"
    await world.thaw(second)
    endpoint = world.new_address()
    await move(world, first, second, endpoint, order=3)
    assert (world.memory.lead[first.key], world.memory.lead[second.key]) == (1, 3)


# -- whoever answers, be it with an error, is alive


@pytest.fixture(params=["kept", "anew"])
async def link(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Callable[[Target], Awaitable[Link]]]:
    """The link that has had a line to the node all the time, or that of a control plane that starts now."""
    anew = world.another_link()

    async def chosen(target: Target) -> Link:
        assert (await seen(world, target)).answering
        return world.link if request.param == "kept" else anew

    yield chosen
    await anew.aclose()


async def excuse(link: Link, target: Target) -> Plight | None:
    found = (await link.look(target, deadline_seconds=DEADLINE)).excuse
    return found.plight if found is not None else None


async def _primary(world: World) -> Target:
    (node,) = await world.start(1)
    await carry(world.link, Promote(node.name, 1, (node.address,)), node)
    return node


@real_engines
async def test_a_script_is_an_excuse_and_can_be_ended(world: World, link: Callable[[Target], Awaitable[Link]]) -> None:
    node = await _primary(world)
    there = await link(node)
    await world.spin(node, written=False)
    await until(lambda: _excused(there, node, "busy"))
    await carry(there, Interrupt(node.name), node)
    await until(lambda: _answers(there, node))


@real_engines
async def test_a_script_that_has_written_is_waited_for(world: World, link: Callable[[Target], Awaitable[Link]]) -> None:
    node = await _primary(world)
    there = await link(node)
    await world.spin(node, written=True)
    await until(lambda: _excused(there, node, "busy"))
    await carry(there, Interrupt(node.name), node)
    assert await excuse(there, node) == "unkillable"
    assert await excuse(there, node) == "unkillable"


@real_engines
async def test_a_function_is_an_excuse_and_can_be_ended(world: World) -> None:
    node = await _primary(world)
    await world.spin(node, written=False, function=True)
    await until(lambda: _excused(world.link, node, "busy"))
    await carry(world.link, Interrupt(node.name), node)
    await until(lambda: _answers(world.link, node))


@real_engines
async def test_a_pause_is_an_excuse_and_ends(world: World, link: Callable[[Target], Awaitable[Link]]) -> None:
    node = await _primary(world)
    there = await link(node)

    async def excused() -> bool:
        await world.hold_back(node, seconds=1.5)
        found = (await there.look(node, deadline_seconds=0.25)).excuse
        return found is not None and found.plight == "paused"

    await until(excused)
    await until(lambda: _answers(there, node))


@real_engines
async def test_too_many_clients_are_an_excuse_of_a_node_that_has_no_line_yet(
    world: World, link: Callable[[Target], Awaitable[Link]]
) -> None:
    node = await _primary(world)
    there = await link(node)
    leave = await world.crowd(node)
    view = await there.look(node, deadline_seconds=DEADLINE)
    if there is world.link:
        assert view.answering
    else:
        assert view.excuse is not None
        assert view.excuse.plight == "crowded"
        with pytest.raises(OrderFailed, match="max number of clients"):
            await carry(there, Bind(node.name, (node.address,)), node)
    await leave()
    await until(lambda: _answers(there, node))


@real_engines
async def test_a_replica_is_let_in_where_nobody_else_is(world: World) -> None:
    first, second = await pair(world)
    await world.write(first.address, "k", "v")
    await until(lambda: _reads(world, second, "k", "v"))
    leave = await world.crowd(first)

    async def out() -> bool:
        if (await seen(world, second)).link_up:
            await world.cut_link(first)
        await world.crowd(first)  # somebody else takes the place that it had, or it has been quicker
        replica = await seen(world, second)
        return replica.link_up is False and replica.reaches is not True and (await seen(world, first)).places == 0

    await until(out)
    await carry(world.link, Admit(second.name, first.name, 1), second, first)
    await until(lambda: online(world, first, second))
    assert ((await seen(world, first)).places or 0) <= 0, "it takes no other"
    with pytest.raises(Exception, match=r"max number of clients|lost"):
        await world.write(first.address, "k", "w")
    with pytest.raises(OrderFailed, match="later order"):
        await carry(world.link, Admit(second.name, first.name, 0), second, first)
    await leave()


@real_engines
async def test_a_refusal_at_the_door_is_heard_by_the_loop_that_the_program_runs_on(world: World) -> None:
    """uvloop's transports close before they have read what the engine said, if they have something to send."""
    node = await _primary(world)
    leave = await world.crowd(node)

    async def refused() -> list[Plight | None]:
        anew = world.another_link()
        told = [await excuse(anew, node) for _ in range(20)]
        await anew.aclose()
        return told

    assert await asyncio.to_thread(uvloop.run, refused()) == ["crowded"] * 20
    await leave()


@real_engines
async def test_one_that_does_not_know_us_is_alive(world: World) -> None:
    node = await _primary(world)
    await world.change_our_password(node)
    anew = world.another_link()
    assert await excuse(anew, node) == "stranger"
    await anew.aclose()


@real_engines
async def test_a_host_whose_engine_lets_connections_wait_is_not_lost(world: World) -> None:
    """So many clients knock at an engine that does nothing that its kernel takes no more of them."""
    node = await _primary(world)
    await world.freeze(node)
    await world.queue_up(node)
    anew = world.another_link()

    async def there_and_silent() -> bool:
        answer = (await anew.look(node, deadline_seconds=0.25)).answer
        assert isinstance(answer, Silence)
        return answer.reachable

    await until(there_and_silent)
    await anew.aclose()


async def _excused(link: Link, target: Target, plight: Plight) -> bool:
    return await excuse(link, target) == plight


async def _answers(link: Link, target: Target) -> bool:
    return bool((await link.look(target, deadline_seconds=DEADLINE)).answering)


# -- hand-over


async def move(world: World, giver: Target, taker: Target, endpoint: str, order: int, timeout_seconds: float = 10.0) -> None:
    await carry(
        world.link,
        HandOver(giver.name, taker.name, order, (giver.address,), (taker.address, endpoint), timeout_seconds),
        giver,
        taker,
    )


async def test_hand_over_moves_lead_and_endpoint_and_can_be_repeated(world: World) -> None:
    first, second = await pair(world)
    endpoint = world.new_address()
    await carry(world.link, Bind(first.name, (first.address, endpoint)), first)
    await world.write(endpoint, "k", "v")
    for _ in range(2):
        await move(world, first, second, endpoint, order=2)
        assert await world.read(endpoint, "k") == "v"
        await world.write(endpoint, "k2", "v2")
        gave, took = await seen(world, first), await seen(world, second)
        assert (gave.role, gave.follows, gave.bound) == ("replica", second.address, {first.address})
        assert (took.role, took.bound) == ("primary", {second.address, endpoint})
    await until(lambda: _reads(world, first, "k2", "v2"))


async def test_hand_over_to_a_frozen_taker_fails_and_the_giver_leads_on(world: World) -> None:
    first, second = await pair(world)
    endpoint = world.new_address()
    await carry(world.link, Bind(first.name, (first.address, endpoint)), first)
    await world.freeze(second)
    with pytest.raises(OrderFailed):
        await move(world, first, second, endpoint, order=2, timeout_seconds=0.3)
    await world.write(endpoint, "k", "v")
    view = await seen(world, first)
    assert (view.role, view.bound) == ("primary", {first.address, endpoint})
    await world.thaw(second)
    assert (await seen(world, second)).role == "replica"


async def test_hand_over_to_a_node_that_follows_somebody_else_is_refused(world: World) -> None:
    first, second, third = await world.start(3)
    for node in (first, third):
        await carry(world.link, Promote(node.name, 1, (node.address,)), node)
    await carry(world.link, Follow(second.name, third.name, 1), second, third)
    with pytest.raises(OrderFailed, match="does not follow"):
        await move(world, first, second, world.new_address(), order=2)
    await world.write(first.address, "k", "v")


# -- heartbeats


async def test_a_pulse_wakes_at_silence_again_and_again_and_when_it_ends(world: World) -> None:
    (node,) = await world.start(1)
    woken: asyncio.Queue[Key] = asyncio.Queue()
    await world.freeze(node)
    world.link.watch(node, interval_seconds=0.02, deadline_seconds=0.5, wake=woken.put_nowait)
    for _ in range(3):
        assert await asyncio.wait_for(woken.get(), DEADLINE) == node.key
    await world.thaw(node)

    async def quiet() -> bool:
        while not woken.empty():
            woken.get_nowait()
        await asyncio.sleep(0.2)
        return woken.empty()

    await until(quiet)
    await world.kill(node)
    assert await asyncio.wait_for(woken.get(), DEADLINE) == node.key
    world.link.unwatch(node.key)
    await world.restart(node)
    assert await quiet() or await quiet()


async def test_a_pulse_wakes_when_a_replica_comes_online_and_when_it_is_lost(world: World) -> None:
    first, second = await world.start(2)
    await carry(world.link, Promote(first.name, 1, (first.address,)), first)
    woken: asyncio.Queue[Key] = asyncio.Queue()
    world.link.watch(first, interval_seconds=0.02, deadline_seconds=DEADLINE, wake=woken.put_nowait)
    assert await asyncio.wait_for(woken.get(), DEADLINE) == first.key
    await carry(world.link, Follow(second.name, first.name, 1), second, first)
    while not any(r.online for r in (await seen(world, first)).replicas):  # the replica itself may know a moment later
        assert await asyncio.wait_for(woken.get(), DEADLINE) == first.key
    while not woken.empty():
        woken.get_nowait()
    await world.kill(second)
    assert await asyncio.wait_for(woken.get(), DEADLINE) == first.key
