"""The doors to the world: ``Driver`` (processes) and ``Link`` (orders to an engine).

Two of each exist, the real one and its simulated twin; ``tests/contract`` runs one suite over both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from cachekeep.model import (
    Admit,
    Convert,
    Digests,
    Elect,
    EngineEffect,
    Follow,
    HandOver,
    Heard,
    Introduce,
    Limits,
    LimitsSeen,
    Meet,
    Moment,
    MoveSlots,
    NodeView,
    Own,
    Process,
    Replicate,
    Secret,
    Swap,
)

Key = tuple[str, str]
"""A process: (``Cache.uid``, node or front name)."""


class Kept(msgspec.Struct, frozen=True):
    """A file that the driver's side keeps by this name, such as an RDB to start from: not carried through the door."""

    name: str


class File(msgspec.Struct, frozen=True):
    """A file in the process's own directory. Secret ones have mode 0600, and so does everything else unless it must not."""

    content: str | bytes | Kept
    """Text, in which ``{dir}`` and ``{listen}`` stand for what they do in ``ProcessSpec``; bytes as they are; or a copy of what is
    kept."""
    secret: bool = True


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is needed to start a process, and nothing of the machine on which it will be.

    In ``argv`` and in the text of files ``{dir}`` stands for its own directory, and ``{listen}`` for the address that it binds.
    ``address`` is where others reach it; whether that is the same is the driver's matter.
    """

    key: Key
    incarnation: int
    decision: int = 0
    """The one that the start follows from: an end that follows from an earlier one is not meant for this process."""
    argv: tuple[str, ...]
    """The first word names a program; what is run for it there is the driver's to know."""
    files: dict[str, File] = {}
    env: dict[str, str] = {}
    address: str
    port: int
    zone: str = ""
    probe: Literal["resp", "memcached", "tcp"] = "tcp"
    tls: bool = False
    """The probe has to come by TLS."""
    limits: Limits = Limits()
    """Of the whole process, as far as the machine holds processes to limits."""
    settings: dict[str, str] = {}
    """Those of the engine's settings that it can be told anew while it runs."""
    digests: Digests = {}
    """Of what it starts with."""
    order: int = 0
    """The process is born having seen this order: one that was meant for an earlier process of the node finds deaf ears."""


class ProcessSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A process as the driver knows it, without asking the engine."""

    process: Process | None
    incarnation: int = 0
    decision: int = 0
    """That had it started."""
    pid: int | None = None
    cpu_seconds: float | None = None
    """That its main thread has used; None: it does not run, or nobody can tell."""
    program: str = ""
    """That it was started as, by the name in its spec; empty: nobody knows."""
    digests: Digests | None = None
    """Of what it runs with, as far as it was told."""
    last_order: int = 0
    lead_order: int = 0
    """The last order by which it was let lead; 0: none was."""
    heard: tuple[Heard, ...] = ()
    """What it has said that it holds, newest first."""
    ended_at: Moment | None = None
    """When it was seen to end; None while it lives, and if nobody saw it."""
    limits: LimitsSeen | None = None
    """What it is held to; None: it does not run."""
    problem: str | None = None
    """Why the last start failed or the process ended, with the last line of its log."""


class Memory(Protocol):
    """What has to be remembered of a process for as long as it is the node's last: longer than this control plane may live."""

    async def admit(self, key: Key, order: int, *, leading: bool = False) -> bool:
        """Remember ``order`` if it is not older than the last one admitted for this process; False if it is. Survives restarts.

        ``leading``: it is an order to lead. A new process has not been let lead.
        """

    def remember(self, key: Key, heard: Heard) -> None:
        """Keep what a process has said that it holds. Survives its end, and is forgotten when another is started in its place."""


class Places(Protocol):
    """Where nodes and endpoints may be: addresses that somebody can be given."""

    async def free(self, uid: str, count: int, *, taken: Collection[str]) -> tuple[str, ...]:
        """Up to ``count`` addresses for a cache, none of which is ``taken``; fewer when there are no more. It gives none away: the
        same may be offered again until a cache has been decided to have it."""


