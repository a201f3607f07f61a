"""The cost of one pass grows with the number of shards, not with its square: counted in what is looked at, not in time."""

from __future__ import annotations

import sys

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, group

from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import Act, Cache, ClusterSeen, Decide, Member, NodeView, ReplicaSeen, Step, Stream, View, Wait, WantedShard
from cachekeep.plan import Policy, plan


def unplaced(shards: int) -> tuple[Cache, View]:
    """A cluster of ``shards`` × (1 + 1) that has only been asked for."""
    wanted = tuple(
        WantedShard(id=f"{i:04}", members=tuple(Member(name=f"demo-{i:04}-{j:03}", zone="a") for j in (1, 2)))
        for i in range(1, shards + 1)
    )
    cache = group(2, settled=False)
    cache = replace(cache, wanted=replace(cache.wanted, cluster_mode="enabled", shards=wanted, automatic_failover=True))
    return cache, View(free_addresses=tuple(f"127.77.{i // 250}.{i % 250 + 1}" for i in range(2 * shards + 3)))


def settled(shards: int) -> tuple[Cache, View]:
    """A cluster of ``shards`` × (1 + 1), as it should be."""
    cache, view = unplaced(shards)
    step = plan(cache, view, NOW, MOMENT)
    assert isinstance(step, Decide)
    decided = replace(step.decided, configuration_node=step.decided.nodes[0].name)
    from cachekeep.engines.runtime import runtime

    cache = replace(cache, decided=decided)
    ids = frozenset(cluster_node_id(cache, n) for n in decided.nodes)
    views = {}
    for shard in decided.shards:
        one, two = (n for n in decided.nodes if n.shard == shard.id)
        for node in (one, two):
            leads = node is one
            views[node.name] = NodeView(
                process="running",
                incarnation=1,
                answer="complete",
                role="primary" if leads else "replica",
                follows=None if leads else one.address,
                link_up=None if leads else True,
                has_history=True,
                offset=1000,
                stream=Stream("a", 1000),
                lead_order=0,
                replicas=(ReplicaSeen(two.address, two.port, True, 1, 0),) if leads else (),
                bound=frozenset(
                    {node.address, decided.configuration_address or ""} if node is decided.nodes[0] else {node.address}
                ),
                digests=runtime(cache, node).digests,
                cluster=ClusterSeen(
                    id=cluster_node_id(cache, node), ok=True, epoch=shard.epoch, slots=shard.owned if leads else (), knows=ids
                ),
            )
    view = View(nodes=views)
    for _ in range(20):
        step = plan(cache, view, NOW, MOMENT, Policy())
        if not isinstance(step, Decide):
            break
        cache = replace(cache, decided=step.decided)
    return cache, view


def calls(shards: int) -> int:
    """Python-level calls of one pass over a settled cluster."""
    count, step = counted(*settled(shards))
    assert isinstance(step, Wait), step
    assert "as it should be" in step.because
    return count


def creation_calls(shards: int) -> int:
    """Python-level calls of the first two passes: which nodes to appoint, and which to start."""
    cache, view = unplaced(shards)
    appointing, step = counted(cache, view)
    assert isinstance(step, Decide)
    nothing_yet = View(nodes={n.name: NodeView(process="absent") for n in step.decided.nodes})
    starting, step = counted(replace(cache, decided=step.decided), nothing_yet)
    assert isinstance(step, Act)
    assert len(step.stages[0]) == 2 * shards
    return appointing + starting


def counted(cache: Cache, view: View) -> tuple[int, Step]:
    """Python-level calls of one pass, and its step."""
    cache = replace(cache)  # without what was worked out before
    count = 0

    def one_more(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(one_more)
    try:
        step = plan(cache, view, NOW, MOMENT, Policy())
    finally:
        sys.setprofile(None)
    return count, step


@pytest.mark.parametrize(("few", "many"), [(1, 10), (10, 50), (50, 200)])
def test_creation_costs_as_much_for_each_shard(few: int, many: int) -> None:
    assert creation_calls(many) / many < 1.5 * creation_calls(few) / few


@pytest.mark.parametrize(("few", "many"), [(1, 10), (10, 50), (50, 200)])
def test_a_pass_over_a_settled_cluster_costs_as_much_for_each_shard(few: int, many: int) -> None:
    assert calls(many) / many < 1.5 * calls(few) / few
