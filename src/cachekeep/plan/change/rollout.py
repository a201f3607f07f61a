"""Changes to running nodes: node type, version, restarts that are due. Replicas first, one at a time; then the lead moves; then the
old primary."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Decide, Halted, Node, Step, Wait
from cachekeep.plan.lead import evidence
from cachekeep.plan.lead.promote import move, successor
from cachekeep.plan.nodes import cluster
from cachekeep.plan.nodes.limits import too_small
from cachekeep.plan.situation import Situation, names, verb, with_nodes, with_successors


def resize(s: Situation) -> Step | None:
    """A new node type is a matter of limits and settings: decided for all nodes, then put in force (Valkey, Redis) or
    rebooted into (Memcached). One that has no room for what the nodes hold is not decided."""
    if not s.may_apply("node_type"):
        return None
    wanted = s.cache.wanted.node_type
    other = [n for n in (*s.decided.nodes, *s.decided.successors) if n.node_type != wanted and not n.leaving]
    if not other:
        return None
    if (why_not := too_small(s, wanted)) is not None:
        return Wait(2.0, "room", f"the node type stays {other[0].node_type}: {why_not}", about=(other[0].node_type,), refused=True)
    due = "" if s.replicated else "reboot"
    decided = with_nodes(s.decided, [replace(n, node_type=wanted, due=n.due or due) for n in other])
    decided = with_successors(decided, [replace(n, node_type=wanted) for n in decided.successors])
    return Decide(
        decided, f"the node type becomes {wanted}", (s.tell(f"Succeeded applying modification to cache node type to {wanted}."),)
    )


def upgrade(s: Situation) -> Step | None:
    """Nodes of another engine or version than the wanted one are due for a restart into it."""
    if not s.may_apply("version"):
        return None
    wanted = s.cache.wanted
    old = [
        n
        for n in s.decided.nodes
        if (n.engine, n.version) != (wanted.engine, wanted.version) and not n.leaving and n.due != "upgrade"
    ]
    if not old:
        return None
    decided = with_nodes(s.decided, [replace(n, due="upgrade") for n in old])
    return Decide(decided, f"{names(old)} {verb(old, 'becomes', 'become')} {wanted.engine} {wanted.version}")


def restart(s: Situation) -> Step | None:
    """Nodes that are due for a restart: one per shard at a time, the primary last and after it has handed over."""
    due = [n for n in s.decided.nodes if n.due and n.announced and not n.leaving and not n.condemned]
    if not due:
        return None
    if not s.replicated:
        return _restart_alone(s, [n for n in due if s.runs(n)])
    now: list[Node] = []
    waits: Step | None = None
    for shard in s.decided.shards:
        mine = [n for n in due if n.shard == shard.id]
        if not mine or shard.moving_to:
            continue
        coming_back = [n for n in s.members(shard.id, leaving=False) if n.condemned or not n.announced]
        if coming_back:
            waits = waits or Wait(
                0.1,
                "sync",
                f"{names(mine)} {verb(mine, 'restarts', 'restart')} when {names(coming_back)} {verb(coming_back)} back and in sync",
                about=tuple(n.name for n in mine),
            )
            continue
        replicas = [n for n in mine if n.name != shard.primary]
        if replicas and s.needed(replicas[0]):
            because = f"{replicas[0].name} restarts when shard {shard.id} has a leader: it may hold what nobody else does"
            waits = waits or Wait(0.2, "leader", because, about=(replicas[0].name,), refused=True)
            continue
        if replicas and (left := cluster.sending_on_seconds(s, replicas[0])) > 0:
            because = f"clients of {replicas[0].name} are still sent on to {shard.primary}; then it restarts"
            waits = waits or Wait(left, "linger", because, about=(replicas[0].name,))
            continue
        if replicas:
            now.append(replicas[0])
            continue
        primary = mine[0]
        to = successor(s, shard)
        if to is not None:
            return move(s, shard, to, f"{primary.name} is about to restart: {to.name} becomes primary first")
        if s.replicas(shard, leaving=False):
            waits = waits or Wait(
                0.2, "sync", f"{primary.name} restarts when a replica is in sync", about=(primary.name,), refused=True
            )
        else:
            now.append(primary)
    return _halt(s, now) if now else waits


def _restart_alone(s: Situation, due: list[Node]) -> Step | None:
    """Nodes that nobody stands in for: at once where a user asked for just that, else one at a time, as each empties its share of
    the cache."""
    asked = [n for n in due if n.due == "reboot"]
    if asked or not due:
        return _halt(s, asked)
    back = [n for n in s.decided.nodes if not n.leaving and (n.condemned or not n.announced)]
    if back:
        because = f"{names(due)} {verb(due, 'restarts', 'restart')} when {names(back)} {verb(back)} back"
        return Wait(0.1, "sync", because, about=tuple(n.name for n in due))
    return _halt(s, due[:1])


def _halt(s: Situation, nodes: list[Node]) -> Step | None:
    """They may not be promoted any more, and are stopped: ``members.stop`` gives planned stops their grace."""
    if not nodes:
        return None
    lost = {n.name for n in nodes}
    shards = tuple(evidence.without(x, lost) for x in s.decided.shards)
    decided = with_nodes(replace(s.decided, shards=shards), [replace(n, fate=Halted()) for n in nodes])
    return Decide(decided, f"{names(nodes)} {verb(nodes, 'restarts', 'restart')} by plan ({nodes[0].due})")
