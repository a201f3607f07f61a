"""Jobs: work for one cache that has a beginning and an end, may take minutes, may fail, and has a name for as long as it lasts."""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.moment import Moment

ErrandKind = Literal["reboot", "promote", "test-failover", "promote-stale", "rebalance"]


class Errand(msgspec.Struct, frozen=True, kw_only=True, tag="errand"):
    """What a user asks for once. It is left to do until there is a job for it.

    ``reboot`` names nodes; ``promote`` names the one node that is to lead; ``test-failover`` names a shard and, of its job, who led
    it; ``promote-stale`` allows a shard to promote a node outside its in-sync set, losing what that node never received;
    ``rebalance`` spreads slots evenly.
    """

    serial: int
    kind: ErrandKind
    nodes: tuple[str, ...] = ()
    shard: str | None = None

    @property
    def id(self) -> str:
        """Of its job."""
        return f"errand-{self.serial}"


class Running(msgspec.Struct, frozen=True, tag="running"):
    """It has been taken up."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It has ended well."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It has ended otherwise, and is not tried again."""

    problem: str


JobState = Running | Done | Failed


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work that has been decided. ``id`` is its own in its cache, for good."""

    id: str
    work: Errand
    began_at: Moment
    deadline_seconds: float
    """Whatever has not ended so long after it began has failed."""
    state: JobState

    @property
    def ended(self) -> bool:
        """Nothing comes of it any more."""
        return isinstance(self.state, Done | Failed)
