"""What the planner answers: decide, act, wait or forget; and the effects that hands carry out.

Effects are idempotent and name what has been decided; carrying one out twice, or after it has become true by itself, is harmless.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.cache import Decided, SlotRange
from cachekeep.model.limits import Limits
from cachekeep.model.resources import Event, Record
from cachekeep.model.runtime import Part


class Start(msgspec.Struct, frozen=True):
    """Start the process of a node or front in its decided incarnation. Valkey and Redis start as a replica of nobody."""

    name: str


class Stop(msgspec.Struct, frozen=True):
    """Stop the process and confirm that it is gone. ``grace_seconds`` 0 is SIGKILL at once: a fence."""

    name: str
    grace_seconds: float = 0.0


class Erase(msgspec.Struct, frozen=True):
    """Stop the process and remove all that it left on disk."""

    name: str


class Promote(msgspec.Struct, frozen=True):
    """Make the node a primary and let it listen on ``addresses``. Refused by a node that has seen ``order`` or a later one."""

    node: str
    order: int
    addresses: tuple[str, ...]


class Follow(msgspec.Struct, frozen=True):
    """Make the node a replica of ``primary``. Refused by a node that has seen a later order."""

    node: str
    primary: str
    order: int


class HandOver(msgspec.Struct, frozen=True):
    """Move the lead without losing a write: pause writes at ``giver``, wait until ``taker`` has them all, take the endpoint off
    the giver, demote it, promote the taker, put the endpoint there, drop the giver's clients. Within ``timeout_seconds``, or all
    stays as it was."""

    giver: str
    taker: str
    order: int
    giver_addresses: tuple[str, ...]
    taker_addresses: tuple[str, ...]
    timeout_seconds: float


class Convert(msgspec.Struct, frozen=True):
    """Move the lead from a node without cluster mode to one in cluster mode that it feeds, without losing a write: pause writes at
    ``giver``, take the endpoint off it, demote it for good, wait until ``taker`` has everything and has refused nothing of it, let
    it take all slots. Nobody is led to the taker by that. Within ``timeout_seconds``, or all stays as it was."""

    giver: str
    taker: str
    order: int
    giver_addresses: tuple[str, ...]
    timeout_seconds: float


class Witness(msgspec.Struct, frozen=True):
    """Have a replica connect to its primary anew, so that what it says of the link is the truth. Confirmed when it is linked again,
    is shaking hands, or has tried in vain. It resumes where it was (partial resynchronisation)."""

    node: str
    primary: str


class Admit(msgspec.Struct, frozen=True):
    """Let a replica in at its primary, which has as many clients as it may. Refused by a node that has seen a later order."""

    node: str
    primary: str
    order: int


class Interrupt(msgspec.Struct, frozen=True):
    """Have the node end the script or function that it runs, if that has written nothing (``SCRIPT KILL``, ``FUNCTION KILL``)."""

    node: str


class Detach(msgspec.Struct, frozen=True):
    """Have a replica leave its primary and follow nobody. It keeps what it holds, and acknowledges nothing any more.
    Refused by a node that has seen a later order."""

    node: str
    order: int


class Bind(msgspec.Struct, frozen=True):
    """Let the node accept connections on exactly these addresses. ``drop_clients``: then disconnect its ordinary clients, so that
    their pools connect anew, where the endpoint is now."""

    node: str
    addresses: tuple[str, ...]
    drop_clients: bool = False


class Apply(msgspec.Struct, frozen=True):
    """Bring the running process of a node or front to what it should run with: hold it to ``limits``, of which those that are None
    stay as they are, and have a node's engine told ``parts``. A limit is not lowered below what is in use."""

    name: str
    parts: tuple[Part, ...] = ()
    limits: Limits = Limits()


class Point(msgspec.Struct, frozen=True):
    """Tell a front which nodes to pass on to; ``version`` numbers a discovery list."""

    front: str
    targets: tuple[str, ...]
    version: int = 0