class Driver(Memory, Protocol):
    """Starts, stops, looks after and erases processes. Every call is idempotent."""

    async def open(self) -> None:
        """Take up every process of before. Called once, before anything else. Raises ``Unusable``."""

    def capacity(self) -> Limits:
        """What there is for all processes together; open files: for each. None: as many as you like, or nobody knows."""

    def known(self) -> list[Key]:
        """Every process that was started and not erased, whether it runs or not."""

    async def start(self, spec: ProcessSpec) -> None:
        """Have the process of ``spec.incarnation`` running and accepting connections.

        Does nothing if it is; refuses (``OrderFailed``) to start beside a living process of another incarnation, or an incarnation
        older than the last. Raises ``OrderFailed`` with the log's last words if it ends or stays silent.
        """

    async def stop(self, key: Key, *, grace_seconds: float, decision: int | None = None) -> None:
        """Have the process confirmed gone: SIGTERM, then SIGKILL after ``grace_seconds`` (0: SIGKILL at once,
        also where another call still gives it grace).

        ``decision`` is the one that this follows from (``Decided.serial``). A process that was started by a later one is left
        alone: ``OrderFailed``. None: whatever is there is meant.
        """

    async def erase(self, key: Key, *, decision: int | None = None) -> None:
        """Stop, then remove the process's directory, cgroup and all. ``decision`` as for ``stop``."""

    async def look(self, keys: Iterable[Key]) -> dict[Key, ProcessSeen]:
        """What is known of these processes; cheap enough for every pass."""

    async def rewrite(self, key: Key, files: Mapping[str, File], *, digests: Digests) -> None:
        """Replace files of a process atomically and remember the digests of those parts that it has just been told."""

    async def limit(self, key: Key, limits: Limits) -> None:
        """Hold the running process to these limits; those that are None stay as they are.

        A limit that this machine cannot set is not tried again, and ``look`` says so. Raises ``OrderFailed`` if the
        process does not run, or where more is in use than a limit would allow: it stays as it was.
        """

    def on_death(self, callback: Callable[[Key], None]) -> None:
        """Call back (in the event loop) when a process of ours ends, whoever started it."""

    async def aclose(self) -> None:
        """Let go of everything; processes go on."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A node to speak to."""

    key: Key
    address: str
    port: int
    engine: str
    version: str
    password: Secret
    trust: str = ""
    """It is spoken to by TLS, if it shows a certificate for its address by one of these authorities (PEM); empty: without."""
    cluster_id: str = ""
    """Cluster mode: its id on the cluster bus."""
    fed_from_outside: bool = False
    """Cluster mode: its primary is a node without."""
    moving: bool = False
    """Cluster mode: slots are on their way, so it is worth looking closely."""

    @property
    def name(self) -> str:
        """The node's."""
        return self.key[1]


Targets = Mapping[str, Target]
"""The nodes that an effect names, by their names."""


class ApplyParts(msgspec.Struct, frozen=True, kw_only=True):
    """What ``Apply`` comes down to for the engine: one part after the other, in this order, each all or none."""

    node: str
    acl: tuple[str, ...] = ()
    """Lines of users, each of which begins anew. Users of which nothing is said stay as they are."""
    gone: tuple[str, ...] = ()
    """Users that go, with their connections."""
    login: str = ""
    """As which user it is to come to its primary."""
    settings: Mapping[str, str] = {}
    tls: Mapping[str, str] = {}


class PublishDiscovery(msgspec.Struct, frozen=True):
    """What ``Discover`` comes down to for the engine: this list, in the node's own ``AmazonElastiCache:cluster`` key."""

    node: str
    payload: str


LinkEffect = EngineEffect | ApplyParts | PublishDiscovery
"""Effects that a link carries out."""


def named_by(effect: LinkEffect) -> tuple[str, ...]:
    """The nodes that a link must find to carry the effect out: those that are told, and those that they are told of."""
    match effect:
        case HandOver() | Convert() | Swap():
            return effect.giver, effect.taker
        case MoveSlots():
            return effect.source, effect.target
        case Follow() | Replicate() | Admit():
            return effect.node, effect.primary
        case Introduce():
            return effect.node, effect.primary, *effect.others
        case Elect() | Meet() | Own():
            return effect.node, *effect.others
        case _:
            return (effect.node,)


CarriedBy = dict[type, Callable[[Any, Targets], Awaitable[None]]]
"""What a link does about each type of ``LinkEffect``: the one place where it says so."""


class Link(Protocol):
    """Speaks to engines: looks at them and carries effects to them."""

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        """Ask the engine. ``NodeView.answer`` says what came of it, its seconds what this look alone knows. Never raises."""

    async def carry(self, effect: LinkEffect, at: Targets) -> None:
        """Carry the effect out. Raises ``OrderFailed`` when it was not confirmed as done.

        Of what takes a while it is confirmed that it has begun: what comes of an election or an introduction is seen by looking.
        """

    def watch(self, target: Target, *, interval_seconds: float, deadline_seconds: float, wake: Callable[[Key], None]) -> None:
        """Heartbeat: ``wake`` when the node misses a deadline, or the state of its replication
        or its discovery list changes. Cheap when idle."""

    def unwatch(self, key: Key) -> None:
        """End the heartbeat and close connections to the node."""

    async def aclose(self) -> None:
        """Close every connection."""
