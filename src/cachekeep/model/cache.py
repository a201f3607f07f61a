"""A cache: what is wanted of it (written by API requests only) and what has been decided (written by the keeper only).

One ``Cache`` is the unit of planning: a replication group with all its shards, or a stand-alone cache cluster (one Valkey or
Redis node, or 1–60 Memcached nodes). Names follow ElastiCache: a *member* of a replication group is a cache cluster of its own.
"""

from __future__ import annotations

import datetime as dt
import functools
from typing import Literal

import msgspec

from cachekeep.model.certificate import Certificate, Transit
from cachekeep.model.change import (
    Change,
    Condemned,
    Conversion,
    Election,
    Fate,
    Halted,
    Move,
    Predecessor,
    Recovery,
    Refusal,
    Resharded,
    Resharding,
    Starved,
)
from cachekeep.model.clients import Anybody, Clients
from cachekeep.model.credential import Credential
from cachekeep.model.job import Done, Errand, ErrandKind, Failed, Job
from cachekeep.model.moment import Moment
from cachekeep.model.resources import SourceType
from cachekeep.model.snapshot import Restore
from cachekeep.model.stream import Heard

CacheKind = Literal["group", "cluster"]
ClusterMode = Literal["disabled", "compatible", "enabled"]
FrontKind = Literal["balancer", "discovery", "compatible"]
SlotRange = tuple[int, int]
"""First and last slot, both included."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A node that the user asked for. ``name`` is ``demo-001``, ``demo-0002-003`` or, for Memcached, ``mc.0001``."""

    name: str
    zone: str


