"""The cluster side of one simulated process: what it believes of itself and of others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from cachekeep.model import SlotRange
from cachekeep.plan.slots.ranges import Ranges, common, union
from cachekeep.sim.world import Engine

NODE_TIMEOUT_SECONDS, REJOIN_SECONDS = 15.0, 5.0


@dataclass
class Peer:
    """What a node believes of another."""

    address: str
    follows: str = ""
    """Id of its primary; empty: it is a primary itself."""
    epoch: int = 0
    heard: float = 0.0
    told: bool = False
    """It has said that it is fed, so clients hear of it."""


class Op(NamedTuple):
    """An entry of a replication stream: a key gets a value, or goes."""

    key: int
    value: int | None


@dataclass(eq=False)
class Member:
    """The cluster side of one process."""

    engine: Engine
    id: str
    born: float
    peers: dict[str, Peer] = field(default_factory=dict)
    owner: dict[str, Ranges] = field(default_factory=dict)
    """Id → slots that it owns, in this node's belief; its own belong here too."""
    unclaimed: Ranges = ()
    """Slots whose owner, in this node's belief, does not claim them any more."""
    follows: str = ""
    epoch: int = 0
    current_epoch: int = 0
    last_vote_epoch: int = 0
    voted: dict[str, float] = field(default_factory=dict)
    banned: dict[str, float] = field(default_factory=dict)
    migrating: dict[int, str] = field(default_factory=dict)
    importing: dict[int, str] = field(default_factory=dict)
    handing: Ranges = ()
    """Slots whose writes wait, at the end of an atomic move."""
    ok: bool = False
    minority_at: float = -REJOIN_SECONDS
    timeout_seconds: float = NODE_TIMEOUT_SECONDS
    abstains: bool = False
    """``cluster-replica-no-failover``: it does not stand for election but when it is told to."""
    refused: int = 0
    """Commands of its primary's stream that an engine in cluster mode cannot carry out."""
    stood_at: float = -NODE_TIMEOUT_SECONDS
    job: asyncio.Event | None = None
    """An atomic move that has not ended."""
    folded: tuple[int, int] = (-1, 0)
    held: dict[int, int] = field(default_factory=dict)

    @property
    def slots(self) -> Ranges:
        return self.owner.get(self.id, ())

    @property
    def leads(self) -> bool:
        return self.engine.role == "primary"

    def owner_of(self, slot: int) -> str | None:
        return next((id for id, ranges in self.owner.items() if common(((slot, slot),), ranges)), None)


def member_of(engine: Engine, now: float) -> Member:
    """What ``nodes.conf`` says."""
    member = Member(engine, "", now)
    member.timeout_seconds = float(engine.spec.settings.get("cluster-node-timeout", NODE_TIMEOUT_SECONDS * 1000)) / 1000
    member.abstains = engine.spec.settings.get("cluster-replica-no-failover") == "yes"
    for line in str(engine.spec.files["nodes.conf"].content).splitlines():
        words = line.split()
        if words[0] == "vars":
            member.current_epoch, member.last_vote_epoch = int(words[2]), int(words[4])
            continue
        id, where, flags, primary, _, _, epoch, _, *slots = words
        follows = "" if primary == "-" else primary
        ranges: list[SlotRange] = [(int(a), int(b or a)) for a, _, b in (w.partition("-") for w in slots)]
        member.owner[id] = union(tuple(ranges))
        if "myself" in flags:
            member.id, member.follows, member.epoch = id, follows, int(epoch)
        else:
            member.peers[id] = Peer(where.partition(":")[0], follows, int(epoch), now)
    return member
