"""Node types: what each gives a cache, and which one may become which [AWS: Supported node types;
parameter pages, node-type values]."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec


class NodeType(msgspec.Struct, frozen=True, kw_only=True):
    """A node type. ``None`` is "not published"."""

    name: str
    vcpu: int
    memory_gib: float | None
    maxmemory: int
    """Bytes for data and reserved memory together (Valkey and Redis)."""
    maxclients: int
    replica_buffer: int
    """``client-output-buffer-limit-replica-*``, bytes."""
    cache_mb: int | None
    """Memcached ``max_cache_memory``, MiB; None where Memcached is not offered."""
    network: str
    """Baseline and burst, Gbit/s."""
    ssd_gib: float | None
    """Of data tiering types."""
    generation: Literal["current", "previous"]

    @property
    def threads(self) -> int:
        """Memcached ``num_threads``."""
        return self.vcpu

    @property
    def tiered(self) -> bool:
        return self.ssd_gib is not None


@cache
def node_types() -> dict[str, NodeType]:
    """All node types by name, in the order of the table."""
    text = files("cachekeep.engines").joinpath("data/node_types.csv").read_text()
    return {row["name"]: _node_type(row) for row in csv.DictReader(text.splitlines())}


def _node_type(row: dict[str, str]) -> NodeType:
    maxmemory = int(row["maxmemory"])
    known = {key: value or None for key, value in row.items()}
    known["replica_buffer"] = row["replica_buffer"] or str(maxmemory // 10)  # AWS: about a tenth, where it publishes none
    return msgspec.convert(known | {"network": row["network"]}, NodeType, strict=False)


def node_type(name: str) -> NodeType | None:
    """The node type of that name, or None."""
    return node_types().get(name)


def offered(engine: str) -> tuple[str, ...]:
    """Names of the types on which ``engine`` can run."""
    return tuple(n.name for n in node_types().values() if _can_run(engine, n))


def allowed_modifications(engine: str, current: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(scale up, scale down) for ListAllowedNodeTypeModifications, each from small to large; empty for an unknown type.

    Up is at least as much memory, down is less; whether the data fits is for the caller to say. Types of previous generations are
    left but never entered, and data tiering is neither entered nor left [AWS: Scaling; Data tiering].
    """
    now = node_type(current)
    if now is None:
        return (), ()
    others = sorted(
        (n for n in node_types().values() if n.name != current and n.generation == "current" and n.tiered == now.tiered),
        key=lambda n: (n.maxmemory, n.name),
    )
    fit = [n for n in others if _can_run(engine, n)]
    return (
        tuple(n.name for n in fit if n.maxmemory >= now.maxmemory),
        tuple(n.name for n in fit if n.maxmemory < now.maxmemory),
    )


def _can_run(engine: str, n: NodeType) -> bool:
    return engine != "memcached" or n.cache_mb is not None
