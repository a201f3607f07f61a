"""Cache and view in, step and sentence out."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, NOW, decided, gone, group, healthy, memcached, running, shard, shard_with, silent, step

from cachekeep.model import (
    Act,
    Apply,
    Bind,
    Decide,
    Discover,
    Erase,
    Errand,
    Follow,
    Forget,
    FrontView,
    Halted,
    HandOver,
    Member,
    Move,
    NodeView,
    Point,
    Promote,
    Recovery,
    ReplicaSeen,
    Silence,
    Start,
    Stop,
    View,
    Wait,
)
from cachekeep.plan.nodes.members import addresses_needed
from cachekeep.plan.situation import with_nodes

OTHER = running  # a node's healthy view, changed in one thing


# -- creation


def test_appointing_gives_every_member_a_node_and_every_endpoint_an_address() -> None:
    found = decided(group(settled=False), View(free_addresses=ADDRESSES)).decided
    assert [n.name for n in found.nodes] == ["demo-001", "demo-002", "demo-003"]
    used = [n.address for n in found.nodes] + [shard(found).primary_address, shard(found).reader_address]
    assert len(set(used)) == 5
    assert shard(found).primary == "demo-001"
    assert shard(found).order == 1
    assert [f.kind for f in found.fronts] == ["balancer"]


def test_two_nodes_need_no_balancer() -> None:
    assert decided(group(2, settled=False), View(free_addresses=ADDRESSES)).decided.fronts == ()


def test_an_exhausted_pool_is_refused_with_what_to_do() -> None:
    answer = step(group(settled=False), View(free_addresses=ADDRESSES[:2]))
    assert isinstance(answer, Wait)
    assert answer.refused
    assert "--address-pool" in answer.because


def test_addresses_that_are_not_known_to_be_free_are_waited_for_and_the_pool_is_not_blamed() -> None:
    answer = step(group(settled=False), View(free_addresses=None))
    assert isinstance(answer, Wait)
    assert answer.refused
    assert "cannot be read from the store now" in answer.because
    assert "--address-pool" not in answer.because


def test_an_address_that_was_taken_since_the_last_look_is_not_taken_again() -> None:
    """Thinking on after a decision needs no new look, and what is wanted may have grown meanwhile."""
    seen = View(free_addresses=ADDRESSES)
    cache = decided(group(2, settled=False), seen)
    more = (*cache.wanted.shards[0].members, Member(name="demo-003", zone="c"))
    wanted = replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=more),))
    found = decided(replace(cache, wanted=wanted), seen).decided
    used = [n.address for n in found.nodes] + [shard(found).primary_address, shard(found).reader_address]
    assert len(set(used)) == len(used) == 5


def test_everything_starts_at_once() -> None:
    cache = decided(group(settled=False), View(free_addresses=ADDRESSES))
    nothing = View(
        nodes={n.name: NodeView(process="absent", incarnation=0) for n in cache.decided.nodes},
        fronts={"readers": FrontView(process="absent")},
    )
    answer = step(cache, nothing)
    assert answer == Act(((Start("demo-001"), Start("demo-002"), Start("demo-003"), Start("readers")),), answer.because)


def test_the_first_primary_is_promoted_before_others_are_told_to_follow() -> None:
    cache = decided(group(settled=False), View(free_addresses=ADDRESSES))
    fresh = {
        n.name: NodeView(
            process="running",
            incarnation=1,
            answer="complete",
            role="replica",
            follows=n.address,
            has_history=False,
            bound=frozenset({n.address}),
        )
        for n in cache.decided.nodes
    }
    answer = step(cache, View(nodes=fresh, fronts={"readers": FrontView(process="running", incarnation=1, targets=())}))
    assert isinstance(answer, Act)
    endpoint = shard(cache.decided).primary_address
    assert answer.stages[0] == (Promote("demo-001", 1, (cache.decided.nodes[0].address, endpoint)),)
    assert answer.stages[1] == (Follow("demo-002", "demo-001", 1), Follow("demo-003", "demo-001", 1))


def test_available_is_announced_once_with_its_events() -> None:
    cache = group()
    young = replace(
        cache,
        decided=replace(cache.decided, available_at=None, nodes=tuple(replace(n, announced=False) for n in cache.decided.nodes)),
    )
    answer = step(young, healthy(young))
    assert isinstance(answer, Decide)
    assert answer.decided.available_at == NOW
    assert [e.message for e in answer.events] == ["Cache cluster created"] * 3 + ["Replication group demo created"]
    assert isinstance(step(replace(young, decided=answer.decided), healthy(young)), Wait)


def test_a_replica_that_only_believes_to_be_linked_is_not_in_sync() -> None:
    """Its primary does not stream to it before the first ACK; a failover in that second lost every key."""
    cache = group(2, shards={"in_sync": frozenset()})
    view = healthy(cache)
    assert view.nodes["demo-002"].link_up is True
    assert not isinstance(step(cache, view), Decide)
    seen = ReplicaSeen(cache.decided.nodes[1].address, 6379, True, 1000, 0)
    view = healthy(cache, demo_001=running(cache, "demo-001", replicas=(seen,)))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).in_sync == {"demo-002"}


def test_a_replica_in_the_middle_of_a_sync_is_not_in_sync() -> None:
    cache = group(2, shards={"in_sync": frozenset()})
    seen = ReplicaSeen(cache.decided.nodes[1].address, 6379, False, 0, 0)
    assert not isinstance(step(cache, healthy(cache, demo_001=running(cache, "demo-001", replicas=(seen,)))), Decide)


# -- failover


def test_a_crash_promotes_the_in_sync_replica_that_has_most() -> None:
    cache = group()
    view = healthy(cache, demo_001=gone(), demo_002=running(cache, "demo-002", offset=990))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    after = shard(answer.decided)
    assert (after.primary, after.order, after.lead_order) == ("demo-003", 2, 2)
    assert after.in_sync == frozenset(), "nobody has been in sync with it yet"
    assert answer.because == "demo-001 is gone: demo-003 has the most of what it wrote and becomes primary"


def test_between_equals_another_zone_than_the_lost_one_comes_last() -> None:
    cache = group(4)  # zones a b c a
    view = healthy(cache, demo_001=gone())
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-004"


def test_the_new_primary_gets_the_endpoint_and_the_others_follow_in_one_act() -> None:
    cache = group(
        shards={"primary": "demo-003", "order": 2, "in_sync": frozenset({"demo-002"}), "change": Recovery(lost="demo-001")}
    )
    first, _second, third = cache.decided.nodes
    view = healthy(
        cache,
        demo_001=gone(),
        demo_002=running(cache, "demo-002", follows=first.address, link_up=False),
        demo_003=running(cache, "demo-003", role="replica", follows=first.address, link_up=False, bound=frozenset({third.address})),
    )
    answer = step(cache, view)
    endpoint = shard(cache.decided).primary_address
    assert isinstance(answer, Act)
    assert answer.stages == ((Promote("demo-003", 2, (third.address, endpoint)),), (Follow("demo-002", "demo-003", 2),))


def test_the_user_may_accept_the_loss_past_errands_that_wait() -> None:
    errands = (Errand(serial=1, kind="test-failover", shard="0001"), Errand(serial=2, kind="promote-stale", shard="0001"))
    cache = group(2, errands=errands)
    behind = running(cache, "demo-002", offset=400)
    while not cache.decided.refusals:
        cache = decided(cache, healthy(cache, demo_001=gone(), demo_002=behind))
    back = running(cache, "demo-001", role="replica", follows=None, has_history=False, offset=0, link_up=False)
    view = healthy(cache, demo_001=back, demo_002=behind)
    accepted = step(cache, view)
    assert isinstance(accepted, Decide)
    assert [j.id for j in accepted.decided.jobs] == ["errand-2"], "the one before it is done when somebody leads"
    answer = step(replace(cache, decided=accepted.decided), view)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-002"
    assert not shard(answer.decided).accept_stale, "once"


def test_when_nobody_holds_anything_the_primary_comes_back_empty() -> None:
    cache = group(2, shards={"in_sync": frozenset()})
    empty = running(cache, "demo-002", has_history=False, offset=0)
    answer = step(cache, healthy(cache, demo_001=gone(), demo_002=empty))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-001"
    assert "what only demo-001 held is lost" in answer.because
    assert [e.message for e in answer.events] == ["Recovering cache nodes 0001"]


@pytest.mark.parametrize(
    ("third", "leads"),
    [({"has_history": False}, "demo-002"), ({"answer": Silence(), "has_history": None}, None)],
    ids=["empty", "unknown"],
)
def test_when_nobody_holds_anything_a_primary_that_leaves_is_succeeded_by_an_empty_one(third: Any, leads: str | None) -> None:
    cache = group(shards={"in_sync": frozenset()})
    cache = replace(cache, decided=with_nodes(cache.decided, [replace(cache.node("demo-001"), leaving=True)]))  # type: ignore[type-var]
    alone = {"follows": None, "link_up": None}
    second = running(cache, "demo-002", has_history=False, **alone)
    view = healthy(cache, demo_001=gone(), demo_002=second, demo_003=running(cache, "demo-003", **alone, **third))
    if leads is None:
        cache = decided(cache, view)  # what is known of the end of demo-001
    answer = step(cache, view)
    if leads is None:
        assert isinstance(answer, Wait)
        assert answer.because == "demo-001 is gone and leaves; demo-003 may hold data but does not answer yet"
    else:
        assert isinstance(answer, Decide)
        assert answer.because == "demo-001 is gone and leaves, and nobody holds any data: demo-002 becomes primary"
        assert shard(answer.decided).primary == leads


def test_a_primary_that_starts_anew_gets_a_new_order() -> None:
    """A late duplicate of the promotion of its former process made the empty one lead, and an in-sync replica follow it."""
    cache = group(1)
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert (answer.decided.nodes[0].incarnation, shard(answer.decided).order) == (2, 2)


def test_a_restarted_empty_primary_is_not_followed_but_succeeded() -> None:
    """Pitfall: the old primary comes back empty and its replicas copy the emptiness."""
    cache = group()
    back = running(cache, "demo-001", role="replica", follows=None, has_history=False, offset=0, link_up=False)
    answer = step(cache, healthy(cache, demo_001=back))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary in ("demo-002", "demo-003")


def test_replicas_that_hold_data_are_not_told_to_follow_an_empty_primary() -> None:
    cache = group()
    empty = running(cache, "demo-001", has_history=False, offset=0, replicas=())
    astray = running(cache, "demo-002", follows="127.77.9.9", link_up=False)
    answer = step(cache, healthy(cache, demo_001=empty, demo_002=astray))
    effects = [e for s in answer.stages for e in s] if isinstance(answer, Act) else []
    assert not any(isinstance(e, Follow) for e in effects)


@pytest.mark.parametrize(
    ("seconds", "reachable", "reaches", "fenced"),
    [
        (6.0, True, True, False),  # a slow command, or a script that has not reached its limit yet
        (16.0, True, True, True),  # hung
        (1.0, False, True, False),  # it is we who are cut off
        (9.0, False, True, False),  # and we stay cut off
        (1.0, False, False, True),  # its host is gone for everybody
        (0.1, False, False, False),  # too early to say
    ],
)
def test_silence_is_not_death(seconds: float, reachable: bool, reaches: bool, fenced: bool) -> None:
    cache = group()
    view = healthy(
        cache,
        demo_001=silent(cache, "demo-001", seconds, reachable=reachable),
        demo_002=running(cache, "demo-002", reaches=reaches, witnessed_seconds=0.1),
        demo_003=running(cache, "demo-003", reaches=reaches, witnessed_seconds=0.1),
    )
    answer = step(cache, view)
    if fenced:
        assert isinstance(answer, Decide)
        assert answer.decided.nodes[0].condemned
        assert shard(answer.decided).primary == "demo-001", "nobody is promoted before the old one is confirmed stopped"
    else:
        assert isinstance(answer, Wait)
        assert not answer.refused


def test_a_frozen_primary_is_confirmed_stopped_before_anybody_takes_over() -> None:
    cache = group()
    view = healthy(cache, demo_001=silent(cache, "demo-001", 0.3, process="frozen"))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    cache = replace(cache, decided=answer.decided)
    assert step(cache, view) == Act(((Stop("demo-001", 0.0),),), "demo-001 must be confirmed stopped first")


def test_a_stopped_primary_that_the_kernel_holds_is_succeeded_and_not_started_beside() -> None:
    cache = group()
    stuck = replace(gone(), process="stuck")
    condemned = replace(cache, decided=with_nodes(cache.decided, [replace(cache.node("demo-001"), fate=Halted())]))  # type: ignore[type-var]
    answer = step(condemned, healthy(condemned, demo_001=stuck))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-002"
    led = replace(
        condemned,
        decided=replace(
            answer.decided,
            shards=(shard_with(shard(answer.decided), change=None, ended=(), in_sync=frozenset({"demo-003"})),),
        ),
    )
    answer = step(led, healthy(led, demo_001=stuck))
    assert isinstance(answer, Wait)
    assert answer.because == "demo-001 is stopped but hangs in the kernel: look after the disk under it"
    assert answer.refused


def test_a_frozen_primary_that_nobody_could_replace_is_left_alone() -> None:
    cache = group(1, automatic_failover=True)
    answer = step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 60, process="frozen")))
    assert isinstance(answer, Wait)
    assert answer.refused
    assert "would lose its data" in answer.because


def test_without_automatic_failover_a_frozen_primary_is_left_alone() -> None:
    cache = group(automatic_failover=False)
    answer = step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 60, process="frozen")))
    assert isinstance(answer, Wait)
    assert "automatic failover is off" in answer.because


@pytest.mark.parametrize("kind", ["reboot", "promote", "test-failover", "promote-stale"])
def test_the_user_may_give_up_a_hung_primary(kind: Any) -> None:
    nodes = ("demo-002",) if kind == "promote" else ("demo-001",)
    cache = group(automatic_failover=False, errands=(Errand(serial=1, kind=kind, nodes=nodes, shard="0001"),))
    frozen = silent(cache, "demo-001", 60, process="frozen")
    given_up = decided(cache, healthy(cache, demo_001=frozen))
    assert (given_up.decided.nodes[0].due, [j.id for j in given_up.decided.jobs]) == ("reboot", ["errand-1"])
    condemned = decided(given_up, healthy(given_up, demo_001=frozen))
    assert condemned.decided.nodes[0].condemned
    led = shard(decided(condemned, healthy(condemned, demo_001=gone())).decided)
    assert led.primary in ("demo-002", "demo-003")
    if kind == "promote":
        assert "demo-002" in (led.primary, led.preferred)


def test_a_lone_hung_primary_may_be_given_up_too() -> None:
    cache = group(1, errands=(Errand(serial=1, kind="reboot", nodes=("demo-001",)),))
    frozen = silent(cache, "demo-001", 60, process="frozen")
    given_up = decided(cache, healthy(cache, demo_001=frozen))
    assert decided(given_up, healthy(given_up, demo_001=frozen)).decided.nodes[0].condemned


@pytest.mark.parametrize(("seconds", "revived"), [(1.0, False), (6.0, True)])
def test_a_replica_that_stays_frozen_is_started_anew(seconds: float, revived: bool) -> None:
    cache = group()
    view = healthy(cache, demo_003=silent(cache, "demo-003", seconds, process="frozen"))
    cache = decided(cache, view)
    assert shard(cache.decided).in_sync == {"demo-002"}
    answer = step(cache, view)
    assert (isinstance(answer, Decide) and answer.decided.nodes[2].condemned) is revived


def test_without_automatic_failover_the_lead_goes_back_when_the_lost_node_is_in_sync_again() -> None:
    cache = group(automatic_failover=False)
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).preferred == "demo-001"
    cache = group(
        automatic_failover=False,
        shards={"primary": "demo-002", "preferred": "demo-001", "in_sync": frozenset({"demo-001", "demo-003"})},
    )
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).moving_to == "demo-001"


def test_unknown_is_not_down() -> None:
    cache = group()
    answer = step(cache, healthy(cache, demo_001=None))
    assert isinstance(answer, Wait)


def test_a_failover_is_told_when_it_is_done_and_the_lost_node_recovered_after_it() -> None:
    cache = group(
        shards={"primary": "demo-002", "order": 2, "in_sync": frozenset({"demo-003"}), "change": Recovery(lost="demo-001")}
    )
    view = healthy(cache, demo_001=gone())
    told = step(cache, view)
    assert isinstance(told, Decide)
    text = "Failover from primary node demo-001 to replica node demo-002 completed"
    assert [(e.source_type, e.source, e.message) for e in told.events] == [
        ("cache-cluster", "demo-001", text),
        ("replication-group", "demo", text),
    ]
    again = step(replace(cache, decided=told.decided), view)
    assert isinstance(again, Decide)
    assert again.decided.nodes[0].incarnation == 2
    assert [e.message for e in again.events] == ["Recovering cache nodes 0001"]


# -- planned moves


def test_a_hand_over_is_decided_with_its_order_before_an_engine_hears_of_it() -> None:
    cache = group(errands=(Errand(serial=1, kind="promote", nodes=("demo-003",)),))
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    after = shard(answer.decided)
    assert (after.primary, after.moving_to, after.order) == ("demo-001", "demo-003", 2)
    act = step(replace(cache, decided=answer.decided), healthy(cache))
    assert isinstance(act, Act)
    (give,) = act.stages[0]
    assert isinstance(give, HandOver)
    assert (give.giver, give.taker, give.order) == ("demo-001", "demo-003", 2)
    assert give.giver_addresses == (cache.decided.nodes[0].address,)
    assert act.stages[1] == (Follow("demo-002", "demo-003", 2),)


def test_a_move_is_called_off_when_the_taker_is_lost() -> None:
    cache = group(shards={"change": Move(to="demo-003"), "order": 2})
    answer = step(cache, healthy(cache, demo_003=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).moving_to is None
    assert shard(answer.decided).primary == "demo-001"
    assert "nothing was lost" in answer.because


def test_a_move_whose_giver_crashes_becomes_a_failover_to_the_taker() -> None:
    cache = group(shards={"change": Move(to="demo-003"), "order": 2})
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    after = shard(answer.decided)
    assert (after.primary, after.order, after.moving_to) == ("demo-003", 3, None)


def test_unless_another_has_more_than_the_taker() -> None:
    cache = group(shards={"change": Move(to="demo-003"), "order": 2})
    answer = step(cache, healthy(cache, demo_001=gone(), demo_002=running(cache, "demo-002", offset=1001)))
    assert isinstance(answer, Decide)
    assert (shard(answer.decided).primary, shard(answer.decided).moving_to) == ("demo-002", None)


def test_and_if_the_taker_leads_already_the_move_is_done() -> None:
    cache = group(shards={"change": Move(to="demo-003"), "order": 2})
    led = running(cache, "demo-003", role="primary", follows=None, link_up=None)
    answer = step(cache, healthy(cache, demo_001=gone(), demo_002=running(cache, "demo-002", offset=1001), demo_003=led))
    assert isinstance(answer, Decide)
    assert (shard(answer.decided).primary, shard(answer.decided).order) == ("demo-003", 2)
    assert answer.because == "demo-001 has handed over to demo-003"


def test_a_primary_that_does_not_lead_yet_is_succeeded_by_who_has_more() -> None:
    """It had handed over to one that has died since, unseen: another has what was written to that one."""
    cache = group()
    down = running(cache, "demo-001", role="replica", follows=None, link_up=None)
    more = running(cache, "demo-003", offset=1001)
    answer = step(cache, healthy(cache, demo_001=down, demo_003=more))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-003"
    assert answer.because == "demo-003 has what demo-001 lacks, and becomes primary"
    assert isinstance(step(cache, healthy(cache, demo_001=down)), Act), "as much is no more"


def test_a_half_done_hand_over_is_finished_not_undone() -> None:
    """The giver was demoted, then the control plane died: both follow each other, nobody leads, the taker has everything."""
    cache = group(shards={"change": Move(to="demo-003"), "order": 2})
    demoted = running(cache, "demo-001", role="replica", follows=cache.decided.nodes[2].address, link_up=False)
    answer = step(cache, healthy(cache, demo_001=demoted))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-003"


def test_a_silent_taker_keeps_the_lead_that_it_may_have_taken() -> None:
    cache = group(shards={"change": Move(to="demo-002"), "order": 2})
    down = running(cache, "demo-001", role="replica", follows=None, link_up=None)
    answer = step(cache, healthy(cache, demo_001=down, demo_002=silent(cache, "demo-002", 2.0, reachable=False)))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-002"
    assert answer.because == "demo-001 has stepped down for demo-002, which does not answer"


def test_a_move_that_was_called_off_but_was_carried_out_is_not_taken_back() -> None:
    """Nobody saw its end, and clients have written to the taker since."""
    cache = group()
    taker = running(cache, "demo-002", role="primary", follows=None, link_up=None)
    giver = running(cache, "demo-001", role="replica", follows=cache.node("demo-002").address, link_up=True)  # type: ignore[union-attr]
    answer = step(cache, healthy(cache, demo_001=giver, demo_002=taker))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-002"
    assert answer.because == "demo-001 has handed over to demo-002, though that was called off"
    unrelated = replace(giver, follows=cache.node("demo-003").address)  # type: ignore[union-attr]
    answer = step(cache, healthy(cache, demo_001=unrelated, demo_002=taker))
    assert isinstance(answer, Act)
    assert answer.because == "demo-002 leads but is not the primary"


def test_a_reboot_of_the_primary_hands_over_first() -> None:
    cache = group(errands=(Errand(serial=1, kind="reboot", nodes=("demo-001",)),))
    due = decided(cache, healthy(cache))
    assert due.decided.nodes[0].due == "reboot"
    moving = decided(due, healthy(due))
    assert shard(moving.decided).moving_to == "demo-002"


def test_a_reboot_of_a_lone_primary_waits_for_nobody() -> None:
    cache = group(1, errands=(Errand(serial=1, kind="reboot", nodes=("demo-001",)),))
    due = decided(cache, healthy(cache))
    halted = decided(due, healthy(due))
    assert halted.decided.nodes[0].condemned
    assert step(halted, healthy(halted)) == Act(((Stop("demo-001", 5.0),),), "demo-001 must be confirmed stopped first")


def test_a_primary_is_not_restarted_while_no_replica_is_in_sync() -> None:
    """A rolling change restarted the primary before its replicas were in sync: every key lost."""
    cache = group(2, version="8.1.0", shards={"in_sync": frozenset()})
    nodes = tuple(replace(n, due="upgrade", version="8.0.1") for n in cache.decided.nodes)
    cache = replace(
        cache, decided=replace(cache.decided, nodes=(nodes[0], replace(nodes[1], due="", announced=False, version="8.1.0")))
    )
    syncing = running(cache, "demo-002", link_up=False)
    answer = step(cache, healthy(cache, demo_002=syncing))
    assert isinstance(answer, Wait)


def test_replicas_restart_one_at_a_time_and_the_primary_last() -> None:
    cache = group(version="8.1.0")
    cache = replace(cache, decided=replace(cache.decided, nodes=tuple(replace(n, version="8.0.1") for n in cache.decided.nodes)))
    due = decided(cache, healthy(cache))
    assert {n.due for n in due.decided.nodes} == {"upgrade"}
    halted = decided(due, healthy(due))
    assert [n.name for n in halted.decided.nodes if n.condemned] == ["demo-002"]
    assert shard(halted.decided).in_sync == {"demo-003"}


# -- scaling, parting, deleting


def test_a_replica_that_leaves_may_not_be_promoted_any_more_before_it_is_erased() -> None:
    cache = group()
    wanted = replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=cache.wanted.shards[0].members[:2]),))
    cache = replace(cache, wanted=wanted)
    view = healthy(cache)
    fewer = decided(cache, view)  # the balancer is not needed for one replica
    leaving = decided(fewer, view)
    assert leaving.decided.nodes[2].leaving
    safe = decided(leaving, view)
    assert shard(safe.decided).in_sync == {"demo-002"}


def test_a_primary_that_leaves_hands_over_first() -> None:
    cache = group()
    wanted = replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=cache.wanted.shards[0].members[1:]),))
    cache = replace(cache, wanted=wanted)
    fewer = decided(cache, healthy(cache))
    leaving = decided(fewer, healthy(fewer))
    assert leaving.decided.nodes[0].leaving
    assert shard(decided(leaving, healthy(leaving)).decided).moving_to == "demo-002"


def test_deleting_erases_everything_and_then_forgets() -> None:
    cache = group()
    cache = replace(cache, wanted=replace(cache.wanted, deleted=True))
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Act)
    assert answer.stages == ((Erase("demo-001"), Erase("demo-002"), Erase("demo-003"), Erase("readers")),)
    nothing = View(
        nodes={n.name: NodeView(process="absent", incarnation=0) for n in cache.decided.nodes},
        fronts={"readers": FrontView(process="absent")},
    )
    done = step(cache, nothing)
    assert isinstance(done, Forget)
    assert done.events[-1].message == "Replication group demo deleted"


def test_a_deferred_change_waits_for_the_window() -> None:
    cache = group(maintenance_window="wed:11:00-wed:13:00", deferred=frozenset({"node_type"}))
    cache = replace(cache, wanted=replace(cache.wanted, node_type="cache.t3.small"))
    outside = dt.datetime(2030, 1, 2, 14, 0, tzinfo=dt.UTC)
    assert isinstance(step(cache, healthy(cache), now=outside), Wait)
    answer = step(cache, healthy(cache), now=NOW)
    assert isinstance(answer, Decide)
    assert {n.node_type for n in answer.decided.nodes} == {"cache.t3.small"}
    resized = replace(cache, decided=answer.decided)
    stale = {n.name.replace("-", "_"): running(cache, n.name) for n in cache.decided.nodes}
    act = step(resized, healthy(resized, **stale), now=outside)
    assert act == Act(
        ((Apply("demo-002", ("settings",)), Apply("demo-003", ("settings",))), (Apply("demo-001", ("settings",)),)), act.because
    )


# -- endpoints


def test_an_endpoint_is_taken_from_one_before_it_is_given_to_another() -> None:
    cache = group(2, shards={"primary": "demo-002", "in_sync": frozenset({"demo-001"})})
    first, _second = cache.decided.nodes
    lead = shard(cache.decided)
    both = frozenset({first.address, lead.primary_address or "", lead.reader_address or ""})
    answer = step(cache, healthy(cache, demo_001=running(cache, "demo-001", bound=both)))
    assert answer == Act(((Bind("demo-001", (first.address, lead.reader_address or ""), drop_clients=True),),), answer.because)


def test_nobody_is_told_to_take_the_address_that_a_frozen_replica_holds() -> None:
    """It would fail, again and again, and keep everything else from being done."""
    cache = group(2)
    view = healthy(cache, demo_002=silent(cache, "demo-002", 1.0, process="frozen"))
    cache = decided(cache, view)
    assert shard(cache.decided).in_sync == frozenset()
    assert isinstance(step(cache, view), Wait)
    ended = healthy(cache, demo_002=gone())
    restarted = decided(cache, ended)
    answer = step(restarted, healthy(restarted, demo_002=NodeView(process="exited", incarnation=1)))
    assert isinstance(answer, Act)


def test_readers_go_to_in_sync_replicas_only() -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    view = replace(
        healthy(cache), fronts={"readers": FrontView(process="running", incarnation=1, targets=("demo-002", "demo-003"))}
    )
    view = replace(view, nodes=view.nodes | {"demo-002": running(cache, "demo-002", link_up=False)})
    answer = step(cache, view)
    assert answer == Act(((Point("readers", ("demo-003",)),),), "readers go to demo-003")


@pytest.mark.parametrize(
    "build", [group, lambda settled: memcached(), lambda settled: replace(group(1, settled=False), kind="cluster")]
)
def test_as_many_addresses_are_asked_for_as_are_taken(build: Any) -> None:
    cache = build(settled=False)
    needed = addresses_needed(cache)
    cache = decided(cache, View(free_addresses=ADDRESSES[:needed]))
    assert addresses_needed(cache) == 0


def test_a_cluster_that_becomes_a_group_of_one_gets_endpoints_and_loses_them_with_the_group() -> None:
    cluster = replace(group(1), kind="cluster", name="demo-001")
    alone = decided(cluster, healthy(cluster))
    assert shard(alone.decided).primary_address is None
    regrouped = replace(alone, kind="group", name="demo")
    assert addresses_needed(regrouped) == 2
    led = decided(regrouped, replace(healthy(regrouped), free_addresses=ADDRESSES[10:12]))
    assert shard(led.decided).primary_address == ADDRESSES[10]
    back = replace(led, kind="cluster", name="demo-001")
    assert shard(decided(back, healthy(back)).decided).primary_address is None


# -- memcached


def _listed(cache, version: int | None) -> View:  # type: ignore[no-untyped-def]
    up = {
        n.name: NodeView(process="running", incarnation=n.incarnation, answer="complete", discovery_version=version)
        for n in cache.decided.nodes
    }
    names = cache.decided.discovery_nodes
    return View(nodes=up, fronts={"discovery": FrontView(process="running", incarnation=1, targets=names, version=version)})


def test_memcached_nodes_are_listed_when_they_answer_and_the_list_is_told_everywhere() -> None:
    cache = decided(memcached(), View(free_addresses=ADDRESSES))
    assert cache.decided.configuration_address
    listed = decided(cache, _listed(cache, 0))
    assert listed.decided.discovery_nodes == ("mc.0001", "mc.0002", "mc.0003")
    assert listed.decided.discovery_version == 1
    act = step(listed, _listed(listed, 0))
    assert isinstance(act, Act)
    assert [type(e) for e in act.stages[0]] == [Point, Discover, Discover, Discover]


def test_the_discovery_key_of_memcached_nodes_is_looked_after() -> None:
    """A client's flush_all takes it away."""
    cache = decided(memcached(), View(free_addresses=ADDRESSES))
    cache = decided(cache, _listed(cache, 0))
    nodes = tuple(replace(n, announced=True) for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes, available_at=NOW))
    answer = step(cache, _listed(cache, 1))
    assert isinstance(answer, Wait)
    assert answer.seconds <= 15
    flushed = _listed(cache, 1)
    flushed = replace(flushed, nodes=flushed.nodes | {"mc.0002": replace(flushed.nodes["mc.0002"], discovery_version=0)})
    repaired = step(cache, flushed)
    assert isinstance(repaired, Act)
    assert [e.node for e in repaired.stages[0] if isinstance(e, Discover)] == ["mc.0002"]


