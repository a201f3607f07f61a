"""What was just seen. Never stored as truth; ``None`` is "not known", and not known is not down."""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.cache import SlotRange
from cachekeep.model.job import JobSeen
from cachekeep.model.limits import LimitsSeen
from cachekeep.model.moment import Moment
from cachekeep.model.runtime import Digests
from cachekeep.model.step import Effect, Reason
from cachekeep.model.stream import Heard, Stream

Process = Literal["absent", "running", "exited", "frozen", "stuck"]
"""``absent``: never started here; ``exited``: confirmed gone; ``frozen``: there, but confirmed stopped (SIGSTOP, a tracer);
``stuck``: killed and without sockets, so it does nothing any more, but the kernel has not let go of it: another cannot be started
in its place."""


class ReplicaSeen(msgspec.Struct, frozen=True):
    """A replica as its primary reports it (``INFO replication``)."""

    address: str
    port: int
    online: bool
    offset: int
    lag_seconds: int


class ClusterSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a node in cluster mode believes (``CLUSTER INFO``, ``CLUSTER NODES``)."""

    id: str
    """Its own id on the cluster bus."""
    ok: bool
    """``cluster_state``: it serves."""
    epoch: int
    slots: tuple[SlotRange, ...] = ()
    """That it owns itself."""
    inherits: tuple[SlotRange, ...] = ()
    """Of a replica: those that it believes its primary to own. It would take over these, and no others."""
    migrating: dict[int, str] = {}
    """Slot that it is giving away → id of the node that it goes to."""
    importing: dict[int, str] = {}
    """Slot that it is being given → id of the node that it comes from."""
    refused: int = 0
    """Of a node that a primary without cluster mode feeds: how many commands of the stream it has refused. It lacks their effect,
    and after a refused SELECT it has carried out in database 0 what was meant for another."""
    knows: frozenset[str] = frozenset()
    """Ids of all nodes that it knows, itself included, but for those it is still shaking hands with."""
    greets: dict[str, str] = {}
    """Those that it is shaking hands with: id, which is not their own yet → address."""
    untold: frozenset[str] = frozenset()
    """Ids of replicas that it knows, and that it does not tell clients of (``CLUSTER SLOTS``). Of a shard without slots nobody is
    told."""


Plight = Literal["loading", "busy", "unkillable", "paused", "crowded", "stranger", "failing"]
"""Why an engine that is alive does not say what it was asked.

``loading``: it reads data in (LOADING); ``busy``: a script or function has been running for longer than the engine's own limit
(BUSY); ``unkillable``: so, and it cannot be ended, as it has written; ``paused``: it holds back every command (CLIENT PAUSE … ALL);
``crowded``: it has as many clients as it may; ``stranger``: it does not know us, or is not the engine that we started (NOAUTH,
WRONGPASS, NOPERM, another protocol); ``failing``: any other error."""


class Excuse(msgspec.Struct, frozen=True, tag=True):
    """It answered, but not what it was asked: its event loop turns, so it is neither dead nor hung."""

    plight: Plight
    words: str = ""
    """The engine's own."""
    seconds: float = 0.0
    """For how long it has not told everything."""


class Silence(msgspec.Struct, frozen=True, tag=True):
    """It did not answer at all."""

    seconds: float = 0.0
    """Since it last answered anything, or since it was first asked."""
    reachable: bool | None = None
    """Whether its host still takes what is sent to it. A busy engine is reachable, a cut-off host is not."""
    computes: bool = False
    """Its process is at work all the while, by the CPU time that it uses: it carries out something that takes long."""


