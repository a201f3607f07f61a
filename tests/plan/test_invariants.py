"""What is true of every decision: what breaks it is named, and no rule decides it, whatever is seen."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, group, healthy, later, step
from tests.plan.test_cluster_plan import settled
from tests.plan.test_switching import fed, seen

from cachekeep.model import (
    Cache,
    Decide,
    Decided,
    Ended,
    Errand,
    Excuse,
    Move,
    NodeView,
    Preparing,
    Retiring,
    Silence,
    View,
)
from cachekeep.plan.invariants import Unsound, check, demand
from cachekeep.plan.situation import with_nodes, with_shard
from cachekeep.plan.slots.ranges import SLOTS

PLAIN, CLUSTERED = group().decided, settled(2)[0].decided


def with_node(decided: Decided, **changes: Any) -> Decided:
    return with_nodes(decided, [replace(decided.nodes[0], **changes)])


def with_first_shard(decided: Decided, **changes: Any) -> Decided:
    return with_shard(decided, replace(decided.shards[0], **changes))


BROKEN: dict[str, Decided] = {
    "node demo-001 is there twice": replace(PLAIN, nodes=(*PLAIN.nodes, replace(PLAIN.nodes[0], address="127.77.9.9"))),
    "shard 0001 is there twice": replace(PLAIN, shards=PLAIN.shards * 2),
    "front readers is there twice": replace(PLAIN, fronts=PLAIN.fronts * 2),
    f"two nodes have {PLAIN.nodes[1].address}": with_node(PLAIN, address=PLAIN.nodes[1].address),
    "demo-001 has no address": with_node(PLAIN, address=""),
    f"demo-001 and an endpoint have {PLAIN.shards[0].reader_address}": with_node(PLAIN, address=PLAIN.shards[0].reader_address),
    "demo-001 has incarnation 0": with_node(PLAIN, incarnation=0),
    "demo-003 belongs to shard 0009, which is not there": with_nodes(PLAIN, [replace(PLAIN.nodes[2], shard="0009")]),
    "cluster mode is enabled, and is yet to be": replace(CLUSTERED, switch=Preparing(other_databases=(3,))),
    "nodes have been replaced by others in cluster mode, which is not enabled": replace(
        PLAIN, switch=Retiring(nodes=(), since=MOMENT)
    ),
    "shard 0001 is in cluster mode, and has an endpoint of its own": with_first_shard(CLUSTERED, primary_address="127.77.9.8"),
    "x succeeds nobody": replace(PLAIN, switch=Preparing(successors=(replace(PLAIN.nodes[0], name="x", address="127.77.9.9"),))),
    "shard 0001: its primary leads by order 7, and the last one was 1": with_first_shard(PLAIN, lead_order=7),
    "shard 0001: demo-001 led by order 7, and the last one was 1": with_first_shard(
        PLAIN, ended=(Ended(primary="demo-001", order=7, at=MOMENT),)
    ),
    "shard 0001: demo-001 hands over to itself": with_first_shard(PLAIN, change=Move(to="demo-001")),
    "shard 0001: demo-0002-001 is a node of shard 0002": with_first_shard(CLUSTERED, change=Move(to="demo-0002-001")),
    "shard 0001: ((5, 9), (10, 12)) are no slots in order": with_first_shard(CLUSTERED, owned=((5, 9), (10, 12))),
    f"shard 0001: ((0, {SLOTS}),) are no slots in order": with_first_shard(CLUSTERED, owned=((0, SLOTS),)),
    "slots ((8192, 8193),) are to belong to shard 0002 and to another": with_first_shard(CLUSTERED, slots=((0, 8193),)),
    "not all slots are to belong to somebody, only ((0, 8190), (8192, 16383))": with_first_shard(CLUSTERED, slots=((0, 8190),)),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_what_cannot_be_is_named(sentence: str) -> None:
    assert check(BROKEN[sentence]) == (sentence,)


def test_it_is_a_problem_of_that_cache_and_says_which() -> None:
    with pytest.raises(Unsound, match=r"what is decided for demo \(decision 0\) cannot be: demo-001 has no address"):
        demand("demo", BROKEN["demo-001 has no address"])


@pytest.mark.parametrize("decided", [Decided(), PLAIN, CLUSTERED, fed().decided])
def test_what_is_as_it_should_be_is_sound_as_it_is_stored(decided: Decided) -> None:
    assert check(decided) == ()
    assert check(msgspec.json.decode(msgspec.json.encode(decided), type=Decided)) == ()


WORLDS = {"plain": lambda: (group(), healthy(group())), "clustered": lambda: settled(2), "switching": lambda: (fed(), seen(fed()))}


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_rule_decides_what_cannot_be(world: str, data: st.DataObject) -> None:
    """Whatever is seen, and whatever is asked for: decisions on decisions."""
    cache, view = WORLDS[world]()
    cache = replace(cache, wanted=replace(cache.wanted, automatic_failover=data.draw(st.booleans())))
    for serial in range(1, data.draw(st.integers(2, 8))):
        if data.draw(st.booleans()):
            cache = asked(cache, serial, data)
        strange = strange_view(cache, view, data)
        moment = later(serial * data.draw(st.sampled_from((0.1, 5.0, 40.0))))
        for _ in range(20):
            answer = step(cache, strange, moment=moment)
            if not isinstance(answer, Decide):
                break
            assert check(answer.decided) == (), answer.because
            cache = replace(cache, decided=answer.decided)


def asked(cache: Cache, serial: int, data: st.DataObject) -> Cache:
    kind = data.draw(st.sampled_from(("reboot", "promote", "test-failover", "promote-stale", "rebalance")))
    members = [m.name for w in cache.wanted.shards for m in w.members]
    shard = data.draw(st.sampled_from([x.id for x in cache.decided.shards]))
    errand = Errand(serial=serial, kind=kind, nodes=(data.draw(st.sampled_from(members)),), shard=shard)  # type: ignore[arg-type]
    return replace(cache, wanted=replace(cache.wanted, errands=(*cache.wanted.errands, errand)))


def strange_view(cache: Cache, view: View, data: st.DataObject) -> View:
    """Each node is as it was, or gone, frozen, silent or busy, or says that it leads, follows another, is empty, or has slots."""
    addresses = [n.address for n in cache.decided.everyone]
    nodes = dict(view.nodes)
    for node in cache.decided.everyone:
        was = replace(nodes.get(node.name, NodeView(process="absent")), incarnation=node.incarnation)
        slots = data.draw(st.sampled_from((((0, 99),), ((8000, 9000),), ((0, SLOTS - 1),), ())))
        claiming = was if was.cluster is None else replace(was, cluster=replace(was.cluster, slots=slots))
        nodes[node.name] = data.draw(
            st.sampled_from(
                (
                    was,
                    claiming,
                    NodeView(process="exited", incarnation=node.incarnation),
                    NodeView(process="absent"),
                    replace(was, process="frozen", answer=Silence(seconds=20.0)),
                    replace(was, answer=Silence(seconds=20.0, reachable=False)),
                    replace(was, answer=Excuse("busy", seconds=1.0)),
                    replace(was, role="primary", follows=None, last_order=9, lead_order=9),
                    replace(was, role="replica", follows=data.draw(st.sampled_from(addresses)), link_up=data.draw(st.booleans())),
                    replace(was, has_history=False, stream=None),
                )
            )
        )
    return replace(view, nodes=nodes, free_addresses=ADDRESSES[40:])
