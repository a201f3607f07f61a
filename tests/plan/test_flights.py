"""What is in flight, and what failed, on one node: nothing is ordered of it twice, and everybody else is looked after as ever."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, decided, gone, group, healthy, memcached, running, shard, shard_with, silent, step

from cachekeep.model import (
    Act,
    Apply,
    Bind,
    Cache,
    Convert,
    Decide,
    Discover,
    Effect,
    Erase,
    Errand,
    Failed,
    Failure,
    Flight,
    Follow,
    FrontView,
    Halted,
    HandOver,
    Move,
    MoveSlots,
    NodeView,
    Point,
    Promote,
    Recovery,
    Running,
    Silence,
    Start,
    Step,
    Stop,
    Swap,
    View,
    Wait,
    Witness,
    collides,
    overtakes,
)
from cachekeep.plan import Policy, condition
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import unsure

HAND_OVER = HandOver("demo-001", "demo-002", 2, ("a",), ("b",), 1.0)


def flies(view: View, *effects: Effect, left_seconds: float = 5.0) -> View:
    """In flight as well."""
    flights = tuple(Flight(effect=e, because="it was begun", since_seconds=3.0, left_seconds=left_seconds) for e in effects)
    return replace(view, flights=(*view.flights, *flights))


def failed(view: View, effect: Effect, *, problem: str = "no", since_seconds: float = 0.5, again_seconds: float = 2.0) -> View:
    """Failed lately, and rests."""
    failure = Failure(effect=effect, problem=problem, since_seconds=since_seconds, again_seconds=again_seconds)
    return replace(view, failures=(*view.failures, failure))


def stages(answer: Step) -> tuple[tuple[Effect, ...], ...]:
    assert isinstance(answer, Act), answer
    return answer.stages


def absent(*names: str) -> dict[str, NodeView]:
    return {n.replace("-", "_"): NodeView(process="absent", incarnation=0) for n in names}


# -- what waits for what


@pytest.mark.parametrize(
    ("effect", "other", "waits", "ends"),
    [
        (Start("a"), Start("a"), True, False),
        (Start("a"), Start("b"), False, False),
        (Follow("a", "b", 1), Promote("b", 1, ()), False, False),
        (Follow("a", "b", 2), Bind("a", ()), True, False),
        (Promote("a", 2, ()), Apply("a", ("settings",)), False, False),
        (Apply("a", ("settings",)), Follow("a", "b", 2), False, False),
        (Apply("a", ("settings",)), Apply("a", ("settings",)), True, False),
        (Apply("a", ("settings",)), Apply("b", ("settings",)), False, False),
        (Stop("a"), Apply("a", ("settings",)), False, True),
        (Promote("demo-002", 3, ()), HAND_OVER, True, False),
        (Point("readers", ("a",)), Point("readers", ("b",)), True, False),
        (Stop("a"), Start("a"), False, True),
        (Stop("a"), Follow("a", "b", 1), False, True),
        (Stop("demo-001"), HAND_OVER, False, True),
        (Stop("a"), Stop("a"), True, False),
        (Stop("a"), Stop("a", 5.0), False, True),
        (Stop("a", 5.0), Stop("a"), True, False),
        (Stop("a", 5.0), Stop("a", 5.0), True, False),
        (Erase("a"), Stop("a", 5.0), False, True),
        (Erase("a"), Stop("a"), True, False),
        (Erase("a"), Start("a"), False, True),
        (Stop("a"), Erase("a"), True, False),
        (Start("a"), Stop("a"), True, False),
        (MoveSlots("a", "b", (), 1, 1, 1.0), MoveSlots("c", "b", (), 1, 1, 1.0), False, False),
        (MoveSlots("a", "b", (), 1, 1, 1.0), MoveSlots("a", "c", (), 1, 1, 1.0), True, False),
        (MoveSlots("a", "b", (), 1, 1, 1.0), MoveSlots("b", "a", (), 1, 1, 1.0), True, False),
        (MoveSlots("a", "b", (), 1, 1, 1.0), MoveSlots("b", "c", (), 1, 1, 1.0), True, False),
        (MoveSlots("a", "b", (), 1, 1, 1.0), MoveSlots("c", "a", (), 1, 1, 1.0), True, False),
        (Swap("b", "d", 1, 1.0), MoveSlots("a", "b", (), 1, 1, 1.0), True, False),
        (Convert("a", "b", 1, (), 1.0), Witness("a", "b"), True, False),
    ],
)
def test_one_order_at_a_time_and_an_end_waits_for_none(effect: Effect, other: Effect, waits: bool, ends: bool) -> None:
    assert (collides(effect, other), overtakes(effect, other)) == (waits, ends)


# -- one node's trouble


def _trouble_starting(view: View) -> list[View]:
    return [flies(view, Start("demo-002")), failed(view, Start("demo-002")), failed(view, Start("demo-002"), since_seconds=60.0)]


def _told(cache: Cache, *names: str) -> Cache:
    """An event has told of the trouble."""
    return replace(cache, decided=replace(cache.decided, troubled=frozenset(names or ("demo-002",))))


@pytest.mark.parametrize("kind", range(3))
def test_who_cannot_be_started_keeps_nobody_else_from_being_started(kind: int) -> None:
    cache = group()
    view = _trouble_starting(healthy(cache, **absent("demo-002", "demo-003")))[kind]
    assert stages(step(cache, view)) == ((Start("demo-003"),),)


@pytest.mark.parametrize("kind", range(3))
def test_who_cannot_be_started_keeps_nobody_from_leading(kind: int) -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    view = _trouble_starting(healthy(cache, demo_001=gone(), **absent("demo-002")))[kind]
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-003"


@pytest.mark.parametrize("kind", range(3))
def test_who_cannot_be_started_keeps_nobody_from_following(kind: int) -> None:
    cache = _told(group(shards={"in_sync": frozenset()}))
    view = _trouble_starting(healthy(cache, demo_003=running(cache, "demo-003", follows=None), **absent("demo-002")))[kind]
    assert stages(step(cache, view)) == ((Follow("demo-003", "demo-001", 0 + shard(cache.decided).order),),)


def test_who_does_not_take_an_order_keeps_nobody_from_getting_theirs() -> None:
    cache = group(shards={"in_sync": frozenset()})
    order = shard(cache.decided).order
    astray = {f"demo_00{i}": running(cache, f"demo-00{i}", follows=None) for i in (2, 3)}
    view = healthy(cache, **astray)
    assert stages(step(cache, flies(view, Follow("demo-002", "demo-001", order)))) == ((Follow("demo-003", "demo-001", order),),)
    assert stages(step(cache, failed(view, Follow("demo-002", "demo-001", order)))) == ((Follow("demo-003", "demo-001", order),),)


def test_a_front_that_does_not_listen_keeps_nobody_from_leading() -> None:
    cache = group()
    view = flies(healthy(cache, demo_001=gone()), Point("readers", ("demo-002",)))
    assert shard(decided(cache, view).decided).primary in ("demo-002", "demo-003")


def test_settings_that_one_does_not_take_are_given_to_the_others() -> None:
    cache = group()
    other = replace(cache, wanted=replace(cache.wanted, parameters={"maxmemory-policy": "allkeys-lru"}))
    stale = {n.name.replace("-", "_"): running(cache, n.name) for n in cache.decided.nodes}
    view = failed(healthy(other, **stale), Apply("demo-001", ("settings",)))
    assert stages(step(other, view)) == ((Apply("demo-002", ("settings",)), Apply("demo-003", ("settings",))),)


def test_a_memcached_node_that_hangs_keeps_nobody_from_the_list() -> None:
    cache = decided(memcached(2), View(free_addresses=tuple(f"127.77.0.{i}" for i in range(9))))
    one = {n.name: NodeView(process="running", incarnation=1, answer="complete", discovery_version=0) for n in cache.decided.nodes}
    view = View(nodes=one, fronts={"discovery": FrontView(process="running", incarnation=1, targets=(), version=0)})
    cache = decided(cache, view)
    listed = cache.decided.discovery_nodes
    answer = stages(step(cache, flies(view, Discover("mc.0001", listed, 1))))
    assert answer == ((Point("discovery", listed, 1), Discover("mc.0002", listed, 1)),)


def test_a_stop_with_grace_keeps_nobody_from_leading() -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    nodes = tuple(replace(n, fate=Halted(), due="reboot") if n.name == "demo-002" else n for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes))
    view = healthy(cache, demo_001=gone())
    assert stages(step(cache, view)) == ((Stop("demo-002", 5.0),),)
    assert shard(decided(cache, flies(view, Stop("demo-002", 5.0))).decided).primary == "demo-003"


def test_one_that_cannot_be_stopped_keeps_no_older_process_of_another_alive() -> None:
    cache = group()
    nodes = tuple(replace(n, fate=Halted()) if n.name == "demo-002" else n for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes))
    view = healthy(cache, demo_003=running(cache, "demo-003", incarnation=7))
    assert stages(step(cache, failed(view, Stop("demo-002")))) == ((Stop("demo-003"),),)


def test_one_that_cannot_be_erased_keeps_nobody_else_from_leaving() -> None:
    cache = group(4)
    members = cache.wanted.shards[0].members[:2]
    fewer = replace(cache, wanted=replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=members),)))
    nodes = tuple(replace(n, leaving=n.name in ("demo-003", "demo-004")) for n in cache.decided.nodes)
    lead = shard_with(shard(cache.decided), in_sync=frozenset({"demo-002"}))
    fewer = replace(fewer, decided=replace(cache.decided, nodes=nodes, shards=(lead,), fronts=()))
    lonely = {"demo_001": running(fewer, "demo-001", replicas=running(cache, "demo-001").replicas[:1])}
    view = healthy(fewer, demo_003=running(fewer, "demo-003"), **lonely, **absent("demo-004"))
    assert stages(step(fewer, view)) == ((Erase("demo-003"),),)
    answer = step(fewer, failed(view, Erase("demo-003")))
    assert isinstance(answer, Decide)
    assert [n.name for n in answer.decided.nodes] == ["demo-001", "demo-002", "demo-003"]


def test_an_address_that_one_does_not_give_up_keeps_only_that_address_from_others() -> None:
    """demo-002 goes on serving the reader endpoint that a balancer is to have; demo-003 lacks its own address only."""
    cache = group()
    second, third = cache.decided.nodes[1:]
    lead = shard(cache.decided)
    greedy = running(cache, "demo-002", bound=frozenset({second.address, lead.reader_address or ""}))
    view = healthy(cache, demo_002=greedy, demo_003=running(cache, "demo-003", bound=frozenset()))
    taking = Bind("demo-002", (second.address,), drop_clients=True)
    assert stages(step(cache, view)) == ((taking,),)
    assert stages(step(cache, failed(view, taking))) == ((Bind("demo-003", (third.address,)),),)


def test_nobody_is_given_an_address_that_another_has_still_to_give_up() -> None:
    cache = group(shards={"in_sync": frozenset({"demo-002", "demo-003"})})
    first = cache.decided.nodes[0]
    lead = shard(cache.decided)
    robber = running(cache, "demo-002", bound=frozenset({cache.decided.nodes[1].address, lead.primary_address or ""}))
    view = healthy(cache, demo_001=running(cache, "demo-001", bound=frozenset({first.address})), demo_002=robber)
    answer = step(cache, flies(view, Bind("demo-002", (cache.decided.nodes[1].address,), drop_clients=True)))
    assert isinstance(answer, Wait)


# -- order within an act


def test_nobody_is_promoted_while_a_rival_has_not_been_told_to_follow() -> None:
    cache = group(2)
    order = shard(cache.decided).order
    rivals = {
        "demo_001": running(cache, "demo-001", role="replica"),
        "demo_002": running(cache, "demo-002", role="primary", follows=None, link_up=None),
    }
    view = healthy(cache, **rivals)
    told = Follow("demo-002", "demo-001", order)
    assert stages(step(cache, view))[0] == (told,)
    for trouble in (flies(view, told), failed(view, told)):
        answer = step(cache, trouble)
        assert not isinstance(answer, Act) or not any(isinstance(e, Promote) for stage in answer.stages for e in stage)


def test_what_comes_after_is_begun_for_those_who_can() -> None:
    cache = group(
        shards={"primary": "demo-003", "order": 2, "in_sync": frozenset({"demo-002"}), "change": Recovery(lost="demo-001")}
    )
    order = {"role": "replica", "link_up": False}
    view = healthy(
        cache,
        demo_001=running(cache, "demo-001", **order),
        demo_002=running(cache, "demo-002", **order),
        demo_003=running(cache, "demo-003", **order),
    )
    view = failed(view, Follow("demo-001", "demo-003", 2))
    first, second = stages(step(cache, view))
    assert isinstance(first[0], Promote)
    assert second == (Follow("demo-002", "demo-003", 2),)


# -- what is seen in the middle of a hand-over


def _moving(cache: Cache) -> Cache:
    return replace(
        cache, decided=replace(cache.decided, shards=(replace(shard(cache.decided), change=Move(to="demo-002"), order=2),))
    )


@pytest.mark.parametrize(
    "giver",
    [
        {"role": "replica", "follows": "127.0.0.1"},
        {"answer": Silence(19.0, True)},
        {"process": "exited", "answer": None, "role": None},
    ],
    ids=["has stepped down", "does not answer", "is gone"],
)
def test_nothing_is_decided_about_the_lead_while_it_is_being_handed_over(giver: dict[str, Any]) -> None:
    """To call it off would promote a giver whose taker leads a moment later."""
    cache = _moving(group())
    view = healthy(cache, demo_001=running(cache, "demo-001", **giver))
    answer = step(cache, flies(view, HAND_OVER))
    assert isinstance(answer, Wait), answer
    assert (answer.because, answer.seconds) == ("it was begun", 5.0)
    assert not isinstance(step(cache, view), Wait)


def test_others_of_the_shard_are_looked_after_while_the_lead_moves() -> None:
    cache = _moving(group())
    view = flies(healthy(cache, demo_003=gone()), HAND_OVER)
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[2].incarnation == 2


def test_a_fence_waits_for_nothing() -> None:
    cache = group()
    nodes = tuple(replace(n, fate=Halted() if n.name == "demo-001" else None) for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes))
    view = healthy(cache, demo_001=silent(cache, "demo-001", 9.0))
    assert stages(step(cache, flies(view, Apply("demo-001", ("settings",)), Start("demo-001")))) == ((Stop("demo-001"),),)
    assert isinstance(step(cache, flies(view, Stop("demo-001"))), Wait)


# -- the end


def test_of_a_deleted_cache_nothing_is_started_again_while_its_end_takes_long() -> None:
    cache = group()
    cache = replace(cache, wanted=replace(cache.wanted, deleted=True))
    view = healthy(cache, demo_002=gone(), **absent("demo-003"))
    for trouble in (flies, failed):
        seen = view
        for erased in (Erase("demo-001"), Erase("demo-002"), Erase("readers")):
            seen = trouble(seen, erased)
        assert isinstance(step(cache, seen), Wait)


# -- what is said


def test_what_just_failed_is_nobodys_business_and_what_goes_on_failing_is() -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    view = healthy(cache, **absent("demo-002"))
    start = Start("demo-002")
    soon = step(cache, failed(view, start, since_seconds=0.4))
    assert isinstance(soon, Wait)
    assert not soon.refused
    problem = "demo-002: not started: 127.77.0.3:6379: Address already in use."
    cache = _told(cache)
    late = step(cache, failed(view, start, problem=problem, since_seconds=4.0))
    assert isinstance(late, Wait)
    assert late.refused
    assert (
        late.because
        == "demo-002 cannot be started: not started: 127.77.0.3:6379: Address already in use. It is tried again every few seconds"
    )
    assert late.seconds <= 2.0
    again = step(cache, flies(failed(view, start, problem=problem, since_seconds=4.0, again_seconds=0.0), start))
    assert isinstance(again, Wait)
    assert (again.refused, again.because) == (True, late.because), "the same sentence while it is tried again"


def test_trouble_is_told_once_and_again_only_after_it_was_over() -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    view = healthy(cache, **absent("demo-002"))
    trouble = failed(view, Start("demo-002"), problem="no room", since_seconds=4.0)
    answer = step(cache, trouble)
    assert isinstance(answer, Decide)
    (told,) = answer.events
    assert (told.source_type, told.source) == ("replication-group", "demo")
    assert told.message == answer.because == "demo-002 cannot be started: no room. It is tried again every few seconds"
    cache = replace(cache, decided=answer.decided)
    assert isinstance(step(cache, trouble), Wait)
    other = failed(view, Start("demo-002"), problem="no room, in other words", since_seconds=9.0)
    assert isinstance(step(cache, other), Wait)
    assert isinstance(step(cache, flies(view, Start("demo-002"))), Wait), "a new keeper does not know yet that it fails"
    back = healthy(cache)
    over = decided(cache, back)
    assert over.decided.troubled == frozenset()


def test_the_trouble_of_a_front_is_told_too() -> None:
    cache = group()
    view = healthy(cache)
    mute = replace(view, fronts={"readers": FrontView(process="absent")})
    answer = step(cache, failed(mute, Start("readers"), problem="haproxy is not installed", since_seconds=4.0))
    assert isinstance(answer, Decide)
    assert [e.message for e in answer.events] == [
        "readers cannot be started: haproxy is not installed. It is tried again every few seconds"
    ]
    cache = replace(cache, decided=answer.decided)
    assert decided(cache, view).decided.troubled == frozenset()


@pytest.mark.parametrize("available", [True, False])
def test_the_condition_says_what_cannot_be_done_whatever_the_step_is(available: bool) -> None:
    """Each try is an act, and between them there may be others: what users read must not flicker."""
    cache = _told(group(shards={"in_sync": frozenset({"demo-003"})}))
    if not available:
        cache = replace(cache, decided=replace(cache.decided, available_at=None))
    view = healthy(cache, **absent("demo-002"))
    view = failed(view, Start("demo-002"), problem="no room", since_seconds=4.0, again_seconds=0.0)
    s = Situation(cache, view, NOW, MOMENT, Policy())
    for answer in (step(cache, view), Wait(1.0, "calm", "nothing new")):
        told = condition(s, answer)
        assert told.status == ("available" if available else "creating")
        assert told.because == "demo-002 cannot be started: no room. It is tried again every few seconds"
        assert told.refused


def test_a_keeper_that_fails_says_so_and_vouches_for_nothing_new() -> None:
    cache = group()
    view = healthy(cache)
    last = condition(Situation(cache, view, NOW, MOMENT, Policy()), step(cache, view))
    same = unsure(cache, last, "its keeper fails")
    assert (same.status, same.because, same.refused, same.nodes) == ("available", "its keeper fails", True, last.nodes)
    asked = replace(cache, version=2)
    newer = unsure(asked, last, "its keeper fails")
    assert (newer.status, newer.settled, newer.version, newer.nodes) == ("modifying", False, 2, last.nodes)
    assert unsure(replace(cache, version=2, wanted=replace(cache.wanted, deleted=True)), last, "").status == "deleting"
    young = replace(cache, decided=replace(cache.decided, available_at=None))
    assert unsure(young, None, "").status == "creating"


# -- errands


def _asked(cache: Cache, *errands: Errand) -> Cache:
    return replace(cache, wanted=replace(cache.wanted, errands=errands))


def test_an_errand_that_waits_for_what_may_never_come_gives_way_to_a_later_one() -> None:
    """The replica hangs, so no failover can be tested; its reboot is the way out."""
    cache = group(2, shards={"in_sync": frozenset()})
    test, reboot = Errand(serial=1, kind="test-failover", shard="0001"), Errand(serial=2, kind="reboot", nodes=("demo-002",))
    view = healthy(cache, demo_002=silent(cache, "demo-002", 9.0))
    alone = step(_asked(cache, test), view)
    assert isinstance(alone, Wait)
    assert alone.refused
    answer = step(_asked(cache, test, reboot), view)
    assert isinstance(answer, Decide)
    assert {j.id: type(j.state) for j in answer.decided.jobs} == {"errand-1": Failed, "errand-2": Running}
    assert answer.decided.nodes[1].due == "reboot"
    (told,) = answer.events
    assert told.message.startswith("Given up for a later request: the test failover of node group 0001")


def test_an_errand_that_waits_for_what_will_come_is_waited_for() -> None:
    cache = group(2, shards={"in_sync": frozenset()})
    test, reboot = Errand(serial=1, kind="test-failover", shard="0001"), Errand(serial=2, kind="reboot", nodes=("demo-002",))
    answer = step(_asked(cache, test, reboot), healthy(cache))
    assert isinstance(answer, Wait)
    assert not answer.refused
