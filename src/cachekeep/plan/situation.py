"""A cache, a view of it and a moment, with the questions that rules ask of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
from msgspec.structs import replace

from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import (
    Branches,
    Cache,
    Condemned,
    Decided,
    Event,
    Moment,
    Node,
    NodeView,
    Shard,
    Starved,
    Starving,
    View,
    branches,
    elapsed,
)
from cachekeep.model.traits import traits
from cachekeep.model.windows import in_window


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set. Times in seconds."""

    silence_seconds: float = 15.0
    """A primary that answers nothing at all, though its host takes connections (a slow command, a slow disk), is given this long
    before it counts as hung. Longer than an engine's limit for scripts (5 s), after which it says that it is busy."""
    command_seconds: float = 300.0
    """So long it is given while its process is at work, as with one long command: whoever leads next may be asked for the same."""
    script_seconds: float = 15.0
    """A node that is busy with a script or function is given this long, then that is ended if it has written nothing yet."""
    replica_seconds: float = 5.0
    """A replica that is stopped (SIGSTOP), or silent to us though its primary hears it, is given this long."""
    unreachable_seconds: float = 0.3
    """A primary whose host takes nothing that is sent to it is given this long,
    then its replicas are asked whether they reach it."""
    witness_seconds: float = 5.0
    """A replica that reached such a primary is not asked again for this long: each time it connects anew."""
    in_flight_seconds: float = 3.0
    """What a lost primary acknowledged in its last so many seconds counts as on its way: lost without being asked. A primary that
    is cut off from all is heard every 0.4 s, and stopped within 0.9 s of that; the rest is for machines that are busy."""
    loss_budget_seconds: float = 0.0
    """Of so many seconds acknowledged writes may be lost by a promotion that nobody asked for; 0: of no more than are in flight."""
    loss_budget_bytes: int = 0
    """How far behind what was last heard of the primary a replica may be and still be promoted by itself; 0: never without being
    asked."""
    fence: Literal["confirm", "starve"] = "confirm"
    """What comes before a successor: a primary that is confirmed stopped, or, where that cannot be had,
    one that must refuse writes."""
    confirm_seconds: float = 1.0
    """For how long a primary is tried to be stopped before it is starved."""
    hand_over_seconds: float = 1.0
    """How long writes may be paused for a planned move before it is given up."""
    stop_grace_seconds: float = 5.0
    linger_seconds: float = 35.0
    """A shard that has given its last slot away goes on for so long, and sends its clients to where the slots are now. One client
    (lettuce) looks anew at most every 30 s."""
    poll_seconds: float = 0.01
    """First pause while something is under way; the keeper stretches repeated waits."""
    discovery_seconds: float = 10.0
    """How often Memcached nodes are looked at for their discovery key, whose loss a heartbeat tells sooner: ElastiCache corrects
    one that was overwritten within about 15 s."""
    rest_seconds: float = 30.0
    """Pause when all is as it should be."""


