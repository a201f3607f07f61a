"""Cluster mode: which nodes know each other, which shards there are, and which processes must not be started yet."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import (
    Act,
    Decide,
    Disown,
    Effect,
    Election,
    Meet,
    Node,
    Resharded,
    Shard,
    Step,
    Wait,
)
from cachekeep.plan.lead import evidence
from cachekeep.plan.situation import Situation, listed
from cachekeep.plan.slots.ranges import even

WRITABLE_SECONDS = 2.0
SENDING_ON_SECONDS = 2.0
"""A node that has led reboots only after so long: a client that has anything for it meanwhile is told who leads now."""
TOLD_AGAIN_SECONDS = 60.0
"""An event tells of intruders no more often: who is forgotten may come again at once."""


def new_shards(s: Situation) -> dict[str, Shard]:
    """The shards that are wanted and not decided yet. The first ones share all slots among them, as given or evenly;
    those that come later begin with none."""
    wanted = s.cache.wanted.shards
    given = {w.id: w.slots for w in wanted}
    if s.decided.shards:
        given = dict.fromkeys(given, ())
    elif not all(given.values()):
        given = even(list(given))
    known = {x.id for x in s.decided.shards}
    return {
        w.id: Shard(
            id=w.id,
            primary=w.members[0].name,
            order=1,
            lead_order=1,
            slots=given[w.id],
            owned=given[w.id],
            epoch=index if given[w.id] else 0,
        )
        for index, w in enumerate(wanted, start=1)
        if w.id not in known
    }


def held_back(s: Situation) -> frozenset[str]:
    """Dead primaries that must not come back yet: they would come back empty, as primaries, and their replicas would be emptied
    after them. One that another has replaced, or whose shard holds nothing any more, may."""
    if not s.clustered:
        return frozenset()
    return frozenset(
        x.primary
        for x in s.decided.shards
        if x.primary and any(s.runs(n) and s.seen(n).has_history is not False for n in s.replicas(x))
    )


def stays(s: Situation, node: Node) -> bool:
    """A node that is not wanted any more stays while its shard, which is not wanted either, has slots to give away."""
    shard = s.cache.shard(node.shard)
    if not s.clustered or shard is None or _wanted(s, shard):
        return False
    return _gives(s, shard)


def _gives(s: Situation, shard: Shard) -> bool:
    """It has slots to give away, or clients to send after them."""
    return bool(shard.slots or shard.owned or s.decided.resharding or lingering_seconds(s) > 0)


def lingering_seconds(s: Situation) -> float:
    """For how long shards without slots, that are not wanted any more, still send clients to where their slots are now: a
    redirection is something that every cluster client deals with, a broken connection is not."""
    done = s.decided.reshard
    if not isinstance(done, Resharded) or all(x.id in s.wanted_shards for x in s.decided.shards):
        return 0.0
    return s.policy.linger_seconds - (s.seconds_since(done.since) or 0.0)


def sending_on_seconds(s: Situation, node: Node) -> float:
    """For how much longer a node that has handed its shard over sends on the clients that still come to it, before it stops: for
    as long as a shard without slots where it goes for good or nothing presses, and not so long where a reboot is waited for."""
    shard = s.cache.shard(node.shard)
    before = shard.predecessor if shard is not None else None
    if not s.clustered or before is None or before.name != node.name or not s.alive(node):
        return 0.0
    span = min(s.policy.linger_seconds, SENDING_ON_SECONDS) if node.due == "reboot" else s.policy.linger_seconds
    return span - (s.seconds_since(before.since) or 0.0)


def leading(s: Situation) -> set[str | None]:
    """Who leads, or is to: these are not sent away. The last of a shard that goes as a whole may,
    when it has nothing left to give."""
    going = [x for x in s.decided.shards if s.clustered and not _wanted(s, x) and not _gives(s, x)]
    return {name for x in s.decided.shards if x not in going for name in (x.primary, x.moving_to)}


def _wanted(s: Situation, shard: Shard) -> bool:
    return shard.id in s.wanted_shards


def still_known(s: Situation, nodes: list[Node]) -> list[Node]:
    """Nodes that somebody else still knows: they are dropped when nobody does."""
    if not s.clustered:
        return []
    known = frozenset[str]().union(*{c.knows for n in s.decided.nodes if s.alive(n) and (c := s.seen(n).cluster)})
    return [n for n in nodes if s.cluster_ids[n.name] in known]


def acquaint(s: Situation) -> Step | None:
    """Every node knows every other that there is, and nobody who is gone for good or has never been one of them: whoever reaches a
    node's bus may say hello there (CLUSTER MEET), and is believed what he says that he owns."""
    told = s.seconds_since(s.decided.intruded_at)
    if (intruders := _intruders(s)) and (told is None or told > TOLD_AGAIN_SECONDS):
        text = f"Nodes that are none of {s.cache.name}'s came to its cluster bus and are forgotten: {listed(sorted(intruders))}"
        return Decide(replace(s.decided, intruded_at=s.moment), text, (s.tell(text, group=True),))
    by_id = {id: name for name, id in s.cluster_ids.items()}
    effects: list[Effect] = []
    said: list[str] = []
    for node in s.decided.nodes:
        missing, strangers = s.acquaintance(node)
        strangers |= _greeted(s, node).keys()
        if missing and not node.leaving:
            effects.append(Meet(node.name, tuple(sorted(by_id[id] for id in missing))))
            said.append(f"{node.name} meets {len(missing)}")
        if strangers and not _strays(s, node):
            effects.append(Disown(node.name, tuple(sorted(strangers))))
            said.append(f"{node.name} forgets {len(strangers)}")
    if not effects:
        return None
    more = f" and {len(said) - 3} others do alike" if len(said) > 3 else ""
    return Act((tuple(effects),), ", ".join(said[:3]) + more)


