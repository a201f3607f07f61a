"""What each engine can. Whoever must know asks here, and compares no names of engines."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Speaks = Literal["resp", "memcached"]


class Traits(NamedTuple):
    """Of an engine, as ElastiCache has it and as it is spoken to."""

    speaks: Speaks
    replicates: bool
    """Its nodes are primaries and replicas: there is somebody to take over, and to give orders to."""
    has_users: bool
    snapshots: bool
    """It can write what it holds to a file, and start from that."""
    listed: bool
    """Its clients are told of all nodes by a list (auto discovery): a cluster is of several nodes, which have numbers."""


_REPLICATED: Final = Traits(speaks="resp", replicates=True, has_users=True, snapshots=True, listed=False)
_TRAITS: Final = {
    "valkey": _REPLICATED,
    "redis": _REPLICATED,
    "memcached": Traits(speaks="memcached", replicates=False, has_users=False, snapshots=False, listed=True),
}


def traits(engine: str) -> Traits:
    """Raises KeyError for an engine that is not served."""
    return _TRAITS[engine]
