"""Statuses are derived, never stored beside the facts: from what is wanted, decided and seen."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import Cache, Condition, Node, NodeCondition, Shard, Step, Wait, fingerprint
from cachekeep.model.condition import REBOOTING, CacheStatus, NodeStatus
from cachekeep.plan import restores, snapshots
from cachekeep.plan.deadlines import creating_for_too_long
from cachekeep.plan.flights import lasting, said
from cachekeep.plan.nodes.announce import ready
from cachekeep.plan.nodes.limits import astray, fewer_clients, holds
from cachekeep.plan.nodes.members import COMPATIBLE
from cachekeep.plan.reach.configuration import told_of_all
from cachekeep.plan.situation import Situation


def condition(s: Situation, step: Step) -> Condition:
    """How the cache is. ``available`` is said only of what answered just now, with nothing on its way that a user asked for."""
    status = _status(s)
    refused = (isinstance(step, Wait) and step.refused) or creating_for_too_long(s)
    troubles = [said(f) for f in lasting(s)]
    return Condition(
        status=status,
        because="; ".join(troubles) if troubles and not refused else step.because,
        settled=status == "available",
        refused=refused or bool(troubles),
        nodes=tuple(_node(s, n) for n in s.decided.nodes),
        clients_told="" if _untold(s) else fingerprint(s.cache.wanted.clients),
        version=s.cache.version,
    )


def _untold(s: Situation) -> bool:
    """Some node that answers has not been told yet who may be a client."""
    return any("acl" in astray(s, n) for n in s.decided.nodes if s.alive(n))


def unsure(cache: Cache, last: Condition | None, because: str) -> Condition:
    """How a cache is whose keeper cannot look or think: as it was when that worked last, unless something else is wanted or decided
    now."""
    if last is not None and last.version == cache.version:
        return replace(last, because=because, refused=True)
    nodes = last.nodes if last is not None else ()
    return Condition(status=unseen(cache), because=because, settled=False, refused=True, nodes=nodes, version=cache.version)


def unseen(cache: Cache) -> CacheStatus:
    """The status of a cache of which nobody says how it is."""
    return "deleting" if cache.wanted.deleted else "modifying" if cache.decided.available_at else "creating"


def _status(s: Situation) -> CacheStatus:
    cache, decided = s.cache, s.decided
    if cache.wanted.deleted:
        return "deleting"
    if restores.failed(s):
        return "create-failed" if cache.kind == "group" else "restore-failed"
    if decided.available_at is None:
        return "creating"
    if any(n.due == "reboot" for n in decided.nodes):
        return REBOOTING if cache.kind == "cluster" else "modifying"
    if _changing(s) or not all(_served(s, x.primary) for x in decided.shards):
        return "modifying"
    if not s.replicated and not any(s.alive(n) for n in decided.nodes):
        return "modifying"
    asked = any(e.kind == "snapshot" for e in s.cache.errands_left)
    return "snapshotting" if asked or snapshots.going_on(s.decided) else "available"


def _changing(s: Situation) -> bool:
    """Something that a user asked for, and that need not wait for a window, is not done yet."""
    decided, wanted = s.decided, s.cache.wanted
    nodes = decided.nodes
    if any(e.kind != "snapshot" for e in s.cache.errands_left) or any(x.moving_to for x in decided.shards):
        return True
    if (
        decided.resharding
        or wanted.cluster_mode != s.cache.cluster_mode
        or any(f.leaving and f.kind == "compatible" for f in decided.fronts)
        or decided.successors
        or decided.retired
    ):
        return True
    seen = s.view.fronts.get(COMPATIBLE)
    if wanted.cluster_mode == "compatible" and (seen is None or seen.process != "running" or seen.targets is None):
        return True
    if not told_of_all(s) or _untold(s):
        return True
    if s.may_apply("shards") and set(s.cache.wanted_names()) != {n.member for n in nodes}:
        return True
    if s.may_apply("version") and any((n.engine, n.version) != (wanted.engine, wanted.version) for n in nodes):
        return True
    if s.may_apply("node_type") and any(n.node_type != wanted.node_type for n in nodes):
        return True
    return any(n.leaving or n.due or (n.incarnation == 1 and not n.announced) for n in nodes)


def _served(s: Situation, primary: str | None) -> bool:
    if not s.replicated:
        return True
    node = s.cache.node(primary) if primary else None
    if node is None:
        return False
    excuse = s.seen(node).excuse  # one with too many clients serves those it has
    return s.leads(node) or (excuse is not None and excuse.plight == "crowded" and s.runs(node) and not node.condemned)


def _node(s: Situation, node: Node) -> NodeCondition:
    v = s.seen(node)
    shard = s.cache.shard(node.shard)
    role: Literal["primary", "replica"] | None = None
    lag: int | None = None
    if s.replicated and shard is not None:
        role = "primary" if node.name == shard.primary else "replica"
        head = s.view.node(shard.primary or "").offset
        lag = max(0, head - v.offset) if role == "replica" and head is not None and v.offset is not None else None
    return NodeCondition(
        name=node.name,
        status=_node_status(s, node),
        role=role,
        in_sync=shard is not None and node.name in shard.in_sync and _led(s, shard),
        lag_bytes=lag,
        program=v.program,
        pending_reboot=runtime(s.cache, node).is_in(v.digests, "boot") is False,
        holds_bytes=holds(s, node),
        fewer_clients=fewer_clients(s, node),
        problem=v.problem,
    )


def _led(s: Situation, shard: Shard) -> bool:
    """Somebody has just said who is in sync; what was said before nobody can vouch for."""
    primary = s.primary(shard)
    return primary is not None and s.leads(primary)


def _node_status(s: Situation, node: Node) -> NodeStatus:
    if node.leaving or s.cache.wanted.deleted:
        return "deleting"
    if node.due == "reboot":
        return "rebooting"
    if not node.announced and node.incarnation == 1:
        return "creating"
    if not ready(s, node):
        return "modifying"
    return "snapshotting" if any(node.name in snapshots.read_from(j) for j in s.decided.jobs) else "available"
