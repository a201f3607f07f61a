"""What every driver keeps to, the real one and its twin."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.contract.driver_fixtures import World, anyio_backend, eventually, world_fixture  # noqa: F401  (fixtures)
from tests.engines.servers import until

from cachekeep.compute.contract import Driver, File, Kept, Key, ProcessSeen
from cachekeep.errors import OrderFailed
from cachekeep.model import Heard, Limits, Moment, Stream, recalled


async def seen(driver: Driver, key: Key) -> ProcessSeen:
    return (await driver.look([key]))[key]


async def test_a_started_process_accepts_connections(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    assert await world.accepts(spec)
    found = await seen(driver, spec.key)
    assert (found.process, found.incarnation, found.problem) == ("running", 1, None)


async def test_starting_what_runs_does_nothing(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    before = replace(await seen(driver, spec.key), limits=None)  # how much memory it uses is its own affair
    await driver.start(spec)
    await asyncio.gather(*(driver.start(spec) for _ in range(5)))
    assert replace(await seen(driver, spec.key), limits=None) == before


async def test_several_orders_to_start_one_process_start_one(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await asyncio.gather(*(driver.start(spec) for _ in range(5)))
    assert await world.accepts(spec)
    assert deaths == []


async def test_processes_start_side_by_side(world: World) -> None:
    driver = await world.driver()
    specs = [world.spec(f"a-{n:03}") for n in range(8)]
    await asyncio.gather(*(driver.start(spec) for spec in specs))
    assert all([await world.accepts(spec) for spec in specs])
    assert len({s.pid for s in (await driver.look(s.key for s in specs)).values()}) == 8


async def test_no_start_beside_a_living_incarnation(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    with pytest.raises(OrderFailed, match="incarnation 1 is alive"):
        await driver.start(world.spec(incarnation=2))
    assert (await seen(driver, spec.key)).incarnation == 1


async def test_the_program_is_told_as_it_was_named(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    assert (await seen(driver, spec.key)).program == ""
    await driver.start(spec)
    assert (await seen(driver, spec.key)).program == spec.argv[0]
    driver = await world.driver()
    assert (await seen(driver, spec.key)).program == spec.argv[0], "whoever adopts it knows it, too"


async def test_no_start_of_an_older_incarnation(world: World) -> None:
    driver = await world.driver()
    newer = world.spec(incarnation=3)
    await driver.start(newer)
    await driver.stop(newer.key, grace_seconds=0)
    with pytest.raises(OrderFailed, match="incarnation 2 is older than the last, 3"):
        await driver.start(world.spec(incarnation=2))
    await driver.start(newer)
    assert (await seen(driver, newer.key)).process == "running"


@pytest.mark.parametrize("grace_seconds", [0, 5])
async def test_stopped_means_gone(world: World, grace_seconds: float) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=grace_seconds)
    found = await seen(driver, spec.key)
    assert (found.process, found.pid, found.problem) == ("exited", None, None)
    assert not await world.accepts(spec)


async def test_what_was_started_is_known_until_it_is_erased(world: World) -> None:
    driver, one, two = await world.driver(), world.spec("a-001"), world.spec("a-002")
    assert driver.known() == []
    for spec in (one, two):
        await driver.start(spec)
    await driver.stop(one.key, grace_seconds=0)
    driver = await world.driver()
    assert sorted(driver.known()) == [one.key, two.key]
    await driver.erase(one.key)
    assert driver.known() == [two.key]


async def test_there_is_room_for_processes(world: World) -> None:
    there = (await world.driver()).capacity()
    assert all(n is None or n > 0 for n in (there.memory_bytes, there.cpus, there.open_files))


async def test_a_process_may_start_from_what_is_kept(world: World) -> None:
    await world.keep("snapshot-1.rdb")
    driver, spec = await world.driver(), world.spec()
    spec = replace(spec, files={**spec.files, "dump.rdb": File(Kept("snapshot-1.rdb"))})
    await driver.start(spec)
    assert await world.keys(spec) == 1
    other = world.spec("a-002")
    with pytest.raises(OrderFailed, match=r"a-002.*No such file"):
        await driver.start(replace(other, files={**other.files, "dump.rdb": File(Kept("snapshot-2.rdb"))}))
    assert not await world.accepts(other)


async def test_stop_and_erase_are_for_everybody(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.stop(spec.key, grace_seconds=1)
    await driver.erase(spec.key)
    assert (await seen(driver, spec.key)).process == "absent"
    await driver.start(spec)
    for _ in range(2):
        await driver.stop(spec.key, grace_seconds=0)
    for _ in range(2):
        await driver.erase(spec.key)
    assert await seen(driver, spec.key) == ProcessSeen(process="absent")


async def test_erase_stops_first_and_forgets_all(world: World) -> None:
    driver, spec = await world.driver(), world.spec(incarnation=4)
    await driver.start(spec)
    assert await driver.admit(spec.key, 7)
    await driver.erase(spec.key)
    assert not await world.accepts(spec)
    await driver.start(world.spec(incarnation=1))
    found = await seen(driver, spec.key)
    assert (found.incarnation, found.last_order) == (1, 0)


async def test_an_end_that_was_decided_before_the_start_is_not_meant_for_it(world: World) -> None:
    """A process may have the name of one that is no more, and its incarnation: decisions have an order across both."""
    driver = await world.driver()
    spec = replace(world.spec(), decision=7)
    await driver.start(spec)
    with pytest.raises(OrderFailed, match="was started by decision 7; its end was decided before that, by 6"):
        await driver.stop(spec.key, grace_seconds=0, decision=6)
    with pytest.raises(OrderFailed, match="was started by decision 7"):
        await driver.erase(spec.key, decision=6)
    await driver.start(replace(spec, decision=9))  # it runs: who started it stays who did
    found = await seen(await world.driver(), spec.key)
    assert (found.process, found.decision) == ("running", 7)
    driver = await world.driver()
    await driver.stop(spec.key, grace_seconds=0, decision=7)
    with pytest.raises(OrderFailed, match="was started by decision 7"):
        await driver.erase(spec.key, decision=6)  # nor for what it has left
    assert (await seen(driver, spec.key)).process == "exited"
    await driver.erase(spec.key, decision=8)
    assert (await seen(driver, spec.key)).process == "absent"


async def test_a_frozen_process_is_seen_and_can_be_stopped(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    await world.freeze(spec.key)
    assert (await seen(driver, spec.key)).process == "frozen"
    await driver.stop(spec.key, grace_seconds=0)
    assert (await seen(driver, spec.key)).process == "exited"


async def test_a_death_is_told_once_with_its_reason(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await driver.start(spec)
    await world.kill(spec.key)
    await eventually(lambda: bool(deaths))
    found = await seen(driver, spec.key)
    assert found.process == "exited"
    assert found.problem is not None
    assert "SIGKILL" in found.problem
    await driver.start(spec)
    assert (await seen(driver, spec.key)).problem is None
    assert deaths == [spec.key]


async def test_a_listener_that_fails_does_not_keep_the_others_from_hearing(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    deaths: list[Key] = []
    driver.on_death(lambda key: 1 / 0)  # type: ignore[arg-type, return-value]
    driver.on_death(deaths.append)
    await driver.start(spec)
    await world.kill(spec.key)
    await eventually(lambda: deaths == [spec.key])


async def test_a_process_that_ends_at_once_is_told_by_start_alone(world: World) -> None:
    driver = await world.driver()
    broken, sound = world.spec(broken=True), world.spec()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    with pytest.raises(OrderFailed, match="exited with code"):
        await driver.start(broken)
    found = await seen(driver, broken.key)
    assert found.process == "exited"
    assert found.problem
    await driver.start(sound)
    assert await world.accepts(sound)
    assert deaths == []


async def test_limits_are_moved_while_it_runs(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    before = await seen(driver, spec.key)
    for count in (3000, 2000, 4000):
        await driver.limit(spec.key, Limits(open_files=count))
        found = await seen(driver, spec.key)
        assert found.limits is not None
        assert (found.pid, found.limits.held.open_files) == (before.pid, count)
    driver = await world.driver()
    again = await seen(driver, spec.key)
    assert again.limits is not None
    used = again.limits.resident_bytes  # what a process uses is its own affair
    assert again == replace(found, limits=replace(found.limits, resident_bytes=used)), "whoever adopts it sees them"


async def test_what_does_not_run_is_not_limited(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    with pytest.raises(OrderFailed, match="does not run"):
        await driver.limit(spec.key, Limits(open_files=2000))
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=0)
    assert (await seen(driver, spec.key)).limits is None
    with pytest.raises(OrderFailed, match="does not run"):
        await driver.limit(spec.key, Limits(open_files=2000))


async def test_orders_grow(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    assert [await driver.admit(spec.key, order) for order in (3, 3, 2, 5, 4)] == [True, True, False, True, False]
    assert (await seen(driver, spec.key)).last_order == 5


async def test_nobody_unknown_takes_orders(world: World) -> None:
    driver = await world.driver()
    with pytest.raises(OrderFailed, match="never started"):
        await driver.admit(("uid-1", "nobody"), 1)
    with pytest.raises(OrderFailed, match="never started"):
        await driver.rewrite(("uid-1", "nobody"), {"x": File("y")}, digests={"settings": "d"})


async def test_a_new_incarnation_keeps_the_last_order(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    assert await driver.admit(spec.key, 9)
    await driver.stop(spec.key, grace_seconds=0)
    await driver.start(world.spec(incarnation=2))
    assert not await driver.admit(spec.key, 8)


async def test_a_process_is_born_deaf_to_older_orders(world: World) -> None:
    """A late duplicate of a promotion that was meant for the node's former process must not make the new, empty one lead."""
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    assert await driver.admit(spec.key, 4)
    await driver.stop(spec.key, grace_seconds=0)
    await driver.start(replace(world.spec(incarnation=2), order=5))
    assert [await driver.admit(spec.key, order) for order in (4, 5)] == [False, True]


