"""Guards, one at a time: what each keeps from happening, and that nothing else keeps it from happening in the same case."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from tests.plan.builders import gone, group, healthy, running, settled, shard, shard_with, silent, step

from cachekeep.model import (
    Act,
    Cache,
    Decide,
    Done,
    Erase,
    Errand,
    Excuse,
    Flight,
    Follow,
    Halted,
    HandOver,
    Move,
    NodeView,
    Promote,
    ReplicaSeen,
    Silence,
    Step,
    Stop,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.situation import with_nodes, with_shard

NOBODY_IN_SYNC: dict[str, Any] = {"in_sync": frozenset()}


def changed(cache: Cache, name: str, **changes: Any) -> Cache:
    """One node decided otherwise."""
    node = cache.node(name)
    assert node is not None
    return replace(cache, decided=with_nodes(cache.decided, [replace(node, **changes)]))


def in_sync(cache: Cache, *names: str) -> Cache:
    """These replicas are in sync, and no others."""
    return replace(cache, decided=with_shard(cache.decided, shard_with(shard(cache.decided), in_sync=frozenset(names))))


def fresh(cache: Cache, name: str) -> NodeView:
    """A process that has just started: a replica of nobody, empty."""
    return running(
        cache, name, role="replica", follows=None, link_up=None, has_history=False, offset=0, replicas=(), heard=(), lead_order=0
    )


def fed(cache: Cache, *names: str, online: bool = True) -> tuple[ReplicaSeen, ...]:
    """These replicas by their primary's word."""
    nodes = [n for name in names if (n := cache.node(name)) is not None]
    return tuple(ReplicaSeen(n.address, n.port, online, 1000, 0) for n in nodes)


def effects(answer: Step) -> list[object]:
    return [e for stage in answer.stages for e in stage] if isinstance(answer, Act) else []


# -- the user's consent


def test_a_consent_is_used_up_by_the_promotion_that_it_was_given_for() -> None:
    cache = group(2, shards={**NOBODY_IN_SYNC, "accept_stale": True})
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-002"
    assert not shard(answer.decided).accept_stale


def test_a_consent_that_was_not_needed_is_used_up_too() -> None:
    cache = group(3, shards={"in_sync": frozenset({"demo-003"}), "accept_stale": True})
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-003"
    assert not shard(answer.decided).accept_stale


# -- hand-overs


def test_a_taker_that_has_fallen_out_of_sync_is_not_handed_to() -> None:
    cache = group(2, shards={**NOBODY_IN_SYNC, "change": Move(to="demo-002")})
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).moving_to is None
    assert shard(answer.decided).primary == "demo-001"
    in_sync = group(2, shards={"change": Move(to="demo-002")})
    assert any(isinstance(e, HandOver) for e in effects(step(in_sync, healthy(in_sync))))


def test_a_taker_out_of_sync_does_not_inherit_from_a_giver_that_dies() -> None:
    cache = group(3, shards={"in_sync": frozenset({"demo-003"}), "change": Move(to="demo-002")})
    answer = step(cache, healthy(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).moving_to is None
    assert shard(answer.decided).primary == "demo-001"  # the move is called off first; the loss is the next step's


def test_the_lead_returns_only_to_a_node_that_is_in_sync() -> None:
    cache = group(2, automatic_failover=False, shards={**NOBODY_IN_SYNC, "primary": "demo-002", "preferred": "demo-001"})
    quiet = step(cache, healthy(cache))
    assert not isinstance(quiet, Decide)
    back = in_sync(cache, "demo-001")
    answer = step(back, healthy(back))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).moving_to == "demo-001"


# -- who may hold data


def test_an_empty_primary_waits_for_a_silent_node_that_may_hold_data() -> None:
    cache = group(2, shards=NOBODY_IN_SYNC)
    answer = step(cache, healthy(cache, demo_001=fresh(cache, "demo-001"), demo_002=silent(cache, "demo-002", 1.0)))
    assert isinstance(answer, Wait)
    assert answer.refused
    assert "demo-002 may hold data" in answer.because


def test_an_empty_primary_waits_for_a_silent_node_that_has_not_been_in_sync_yet() -> None:
    """It was restarted, and may have been fed since: to ask the user is better than to empty it."""
    cache = changed(group(2, shards=NOBODY_IN_SYNC), "demo-002", announced=False, incarnation=2)
    away = replace(silent(cache, "demo-002", 1.0), incarnation=2)
    answer = step(cache, healthy(cache, demo_001=fresh(cache, "demo-001"), demo_002=away))
    assert isinstance(answer, Wait)
    assert answer.refused


def test_the_first_primary_does_not_wait_for_a_silent_node() -> None:
    """Nobody has written anything yet."""
    cache = group(2, shards=NOBODY_IN_SYNC)
    cache = replace(cache, decided=replace(cache.decided, available_at=None))
    answer = step(cache, healthy(cache, demo_001=fresh(cache, "demo-001"), demo_002=silent(cache, "demo-002", 1.0)))
    assert any(isinstance(e, Promote) for e in effects(answer))


