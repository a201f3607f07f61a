"""Cluster mode: who leads, which nodes know each other, and where half open slots go.

A case is a change of a healthy cluster of 2 × (1 + 1)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, gone, later, shard_with, silent, step
from tests.plan.test_cluster_growth import settled as grown

from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import (
    Act,
    Cache,
    Decide,
    Disown,
    Elect,
    Election,
    Errand,
    Introduce,
    Meet,
    Move,
    MoveSlots,
    NodeView,
    Resharding,
    Step,
    Swap,
    View,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.nodes.announce import announce
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import condition

ONE, TWO = "demo-0001-001", "demo-0001-002"
OTHER, OTHERS_REPLICA = "demo-0002-001", "demo-0002-002"


def settled(shards: int) -> tuple[Cache, View]:
    """A healthy cluster; its last node serves the configuration endpoint, out of the way of what happens to the first ones."""
    cache, view = grown(shards)
    address = cache.decided.configuration_address or ""
    for node in (cache.decided.nodes[0], cache.decided.nodes[-1]):
        bound = {node.address} | ({address} if node is cache.decided.nodes[-1] else set())
        view = seen(view, **{node.name.replace("-", "_"): {"bound": frozenset(bound)}})
    return replace(cache, decided=replace(cache.decided, configuration_node=cache.decided.nodes[-1].name)), view


def seen(view: View, **changes: Any) -> View:
    """``view`` with ``demo_0001_001=…``-like changes: a view, or a dict of changes to the one that is there."""
    nodes = dict(view.nodes)
    for name, change in changes.items():
        name = name.replace("_", "-")
        nodes[name] = change if isinstance(change, NodeView) else replace(nodes[name], **change)
    return View(nodes=nodes)


def cluster(view: View, name: str, **changes: Any) -> dict[str, Any]:
    """What a node believes of the cluster, changed."""
    return {"cluster": replace(view.node(name).cluster, **changes)}  # type: ignore[type-var]


def shard(cache: Cache, **changes: Any) -> Cache:
    """``cache`` with changes to its first shard."""
    first, *rest = cache.decided.shards
    return replace(cache, decided=replace(cache.decided, shards=(shard_with(first, **changes), *rest)))


def electing(cache: Cache, seconds: float, *, seize: bool = False) -> Cache:
    """An election in the first shard that was decided so long ago."""
    return shard(cache, change=Election(to=TWO, lost=ONE, since=later(-seconds), seize=seize), order=2)


def first(answer: Step) -> Any:
    """The first effect."""
    assert isinstance(answer, Act), answer
    return answer.stages[0][0]


def test_three_shards_vote_for_the_replica_of_a_primary_that_is_gone() -> None:
    cache, view = settled(3)
    answer = step(cache, seen(view, demo_0001_001=gone()))
    assert isinstance(answer, Decide)
    assert answer.because == f"{ONE} is gone: {TWO} has the most of what it wrote and becomes primary"
    led = answer.decided.shards[0]
    assert (led.primary, led.order, led.change) == (ONE, 2, Election(to=TWO, lost=ONE, since=MOMENT))


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({}, "of 2 primaries only 1 could vote, and all others are confirmed stopped: it takes over without a vote"),
        ({"silent": True}, f"{OTHER} is not known to be stopped"),
    ],
)
def test_without_a_majority_it_takes_over_only_where_nobody_can_object(changes: dict[str, bool], because: str) -> None:
    cache, view = settled(2)
    view = seen(view, demo_0001_001=gone())
    if changes:
        view = seen(view, demo_0002_001=silent(cache, OTHER, 0.1))
    answer = step(cache, view)
    assert because in answer.because
    if changes:
        assert isinstance(answer, Wait)
        assert answer.refused
    else:
        assert isinstance(answer, Decide)
        change = answer.decided.shards[0].change
        assert isinstance(change, Election)
        assert change.seize


def test_one_election_at_a_time() -> None:
    cache, view = settled(5)
    cache = electing(cache, 0.1)
    view = seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2}, demo_0002_001=gone())
    answer = step(cache, view)
    assert isinstance(answer, Wait)
    assert answer.because == f"{TWO} is being elected"


@pytest.mark.parametrize(
    ("seconds", "two", "because"),
    [
        (0.1, {"last_order": 1}, f"{TWO} stands for election in shard 0001 (order 2)"),
        (0.1, {"last_order": 2}, f"{TWO} is being elected"),
        (
            2.0,
            {"last_order": 2},
            f"the vote for {TWO} has failed, and {ONE} is confirmed stopped: it takes over when nobody else can be elected",
        ),
        (0.1, {"role": "primary", "follows": None}, f"{TWO} leads shard 0001 in place of {ONE}, at epoch 1"),
    ],
)
def test_an_election(seconds: float, two: dict[str, Any], because: str) -> None:
    cache, view = settled(3)
    if two.get("role") == "primary":
        two = two | cluster(view, TWO, slots=((0, 5460),))
    answer = step(electing(cache, seconds), seen(view, demo_0001_001=gone(), demo_0001_002=two))
    assert answer.because.startswith(because)


def test_a_takeover_is_called_off_when_nothing_comes_of_it() -> None:
    cache, view = settled(3)
    view = seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2})
    answer = step(electing(cache, 8.0, seize=True), view)
    assert answer.because == f"the lead of shard 0001 does not go to {TWO}: {TWO} was not elected"


def test_a_takeover_gets_a_time_of_its_own() -> None:
    cache, view = settled(3)
    view = seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2})
    answer = step(electing(cache, 60.0), view)
    assert isinstance(answer, Decide)
    decided = answer.decided.shards[0]
    assert (decided.order, decided.change) == (3, Election(to=TWO, lost=ONE, since=MOMENT, seize=True))


def test_an_election_is_called_off_when_the_primary_is_back() -> None:
    cache, view = settled(3)
    answer = step(electing(cache, 0.1), view)
    assert answer.because == f"the lead of shard 0001 does not go to {TWO}: {ONE} is back"


def test_who_takes_over_is_told_once_for_each_order() -> None:
    cache, view = settled(3)
    view = seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2})
    assert first(step(electing(cache, 0.1, seize=True), seen(view, demo_0001_002={"last_order": 1}))) == Elect(
        TWO, 2, True, (OTHER, "demo-0003-001")
    )
    assert isinstance(step(electing(cache, 0.1, seize=True), view), Wait)


def test_a_planned_move() -> None:
    cache, view = settled(2)
    cache = replace(cache, wanted=replace(cache.wanted, errands=(Errand(serial=1, kind="test-failover", shard="0001"),)))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == f"test failover of node group 0001: {TWO} becomes primary and {ONE} is replaced"
    moving = replace(cache, decided=answer.decided)
    assert isinstance(first(step(moving, view)), Swap)


def test_a_planned_move_waits_for_slots_that_are_half_open() -> None:
    """The taker would not know that they are: what had moved already would be looked for, and written, where it is not."""
    cache, view = settled(2)
    other = cluster_node_id(cache, cache.decided.nodes[2])
    mine = cluster_node_id(cache, cache.decided.nodes[0])
    cache = shard(replace(cache, decided=replace(cache.decided, reshard=Resharding(slots=1))), change=Move(to=TWO), order=2)
    open_ = seen(
        view,
        demo_0001_001=cluster(view, ONE, migrating={7: other}),
        demo_0002_001=cluster(view, OTHER, importing={7: mine}),
    )
    assert first(step(cache, open_)) == MoveSlots(ONE, OTHER, ((7, 7),), 2, 1, 0.5)
    assert isinstance(first(step(cache, view)), Swap)


def test_slots_half_open_towards_a_replaced_primary_are_finished_with_its_successor() -> None:
    """To close them would leave the keys that have moved already where nobody looks for them."""
    cache, view = settled(2)
    replaced = cluster_node_id(cache, cache.decided.nodes[1])
    cache = replace(cache, decided=replace(cache.decided, reshard=Resharding(slots=1)))
    view = seen(view, demo_0002_001=cluster(view, OTHER, importing={7: replaced}))
    assert first(step(cache, view)) == MoveSlots(ONE, OTHER, ((7, 7),), 1, 1, 0.5)


def test_slots_that_a_replaced_primary_still_owns_go_to_its_successor() -> None:
    """Its successor had not heard of them yet when it took over."""
    cache, view = settled(2)
    cache = shard(cache, primary=TWO, in_sync=frozenset(), owned=((0, 8000),), epoch=3)
    view = seen(
        view,
        demo_0001_001={"replicas": (), **cluster(view, ONE, slots=((8001, 8191),))},
        demo_0001_002={"role": "primary", "follows": None, "link_up": None, **cluster(view, TWO, slots=((0, 8000),), epoch=3)},
    )
    answer = step(cache, view)
    assert first(answer) == MoveSlots(ONE, TWO, ((8001, 8191),), 1, 1, 0.5)
    assert answer.because == f"{ONE} was replaced, but not in all of its slots: the others go after them"


def test_whom_nobody_knows_is_met_and_strangers_are_forgotten() -> None:
    cache, view = settled(2)
    ids = {n.name: cluster_node_id(cache, n) for n in cache.decided.nodes}
    lonely = seen(view, demo_0001_001=cluster(view, ONE, knows=frozenset({ids[ONE], ids[TWO], ids[OTHER]})))
    answer = step(cache, lonely)
    assert answer.because == f"{ONE} meets 1"
    assert first(answer) == Meet(ONE, (OTHERS_REPLICA,))
    crowded = seen(view, demo_0001_001=cluster(view, ONE, knows=frozenset({*ids.values(), "f" * 40})))
    told = step(cache, crowded)
    assert isinstance(told, Decide)
    assert [e.message for e in told.events] == [
        f"Nodes that are none of demo's came to its cluster bus and are forgotten: {'f' * 40}"
    ]
    cache = replace(cache, decided=told.decided)
    answer = step(cache, crowded)
    assert answer.because == f"{ONE} forgets 1"
    assert first(answer) == Disown(ONE, ("f" * 40,))


def test_an_intruder_is_forgotten_before_it_has_shaken_hands() -> None:
    """Only then is it believed what it says that it owns. A node of ours shakes hands, too, when it is met."""
    cache, view = settled(2)
    other = cache.decided.nodes[2].address
    cache = replace(cache, decided=replace(cache.decided, intruded_at=later(-59)))
    greeted = seen(view, demo_0001_001=cluster(view, ONE, greets={"e" * 40: "127.0.0.99", "d" * 40: other}))
    assert first(step(cache, greeted)) == Disown(ONE, ("e" * 40,))
    again = step(replace(cache, decided=replace(cache.decided, intruded_at=later(-61))), greeted)
    assert isinstance(again, Decide)
    assert "127.0.0.99" in again.events[0].message


def test_nodes_that_do_not_tell_clients_of_a_replica_hear_of_it() -> None:
    cache, view = settled(2)
    ids = {n.name: cluster_node_id(cache, n) for n in cache.decided.nodes}
    unheard = frozenset({ids[TWO]})
    mute = seen(
        view,
        demo_0001_001=cluster(view, ONE, untold=unheard),
        demo_0002_002=cluster(view, OTHERS_REPLICA, untold=unheard),
    )
    answer = step(cache, mute)
    assert answer.because == f"clients are told of {TWO}"
    assert first(answer) == Introduce(TWO, ONE, (ONE, OTHERS_REPLICA))
    assert condition(Situation(cache, mute, NOW, MOMENT, Policy()), answer).status == "modifying", (
        "a client that connects now does not see it"
    )
    assert condition(Situation(cache, view, NOW, MOMENT, Policy()), step(cache, view)).status == "available"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("out of sync", {}),
        ("the replica is gone", {"demo_0001_002": gone()}),
        ("its primary is silent", {"demo_0001_001": "silent"}),
        ("a shard without slots", {"demo_0001_001": "no slots"}),
        ("who is silent tells nobody", {"demo_0002_002": "silent"}),
    ],
)
def test_nobody_is_introduced_who_is_not_there_for_clients(name: str, change: dict[str, Any]) -> None:
    cache, view = settled(2)
    unheard = frozenset({cluster_node_id(cache, next(n for n in cache.decided.nodes if n.name == TWO))})
    view = seen(view, demo_0002_002=cluster(view, OTHERS_REPLICA, untold=unheard))
    if name == "out of sync":
        cache = shard(cache, in_sync=frozenset())
    if change.get("demo_0001_001") == "no slots":
        change = {"demo_0001_001": cluster(view, ONE, slots=())}
    change = {k: silent(cache, k.replace("_", "-"), 0.1) if v == "silent" else v for k, v in change.items()}
    answer = step(cache, seen(view, **change))
    assert not (isinstance(answer, Act) and isinstance(first(answer), Introduce)), name


def test_a_new_cluster_is_available_when_clients_are_told_of_everybody() -> None:
    cache, view = settled(2)
    cache = replace(cache, decided=replace(cache.decided, available_at=None, appointed_at=later(-5)))
    unheard = frozenset({cluster_node_id(cache, next(n for n in cache.decided.nodes if n.name == TWO))})
    mute = seen(view, demo_0001_001=cluster(view, ONE, untold=unheard))
    assert first(step(cache, mute)) == Introduce(TWO, ONE, (ONE,))
    assert announce(Situation(cache, mute, NOW, MOMENT, Policy())) is None
    assert announce(Situation(cache, view, NOW, MOMENT, Policy())) is not None


def test_the_configuration_endpoint_moves_when_its_node_is_gone_and_not_before() -> None:
    cache, view = settled(3)
    cache = replace(cache, decided=replace(cache.decided, configuration_node=TWO))
    address = cache.decided.configuration_address or ""
    last = cache.decided.nodes[-1]
    view = seen(view, **{last.name.replace("-", "_"): {"bound": frozenset({last.address})}})
    answer = step(cache, view)
    assert answer.because == f"{TWO} serves the configuration endpoint"
    assert address in first(answer).addresses
    answer = step(cache, seen(view, demo_0001_002=gone()))
    assert answer.because == f"{ONE} serves the configuration endpoint"
    assert "configuration endpoint" not in step(cache, seen(view, demo_0001_002=silent(cache, TWO, 1.0))).because