class Discover(msgspec.Struct, frozen=True):
    """Write the discovery list into a Memcached node's own key."""

    node: str
    targets: tuple[str, ...]
    version: int


class Elect(msgspec.Struct, frozen=True):
    """Cluster mode: have the replica stand for election at once; ``seize``: take over without a vote, but not while it believes
    that its primary owned slots that one of ``others`` owns by now: nobody's vote would keep it from taking them."""

    node: str
    order: int
    seize: bool = False
    others: tuple[str, ...] = ()


class Swap(msgspec.Struct, frozen=True):
    """Cluster mode: move the lead of a shard without losing a write: pause writes at ``giver``, wait until ``taker`` has them all,
    let it take over, wait until the giver follows. Within ``timeout_seconds``, or all stays as it was."""

    giver: str
    taker: str
    order: int
    timeout_seconds: float


class Replicate(msgspec.Struct, frozen=True):
    """Cluster mode: make the node a replica of ``primary``. Refused by a node that has seen a later order."""

    node: str
    primary: str
    order: int


class Meet(msgspec.Struct, frozen=True):
    """Cluster mode: introduce other nodes to this one."""

    node: str
    others: tuple[str, ...]


class Introduce(msgspec.Struct, frozen=True):
    """Cluster mode: have ``others``, who know the node, hear from itself that ``primary`` feeds it: only then they tell clients of
    it."""

    node: str
    primary: str
    others: tuple[str, ...]


class Disown(msgspec.Struct, frozen=True):
    """Cluster mode: have the node forget others, by their ids on the cluster bus."""

    node: str
    ids: tuple[str, ...]


class Own(msgspec.Struct, frozen=True):
    """Cluster mode: give the node slots that nobody owns, whomever others believe to own them. Refused by a node that has seen
    later orders, and where one of ``others`` owns one of these slots after all."""

    node: str
    slots: tuple[SlotRange, ...]
    order: int
    others: tuple[str, ...] = ()


class Settle(msgspec.Struct, frozen=True):
    """Cluster mode: close slots that are half open on a node without need."""

    node: str
    slots: tuple[SlotRange, ...]


class MoveSlots(msgspec.Struct, frozen=True):
    """Cluster mode: move slots and their keys from one primary to another while both serve. Moves as many as it can within
    ``seconds``, and leaves no slot half open unless it is stopped in the middle. Refused by nodes that have seen later orders."""

    source: str
    target: str
    slots: tuple[SlotRange, ...]
    source_order: int
    target_order: int
    seconds: float


class Begin(msgspec.Struct, frozen=True):
    """Have this attempt of a job's task begin at its door. Nothing happens if it was begun; one that comes before it ends."""

    job: str
    attempt: int


class Cancel(msgspec.Struct, frozen=True):
    """Have whatever goes on of a job's task end, and be forgotten at its door. Confirmed when nothing of it goes on."""

    job: str


EngineEffect = (
    Promote
    | Follow
    | HandOver
    | Convert
    | Witness
    | Interrupt
    | Admit
    | Detach
    | Bind
    | Elect
    | Swap
    | Replicate
    | Meet
    | Introduce
    | Disown
    | Own
    | Settle
    | MoveSlots
)
"""Carried to an engine as they are."""
Effect = Start | Stop | Erase | Apply | Point | Discover | Begin | Cancel | EngineEffect


def subjects(effect: Effect) -> tuple[str, ...]:
    """The nodes, fronts or jobs that an effect is carried out on, the one that it is about first."""
    match effect:
        case Start(name) | Stop(name) | Erase(name) | Apply(name):
            return (name,)
        case HandOver() | Convert() | Swap():
            return effect.taker, effect.giver
        case MoveSlots():
            return effect.source, effect.target
        case Point(front):
            return (front,)
        case Begin(job) | Cancel(job):
            return (f"job {job}",)
        case _:
            return (effect.node,)