def _greeted(s: Situation, node: Node) -> dict[str, str]:
    """Intruders that the node has not shaken hands with yet, and so believes nothing: id → address."""
    seen = s.seen(node).cluster
    ours = {n.address for n in s.decided.everyone}
    return {id: where for id, where in seen.greets.items() if where not in ours} if seen is not None and s.alive(node) else {}


def _intruders(s: Situation) -> set[str]:
    """Whoever is on the bus and has never been a node of the cache: addresses, or ids where no more is known."""
    ours = {cluster_node_id(s.cache, n) for n in s.decided.everyone}
    known = {id for n in s.decided.nodes for id in s.acquaintance(n)[1] - ours}
    return known | {where for n in s.decided.nodes for where in _greeted(s, n).values()}


def _strays(s: Situation, node: Node) -> bool:
    """It follows another than its shard's primary: an engine does not forget the primary that it follows,
    so first it is told which primary to follow."""
    shard, seen = s.cache.shard(node.shard), s.seen(node)
    primary = s.primary(shard) if shard is not None else None
    return seen.role == "replica" and primary is not None and seen.follows != primary.address


def part_of_cluster(s: Situation, node: Node) -> bool:
    """The node says that the cluster serves, and everybody knows everybody."""
    seen = s.seen(node).cluster
    return seen is not None and seen.ok and s.acquainted


def settle(s: Situation) -> Step | None:
    """A new cluster serves when its primaries have been up for two seconds (an engine's own rule): until shortly before that there
    is nothing to look at, and from then on every look may be the one."""
    nodes = s.decided.nodes
    if s.decided.available_at is not None or not nodes or not all(s.alive(n) for n in nodes):
        return None
    begun = (s.decided.appointed_at, *(x.change.since for x in s.decided.shards if isinstance(x.change, Election)))
    youngest = min((age for since in begun if (age := s.seconds_since(since)) is not None), default=WRITABLE_SECONDS)
    left = WRITABLE_SECONDS - youngest
    return Wait(
        max(left, s.policy.poll_seconds), "engine", "the engines will serve when they have been up for two seconds", steady=True
    )


def drop_shards(s: Situation, nodes: tuple[Node, ...]) -> tuple[Shard, ...]:
    """The shards that are left when these are all nodes; what has led or followed and is no more is not mentioned again."""
    there = {n.shard for n in nodes} | s.wanted_shards
    left = {n.name for n in nodes}
    return tuple(evidence.without(x, x.confirmed.nodes - left) for x in s.decided.shards if x.id in there or not s.clustered)
