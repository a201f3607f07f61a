"""What is going on in a shard, with slots and with a node: one thing at a time, each with its own data."""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.moment import Moment


class Move(msgspec.Struct, frozen=True, kw_only=True, tag="move"):
    """A planned hand-over: the primary steps down for a replica. Decided before the engines hear of it."""

    to: str


class Conversion(msgspec.Struct, frozen=True, kw_only=True, tag="conversion"):
    """The hand-over to a successor, which is in cluster mode."""

    to: str
    since: Moment
    lost: str | None = None
    """The primary that is lost, with all who were in sync: the successor inherits. None: the primary hands over."""


class Election(msgspec.Struct, frozen=True, kw_only=True, tag="election"):
    """Cluster mode: a replica stands for election in place of a primary that is gone."""

    to: str
    lost: str
    since: Moment
    """When it was decided; once it takes over without a vote: when that was."""
    seize: bool = False
    """It takes over without a vote: nobody is left who could vote, or object."""


class Starving(msgspec.Struct, frozen=True, kw_only=True, tag="starving"):
    """The primary cannot be confirmed stopped: its replicas leave it, and lead when it must refuse writes for want of them."""

    since: Moment | None = None
    """When its replicas were seen to have left."""


class Recovery(msgspec.Struct, frozen=True, kw_only=True, tag="recovery"):
    """The primary took over from one that is lost, and is not seen to lead yet: then the failover is told."""

    lost: str


Change = Move | Conversion | Election | Starving | Recovery
"""Of who leads a shard. Planned moves begin where somebody is seen to lead, when no ``Recovery`` is under way any more; what a loss
brings about takes the place of what was planned."""


Doubt = Literal["nothing", "out of sync", "behind", "silence", "another history", "unheard"]
"""Why a node cannot be shown to have what somebody acknowledged: it was not in sync with it; it lacks what was heard of it; the
other was not heard for too long; or wrote another history; or was not heard by anybody who is still here."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody is promoted in a shard by itself. Each is told as an event once."""

    shard: str
    lost: str
    """Who led, or was to."""
    best: str
    """Who leads if the user accepts the loss."""
    doubt: Doubt
    lead: str = ""
    """Whose writes ``best`` may lack."""


class Predecessor(msgspec.Struct, frozen=True, kw_only=True):
    """Cluster mode: who led before the primary. Clients that have not heard of that still come to it."""

    name: str
    since: Moment
    """When the primary was seen to lead in place of it."""


class Resharding(msgspec.Struct, frozen=True, kw_only=True, tag="resharding"):
    """Slots are on their way to where ``Shard.slots`` wants them."""

    slots: int
    """How many were astray when they set out."""


class Resharded(msgspec.Struct, frozen=True, kw_only=True, tag="resharded"):
    """All have arrived. Shards that are left without any still send clients on."""

    since: Moment


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """To be confirmed stopped, and then started anew: its restart is due, or it is a replica that hangs."""


class Condemned(msgspec.Struct, frozen=True, kw_only=True, tag="condemned"):
    """Found hung or lost: to be confirmed stopped before anything else happens to its shard."""

    since: Moment


class Starved(msgspec.Struct, frozen=True, tag="starved"):
    """Succeeded without having been confirmed stopped: it is to be stopped yet, but its shard does not wait for that."""


class Spoilt(msgspec.Struct, frozen=True, kw_only=True, tag="spoilt"):
    """A successor that was found to have refused part of what it was fed: it runs on, and is fed anew after a while."""

    since: Moment


Fate = Halted | Condemned | Starved | Spoilt
"""What becomes of the process of a node. It ends with the process."""