def test_an_in_sync_replica_that_does_not_answer_yet_is_waited_for() -> None:
    cache = group(3, shards={"in_sync": frozenset({"demo-002"})})
    view = healthy(cache, demo_001=gone(), demo_002=silent(cache, "demo-002", 1.0))
    answer = step(cache, view)
    assert not cache.decided.refusals
    assert not (isinstance(answer, Decide) and answer.decided.refusals)  # nobody is asked to accept a loss
    consented = replace(cache, decided=with_shard(cache.decided, replace(shard(cache.decided), accept_stale=True)))
    for policy in (Policy(), Policy(loss_budget_seconds=60, loss_budget_bytes=10**9)):
        answer = step(consented, replace(view, nodes={**view.nodes, "demo-001": gone(0)}), policy)
        assert not (isinstance(answer, Decide) and shard(answer.decided).primary == "demo-003")


def test_an_in_sync_replica_whose_process_is_gone_is_not_waited_for() -> None:
    cache = group(3, shards={"in_sync": frozenset({"demo-002"}), "accept_stale": True})
    answer = step(cache, healthy(cache, demo_001=gone(), demo_002=gone()))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == "demo-003"


# -- who is taken for lost


def test_every_in_sync_replica_has_to_find_the_primary_lost() -> None:
    cache = group()
    away = silent(cache, "demo-001", 1.0, reachable=False)
    one = {"reaches": False, "witnessed_seconds": 0.2, "link_up": False}
    other = {"reaches": True, "witnessed_seconds": 0.2}
    view = healthy(cache, demo_001=away, demo_002=running(cache, "demo-002", **one), demo_003=running(cache, "demo-003", **other))
    answer = step(cache, view)
    assert isinstance(answer, Wait)
    both = healthy(cache, demo_001=away, demo_002=running(cache, "demo-002", **one), demo_003=running(cache, "demo-003", **one))
    answer = step(cache, both)
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[0].condemned


def test_a_user_s_word_does_not_make_a_primary_lost_that_one_in_sync_replica_reaches() -> None:
    cache = group(errands=(Errand(serial=1, kind="test-failover", shard="0001"),))
    away = silent(cache, "demo-001", 60.0, reachable=False)
    reached = running(cache, "demo-002", reaches=True, witnessed_seconds=0.2)
    two, three = (running(cache, name, reaches=False, witnessed_seconds=0.2, link_up=False) for name in ("demo-002", "demo-003"))
    answer = step(cache, healthy(cache, demo_001=away, demo_002=reached, demo_003=three))
    assert not any(n.due or n.condemned for n in (answer.decided if isinstance(answer, Decide) else cache.decided).nodes)
    given_up, _ = settled(cache, healthy(cache, demo_001=away, demo_002=two, demo_003=three))
    assert given_up.decided.nodes[0].condemned


def test_a_primary_that_loads_is_neither_led_by_nor_taken_for_lost() -> None:
    """Whoever loads is alive, and has nothing to lead with."""
    cache = group()
    loading = running(cache, "demo-001", answer=Excuse("loading", seconds=60.0))
    answer = step(cache, healthy(cache, demo_001=loading))
    assert not any(n.condemned for n in (answer.decided if isinstance(answer, Decide) else cache.decided).nodes)
    assert not any(isinstance(e, Promote | Stop) for e in effects(answer))


def test_a_replica_that_loads_is_not_promoted() -> None:
    cache = group(2)
    answer = step(cache, healthy(cache, demo_001=gone(), demo_002=running(cache, "demo-002", answer=Excuse("loading"))))
    assert not (isinstance(answer, Decide) and shard(answer.decided).primary == "demo-002")


# -- in sync


def test_a_replica_whose_own_link_is_down_is_not_in_sync_whatever_its_primary_says() -> None:
    cache = group(2)
    answer = step(cache, healthy(cache, demo_002=running(cache, "demo-002", link_up=False)))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).in_sync == frozenset()


def test_a_replica_that_loads_is_not_in_sync_whatever_its_primary_says() -> None:
    """All was sent to it, and so it counts as online there; it holds nothing yet."""
    cache = group(2)
    answer = step(cache, healthy(cache, demo_002=running(cache, "demo-002", answer=Excuse("loading"))))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).in_sync == frozenset()


def test_a_silent_replica_does_not_join() -> None:
    cache = group(2, shards=NOBODY_IN_SYNC)
    primary = running(cache, "demo-001", replicas=fed(cache, "demo-002"))
    answer = step(cache, healthy(cache, demo_001=primary, demo_002=silent(cache, "demo-002", 0.1)))
    assert not (isinstance(answer, Decide) and shard(answer.decided).in_sync)


