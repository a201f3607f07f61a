"""From compatible to enabled: successors in cluster mode are fed beside the nodes, and take their place all at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, decided, gone, group, healthy, later, running, shard_with, silent, step

from cachekeep.engines.config import settings
from cachekeep.engines.launch import cluster_node_id, nodes_conf
from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Act,
    Bind,
    Cache,
    ClusterSeen,
    Confirmed,
    Conversion,
    Convert,
    Decide,
    Elect,
    Erase,
    FrontView,
    NodeView,
    ReplicaSeen,
    Replicate,
    Start,
    Starving,
    Stop,
    Stream,
    View,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.change.switch import REST_SECONDS, RETRY_SECONDS
from cachekeep.plan.nodes.members import addresses_needed, addresses_used
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import condition

T1, T2, T3 = "demo-001.cluster", "demo-002.cluster", "demo-003.cluster"


def compatible(count: int = 3, mode: str = "enabled", **more: Any) -> Cache:
    """A group that was compatible, and is to be ``mode``."""
    cache = group(count, cluster_mode="compatible", **more)
    return replace(cache, wanted=replace(cache.wanted, cluster_mode=mode))


def appointed(count: int = 3, **changes: Any) -> Cache:
    """Its successors were decided; ``changes`` of the decisions."""
    cache = compatible(count)
    cache = decided(cache, replace(healthy(cache), free_addresses=ADDRESSES[-5:]))
    return preparing(cache, **changes)


def preparing(cache: Cache, **changes: Any) -> Cache:
    return replace(cache, decided=replace(cache.decided, switch=replace(cache.decided.preparing, **changes)))


def fed(count: int = 3) -> Cache:
    return appointed(count, confirmed=Confirmed(primary="demo-001", order=1, nodes=frozenset((T1, T2, T3)[:count])))


def turning(**shard: Any) -> Cache:
    """The lead is about to go to the first successor, by order 2."""
    cache = fed()
    (only,) = cache.decided.shards
    given = {"change": Conversion(to=T1, since=MOMENT), "order": 2, "lead_order": 1} | shard
    return replace(cache, decided=replace(cache.decided, shards=(shard_with(only, **given),)))


def seen(cache: Cache, successors: NodeView | None = None, **changes: NodeView) -> View:
    """All as it should be: the successors follow and have everything; ``t1=``, ``demo_001=`` say otherwise."""
    view = healthy(cache, **{k: v for k, v in changes.items() if k.startswith("demo")})
    views = {n.name: successors or successor(cache, n.name) for n in cache.decided.successors}
    views |= {f"demo-00{k[1]}.cluster": v for k, v in changes.items() if k.startswith("t")}
    nodes = view.nodes | views
    primary = nodes[cache.decided.shards[0].primary or ""]
    online = tuple(ReplicaSeen(n.address, n.port, True, 1000, 0) for n in cache.decided.successors if nodes[n.name].link_up)
    return replace(
        view, nodes=nodes | {cache.decided.shards[0].primary or "": replace(primary, replicas=primary.replicas + online)}
    )


def successor(cache: Cache, name: str, *, refused: int = 0, **changes: Any) -> NodeView:
    """One that has everything, with changes."""
    node = cache.node(name)
    assert node is not None
    primary = cache.node(cache.decided.shards[0].primary or "")
    view = NodeView(
        process="running",
        incarnation=node.incarnation,
        answer="complete",
        role="replica",
        follows=primary.address if primary else None,
        link_up=True,
        offset=1000,
        stream=Stream("a", 1000),
        has_history=True,
        bound=frozenset({node.address}),
        digests=runtime(cache, node).digests,
        last_order=1,
        cluster=ClusterSeen(id=cluster_node_id(cache, node), ok=True, epoch=1, refused=refused),
    )
    return replace(view, **changes)


def leading(cache: Cache, name: str = T1, order: int = 2, **changes: Any) -> NodeView:
    led = successor(cache, name, role="primary", follows=None, link_up=None, last_order=order)
    assert led.cluster is not None
    return replace(led, cluster=replace(led.cluster, epoch=2, slots=((0, 16383),)), **changes)


def stepped_down(cache: Cache) -> NodeView:
    return running(cache, "demo-001", role="replica", replicas=())


def act(answer: object) -> tuple[object, ...]:
    assert isinstance(answer, Act), answer
    return answer.stages


def because(answer: object, kind: type = Decide) -> str:
    assert isinstance(answer, kind), answer
    return answer.because  # type: ignore[attr-defined, no-any-return]


# -- before


def test_successors_are_appointed_beside_the_nodes_which_go_on_as_they_were() -> None:
    before, cache = compatible(), appointed()
    assert [(n.name, n.member, n.zone) for n in cache.decided.successors] == [
        (T1, "demo-001", "a"),
        (T2, "demo-002", "b"),
        (T3, "demo-003", "c"),
    ]
    assert [n.address for n in cache.decided.successors] == list(ADDRESSES[-5:-2])
    assert cache.decided.nodes == before.decided.nodes
    assert {n.address for n in cache.decided.successors} <= addresses_used(cache.decided)
    assert (cache.clustered, cache.cluster_mode) == (False, "compatible")
    assert [cache.in_cluster_mode(n) for n in cache.decided.everyone] == [False] * 3 + [True] * 3
    assert cache.member("demo-001") is cache.decided.nodes[0]
    assert cache.cluster_ids() == ("demo-001", "demo-002", "demo-003")
    told = condition(Situation(cache, seen(cache), NOW, MOMENT, Policy()), Wait(1.0, "calm", ""))
    assert told.status == "modifying"
    assert [n.name for n in told.nodes] == ["demo-001", "demo-002", "demo-003"]


def test_addresses_for_them_are_asked_for() -> None:
    assert addresses_needed(compatible()) == 3
    assert addresses_needed(appointed()) == 0
    answer = step(compatible(), replace(healthy(compatible()), free_addresses=ADDRESSES[-2:]))
    assert "1 more addresses are needed" in because(answer, Wait)


def test_they_start_and_nobody_takes_over_before_all_are_fed() -> None:
    cache = appointed()
    assert act(step(cache, seen(cache, NodeView(process="absent")))) == ((Start(T1), Start(T2), Start(T3)),)
    behind = seen(cache, t2=successor(cache, T2, link_up=False))
    answer = step(cache, behind)
    assert isinstance(answer, Decide)
    assert answer.decided.fed == {T1, T3}
    cache = replace(cache, decided=answer.decided)
    assert because(step(cache, behind), Wait) == f"{T2} is fed what demo-001 has"
    answer = step(cache, seen(cache))
    assert isinstance(answer, Decide)
    assert answer.decided.fed == {T1, T2, T3}


def test_the_primarys_own_successor_shall_lead_by_an_order_of_its_own() -> None:
    answer = step(fed(), seen(fed()))
    assert isinstance(answer, Decide)
    (shard,) = answer.decided.shards
    assert (shard.primary, shard.change, shard.order) == ("demo-001", Conversion(to=T1, since=MOMENT), 2)
    cache = turning()
    assert act(step(cache, seen(cache))) == ((Convert("demo-001", T1, 2, (cache.decided.nodes[0].address,), 1.0),),)


@pytest.mark.parametrize("node", [{"due": "reboot"}, {"leaving": True}])
def test_it_waits_while_something_else_is_going_on(node: dict[str, Any]) -> None:
    cache = fed()
    nodes = (*cache.decided.nodes[:2], replace(cache.decided.nodes[2], announced=False, **node))
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes))
    answer = step(cache, seen(cache))
    assert not isinstance(answer, Decide) or answer.decided.shards[0].moving_to is None


# -- other databases


def test_keys_in_another_database_keep_successors_from_being_started_and_that_is_told_once() -> None:
    cache = compatible()
    view = seen(cache, demo_001=running(cache, "demo-001", other_databases=(3, 7)))
    answer = step(cache, view)
    assert "databases other than 0 hold keys (3 and 7)" in because(answer)
    assert isinstance(answer, Decide)
    (told,) = answer.events
    assert told.message == answer.because
    cache = replace(cache, decided=answer.decided)
    again = step(cache, view)
    assert isinstance(again, Wait)
    assert again.refused
    assert again.because == answer.because


def test_who_has_refused_something_is_out_at_once_and_fed_anew_later() -> None:
    cache = fed()
    spoilt = seen(cache, t2=successor(cache, T2, refused=1))
    answer = step(cache, spoilt)
    assert isinstance(answer, Decide)
    assert "its clients use other databases than 0: demo-002.cluster could not follow" in answer.because
    assert answer.decided.fed == {T1, T3}
    assert len(answer.events) == 1
    cache = replace(cache, decided=answer.decided)
    assert isinstance(step(cache, spoilt), Wait)
    rested = step(cache, spoilt, moment=later(REST_SECONDS))
    assert because(rested) == f"{T2} starts anew"
    cache = replace(cache, decided=rested.decided)  # type: ignore[union-attr]
    assert act(step(cache, spoilt)) == ((Stop(T2),),)
    ended = seen(cache, t2=NodeView(process="exited", incarnation=1))
    assert act(step(cache, ended)) == ((Start(T2),),)


def test_a_taker_that_has_refused_something_does_not_take() -> None:
    cache = turning()
    answer = step(cache, seen(cache, t1=successor(cache, T1, refused=1)))
    assert because(answer) == f"the move to {T1} is called off: {T1} does not have all that demo-001 has; nothing was lost"


# -- the hand-over


def test_one_decision_makes_the_successors_the_nodes() -> None:
    cache = turning()
    view = seen(cache, demo_001=stepped_down(cache), t1=leading(cache))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    after = replace(cache, decided=answer.decided)
    (shard,) = after.decided.shards
    assert [n.name for n in after.decided.nodes] == [T1, T2, T3]
    assert after.decided.retired == cache.decided.nodes
    assert (after.decided.successors, after.decided.fed) == ((), frozenset())
    assert (shard.primary, shard.in_sync, shard.order, shard.moving_to) == (T1, {T2, T3}, 2, None)
    assert (shard.owned, shard.slots, shard.epoch) == (((0, 16383),), ((0, 16383),), 2)
    assert (shard.primary_address, shard.reader_address) == (None, None)
    assert (after.clustered, after.cluster_mode) == (True, "enabled")
    assert [after.in_cluster_mode(n) for n in after.decided.everyone] == [True] * 3 + [False] * 3
    assert [e.message for e in answer.events] == ["Cluster mode of replication group demo has been enabled"]


@pytest.mark.parametrize(
    ("taker", "giver"),
    [
        (lambda c: leading(c, order=1), stepped_down),  # by an older order
        (leading, lambda c: running(c, "demo-001")),  # and the giver does, too
        (leading, lambda c: silent(c, "demo-001", 0.2)),  # and it is not known whether the giver does
    ],
)
def test_a_successor_that_leads_is_not_enough(taker: Any, giver: Any) -> None:
    cache = turning()
    answer = step(cache, seen(cache, demo_001=giver(cache), t1=taker(cache)))
    assert not isinstance(answer, Decide) or not replace(cache, decided=answer.decided).clustered


def test_a_giver_that_is_silent_when_its_place_is_taken_is_stopped_for_certain() -> None:
    cache = turning()
    answer = step(cache, seen(cache, demo_001=silent(cache, "demo-001", 1.5), t1=leading(cache)))
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[0].condemned
    cache = replace(cache, decided=answer.decided)
    assert act(step(cache, seen(cache, demo_001=silent(cache, "demo-001", 1.5), t1=leading(cache)))) == ((Stop("demo-001"),),)
    answer = step(cache, seen(cache, demo_001=gone(), t1=leading(cache)))
    assert isinstance(answer, Decide)
    assert replace(cache, decided=answer.decided).clustered


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"t1": lambda c: gone()}, f"{T1} is gone"),
        ({"t1": lambda c: silent(c, T1, 2.0)}, f"demo-001 or {T1} does not answer"),
        ({"demo_001": lambda c: silent(c, "demo-001", 2.0)}, f"demo-001 or {T1} does not answer"),
        ({"demo_001": lambda c: gone()}, "demo-001 is gone"),
        ({"demo_001": stepped_down}, "demo-001 does not lead"),
        ({"t1": lambda c: leading(c, order=1)}, f"{T1} leads, but not by this order"),
        ({"t1": lambda c: successor(c, T1, link_up=False)}, f"{T1} does not have all that demo-001 has"),
    ],
)
def test_it_is_called_off_by_a_later_order(changes: dict[str, Any], why: str) -> None:
    cache = turning()
    answer = step(cache, seen(cache, **{k: v(cache) for k, v in changes.items()}))
    assert because(answer) == f"the move to {T1} is called off: {why}; nothing was lost"
    (shard,) = answer.decided.shards  # type: ignore[union-attr]
    assert (shard.primary, shard.moving_to, shard.order) == ("demo-001", None, 3)
    assert answer.decided.successors == cache.decided.successors  # type: ignore[union-attr]


def test_a_taker_that_was_told_starts_anew_when_it_is_called_off_and_nobody_leads_before_its_process_is_gone() -> None:
    cache = turning()
    told = replace(silent(cache, T1, 2.0), last_order=2)
    answer = step(cache, seen(cache, t1=told))
    assert isinstance(answer, Decide)
    assert [n.incarnation for n in answer.decided.successors] == [2, 1, 1]
    assert answer.decided.fed == {T2, T3}
    cache = replace(cache, decided=answer.decided)
    lost = {"demo_001": gone(), "demo_002": gone(), "demo_003": gone()}
    assert act(step(cache, seen(cache, t1=told, **lost))) == ((Stop(T1),),)


def test_who_is_not_fed_when_the_place_is_taken_starts_anew_in_it() -> None:
    cache = turning()
    cache = preparing(cache, confirmed=replace(cache.decided.preparing.confirmed, nodes=frozenset({T1, T2})))
    view = seen(cache, demo_001=stepped_down(cache), t1=leading(cache), t3=successor(cache, T3, refused=1))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert [n.incarnation for n in answer.decided.nodes] == [1, 1, 2]
    assert answer.decided.shards[0].in_sync == {T2}


def test_a_taker_that_has_refused_something_after_all_is_not_enabled() -> None:
    cache = turning()
    led = leading(cache)
    assert led.cluster is not None
    spoilt = replace(led, cluster=replace(led.cluster, refused=1))
    answer = step(cache, seen(cache, demo_001=stepped_down(cache), t1=spoilt))
    assert isinstance(answer, Decide)
    assert not replace(cache, decided=answer.decided).clustered


def test_what_only_successors_have_is_kept_when_cluster_mode_is_not_wanted_any_more() -> None:
    cache = fed(2)
    back = replace(cache, wanted=replace(cache.wanted, cluster_mode="compatible"))
    lost = {"demo_001": gone(), "demo_002": gone()}
    for quiet in ({}, {"t1": silent(cache, T1, 2.0), "t2": silent(cache, T2, 2.0)}):
        now = back
        for _ in range(5):
            answer = step(now, seen(now, **lost, **quiet))
            assert not isinstance(answer, Act) or not any(isinstance(e, Erase) for stage in answer.stages for e in stage)
            if isinstance(answer, Decide):
                now = replace(now, decided=answer.decided)
        assert now.decided.fed == {T1, T2}
        assert now.decided.nodes[0].incarnation == 1


def test_what_was_fed_by_a_primary_of_before_inherits_nothing() -> None:
    cache = fed(2)
    answer = step(cache, seen(cache, demo_001=gone()))
    assert isinstance(answer, Decide)
    assert (answer.decided.shards[0].primary, answer.decided.fed) == ("demo-002", frozenset())


def test_who_leads_in_vain_starts_anew_and_the_move_is_tried_again_after_a_while() -> None:
    cache = preparing(turning(change=None, order=3), tried_at=MOMENT)
    answer = step(cache, seen(cache, t1=leading(cache)))
    assert isinstance(answer, Decide)
    assert answer.decided.fed == {T2, T3}
    vain = replace(cache, decided=answer.decided)
    assert because(step(vain, seen(vain, t1=leading(vain)))) == f"{T1} starts anew"
    assert isinstance(step(cache, seen(cache)), Wait)
    again = step(cache, seen(cache), moment=later(RETRY_SECONDS))
    assert because(again) == f"all successors have what demo-001 has: {T1} becomes primary"


def test_one_that_takes_too_long_is_called_off() -> None:
    answer = step(turning(), seen(turning()), moment=later(RETRY_SECONDS + 1))
    assert f"it took longer than {RETRY_SECONDS:g} s" in because(answer)


# -- failures


def test_a_crash_meanwhile_is_for_the_replicas_and_successors_are_fed_by_the_new_primary() -> None:
    cache = fed()
    answer = step(cache, seen(cache, demo_001=gone()))
    assert because(answer).startswith("demo-001 is gone: demo-002")
    cache = replace(cache, decided=answer.decided)  # type: ignore[union-attr]
    (shard,) = cache.decided.shards
    assert shard.primary == "demo-002"
    cache = replace(
        cache,
        decided=replace(
            cache.decided,
            shards=(shard_with(shard, in_sync=frozenset({"demo-001", "demo-003"}), change=None, ended=()),),
        ),
    )
    old = {f"t{i}": successor(fed(), name, link_up=False) for i, name in enumerate((T1, T2, T3), 1)}
    answer = step(cache, seen(cache, **old))
    assert because(answer) == f"{T1}, {T2} and {T3} start anew"
    assert answer.decided.fed == frozenset()  # type: ignore[union-attr]
    assert [n.incarnation for n in answer.decided.successors] == [2, 2, 2]  # type: ignore[union-attr]


def test_without_any_replica_left_a_successor_inherits() -> None:
    cache = fed(2)
    lost = {"demo_001": gone(), "demo_002": gone()}
    answer = step(cache, seen(cache, **lost, t2=successor(cache, T2, offset=1001)))
    assert isinstance(answer, Decide)
    (shard,) = answer.decided.shards
    assert (shard.moving_to, shard.order, shard.lost) == (T2, 2, "demo-001")  # it has most
    cache = replace(cache, decided=answer.decided)
    assert act(step(cache, seen(cache, **lost))) == ((Elect(T2, 2, seize=True),),)
    answer = step(cache, seen(cache, **lost, t2=leading(cache, T2)))
    assert isinstance(answer, Decide)
    assert replace(cache, decided=answer.decided).clustered


def test_successors_inherit_too_when_the_primary_was_to_come_back_empty_meanwhile() -> None:
    """Its last replica was silent before it was known to be gone: the primary is started again by a later order, and what
    successors were fed is not forgotten for that."""
    cache = turning()
    fed_before = {f"t{i}": successor(cache, f"demo-00{i}.cluster", link_up=False) for i in (1, 2, 3)}
    unsure = seen(cache, demo_001=gone(), demo_002=silent(cache, "demo-002", 0.05), demo_003=gone(), **fed_before)
    while isinstance(answer := step(cache, unsure), Decide):
        cache = replace(cache, decided=answer.decided)
    (only,) = cache.decided.shards
    assert (only.primary, only.lead_order > 1, only.ended[0].order) == ("demo-001", True, 1)
    answer = step(cache, seen(cache, demo_001=gone(), demo_002=gone(), demo_003=gone(), **fed_before))
    assert because(answer) == (
        f"demo-001 is lost and no in-sync replica is left: {T1} has what they had and becomes primary in cluster mode"
    )


def test_an_heir_that_hangs_is_given_up_only_for_another() -> None:
    cache = fed(2)
    (shard,) = cache.decided.shards
    given = replace(shard, change=Conversion(to=T1, since=MOMENT, lost="demo-001"), order=2)
    cache = replace(cache, decided=replace(cache.decided, shards=(given,)))
    lost = {"demo_001": gone(), "demo_002": gone(), "t1": replace(silent(cache, T1, 60.0), last_order=2)}
    much_later = later(60)
    answer = step(cache, seen(cache, **lost, t2=silent(cache, T2, 60.0)), moment=much_later)
    assert not isinstance(answer, Decide) or answer.decided.successors == cache.decided.successors
    answer = step(cache, seen(cache, **lost), moment=much_later)
    assert because(answer) == f"the move to {T1} is called off: {T1} does not answer, and {T2} does; nothing was lost"


@pytest.mark.parametrize("primary", [gone(), "empty"], ids=["gone", "empty"])
def test_as_long_as_an_heir_may_answer_the_primary_does_not_come_back_empty(primary: Any) -> None:
    cache = fed(2)
    (shard,) = cache.decided.shards
    cache = replace(cache, decided=replace(cache.decided, shards=(shard_with(shard, in_sync=frozenset()),)))
    empty = running(cache, "demo-001", role="replica", has_history=False, offset=0, replicas=())
    blank = running(cache, "demo-002", has_history=False, follows=None, link_up=None)
    quiet = {"t1": silent(cache, T1, 2.0), "t2": silent(cache, T2, 2.0)}
    answer = step(cache, seen(cache, demo_001=empty if primary == "empty" else primary, demo_002=blank, **quiet))
    assert isinstance(answer, Wait)
    assert answer.refused
    assert f"{T1} and {T2} may hold what they had but do not answer yet" in answer.because
    answer = step(cache, seen(cache, demo_001=gone(), demo_002=blank, t1=gone(), t2=gone()))
    assert because(answer) == "demo-001 ended and is started again; what only demo-001 held is lost"


def test_an_empty_primary_is_not_promoted_while_a_successor_has_everything() -> None:
    cache = fed(2)
    empty = running(cache, "demo-001", role="replica", has_history=False, offset=0, replicas=())
    answer = step(cache, seen(cache, demo_001=empty, demo_002=gone()))
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].moving_to in (T1, T2)


def test_who_was_never_fed_or_has_refused_something_inherits_nothing() -> None:
    lost = {"demo_001": gone(), "demo_002": gone()}
    cache = appointed(2)
    answer = step(cache, seen(cache, **lost))
    assert not isinstance(answer, Decide) or answer.decided.shards[0].moving_to is None
    cache = fed(2)
    spoilt = {"t1": successor(cache, T1, refused=1), "t2": successor(cache, T2, refused=2)}
    answer = step(cache, seen(cache, **lost, **spoilt))
    assert not isinstance(answer, Decide) or answer.decided.shards[0].moving_to is None


def test_a_primary_that_shall_starve_is_left_by_successors_first() -> None:
    cache = fed()
    (shard,) = cache.decided.shards
    cache = replace(cache, decided=replace(cache.decided, shards=(replace(shard, change=Starving()),)))
    assert act(step(cache, seen(cache), Policy(fence="starve")))[0] == (Stop(T1), Stop(T2), Stop(T3))


# -- afterwards


def enabled() -> Cache:
    cache = turning()
    cache = replace(cache, decided=replace(cache.decided, configuration_address=ADDRESSES[-1]))
    return decided(cache, seen(cache, demo_001=stepped_down(cache), t1=leading(cache)))


def afterwards(cache: Cache, *, fronts: str = "absent", retired: str = "absent") -> View:
    ids = frozenset(cluster_node_id(cache, n) for n in cache.decided.nodes)
    nodes = {}
    for n in cache.decided.nodes:
        view = leading(cache, bound=frozenset({n.address, ADDRESSES[-1]})) if n.name == T1 else successor(cache, n.name)
        assert view.cluster is not None
        nodes[n.name] = replace(view, cluster=replace(view.cluster, knows=ids))
    online = tuple(ReplicaSeen(n.address, n.port, True, 1000, 0) for n in cache.decided.nodes[1:])
    nodes[T1] = replace(nodes[T1], replicas=online)
    nodes |= {n.name: NodeView(process=retired, incarnation=1) for n in cache.decided.retired}  # type: ignore[arg-type]
    return View(nodes=nodes, fronts={f.name: FrontView(process=fronts, incarnation=1) for f in cache.decided.fronts})  # type: ignore[arg-type]


def test_the_configuration_endpoint_goes_from_the_front_to_the_new_primary() -> None:
    cache = enabled()
    first, second = act(step(cache, afterwards(cache, fronts="running", retired="running")))
    assert Erase("configuration") in first or Erase("readers") in first  # type: ignore[operator]
    assert second == (Bind(T1, (cache.decided.nodes[0].address, ADDRESSES[-1])),)


def test_it_takes_no_writes_before_the_others_have_been_told_to_follow_it() -> None:
    """Until then they would be promoted after a crash without what it has taken."""
    cache = enabled()
    view = afterwards(cache, fronts="running", retired="running")
    old = cache.decided.retired[0].address
    view = replace(view, nodes=view.nodes | {T2: replace(view.nodes[T2], follows=old)})
    assert act(step(cache, view)) == ((Replicate(T2, T1, 2),),)


def test_nor_does_it_wait_for_ever_for_those_that_cannot() -> None:
    cache = enabled()
    view = afterwards(cache, fronts="running", retired="running")
    view = replace(view, nodes=view.nodes | {T2: replace(view.nodes[T2], follows=cache.decided.retired[0].address)})
    much_later = later(RETRY_SECONDS)
    answer = step(cache, view, moment=much_later)
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].in_sync == {T3}
    first, _ = act(step(replace(cache, decided=answer.decided), view, moment=much_later))
    assert all(isinstance(e, Erase) for e in first)  # type: ignore[attr-defined]


def test_old_nodes_are_erased_and_forgotten_when_all_are_in_sync() -> None:
    cache = enabled()
    gone_fronts = replace(cache, decided=replace(cache.decided, fronts=()))
    answer = act(step(gone_fronts, afterwards(gone_fronts, retired="running")))
    assert answer == ((Erase("demo-001"), Erase("demo-002"), Erase("demo-003")),)
    answer = step(gone_fronts, afterwards(gone_fronts))
    assert because(answer) == "demo is in cluster mode, with all its nodes"
    over = replace(cache, decided=answer.decided)  # type: ignore[union-attr]
    told = condition(Situation(over, afterwards(over), NOW, MOMENT, Policy()), Wait(1.0, "calm", ""))
    assert told.status == "available"


def test_a_member_that_comes_back_waits_until_its_namesake_is_gone() -> None:
    cache = enabled()
    nodes = tuple(n for n in cache.decided.nodes if n.member != "demo-003")
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes, fronts=()))
    view = replace(afterwards(cache, retired="running"), free_addresses=ADDRESSES[:3])
    answer = step(cache, view)
    assert not isinstance(answer, Decide) or [n.name for n in answer.decided.nodes] == [T1, T2]


def test_back_to_compatible_the_successors_leave() -> None:
    cache = fed()
    back = replace(cache, wanted=replace(cache.wanted, cluster_mode="compatible"))
    assert act(step(back, seen(back))) == ((Erase(T1), Erase(T2), Erase(T3)),)
    answer = step(back, seen(back, NodeView(process="absent")))
    assert isinstance(answer, Decide)
    assert (answer.decided.successors, answer.decided.fed) == ((), frozenset())
    assert answer.decided.nodes == cache.decided.nodes


# -- their processes


def test_a_successor_begins_as_a_replica_of_the_plain_primary_and_is_patient() -> None:
    cache = appointed()
    first, second, third = cache.decided.successors
    ids = [cluster_node_id(cache, n) for n in (cache.decided.nodes[0], first, second, third)]
    conf = nodes_conf(cache, second)
    assert len(set(re.findall(",,shard-id=[0-9a-f]{40} ", conf))) == 1, "Valkey: all count themselves to one shard"
    assert re.sub(",,shard-id=[0-9a-f]+", "", conf).splitlines() == [
        f"{ids[0]} {cache.decided.nodes[0].address}:6379@16379 master - 0 0 1 connected 0-16383",
        f"{ids[1]} {first.address}:6379@16379 slave {ids[0]} 0 0 0 connected",
        f"{ids[2]} {second.address}:6379@16379 myself,slave {ids[0]} 0 0 0 connected",
        f"{ids[3]} {third.address}:6379@16379 slave {ids[0]} 0 0 0 connected",
        "vars currentEpoch 1 lastVoteEpoch 1",
    ]
    assert settings(cache, first).live["cluster-node-timeout"] == "86400000"
    assert settings(cache, first).boot["cluster-enabled"] == "yes"
    assert "cluster-enabled" not in settings(cache, cache.decided.nodes[0]).boot
    after = enabled()
    assert settings(after, after.decided.nodes[0]).live["cluster-node-timeout"] == "15000"
