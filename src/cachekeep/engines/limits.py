"""What a node's process, and a front's, may use of the machine: one formula, for starting it, for resizing it, and for the question
whether there is room for it.

Two amounts must not be confused. A node type's *maxmemory* is what ElastiCache publishes: data and reserved memory
together. The engine is told that less ``reserved-memory`` (``config.maxmemory``), as there, so that eviction begins
where it does at AWS. The *process* needs more: what is reserved is there for a fork's copy, for buffers and for
fragmentation, and where it is too little for them, ElastiCache swaps. A process that reaches the limit of its control
group is killed with all that it holds, so the limit is what it can need at the worst.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cachekeep.engines.config import (
    ENGINES_OWN_FILES,
    Sort,
    client_memory,
    maxmemory,
    parameter_values,
    settings_of,
    sort,
)
from cachekeep.model import Cache, Front, Limits, Node, Wanted
from cachekeep.model.traits import traits

_MIB: Final = 1 << 20
FRAGMENTATION: Final = 2
"""Resident memory against what the engine counts, at the worst: a cache full of small values that turns over to larger
ones has holes in every page (measured: 1.66 before a fork, docs/benchmarks.md)."""
FORK: Final = 2
"""While a fork writes a replica's file, every page that clients write to is there twice; they may write to all of them."""
PROGRAM_BYTES: Final = 64 * _MIB
"""Code, stacks, tables, the allocator's own."""
SHARED_REPLICA_BUFFERS_SINCE: Final = (7, 0)
"""Before, each replica has a buffer of its own."""
REPLICAS_MAX: Final = 5
FRONT_CONNECTIONS: Final[dict[str, int]] = {"balancer": 10_000, "compatible": 10_000, "discovery": 1_000}
"""Clients at a time, two descriptors each."""
FRONTS_OWN_FILES: Final = 100
BALANCER_BYTES: Final = 32 * _MIB
"""Of HAProxy itself: 14 MiB are resident (measured, HAProxy 2.6), and it may be started under load."""
BALANCED_BYTES: Final = 40 << 10
"""Of a connection whose ends both take nothing: a buffer of 16 KiB each way, and what is known of both (measured: 35 KiB; while it
is idle, 3.3 KiB)."""
MEMCACHED_OWN_FILES: Final = 64
"""Its sockets, pipes and log."""
CONNECTION_BYTES: Final = 1 << 10
"""Of an idle Memcached connection."""


def limits(cache: Cache, node: Node) -> Limits:
    """What the process of ``node`` may use."""
    return limits_of(sort(cache, node))


def front_limits(front: Front) -> Limits:
    """What a front's process may use. It takes no more connections than it has descriptors for, so a balancer never needs more than
    all of these at their worst: a flood takes nothing from the host, nor from whoever is connected already."""
    connections = FRONT_CONNECTIONS[front.kind]
    memory = BALANCER_BYTES + connections * BALANCED_BYTES if front.kind == "balancer" else None
    return Limits(memory_bytes=memory, open_files=2 * connections + FRONTS_OWN_FILES)


def memory_needed(wanted: Wanted) -> int:
    """What each node of a cache may use, bytes; 0 for a node type that is not in the table."""
    try:
        return _memory_bytes(_sort_of(wanted))
    except KeyError:
        return 0


def data_bytes(wanted: Wanted) -> int:
    """What each node of a cache may fill with data, bytes. Raises KeyError for a node type that is not in the table."""
    kind = _sort_of(wanted)
    return maxmemory(parameter_values(kind), kind.machine)


def _sort_of(wanted: Wanted) -> Sort:
    return Sort(wanted.engine, wanted.version, wanted.node_type, 0, False, 0, tuple(wanted.parameters.items()))


@lru_cache(maxsize=1024)
def limits_of(node: Sort) -> Limits:
    """What each process of nodes of a sort may use."""
    return Limits(memory_bytes=_memory_bytes(node), cpus=float(node.machine.vcpu), open_files=_open_files(node))


def _memory_bytes(node: Sort) -> int:
    """In whole MiB, as kernels count in pages."""
    return -(-_needed_bytes(node) // _MIB) * _MIB


def _needed_bytes(node: Sort) -> int:
    """Full at ``maxmemory``, fragmented, with all of it copied for a fork, every buffer at its bound: never less than
    the node type's own memory, which is the user's to fill."""
    values, machine = parameter_values(node), node.machine
    if not traits(node.engine).replicates:
        return _memcached_bytes(values)
    data = maxmemory(values, machine)
    shared = node.numbers >= SHARED_REPLICA_BUFFERS_SINCE
    replicas = machine.replica_buffer * (1 if shared else REPLICAS_MAX)
    buffers = replicas + int(values.get("repl-backlog-size", "0")) + client_memory(data, machine)
    return max(data * FRAGMENTATION * FORK, machine.maxmemory) + buffers + PROGRAM_BYTES


def _memcached_bytes(values: dict[str, str]) -> int:
    """Memcached does not fork, and its slabs are taken whole: items and what ``memcached_connections_overhead`` leaves
    to connections (``max_cache_memory`` is both), its hash table, and idle connections."""
    cache = int(values["max_cache_memory"]) * _MIB
    return cache + cache // 4 + int(values["max_simultaneous_connections"]) * CONNECTION_BYTES + PROGRAM_BYTES


def _open_files(node: Sort) -> int:
    """A descriptor for each client, and the process's own."""
    if not traits(node.engine).replicates:
        return int(parameter_values(node)["max_simultaneous_connections"]) + MEMCACHED_OWN_FILES
    return int(settings_of(node).live["maxclients"]) + ENGINES_OWN_FILES