@dataclass(frozen=True)
class Situation:
    """What every rule is given."""

    cache: Cache
    view: View
    now: dt.datetime
    """By the wall clock, which may be set at any time."""
    moment: Moment
    policy: Policy

    @property
    def decided(self) -> Decided:
        return self.cache.decided

    def seconds_since(self, moment: Moment | None) -> float | None:
        """None: nobody knows."""
        return elapsed(moment, self.moment)

    @property
    def replicated(self) -> bool:
        """Whether the engine knows primaries and replicas."""
        return traits(self.cache.wanted.engine).replicates

    @property
    def clustered(self) -> bool:
        """In cluster mode: what is there, not what is on its way."""
        return self.cache.clustered

    @property
    def switching(self) -> bool:
        """On its way from ``compatible`` to ``enabled``."""
        return self.cache.wanted.cluster_mode == "enabled" and not self.cache.clustered

    @cached_property
    def wanted_shards(self) -> frozenset[str]:
        """Ids of the shards that are to be; while a change of them waits for its window, of those that are."""
        wanted = frozenset(w.id for w in self.cache.wanted.shards)
        return wanted if self.may_apply("shards") else wanted | frozenset(x.id for x in self.decided.shards)

    @cached_property
    def _by_shard(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.decided.nodes:
            found.setdefault(node.shard, []).append(node)
        return found

    # -- cluster mode: which nodes know each other

    @cached_property
    def cluster_ids(self) -> dict[str, str]:
        """Node name → its id on the cluster bus."""
        return {n.name: cluster_node_id(self.cache, n) for n in self.decided.nodes}

    @cached_property
    def _there(self) -> frozenset[str]:
        """Ids of all nodes that everybody is to know: those that answer. To meet one that does not is to try again and again."""
        return frozenset(self.cluster_ids[n.name] for n in self.decided.nodes if self.alive(n))

    @cached_property
    def _verdicts(self) -> dict[int, tuple[frozenset[str], frozenset[str]]]:
        return {}

    def acquaintance(self, node: Node) -> tuple[frozenset[str], frozenset[str]]:
        """Ids that a node should know and does not, and ids that it knows and should not; nothing for one that does not answer."""
        seen = self.seen(node).cluster
        if seen is None or not self.alive(node):
            return frozenset(), frozenset()
        key = hash(seen.knows)  # most nodes know the same: it is worked out once for all of them, not once for each
        if key not in self._verdicts:
            # A node that somebody still follows cannot be forgotten.
            led = {x.primary for x in self.decided.shards if any(self.runs(n) for n in self.replicas(x))}
            expected = frozenset(
                self.cluster_ids[n.name] for n in self.decided.nodes if n.name in led or not (n.leaving and self.gone(n))
            )
            self._verdicts[key] = (self._there - seen.knows, seen.knows - expected)
        return self._verdicts[key]

    @cached_property
    def acquainted(self) -> bool:
        """Everybody who answers knows everybody who is there."""
        return not any(self.acquaintance(n)[0] for n in self.decided.nodes if not n.leaving)

    @cached_property
    def untold(self) -> dict[str, list[Node]]:
        """Id of a node → the nodes that know it and do not tell clients of it."""
        found: dict[str, list[Node]] = {}
        for node in self.decided.nodes:
            if (seen := self.seen(node).cluster) is not None and seen.untold and self.alive(node) and not node.leaving:
                for id in seen.untold:
                    found.setdefault(id, []).append(node)
        return found

    @cached_property
    def branches(self) -> Branches:
        """Where the histories that nodes hold come from, by what any of them says, or has said."""
        said = [h for x in self.decided.shards for e in x.ended for h in e.heard]
        said += [h for v in self.view.nodes.values() for h in v.heard]
        held = [v.stream for v in self.view.nodes.values() if v.stream is not None]
        return branches([*held, *(h.stream for h in said)])

    def seen(self, node: Node) -> NodeView:
        """The view of a node."""
        return self.view.node(node.name)

    # -- a switch to cluster mode

    def successor(self, name: str | None) -> Node | None:
        """The successor of that name."""
        return next((n for n in self.decided.successors if n.name == name), None)

    def refused(self, node: Node) -> bool:
        """It lacks part of what it was fed."""
        seen = self.seen(node).cluster
        return seen is None or seen.refused > 0

    def lost(self, node: Node) -> bool:
        """Its process is gone, or has been replaced by one that holds nothing."""
        return self.gone(node) or (self.alive(node) and self.seen(node).has_history is False)

    def heirs(self, shard: Shard) -> list[Node]:
        """Successors that may hold what no node does any more: the primary is lost, and so is everybody who was in sync."""
        primary = self.primary(shard)
        fed = shard.confirmed_by(self.decided.preparing.confirmed, ended=True)
        if not fed or primary is None or not self.lost(primary):
            return []
        had = shard.confirmed_by(shard.confirmed, ended=True)
        if any(n.name in had and self.runs(n) for n in self.replicas(shard)):
            return []
        there = [n for n in self.decided.successors if n.name in fed and self.runs(n)]
        return [n for n in there if not self.alive(n) or (self.seen(n).follows == primary.address and not self.refused(n))]

    def left_to_successors(self, shard: Shard) -> bool:
        """Who leads this shard is not for its own nodes to say."""
        return self.successor(shard.moving_to) is not None or bool(self.heirs(shard))

    def members(self, shard_id: str, *, leaving: bool = True) -> list[Node]:
        """The decided nodes of a shard."""
        return [n for n in self._by_shard.get(shard_id, ()) if leaving or not n.leaving]

    def runs(self, node: Node) -> bool:
        """The process that was decided is there."""
        v = self.seen(node)
        return v.process in ("running", "frozen") and v.incarnation == node.incarnation

    def gone(self, node: Node) -> bool:
        """Confirmed: no process of this node's present incarnation does anything any more."""
        v = self.seen(node)
        return v.process in ("absent", "exited", "stuck")

    def starves(self, node: Node) -> bool:
        """Its shard does not wait until it is confirmed stopped: that was tried, and the operator allows another way."""
        if isinstance(node.fate, Starved):
            return True
        shard = self.cache.shard(node.shard)
        if (
            self.policy.fence != "starve"
            or shard is None
            or shard.primary != node.name
            or not isinstance(node.fate, Condemned)
            or self.clustered
        ):
            return False
        return isinstance(shard.change, Starving) or (self.seconds_since(node.fate.since) or 0.0) >= self.policy.confirm_seconds

    def stale(self, node: Node) -> bool:
        """A process of another incarnation is there."""
        v = self.seen(node)
        return v.process in ("running", "frozen") and v.incarnation is not None and v.incarnation != node.incarnation

    def told(self, node: Node, shard: Shard) -> bool:
        """It has seen the shard's last order, or has been sent it."""
        return (self.seen(node).last_order or 0) >= shard.order

    def ended(self, node: Node) -> bool:
        """Confirmed: the process of this incarnation was there and is no more."""
        v = self.seen(node)
        return v.process == "exited" and v.incarnation is not None and v.incarnation >= node.incarnation

    def alive(self, node: Node) -> bool:
        """Runs, answers, and is not to be stopped."""
        v = self.seen(node)
        return self.runs(node) and v.process == "running" and v.answering is True and not node.condemned

    def serving(self, shard: Shard, node: Node) -> bool:
        """A replica that may be read from: in sync, with the last primary while nobody leads, its process there and not frozen. One
        slow answer does not end that."""
        primary = self.primary(shard)
        led = primary is not None and self.leads(primary)
        names = shard.in_sync if led else shard.confirmed.nodes
        return node.name in names and self.runs(node) and self.seen(node).process == "running"

    def full(self, node: Node) -> bool:
        """It has as many connections as it may, by its own word."""
        places = self.seen(node).places
        return places is not None and places <= 0

    def leads(self, node: Node) -> bool:
        """Is seen to be a primary."""
        return self.alive(node) and self.seen(node).role == "primary"

    def primary(self, shard: Shard) -> Node | None:
        """The decided primary."""
        return self.cache.node(shard.primary) if shard.primary else None

    def replicas(self, shard: Shard, *, leaving: bool = True) -> list[Node]:
        """All of a shard's nodes but its primary."""
        return [n for n in self.members(shard.id, leaving=leaving) if n.name != shard.primary]

    def hangs(self, node: Node) -> bool:
        """There, but confirmed stopped, or busy for so long that it counts as hung. Who cannot be reached does not hang."""
        v = self.seen(node)
        return v.process == "frozen" or (self.mute(node) and v.reachable is not False)

    def mute(self, node: Node) -> bool:
        """It has answered nothing for longer than a node that works may."""
        v = self.seen(node)
        return v.silent_seconds >= (self.policy.command_seconds if v.computes else self.policy.silence_seconds)

    def needed(self, node: Node) -> bool:
        """A replica of a shard that nobody leads may hold what nobody else does:
        it is neither restarted nor sent away, unless it hangs."""
        shard, v = self.cache.shard(node.shard), self.seen(node)
        if shard is None or (self.clustered and not shard.owned and not shard.slots):
            return False
        primary = self.primary(shard)
        if primary is None or primary.name == node.name or self.leads(primary) or not self.runs(node) or node.condemned:
            return False
        return not self.hangs(node) and v.has_history is not False

    def able(self, shard: Shard) -> list[Node]:
        """Replicas that could take over from a primary that leads: in sync with it, answering, and here to stay."""
        return [n for n in self.replicas(shard, leaving=False) if n.name in shard.in_sync and self.alive(n)]

    def may_apply(self, field: str) -> bool:
        """Whether a change of this wanted field may be carried out now (ApplyImmediately, or inside the maintenance window)."""
        wanted = self.cache.wanted
        return field not in wanted.deferred or in_window(wanted.maintenance_window, self.now)

    def tell(self, message: str, *, node: Node | None = None, group: bool = False) -> Event:
        """An event of a member cluster, or of the replication group."""
        if group or node is None:
            return Event(source_type=self.cache.source_type, source=self.cache.name, message=message)
        return Event(source_type="cache-cluster", source=node.cluster_id, message=message)


def with_nodes(decided: Decided, changed: Iterable[Node]) -> Decided:
    """``decided`` with these nodes in place of their namesakes."""
    by_name = {n.name: n for n in changed}
    return replace(decided, nodes=tuple(by_name.get(n.name, n) for n in decided.nodes))


def with_successors(decided: Decided, changed: Iterable[Node]) -> Decided:
    """``decided`` with these successors in place of their namesakes."""
    by_name = {n.name: n for n in changed}
    successors = tuple(by_name.get(n.name, n) for n in decided.successors)
    return replace(decided, switch=replace(decided.preparing, successors=successors)) if by_name else decided


def with_shard(decided: Decided, shard: Shard) -> Decided:
    """``decided`` with this shard in place of its namesake."""
    return replace(decided, shards=tuple(shard if s.id == shard.id else s for s in decided.shards))


def fed_again(shard: Shard) -> Shard:
    """Its primary is not to be starved any more: it is let live, or another process is the primary now."""
    return replace(shard, change=None) if isinstance(shard.change, Starving) else shard


def names(nodes: Iterable[Node]) -> str:
    """``a, b and c``."""
    return listed(n.name for n in nodes)


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    found = list(words)
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + f" and {found[-1]}" if found else "nobody"


def verb(subjects: Sized, one: str = "is", many: str = "are") -> str:
    """The form that fits as many subjects."""
    return one if len(subjects) == 1 else many


def pairs(s: Situation) -> Iterator[tuple[Node, NodeView]]:
    """Every decided node with its view."""
    return ((n, s.seen(n)) for n in s.decided.nodes)


__all__ = ["Policy", "Situation", "fed_again", "listed", "names", "pairs", "verb", "with_nodes", "with_shard", "with_successors"]
