"""Caches and views to plan over, in a line each."""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Cache,
    Confirmed,
    Decide,
    Decided,
    FrontView,
    Heard,
    Member,
    Moment,
    Node,
    NodeView,
    ReplicaSeen,
    Shard,
    Silence,
    Step,
    Stream,
    View,
    Wanted,
    WantedShard,
)
from cachekeep.plan import Policy, plan

NOW = dt.datetime(2030, 1, 2, 12, 0, tzinfo=dt.UTC)  # a Wednesday, far from the maintenance window
MOMENT = Moment("boot", 1000.0)
ADDRESSES = tuple(f"127.77.0.{i}" for i in range(50, 90))


def group(count: int = 3, *, settled: bool = True, shards: dict[str, Any] | None = None, **wanted: Any) -> Cache:
    """A replication group ``demo``; ``settled``: everything was decided and announced,
    ``demo-001`` leads, all others are in sync."""
    members = tuple(Member(name=f"demo-{i:03}", zone="abc"[(i - 1) % 3]) for i in range(1, count + 1))
    asked = {
        "engine": "valkey",
        "version": "8.0.1",
        "node_type": "cache.t3.micro",
        "port": 6379,
        "shards": (WantedShard(id="0001", members=members),),
        "automatic_failover": count > 1,
        "parameter_group": "default.valkey8",
    }
    cache = Cache(
        uid="u1",
        name="demo",
        kind="group",
        region="us-east-1",
        created_at=NOW,
        wanted=Wanted(**(asked | wanted)),
        version=1,
    )
    if not settled:
        return cache
    cache = decided(cache, View(free_addresses=ADDRESSES))
    nodes = tuple(replace(n, announced=True) for n in cache.decided.nodes)
    names = frozenset(n.name for n in nodes)
    shard = shard_with(cache.decided.shards[0], **({"in_sync": names - {"demo-001"}} | (shards or {})))
    return replace(cache, decided=replace(cache.decided, nodes=nodes, shards=(shard,), available_at=NOW, appointed_at=None))


def shard_with(shard: Shard, *, in_sync: frozenset[str] | None = None, **changes: Any) -> Shard:
    """With changes; its primary leads by its last order, or, in the middle of a move, by the one before; ``in_sync`` are in sync
    with it."""
    shard = replace(shard, **changes)
    if "lead_order" not in changes:
        shard = replace(shard, lead_order=shard.order - bool(shard.moving_to))
    if in_sync is None:
        in_sync = shard.confirmed.nodes
    return replace(shard, confirmed=Confirmed(primary=shard.primary, order=shard.lead_order, nodes=in_sync, at=NOW))


def memcached(count: int = 3) -> Cache:
    """A Memcached cluster ``mc`` that has only been asked for."""
    members = tuple(Member(name=f"mc.{i:04}", zone="abc"[(i - 1) % 3]) for i in range(1, count + 1))
    return Cache(
        uid="u2",
        name="mc",
        kind="cluster",
        region="us-east-1",
        created_at=NOW,
        wanted=Wanted(
            engine="memcached",
            version="1.6.18",
            node_type="cache.t3.micro",
            port=11211,
            shards=(WantedShard(id="0001", members=members),),
            parameter_group="default.memcached1.6",
        ),
    )


def decided(cache: Cache, view: View) -> Cache:
    """The cache after one decision. Fails if the planner has another kind of step."""
    step = plan(cache, view, NOW, MOMENT)
    assert isinstance(step, Decide), step
    return replace(cache, decided=step.decided)


def healthy(cache: Cache, **changes: NodeView | None) -> View:
    """A view in which all is as it should be, but for ``demo_002=NodeView(…)``-like changes (None: nothing is known)."""
    shard = cache.decided.shards[0]
    views = {n.name: _node(cache, shard, n) for n in cache.decided.nodes}
    for name, view in changes.items():
        views[name.replace("_", "-")] = view if view is not None else NodeView()
    replicas = tuple(n.name for n in cache.decided.nodes if n.name in shard.in_sync)
    fronts = {
        f.name: FrontView(process="running", incarnation=1, targets=replicas or ("demo-001",), version=1)
        for f in cache.decided.fronts
    }
    return View(nodes=views, fronts=fronts)


