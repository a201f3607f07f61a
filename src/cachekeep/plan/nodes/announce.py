"""Telling that something is there: nodes that came (back), a cache that is available for the first time."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Decide, Event, Node, Step, subjects
from cachekeep.plan.flights import lasting, said
from cachekeep.plan.nodes import cluster
from cachekeep.plan.reach import configuration
from cachekeep.plan.situation import Situation, listed, names, verb, with_nodes


def ready(s: Situation, node: Node) -> bool:
    """Answers and plays its part: leads, is in sync, or (Memcached) holds the discovery list."""
    shard = s.cache.shard(node.shard)
    if not s.alive(node) or shard is None:
        return False
    if not s.replicated:
        return node.name in s.decided.discovery_nodes
    if s.clustered and not cluster.part_of_cluster(s, node):
        return False
    return s.leads(node) if node.name == shard.primary else node.name in shard.in_sync


def troubles(s: Situation) -> Step | None:
    """What cannot be done on a node or front is told once, and again only if it has been well since."""
    failing = {subjects(f.effect)[0]: f for f in lasting(s)}
    well = {n for n in s.decided.troubled - failing.keys() if _well(s, n)}
    fresh = {name: f for name, f in failing.items() if name not in s.decided.troubled}
    if not fresh and not well:
        return None
    decided = replace(s.decided, troubled=(s.decided.troubled | fresh.keys()) - well)
    if not fresh:
        return Decide(decided, f"{listed(sorted(well))} {verb(well, 'works', 'work')} again")
    told = {name: said(f) for name, f in fresh.items()}
    return Decide(decided, "; ".join(told.values()), tuple(s.tell(text, group=True) for text in told.values()))


def _well(s: Situation, name: str) -> bool:
    node, front = s.cache.node(name), s.view.fronts.get(name)
    if front is not None:
        return front.process == "running" and front.targets is not None
    return node is None or s.alive(node)


def announce(s: Situation) -> Step | None:
    """Nodes that are ready for the first time in their incarnation, and then the cache itself."""
    fresh = [n for n in s.decided.nodes if not n.announced and not n.leaving and ready(s, n)]
    if s.decided.available_at is None:
        return _first_time(s)
    if not fresh:
        return None
    told = [e for n in fresh for e in _back(s, n)]
    if not s.replicated and any(n.incarnation == 1 for n in fresh):
        before = sum(n.announced for n in s.decided.nodes)
        told.append(s.tell(f"Finished modifying number of nodes from {before} to {before + len(fresh)}"))
    decided = with_nodes(s.decided, [replace(n, announced=True, due="") for n in fresh])
    return Decide(decided, f"{names(fresh)} {verb(fresh)} available", tuple(told))


def _back(s: Situation, node: Node) -> list[Event]:
    if node.incarnation == 1:
        return [
            s.tell(
                "Cache cluster created" if s.replicated else f"Added cache node {node.node_id} in availability zone {node.zone}",
                node=node,
            )
        ]
    if node.due == "reboot":
        return [s.tell(f"Cache node {node.node_id} restarted", node=node)]
    return [s.tell(f"Finished recovery for cache nodes {node.node_id}", node=node)]


def _first_time(s: Situation) -> Step | None:
    nodes = s.decided.nodes
    if not nodes or not all(ready(s, n) for n in nodes) or not _endpoints(s) or not configuration.told_of_all(s):
        return None
    told = [
        Event(source_type="cache-cluster", source=c, message="Cache cluster created")
        for c in dict.fromkeys(n.cluster_id for n in nodes)
    ]
    if s.cache.kind == "group":
        told.append(s.tell(f"Replication group {s.cache.name} created", group=True))
    decided = replace(
        with_nodes(s.decided, [replace(n, announced=True) for n in nodes]),
        appointed_at=None,
        available_at=s.now,
    )
    return Decide(decided, f"{s.cache.name} is available", tuple(told))


def _endpoints(s: Situation) -> bool:
    """Every front runs; what it passes on to has been told; somebody serves the configuration endpoint."""
    if not configuration.served(s):
        return False
    seen = [s.view.fronts.get(f.name) for f in s.decided.fronts if not f.leaving]
    return all(v is not None and v.process == "running" and v.targets for v in seen)
