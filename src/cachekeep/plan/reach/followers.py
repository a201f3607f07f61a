"""Replicas: which primary they follow, and which of them are in sync."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Act, Admit, Confirmed, Decide, Effect, Follow, Halted, Node, Step, Wait
from cachekeep.plan.situation import Situation, listed, names, verb, with_nodes, with_shard


def follow(s: Situation) -> Step | None:
    """Every node that answers follows the primary that leads."""
    effects: list[Effect] = []
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary) or shard.moving_to:
            continue
        astray = [n for n in s.replicas(shard) if s.alive(n) and s.seen(n).follows != primary.address]
        guarded = [
            n for n in astray if n.name in shard.confirmed.nodes and s.seen(n).has_history and s.seen(primary).has_history is False
        ]
        if guarded:
            because = (
                f"{primary.name} leads but is empty, while {names(guarded)} holds data: "
                "it is not told to follow, or it would be emptied"
            )
            return Wait(1.0, "empty", because, about=(primary.name,), refused=True)
        effects += [Follow(n.name, primary.name, shard.order) for n in astray]
    if not effects:
        return None
    astray_names = [e.node for e in effects if isinstance(e, Follow)]
    return Act((tuple(effects),), f"{listed(astray_names)} {verb(astray_names, 'follows', 'follow')} the primary")


def admit(s: Situation) -> Step | None:
    """A replica that has lost its link, and whose primary lets nobody in any more, is let in by us."""
    effects: list[Effect] = []
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary) or shard.moving_to or not s.full(primary):
            continue
        effects += [Admit(n.name, primary.name, shard.order) for n in s.replicas(shard) if _shut_out(s, primary, n)]
    if not effects:
        return None
    shut_out = [e.node for e in effects if isinstance(e, Admit)]
    because = f"{listed(shut_out)} {verb(shut_out, 'finds', 'find')} no place at a primary that has as many clients as it may"
    return Act((tuple(effects),), because)


def _shut_out(s: Situation, primary: Node, node: Node) -> bool:
    v = s.seen(node)
    return s.alive(node) and v.follows == primary.address and v.link_up is False and v.reaches is not True


def track(s: Situation) -> Step | None:
    """Who is in sync: replicas that the *primary* reports online and that say themselves that the link is up.

    The replica's own word is not enough: before its first ACK reached the primary it receives nothing of what is written.
    """
    decided, joined, left = s.decided, [], []
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary):
            continue
        now = frozenset(n.name for n in s.replicas(shard) if not n.leaving and in_sync(s, shard.in_sync, primary, n))
        if now != shard.in_sync:
            joined += sorted(now - shard.in_sync)
            left += sorted(shard.in_sync - now)
            confirmed = Confirmed(primary=primary.name, order=shard.lead_order, nodes=now, at=s.now)
            decided = with_shard(decided, replace(shard, confirmed=confirmed))
    if not joined and not left:
        return None
    said = [f"{listed(joined)} {verb(joined)} in sync"] if joined else []
    said += [f"{listed(left)} {verb(left)} out of sync and may not be promoted"] if left else []
    return Decide(decided, "; ".join(said))


def revive(s: Situation) -> Step | None:
    """A replica that has been stopped for long is started anew: nothing is lost by it, as its primary leads and has everything."""
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary):
            continue
        stuck = [
            n
            for n in s.replicas(shard, leaving=False)
            if s.seen(n).process == "frozen" and not n.condemned and s.seen(n).silent_seconds >= s.policy.replica_seconds
        ]
        if stuck:
            decided = with_nodes(s.decided, [replace(n, fate=Halted()) for n in stuck])
            because = (
                f"{names(stuck)} {verb(stuck, 'has', 'have')} been frozen for long: {verb(stuck, 'it is', 'they are')} started anew"
            )
            return Decide(decided, because)
    return None


def in_sync(s: Situation, known: frozenset[str], primary: Node, node: Node) -> bool:
    """Whether it is seen to be, or, of those ``known`` to have been, whether nothing speaks against it."""
    v = s.seen(node)
    online = any(r.online and (r.address, r.port) == (node.address, node.port) for r in s.seen(primary).replicas)
    if not s.runs(node) or v.process != "running" or node.condemned:
        return False
    if v.excuse is not None and v.excuse.plight == "loading":  # all was sent to it, says its primary, and it holds nothing yet
        return False
    if v.answering is not True:  # silent to us, but its primary hears it
        return online and node.name in known and v.waiting_seconds < s.policy.replica_seconds
    return online and v.link_up is True and v.follows == primary.address