def test_a_memcached_node_leaves_the_list_before_it_goes() -> None:
    cache = decided(memcached(), View(free_addresses=ADDRESSES))
    cache = decided(cache, _listed(cache, 0))
    nodes = tuple(replace(n, announced=True) for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes, available_at=NOW))
    members = cache.wanted.shards[0].members[:2]
    cache = replace(cache, wanted=replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=members),)))
    leaving = decided(cache, _listed(cache, 1))
    assert leaving.decided.nodes[2].leaving
    shorter = decided(leaving, _listed(leaving, 1))
    assert shorter.decided.discovery_nodes == ("mc.0001", "mc.0002")
    assert shorter.decided.discovery_version == 2
    told = step(shorter, _listed(shorter, 1))
    assert isinstance(told, Act)
    assert Point("discovery", ("mc.0001", "mc.0002"), 2) in told.stages[0]
    off = step(shorter, _listed(shorter, 2))
    assert off == Act(((Erase("mc.0003"),),), "mc.0003 leaves: process and files go")


def test_a_member_that_is_added_gets_a_node_in_its_zone() -> None:
    cache = group()
    members = (*cache.wanted.shards[0].members, Member(name="demo-004", zone="b"))
    cache = replace(cache, wanted=replace(cache.wanted, shards=(replace(cache.wanted.shards[0], members=members),)))
    grown = decided(cache, replace(healthy(cache), free_addresses=ADDRESSES[20:]))
    assert (grown.decided.nodes[3].name, grown.decided.nodes[3].zone) == ("demo-004", "b")


@pytest.mark.parametrize("deleted", [False, True])
def test_a_store_that_is_older_than_the_world_counts_on_from_there(deleted: bool) -> None:
    """Else nothing that was started since could be stopped or erased: its end would follow from an earlier decision."""
    cache = group()
    cache = replace(cache, wanted=replace(cache.wanted, deleted=deleted), decided=replace(cache.decided, serial=5))
    answer = step(cache, replace(healthy(cache), last_start=9))
    assert isinstance(answer, Decide)
    assert answer.because == "decision 9 had a process started: the next one is 10"
    assert answer.decided == replace(cache.decided, serial=9)
    assert answer != step(cache, replace(healthy(cache), last_start=5))