async def test_who_was_let_lead_is_known_until_another_process_is_started(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    assert await driver.admit(spec.key, 3)
    assert (await seen(driver, spec.key)).lead_order == 0
    assert await driver.admit(spec.key, 3, leading=True)
    assert await driver.admit(spec.key, 4)
    driver = await world.driver()
    assert ((await seen(driver, spec.key)).last_order, (await seen(driver, spec.key)).lead_order) == (4, 3)
    await driver.stop(spec.key, grace_seconds=0)
    assert (await seen(driver, spec.key)).lead_order == 3
    await driver.start(replace(world.spec(incarnation=2), order=5))
    assert ((await seen(driver, spec.key)).last_order, (await seen(driver, spec.key)).lead_order) == (5, 0)


async def test_what_a_process_said_outlives_it_and_the_driver_and_ends_with_its_successor(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    words = [Heard(Moment("boot", float(n)), Stream("history", n, "before", 3)) for n in range(40)]
    kept: tuple[Heard, ...] = ()
    for word in words:
        driver.remember(spec.key, word)
        kept = recalled(word, kept)
    assert (await seen(driver, spec.key)).heard == kept

    async def written() -> bool:
        return (await seen(await world.driver(), spec.key)).heard == kept

    await until(written)
    await world.kill(spec.key)
    driver = await world.driver()
    assert (await seen(driver, spec.key)).heard == kept
    await driver.start(spec)  # the same incarnation, and yet another process
    assert (await seen(driver, spec.key)).heard == ()
    driver.remember(spec.key, words[0])
    assert (await seen(driver, spec.key)).heard == (words[0],)
    driver.remember(("uid-1", "nobody"), words[0])
    assert await seen(driver, ("uid-1", "nobody")) == ProcessSeen(process="absent")


async def test_when_a_process_ended_is_known_if_somebody_saw_it(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    before = world.moment()
    assert (await seen(driver, spec.key)).ended_at is None
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await world.kill(spec.key)
    await eventually(lambda: bool(deaths))
    ended_at = (await seen(driver, spec.key)).ended_at
    assert ended_at is not None
    assert before.seconds < ended_at.seconds <= world.moment().seconds
    driver = await world.driver()
    assert (await seen(driver, spec.key)).ended_at == ended_at
    await driver.start(spec)
    assert (await seen(driver, spec.key)).ended_at is None
    await driver.aclose()
    await world.kill(spec.key)
    driver = await world.driver()
    found = await seen(driver, spec.key)
    assert (found.process, found.ended_at) == ("exited", None), "nobody was there"


async def test_the_digest_follows_a_rewrite(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    await driver.rewrite(spec.key, spec.files, digests={"settings": "second"})
    assert (await seen(driver, spec.key)).digests == {**spec.digests, "settings": "second"}


async def test_processes_outlive_the_driver_and_are_known_again(world: World) -> None:
    driver, spec = await world.driver(), world.spec(incarnation=2)
    await driver.start(spec)
    assert await driver.admit(spec.key, 6)
    await driver.rewrite(spec.key, spec.files, digests={"settings": "d"})
    before = await seen(driver, spec.key)
    driver = await world.driver()
    assert await seen(driver, spec.key) == before
    assert not await driver.admit(spec.key, 5)
    await driver.start(spec)
    assert (await seen(driver, spec.key)).pid == before.pid


async def test_the_death_of_an_adopted_process_is_told_once(world: World) -> None:
    spec = world.spec()
    await (await world.driver()).start(spec)
    driver = await world.driver()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await world.kill(spec.key)
    await eventually(lambda: bool(deaths))
    await driver.start(spec)
    assert deaths == [spec.key]


async def test_a_death_while_nobody_watched_is_seen_on_return(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    await driver.aclose()
    await world.kill(spec.key)
    driver = await world.driver()
    assert (await seen(driver, spec.key)).process == "exited"
    await driver.start(spec)
    assert await world.accepts(spec)


async def test_a_caller_that_gives_up_leaves_no_half_started_process(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    caller = asyncio.create_task(driver.start(spec))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await driver.start(spec)
    assert await world.accepts(spec)
    await driver.stop(spec.key, grace_seconds=0)
    assert not await world.accepts(spec)


async def test_a_taken_endpoint_is_refused_in_words(world: World) -> None:
    driver = await world.driver()
    first = world.spec("a-001")
    second = world.spec("b-001", address=first.address)
    await driver.start(first)
    with pytest.raises(OrderFailed, match="Address already in use"):
        await driver.start(second)
    assert (await seen(driver, first.key)).process == "running"
    await driver.stop(first.key, grace_seconds=0)
    await driver.start(second)
    assert await world.accepts(second)


async def test_of_two_that_want_one_endpoint_one_starts(world: World) -> None:
    driver = await world.driver()
    first = world.spec("a-001")
    second = world.spec("b-001", address=first.address)
    results = await asyncio.gather(driver.start(first), driver.start(second), return_exceptions=True)
    assert sorted(type(result) for result in results if result is not None) == [OrderFailed]


async def test_a_process_that_died_is_started_again_in_its_incarnation(world: World) -> None:
    """Only the keeper can tell a process that has to come back empty from one that must not: it decides a new incarnation."""
    driver, spec = await world.driver(), world.spec()
    await driver.start(spec)
    await world.kill(spec.key)
    await driver.start(spec)
    assert await world.accepts(spec)
    assert (await seen(driver, spec.key)).incarnation == 1


async def test_a_frozen_process_does_not_count_as_started(world: World) -> None:
    spec = world.spec()
    await (await world.driver()).start(spec)
    await world.freeze(spec.key)
    driver = await world.driver(start_deadline_seconds=0.2)
    with pytest.raises(OrderFailed, match="does not accept connections"):
        await driver.start(spec)
    assert (await seen(driver, spec.key)).process == "frozen", "not ours to kill"


async def test_after_it_is_closed_a_driver_tells_nobody(world: World) -> None:
    driver, spec = await world.driver(), world.spec()
    deaths: list[Key] = []
    await driver.start(spec)
    driver.on_death(deaths.append)
    await driver.aclose()
    await world.kill(spec.key)
    assert (await seen(await world.driver(), spec.key)).process == "exited"
    assert deaths == []