def overtakes(effect: Effect, other: Effect) -> bool:
    """Whether ``effect`` may begin although ``other`` is in flight on one of its subjects, and makes its outcome meaningless: an
    end of the process, which waits for nothing but for an end that comes as soon."""
    if not isinstance(effect, Stop | Erase) or effect.name not in subjects(other):
        return False
    sooner = isinstance(other, Stop) and other.grace_seconds > (effect.grace_seconds if isinstance(effect, Stop) else 0.0)
    return sooner or not isinstance(other, Stop | Erase)


def collides(effect: Effect, other: Effect) -> bool:
    """Whether ``effect`` has to wait for the end of ``other``: one order at a time to each subject. But for what an engine is told
    to run with, which waits for its like alone; and of moves of slots each has a source to itself, which nobody gives to
    meanwhile, and targets are shared."""
    if isinstance(effect, MoveSlots) and isinstance(other, MoveSlots):
        return effect.source in subjects(other) or effect.target == other.source
    if _tells(effect) or _tells(other):
        return _tells(effect) and _tells(other) and subjects(effect) == subjects(other)
    return not set(subjects(effect)).isdisjoint(subjects(other)) and not overtakes(effect, other)


def _tells(effect: Effect) -> bool:
    return isinstance(effect, Apply) and bool(effect.parts)


class Decide(msgspec.Struct, frozen=True):
    """Save ``decided``, tell ``events``, leave ``records``, all of it at once; think again."""

    decided: Decided
    because: str
    events: tuple[Event, ...] = ()
    records: tuple[Record, ...] = ()


class Act(msgspec.Struct, frozen=True):
    """Carry out effects: stage after stage, those of one stage at the same time; then look again."""

    stages: tuple[tuple[Effect, ...], ...]
    because: str


Reason = Literal[
    "acquaintance",
    "addresses",
    "answer",
    "calm",
    "coming",
    "consent",
    "databases",
    "election",
    "empty",
    "endpoints",
    "engine",
    "excuse",
    "failure",
    "fence",
    "flight",
    "job",
    "kernel",
    "leader",
    "limits",
    "linger",
    "room",
    "slots",
    "starving",
    "store",
    "sync",
    "turn",
    "unreachable",
    "witness",
]
"""What is waited for: programs compare this, people read the sentence."""
DEADLINES_SECONDS: dict[Reason, float] = {
    "acquaintance": 120.0,
    "answer": 120.0,
    "coming": 600.0,
    "election": 120.0,
    "endpoints": 120.0,
    "engine": 120.0,
    "excuse": 600.0,
    "fence": 120.0,
    "leader": 600.0,
    "slots": 600.0,
    "sync": 3600.0,
    "turn": 3600.0,
    "unreachable": 120.0,
    "witness": 120.0,
}
"""A wait that has lasted for longer is a problem that users should read of. The other reasons end by themselves, or are told as
problems at once (``Wait.refused``), or are no trouble at all (``calm``). A first synchronisation of a large cache takes long."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do for ``seconds``, or until woken. ``refused``: a rule stops here rather than guess; users should read why.

    ``steady``: it is about to happen, so waits that repeat are not stretched.
    """

    seconds: float
    reason: Reason
    because: str
    about: tuple[str, ...] = ()
    """Names of the nodes, fronts or shards that it is a matter of."""
    refused: bool = False
    steady: bool = False

    @property
    def deadline_seconds(self) -> float | None:
        """It should not last for longer than this; None: it may."""
        return DEADLINES_SECONDS.get(self.reason)


class Forget(msgspec.Struct, frozen=True):
    """Nothing is left of the cache: drop its row."""

    because: str
    events: tuple[Event, ...] = ()


Step = Decide | Act | Wait | Forget


def alike(step: Step | None, other: Step | None) -> bool:
    """Whether both do, or wait for, the same, whatever the figures in their sentences."""
    if isinstance(step, Wait) and isinstance(other, Wait):
        return (step.reason, step.about, step.refused) == (other.reason, other.about, other.refused)
    if isinstance(step, Act) and isinstance(other, Act):
        return step.stages == other.stages
    return step == other
