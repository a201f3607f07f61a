"""How a cache is, as its keeper last saw it: told to the API side, valid only while that keeper holds the lease."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec.structs import replace

CacheStatus = Literal[
    "creating",
    "create-failed",
    "restore-failed",
    "available",
    "modifying",
    "snapshotting",
    "deleting",
    "rebooting cache cluster nodes",
]
REBOOTING: Final = "rebooting cache cluster nodes"
"""AWS's recorded answer for a cluster, and the only text that Ansible's module knows."""
NodeStatus = Literal["creating", "available", "rebooting", "modifying", "snapshotting", "deleting"]


class NodeCondition(msgspec.Struct, frozen=True, kw_only=True):
    """One node, for Describe calls and ``cachekeep status``."""

    name: str
    status: NodeStatus
    role: Literal["primary", "replica"] | None = None
    in_sync: bool = False
    lag_bytes: int | None = None
    pending_reboot: bool = False
    program: str = ""
    """The build that its process runs; empty: nobody knows."""
    holds_bytes: int | None = None
    """At least so much counts against its ``maxmemory``: told in tenths of that, not to tell something new all the time."""
    fewer_clients: str | None = None
    """Why it takes fewer clients than its node type allows."""
    problem: str | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cache. ``because`` is what users should read: what cannot be done, or the planner's last sentence. ``refused``
    means that it waits for the user, or for what it cannot bring about itself."""

    status: CacheStatus
    because: str
    settled: bool
    """Nothing is on its way: a held Describe may answer."""
    refused: bool = False
    nodes: tuple[NodeCondition, ...] = ()
    clients_told: str = ""
    """Fingerprint of who may be a client, as all nodes that answer know it; empty: some do not yet."""
    version: int = 0
    """``Cache.version`` that it describes: a newer row makes it stale."""

    def without_figures(self) -> Condition:
        """Without what is another at every look, though nothing has happened."""
        return replace(self, because="", nodes=tuple(replace(n, lag_bytes=None) for n in self.nodes))