class WantedShard(msgspec.Struct, frozen=True, kw_only=True):
    """One shard (node group): its members, the first being the first primary, and its slots where cluster mode is on."""

    id: str
    members: tuple[Member, ...]
    slots: tuple[SlotRange, ...] = ()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Only API requests write it."""

    engine: str
    version: str
    node_type: str
    port: int
    shards: tuple[WantedShard, ...]
    description: str = ""
    cluster_mode: ClusterMode = "disabled"
    automatic_failover: bool = False
    multi_az: bool = False
    cross_zone: bool = False
    """Memcached: AZMode cross-az."""
    parameter_group: str = ""
    parameters: dict[str, str] = {}
    """The values that the parameter group changes from its family's defaults: a copy, rewritten by whoever changes the group."""
    subnet_group: str | None = None
    security_group_ids: tuple[str, ...] = ()
    maintenance_window: str = "sun:05:00-sun:06:00"
    snapshot_window: str = "03:00-04:00"
    snapshot_retention_days: int = 0
    auto_minor_version_upgrade: bool = True
    errands: tuple[Errand, ...] = ()
    deferred: frozenset[str] = frozenset()
    """Fields whose change waits for the maintenance window (``ApplyImmediately=false``): ``node_type``, ``version``, ``shards``."""
    clients: Clients = Anybody()
    credentials: tuple[Credential, ...] = ()
    """By which its nodes may be spoken to; the last is the one to come to. Empty for an engine without users."""
    transit: Transit = "disabled"
    authorities: tuple[str, ...] = ()
    """Ids of those that may issue its certificates, and are trusted; the last is the one to come to. Empty without TLS."""
    restore: Restore | None = None
    """What it starts with, until it is first available."""
    snapshotting_id: str = ""
    """The member that automatic snapshots are read from, if that can be."""
    deleted: bool = False
    last_snapshot: str = ""
    """Id of the errand's job that comes before its end: no snapshot, no end."""

    def asking(self, kind: ErrandKind, *, nodes: tuple[str, ...] = (), shard: str | None = None, snapshot: str = "") -> Wanted:
        """With one more errand. Serials only grow: who drops errands leaves the last one."""
        serial = max((e.serial for e in self.errands), default=0) + 1
        errand = Errand(serial=serial, kind=kind, nodes=nodes, shard=shard, snapshot=snapshot)
        return msgspec.structs.replace(self, errands=(*self.errands, errand))


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node that has been decided: where it lives and which process it is.

    ``incarnation`` grows with every process that is started for the node, so "start it again" is a decision that is saved first,
    and a process of an older incarnation is known for what it is.
    """

    name: str
    shard: str
    zone: str
    address: str
    port: int
    engine: str
    version: str
    node_type: str
    incarnation: int = 1
    fate: Fate | None = None
    leaving: bool = False
    """On its way out: no endpoint, no role; then stopped and erased."""
    due: Literal["", "reboot", "upgrade"] = ""
    """A planned restart is due; the shard's other nodes and its lead are looked after first."""
    announced: bool = False
    """Has been reported available since its present incarnation was decided."""
    created_at: dt.datetime | None = None
    in_place_of: str = ""
    """The member that it is, where its own name is another: it took the place of the member's node without cluster mode."""

    @property
    def condemned(self) -> bool:
        """It must be confirmed stopped: nothing that it says counts."""
        return isinstance(self.fate, Halted | Condemned | Starved)

    @property
    def member(self) -> str:
        """Name of the wanted member that this node is."""
        return self.in_place_of or self.name

    @property
    def cluster_id(self) -> str:
        """The CacheClusterId that this node belongs to in the API."""
        return self.member.partition(".")[0]

    @property
    def node_id(self) -> str:
        """The CacheNodeId: always ``0001`` but for Memcached."""
        return self.member.partition(".")[2] or "0001"


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """Who had all that a primary had acknowledged, but for what was on its way, as that primary itself last said.

    It is true of one lead, and says nothing of another: of the same node after a restart as little as of its successor.
    """

    primary: str | None = None
    order: int = 0
    """By which it led: ``Shard.lead_order``."""
    nodes: frozenset[str] = frozenset()
    at: dt.datetime | None = None
    """Since when these and no others, by the wall clock of the keeper that heard it: for people, never to measure by."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A lead that is over, and what is known of what it acknowledged."""

    primary: str
    order: int
    at: Moment
    """From then on it acknowledged nothing any more."""
    heard: tuple[Heard, ...] = ()
    """What it said that it held, newest first."""
    heard_at: dt.datetime | None = None
    """When it said the newest, by the wall clock: for people."""
    in_sync: frozenset[str] | None = None
    """Who was in sync with it, by its own word; None: it has not said anything of that yet."""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads a shard.

    ``order`` is the number of the last order that could make a writer in this shard; it grows with each such order.
    """

    id: str
    primary: str | None = None
    order: int = 0
    lead_order: int = 0
    """The order by which ``primary`` leads, or is to lead."""
    confirmed: Confirmed = Confirmed()
    """Replicas in sync with the primary that last led."""
    ended: tuple[Ended, ...] = ()
    """Leads that are over and have no successor yet that is seen to lead: whoever succeeds them has to have what they
    acknowledged."""
    slots: tuple[SlotRange, ...] = ()
    """Cluster mode: what it is to own. What it owns is seen."""
    owned: tuple[SlotRange, ...] = ()
    """What its primary was last seen to own: what it starts with, should it have to start anew."""
    epoch: int = 0
    """The highest configuration epoch at which its primary was seen."""
    predecessor: Predecessor | None = None
    min_replicas: int = 0
    """So many replicas must keep up with its primary, or it takes no writes (min-replicas-to-write); 0: it needs none."""
    change: Change | None = None
    """What is going on about who leads it."""
    primary_address: str | None = None
    reader_address: str | None = None
    preferred: str | None = None
    """Lead goes back to this node when it is in sync (a crash without automatic failover)."""
    accept_stale: bool = False
    """The user allows, once, to promote a node that cannot be shown to have what the leads before it acknowledged."""

    @property
    def moving_to(self) -> str | None:
        """The node that is to lead next."""
        return self.change.to if isinstance(self.change, Move | Conversion | Election) else None

    @property
    def lost(self) -> str | None:
        """The primary that was lost, until its successor is seen to lead."""
        return self.change.lost if isinstance(self.change, Conversion | Election | Recovery) else None

    @property
    def in_sync(self) -> frozenset[str]:
        """Replicas in sync with this very lead of this very primary."""
        return self.confirmed_by(self.confirmed)

    def confirmed_by(self, confirmed: Confirmed, *, ended: bool = False) -> frozenset[str]:
        """Those that are in sync with this very lead of this very primary; ``ended``: or were, with one that is over and has no
        successor yet. That its primary is to come back empty, by a later order, takes nothing from what it fed."""
        leads = {(self.primary, self.lead_order)}
        if ended:
            leads |= {(e.primary, e.order) for e in self.ended}
        return confirmed.nodes if (confirmed.primary, confirmed.order) in leads else frozenset()


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """A process that answers at an endpoint and passes on: ``balancer`` (readers, HAProxy), ``discovery`` (Memcached) or
    ``compatible`` (presents a primary without cluster mode to cluster clients)."""

    name: str
    kind: FrontKind
    address: str
    port: int
    incarnation: int = 1
    leaving: bool = False


class Preparing(msgspec.Struct, frozen=True, kw_only=True, tag="preparing"):
    """A switch to cluster mode, until a successor leads."""

    successors: tuple[Node, ...] = ()
    """Nodes in cluster mode that are to take the place of all ``nodes`` at once, which are without: fed by their primary, and of no
    other use until then."""
    confirmed: Confirmed = Confirmed()
    """Those of them that are in sync with the primary that feeds them."""
    other_databases: tuple[int, ...] = ()
    """Databases other than 0 that were last told to hold keys, so that cluster mode cannot be enabled."""
    tried_at: Moment | None = None
    """When the last hand-over was decided of those that were called off."""


class Retiring(msgspec.Struct, frozen=True, kw_only=True, tag="retiring"):
    """A switch that is made: the nodes whose place was taken are to be erased."""

    nodes: tuple[Node, ...]
    since: Moment


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What the keeper has decided. Only the keeper writes it; every effect follows from it."""

    serial: int = 0
    """Grows by one with every decision that is kept, wherever it is kept: of two, the later one is known."""
    nodes: tuple[Node, ...] = ()
    mode: Literal["disabled", "enabled"] | None = None
    """Whether ``nodes`` run in cluster mode; None: none is appointed yet."""
    switch: Preparing | Retiring | None = None
    """From one mode to the other."""
    shards: tuple[Shard, ...] = ()
    fronts: tuple[Front, ...] = ()
    configuration_address: str | None = None
    configuration_node: str | None = None
    """Cluster mode: the node that answers at ``configuration_address`` too."""
    discovery_version: int = 0
    discovery_nodes: tuple[str, ...] = ()
    reshard: Resharding | Resharded | None = None
    jobs: tuple[Job, ...] = ()
    """Those that have not ended, and of the others those that may be asked for: of errands that are still listed as wanted, and
    the last of each kind of task."""
    credential: int = 1
    """Serial of the credential by which its nodes are spoken to, and come to each other."""
    other_credential: int | None = None
    """Of the one that they accept beside it: on its way in if it is higher, else on its way out."""
    transit: Transit = "disabled"
    """By what clients come to its nodes."""
    certificate: Certificate | None = None
    """That its nodes have, or are to have; None: they have none."""
    known_users: frozenset[str] = frozenset()
    """Clients' users that some process of its nodes may know: those that are wanted no more are taken from each."""
    appointed_at: Moment | None = None
    """When its first nodes were appointed; None again when it is available."""
    available_at: dt.datetime | None = None
    """When the cache was first available: before that it is ``creating``."""
    backed_up_at: dt.datetime | None = None
    """When the last automatic snapshot was due, or since when there are to be some; None: there are not."""
    overdue: frozenset[str] = frozenset()
    """What an event has told of that it takes too long (``Reason``, and CREATION), until all is calm again."""
    intruded_at: Moment | None = None
    """Cluster mode: when an event last told of nodes on its bus that are none of its own."""
    refusals: tuple[Refusal, ...] = ()
    """Those that were told as events, so that each is told once."""
    troubled: frozenset[str] = frozenset()
    """Names of the nodes and fronts of which an event has told that something cannot be done on them, and that are not well yet."""

    @property
    def preparing(self) -> Preparing:
        """What is there of a switch that is being prepared, or nothing."""
        return self.switch if isinstance(self.switch, Preparing) else Preparing()

    @property
    def successors(self) -> tuple[Node, ...]:
        """Nodes in cluster mode that are to take the place of all ``nodes``."""
        return self.preparing.successors

    @property
    def retired(self) -> tuple[Node, ...]:
        """Nodes whose place was taken."""
        return self.switch.nodes if isinstance(self.switch, Retiring) else ()

    @property
    def resharding(self) -> int:
        """How many slots were astray when they set out; 0: none is on its way."""
        return self.reshard.slots if isinstance(self.reshard, Resharding) else 0

    @property
    def fed(self) -> frozenset[str]:
        """Those of the successors that have all that the present primary has acknowledged, but for what is on the wire."""
        return self.shards[0].confirmed_by(self.preparing.confirmed) if self.shards else frozenset()

    def unrefused(self, shard: str) -> Decided:
        """The same, in which nothing is refused in this shard any more."""
        return msgspec.structs.replace(self, refusals=tuple(r for r in self.refusals if r.shard != shard))

    def job(self, id: str) -> Job | None:
        """The job of that id."""
        return next((j for j in self.jobs if j.id == id), None)

    @property
    def everyone(self) -> tuple[Node, ...]:
        """Every node that has a process, or is to have one."""
        return (*self.nodes, *self.successors, *self.retired)