Answer = Literal["complete"] | Excuse | Silence
"""What came of asking the engine itself; only a complete one tells of role, links, offsets and slots."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node. ``process`` comes from the driver, the rest from the engine itself."""

    process: Process | None = None
    incarnation: int | None = None
    """Of the process that is there, or of the last one that was."""
    program: str = ""
    """The build that runs, by the name that it was started by; empty: nobody knows."""
    answer: Answer | None = None
    """None: it was not asked."""
    role: Literal["primary", "replica"] | None = None
    follows: str | None = None
    """Address of the primary that a replica has been told to follow."""
    link_up: bool | None = None
    reaches: bool | None = None
    """Of a replica: whether its primary's host takes its connection. True by its own word only, while the link is up: a silent cut
    shows when it connects anew. False: it tries to, in vain."""
    witnessed_seconds: float | None = None
    """How long ago this replica was last made to connect to its primary anew (``Witness``)."""
    offset: int | None = None
    """Replication offset: of what it wrote (primary) or received (replica)."""
    stream: Stream | None = None
    """What it holds, in terms that can be compared with others' word; None too for one that holds nothing."""
    heard: tuple[Heard, ...] = ()
    """What this process has said that it holds, newest first; kept when it ends. Some seconds of it, no more."""
    still_since: Moment | None = None
    """From then on, at the latest, it has acknowledged nothing to anybody: it is gone, stopped, or leaves a question unanswered
    that has reached it. None: it may have, just now."""
    has_history: bool | None = None
    """Holds data of a replication history that it wrote or received in full; False: empty, never synchronised."""
    other_databases: tuple[int, ...] = ()
    """Databases other than 0 that hold keys."""
    replicas: tuple[ReplicaSeen, ...] = ()
    bound: frozenset[str] | None = None
    """Addresses on which it accepts connections."""
    limits: LimitsSeen | None = None
    """What its process is held to."""
    used_bytes: int | None = None
    """Memory that the engine counts against its ``maxmemory``."""
    clients: int | None = None
    """That are connected, ours included."""
    places: int | None = None
    """How many more connections it takes, of whatever kind."""
    settings: dict[str, str] = {}
    """What the engine itself says of those of its settings by which its needs are bounded; empty: it did not say."""
    digests: Digests | None = None
    """Of what its process runs with, part by part, as far as it was told; None: nobody knows."""
    discovery_version: int | None = None
    """Memcached: version in the node's own AmazonElastiCache:cluster key, 0 when it holds none."""
    last_order: int | None = None
    lead_order: int | None = None
    """The last order by which this process was let lead; 0: none was."""
    cluster: ClusterSeen | None = None
    """Cluster mode only."""
    problem: str | None = None
    """Why the last effect on it failed, in the driver's or engine's words."""

    @property
    def answering(self) -> bool | None:
        """Whether it told everything; None: it was not asked."""
        return None if self.answer is None else self.answer == "complete"

    @property
    def excuse(self) -> Excuse | None:
        """Why it did not tell everything, by its own word."""
        return self.answer if isinstance(self.answer, Excuse) else None

    @property
    def silent_seconds(self) -> float:
        """For how long it has answered nothing at all; 0 while it answers anything, and when it was not asked."""
        return self.answer.seconds if isinstance(self.answer, Silence) else 0.0

    @property
    def computes(self) -> bool:
        """Whether it answers nothing and is at work all the while."""
        return isinstance(self.answer, Silence) and self.answer.computes

    @property
    def reachable(self) -> bool | None:
        """Whether its host takes what is sent to it."""
        if isinstance(self.answer, Silence):
            return self.answer.reachable
        return None if self.answer is None else True

    @property
    def waiting_seconds(self) -> float:
        """For how long it has been waited for: silent, or with an excuse. 0 when it told everything, or was not asked."""
        return self.answer.seconds if isinstance(self.answer, Excuse | Silence) else 0.0


class FrontView(msgspec.Struct, frozen=True, kw_only=True):
    """A balancer or discovery process, and what it was last told to pass on to."""

    process: Process | None = None
    incarnation: int | None = None
    limits: LimitsSeen | None = None
    """What its process is held to."""
    targets: tuple[str, ...] | None = None
    """Balancer: node names. Discovery: node names; ``version`` is the list's version. Compatible:
    none, but known when it answers."""
    version: int | None = None
    problem: str | None = None


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """An effect that was begun and has not ended."""

    effect: Effect
    because: str
    """The sentence of the act that it belongs to."""
    since_seconds: float
    left_seconds: float
    """Then it has failed."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An effect that failed each time that it was tried."""

    effect: Effect
    problem: str
    """Of the last try, in the driver's or engine's words."""
    since_seconds: float
    """Since the first try began."""
    again_seconds: float
    """Until it may be tried again; 0: it may, or flies."""


class Waited(msgspec.Struct, frozen=True, kw_only=True):
    """What has been waited for, without a wait for anything else in between."""

    reason: Reason
    about: tuple[str, ...]
    seconds: float


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A cache as just seen."""

    nodes: dict[str, NodeView] = {}
    fronts: dict[str, FrontView] = {}
    flights: tuple[Flight, ...] = ()
    """What was in flight when the look began: what it has changed by now may have been seen or not."""
    failures: tuple[Failure, ...] = ()
    jobs: dict[str, JobSeen] = {}
    """What jobs with tasks do now, by id. Of those that are left out nothing is known."""
    waited: Waited | None = None
    """By the keeper that looks: one that starts anew counts anew."""
    free_addresses: tuple[str, ...] | None = ()
    """Addresses that nobody uses, enough for what may have to be placed. The store refuses one that was taken meanwhile. None: the
    store cannot be read, so nobody knows."""
    last_start: int = 0
    """The latest decision that one of these processes was started by."""

    def node(self, name: str) -> NodeView:
        """The view of a node; all unknown if it was not looked at."""
        return self.nodes.get(name, UNSEEN)


UNSEEN = NodeView()
