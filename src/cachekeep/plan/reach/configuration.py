"""Cluster mode: where the configuration endpoint is, and of which replicas clients are told there."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Act, Bind, Decide, Effect, Introduce, Node, Step
from cachekeep.plan.situation import Situation, listed, names


def publish(s: Situation) -> Step | None:
    """The configuration endpoint is one more address of a node that answers. It moves when that node is gone or does not stay;
    while it is not known to be gone, nobody else can have its address."""
    return None if s.decided.retired else publish_now(s)


def publish_now(s: Situation) -> Step | None:
    """``publish``, whatever else is to be done first."""
    address = s.decided.configuration_address
    if not address:
        return None
    lose = [
        n for n in s.decided.nodes if n.name != s.decided.configuration_node and s.alive(n) and address in (s.seen(n).bound or ())
    ]
    if lose:
        return Act((tuple(Bind(n.name, (n.address,)) for n in lose),), f"{names(lose)} leaves the configuration endpoint to others")
    holder = s.cache.node(s.decided.configuration_node or "")
    if holder is None or s.gone(holder) or holder.leaving or holder.due:
        able = [n for n in s.decided.nodes if s.alive(n) and not n.leaving and not n.due]
        if not able:
            return None
        best = min(able, key=lambda n: (not n.announced, not s.leads(n), n.name))
        return Decide(replace(s.decided, configuration_node=best.name), f"{best.name} serves the configuration endpoint")
    if s.alive(holder) and (bound := s.seen(holder).bound) is not None and address not in bound:
        return Act(((Bind(holder.name, (holder.address, address)),),), f"{holder.name} serves the configuration endpoint")
    return None


def served(s: Situation) -> bool:
    """Somebody answers at the configuration endpoint."""
    holder = s.cache.node(s.decided.configuration_node or "")
    return not s.clustered or (holder is not None and s.decided.configuration_address in (s.seen(holder).bound or ()))


def introduce(s: Situation) -> Step | None:
    """Every node tells its clients of every replica that is in sync."""
    effects: list[Effect] = []
    said: list[str] = []
    for node, primary in _untold(s):
        others = tuple(n.name for n in s.untold[s.cluster_ids[node.name]])
        effects.append(Introduce(node.name, primary.name, others))
        said.append(node.name)
    return Act((tuple(effects),), f"clients are told of {listed(said)}") if effects else None


def told_of_all(s: Situation) -> bool:
    """Whichever node a client asks, it hears of every replica that is in sync."""
    return not _untold(s)


def _untold(s: Situation) -> list[tuple[Node, Node]]:
    """Replicas in sync that some node does not tell clients of, each with its primary, where both answer."""
    if not s.clustered or not s.untold:
        return []
    found = []
    for node in s.decided.nodes:
        shard = s.cache.shard(node.shard)
        if s.cluster_ids[node.name] in s.untold and shard is not None and node.name in shard.in_sync and s.alive(node):
            primary = s.primary(shard)
            if primary is not None and s.alive(primary) and (c := s.seen(primary).cluster) is not None and c.slots:
                found.append((node, primary))
    return found
