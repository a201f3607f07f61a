"""Jobs: work for one cache that has a beginning and an end, may take minutes, may fail, and has a name for as long as it lasts.

What has been decided of a job is its ``state``; what it does just now is *seen* (``JobSeen``), and what is not known of it is no
failure. An ``Errand`` is done by the planner's rules, decision after decision; a ``Task`` at a door of its own, beside them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.moment import Moment
from cachekeep.model.resources import Record

ErrandKind = Literal["reboot", "promote", "test-failover", "promote-stale", "rebalance", "snapshot", "patch", "stop-patch"]


class Errand(msgspec.Struct, frozen=True, kw_only=True, tag="errand"):
    """What a user asks for once. It is left to do until there is a job for it.

    ``reboot`` names nodes; ``promote`` names the one node that is to lead; ``test-failover`` names a shard and, of its job, who led
    it; ``promote-stale`` allows a shard to promote a node outside its in-sync set, losing what that node never received;
    ``rebalance`` spreads slots evenly; ``snapshot`` has the snapshot of that uid taken, from the node named if that can be: it is
    done by a task, which bears its id.
    """

    serial: int
    kind: ErrandKind
    nodes: tuple[str, ...] = ()
    shard: str | None = None
    snapshot: str = ""

    @property
    def id(self) -> str:
        """Of its job."""
        return f"errand-{self.serial}"


class Task(msgspec.Struct, frozen=True, kw_only=True, tag="task"):
    """Work that goes on by itself where the planner has only begun it. It can be begun again when it is lost, or has failed:
    whatever an attempt leaves behind, the next one bears."""

    kind: str
    arguments: dict[str, str] = {}


class Beginning(msgspec.Struct, frozen=True, tag="beginning"):
    """This attempt is to be begun; nobody has seen it yet."""

    attempt: int = 1


class Running(msgspec.Struct, frozen=True, tag="running"):
    """This attempt has been seen; an errand, which has only one, has been taken up."""

    attempt: int = 1


class Resting(msgspec.Struct, frozen=True, tag="resting"):
    """This attempt has failed; the next one begins when some time has passed since."""

    attempt: int
    since: Moment
    problem: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It has ended well."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It has ended otherwise, and is not tried again."""

    problem: str


JobState = Beginning | Running | Resting | Done | Failed


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work that has been decided. ``id`` is its own in its cache, for good."""

    id: str
    work: Errand | Task
    began_at: Moment
    deadline_seconds: float
    """Whatever has not ended so long after it began has failed."""
    state: JobState

    @property
    def ended(self) -> bool:
        """Nothing comes of it any more."""
        return isinstance(self.state, Done | Failed)


class Missing(msgspec.Struct, frozen=True):
    """The door has nothing of that name, and says so: it was never begun, or is lost."""


class Working(msgspec.Struct, frozen=True):
    """An attempt goes on."""

    attempt: int
    percent: float | None = None
    """Of it done; None: it cannot say."""


class Worked(msgspec.Struct, frozen=True):
    """An attempt has ended well. ``records`` are what it leaves in the store, with the decision that it is done."""

    attempt: int
    records: tuple[Record, ...] = ()


class Broken(msgspec.Struct, frozen=True):
    """An attempt has failed."""

    attempt: int
    problem: str


JobSeen = Missing | Working | Worked | Broken