def test_a_silent_replica_stays_in_sync_for_a_while_and_no_longer() -> None:
    cache = group(2)
    policy = Policy()
    for seconds, stays in ((policy.replica_seconds - 0.1, True), (policy.replica_seconds, False)):
        answer = step(cache, healthy(cache, demo_002=silent(cache, "demo-002", seconds)), policy)
        left = isinstance(answer, Decide) and shard(answer.decided).in_sync == frozenset()
        assert left is not stays


def test_a_silent_replica_that_its_primary_does_not_hear_leaves_at_once() -> None:
    cache = group(2)
    primary = running(cache, "demo-001", replicas=())
    answer = step(cache, healthy(cache, demo_001=primary, demo_002=silent(cache, "demo-002", 0.1)))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).in_sync == frozenset()


def test_an_online_replica_of_somebody_else_is_not_in_sync() -> None:
    cache = group(3)
    third = cache.node("demo-003")
    assert third is not None
    answer = step(cache, healthy(cache, demo_002=running(cache, "demo-002", follows=third.address)))
    assert any(isinstance(e, Follow) and e.node == "demo-002" for e in effects(answer)) or (
        isinstance(answer, Decide) and shard(answer.decided).in_sync == {"demo-003"}
    )


# -- who is stopped, restarted, erased


def test_frozen_replicas_are_left_alone_while_nobody_leads() -> None:
    cache = group(3)
    frozen = NodeView(process="frozen", incarnation=1, answer=Silence(60.0))
    answer = step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 60.0), demo_002=frozen, demo_003=frozen))
    assert not any(n.condemned for n in (answer.decided if isinstance(answer, Decide) else cache.decided).nodes)
    assert not any(isinstance(e, Stop) for e in effects(answer))
    led = step(cache, healthy(cache, demo_002=frozen))
    out_of_sync = replace(cache, decided=led.decided) if isinstance(led, Decide) else cache
    answer = step(out_of_sync, healthy(out_of_sync, demo_002=frozen))
    assert isinstance(answer, Decide)
    assert [n.name for n in answer.decided.nodes if n.condemned] == ["demo-002"]


def test_a_node_that_has_left_does_not_count_as_in_sync() -> None:
    """Its name may be given to another, which would be taken for it."""
    cache = changed(group(2, automatic_failover=False), "demo-002", leaving=True)
    mute = NodeView(process="frozen", incarnation=1, answer=Silence(60.0))
    assert Erase("demo-002") in effects(step(cache, healthy(cache, demo_001=mute, demo_002=gone())))
    answer = step(cache, healthy(cache, demo_001=mute, demo_002=NodeView(process="absent")))
    assert isinstance(answer, Decide)
    assert [n.name for n in answer.decided.nodes] == ["demo-001"]
    assert shard(answer.decided).confirmed.nodes == frozenset()


def test_a_node_that_leaves_is_not_promoted_whatever_it_has() -> None:
    """So it need not be taken from those in sync before its files go."""
    cache = changed(group(2), "demo-002", leaving=True)
    after, _ = settled(cache, healthy(cache, demo_001=gone()))
    assert shard(after.decided).primary == "demo-001"


def test_the_next_node_restarts_when_the_last_is_back() -> None:
    cache = group(3, shards={"in_sync": frozenset({"demo-003"})})
    cache = changed(changed(cache, "demo-003", due="reboot"), "demo-002", announced=False, incarnation=2)
    coming = running(cache, "demo-002", link_up=False)
    answer = step(cache, healthy(cache, demo_002=coming))
    assert not any(n.condemned for n in (answer.decided if isinstance(answer, Decide) else cache.decided).nodes)
    back = in_sync(changed(cache, "demo-002", announced=True), "demo-002", "demo-003")
    answer = step(back, healthy(back))
    assert isinstance(answer, Decide)
    assert [n.name for n in answer.decided.nodes if n.condemned] == ["demo-003"]


def test_the_next_node_does_not_restart_while_the_last_is_being_stopped() -> None:
    """With its grace a stop may take long."""
    cache = group(4, shards={"in_sync": frozenset({"demo-003", "demo-004"})})
    cache = changed(changed(cache, "demo-003", due="reboot"), "demo-002", due="reboot", fate=Halted())
    stopping = Flight(effect=Stop("demo-002", 5.0), because="it must be stopped first", since_seconds=1.0, left_seconds=4.0)
    answer = step(cache, replace(healthy(cache), flights=(stopping,)))
    assert isinstance(answer, Wait)


def test_a_consent_means_nothing_while_somebody_leads() -> None:
    cache = group(2, errands=(Errand(serial=1, kind="promote-stale", shard="0001"),))
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert [type(j.state) for j in answer.decided.jobs] == [Done]
    assert not shard(answer.decided).accept_stale