def running(cache: Cache, name: str, **changes: Any) -> NodeView:
    """The healthy view of one node, with changes."""
    node = cache.node(name)
    assert node is not None
    view = replace(_node(cache, cache.decided.shards[0], node), **changes)
    if "stream" in changes:
        return view
    return replace(view, stream=Stream("a", view.offset or 0) if view.has_history else None)


HEARD = ((0.2, 1000), (0.6, 990), (1.0, 980), (10.0, 500))
"""(seconds ago, offset): what a primary has said before."""


def heard(*words: tuple[float, int | Stream]) -> tuple[Heard, ...]:
    """What was said (seconds ago, offset or more), newest first."""
    return tuple(Heard(later(-ago), Stream("a", at) if isinstance(at, int) else at) for ago, at in words)


def gone(
    incarnation: int = 1, *, at: float = 0.0, said: tuple[Heard, ...] | None = None, lead_order: int | None = None
) -> NodeView:
    """A process that ended at that time; a primary that was heard until then."""
    said = heard(*HEARD) if said is None else said
    return NodeView(process="exited", incarnation=incarnation, heard=said, still_since=later(at), lead_order=lead_order)


def silent(cache: Cache, name: str, seconds: float, *, reachable: bool = True, process: Any = "running") -> NodeView:
    """A process that is there and does not answer, heard until then."""
    return NodeView(
        process=process,
        incarnation=1,
        answer=Silence(seconds, reachable),
        heard=heard(*((seconds + ago, at) for ago, at in HEARD)),
        still_since=later(-seconds) if reachable or process == "frozen" else None,
    )


def _node(cache: Cache, shard: Shard, node: Node) -> NodeView:
    leads = node.name == shard.primary
    primary = cache.node(shard.primary or "")
    others = [n for n in cache.decided.nodes if n.name != shard.primary]
    bound = {node.address} | ({shard.primary_address} if leads and shard.primary_address else set())
    if not any(f.name == "readers" for f in cache.decided.fronts) and shard.reader_address:
        serves = next((n.name for n in others if n.name in shard.in_sync), shard.primary)
        bound |= {shard.reader_address} if serves == node.name else set()
    return NodeView(
        process="running",
        incarnation=node.incarnation,
        answer="complete",
        role="primary" if leads else "replica",
        follows=None if leads or primary is None else primary.address,
        link_up=None if leads else True,
        offset=1000,
        stream=Stream("a", 1000),
        has_history=True,
        heard=heard(*HEARD),
        lead_order=shard.lead_order if leads else 0,
        replicas=tuple(ReplicaSeen(n.address, n.port, True, 1000, 0) for n in others if n.name in shard.in_sync) if leads else (),
        bound=frozenset(bound),
        digests=runtime(cache, node).digests,
    )


def later(seconds: float) -> Moment:
    """So long after ``MOMENT``."""
    return Moment(MOMENT.boot, MOMENT.seconds + seconds)


def step(cache: Cache, view: View, policy: Policy | None = None, moment: Moment = MOMENT, *, now: dt.datetime = NOW) -> Step:
    """The planner's answer."""
    return plan(cache, view, now, moment, policy)


def settled(cache: Cache, view: View, policy: Policy | None = None, moment: Moment = MOMENT) -> tuple[Cache, Step]:
    """The cache after all that can be decided without another look, and the step that comes then."""
    for _ in range(20):
        answer = step(cache, view, policy, moment)
        if not isinstance(answer, Decide):
            return cache, answer
        cache = replace(cache, decided=answer.decided)
    raise AssertionError(f"decisions led nowhere: {answer.because}")


def shard(decided: Decided) -> Shard:
    """The only shard."""
    (only,) = decided.shards
    return only