class Cache(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A replication group or a stand-alone cache cluster."""

    uid: str
    """Never reused; names are, after a delete."""
    name: str
    kind: CacheKind
    region: str
    created_at: dt.datetime
    wanted: Wanted
    decided: Decided = Decided()
    version: int = 0
    """Grows by one with every save: the compare-and-swap."""

    @functools.cached_property
    def ending(self) -> bool:
        """Whether it is to go now: it is deleted, and its last snapshot is there, if one was asked for."""
        last = self.decided.job(self.wanted.last_snapshot)
        return self.wanted.deleted and (not self.wanted.last_snapshot or (last is not None and isinstance(last.state, Done)))

    @property
    def kept_from_ending(self) -> str | None:
        """Why its last snapshot cannot be had, so that it does not go."""
        last = self.decided.job(self.wanted.last_snapshot)
        return last.state.problem if self.wanted.deleted and last is not None and isinstance(last.state, Failed) else None

    @functools.cached_property
    def clustered(self) -> bool:
        """Whether its nodes run in cluster mode, or are to from the first."""
        return (self.decided.mode or self.wanted.cluster_mode) == "enabled"

    @property
    def source_type(self) -> SourceType:
        """As which it is in events."""
        return "replication-group" if self.kind == "group" else "cache-cluster"

    @property
    def cluster_mode(self) -> ClusterMode:
        """The mode that is there, not the one that is on its way."""
        if self.clustered:
            return "enabled"
        return "compatible" if any(f.kind == "compatible" and not f.leaving for f in self.decided.fronts) else "disabled"

    @property
    def errands_left(self) -> tuple[Errand, ...]:
        """What has been asked for and has not been taken up, in the order in which it was asked for."""
        taken_up = {j.id for j in self.decided.jobs}
        return tuple(sorted((e for e in self.wanted.errands if e.id not in taken_up), key=lambda e: e.serial))

    def in_cluster_mode(self, node: Node) -> bool:
        """Whether the process of a node runs in cluster mode. All do or none, but for a switch from one to the other."""
        if self.decided.successors or self.decided.retired:
            return node in self.decided.successors or (self.clustered and node not in self.decided.retired)
        return self.clustered

    @functools.cached_property
    def credentials(self) -> tuple[Credential, ...]:
        """Those that its nodes accept, the one that is in force first; empty for an engine without users."""
        known = {c.serial: c for c in self.wanted.credentials}
        return tuple(known[s] for s in (self.decided.credential, self.decided.other_credential) if s is not None and known)

    @property
    def encrypted(self) -> bool:
        """Whether its nodes are spoken to by TLS, and speak to each other by it."""
        return self.decided.transit == "required"

    def node(self, name: str) -> Node | None:
        """The decided node of that name, successors and retired ones included."""
        return self._nodes.get(name)

    def member(self, name: str) -> Node | None:
        """The decided node that is the member of that name."""
        return self._members.get(name)

    def shard(self, id: str) -> Shard | None:
        """The decided shard of that id."""
        return self._shards.get(id)

    @functools.cached_property
    def _nodes(self) -> dict[str, Node]:
        return {n.name: n for n in self.decided.everyone}

    @functools.cached_property
    def _members(self) -> dict[str, Node]:
        return {n.member: n for n in self.decided.nodes}

    @functools.cached_property
    def _shards(self) -> dict[str, Shard]:
        return {s.id: s for s in self.decided.shards}

    def wanted_names(self) -> tuple[str, ...]:
        """Names of all members that are wanted, in order."""
        return tuple(m.name for s in self.wanted.shards for m in s.members)

    def cluster_ids(self) -> tuple[str, ...]:
        """Every CacheClusterId that this cache owns: wanted or still there, in order, without repeats."""
        names = [*self.wanted_names(), *(n.member for n in self.decided.nodes)]
        return tuple(dict.fromkeys(n.partition(".")[0] for n in names))
