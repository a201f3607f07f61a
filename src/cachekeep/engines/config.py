"""From ElastiCache's parameters to the settings of a real server, and which of them a running one can change.

Nothing is passed on blindly: a table says which engine version knows a name, and what stays behind has a reason in
``EngineSettings.left_out``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from cachekeep.engines.catalogue import family_of
from cachekeep.engines.node_types import NodeType, node_type
from cachekeep.engines.parameters import defaults, node_type_value, parameters
from cachekeep.model import (
    Cache,
    Election,
    Node,
)
from cachekeep.model.traits import traits

_MIB = 1024 * 1024

_Version = tuple[int, int]

# ElastiCache's name is the server's name; these engines know it from these versions on (Redis, Valkey; None: not at all).
_ALWAYS: tuple[_Version, _Version] = ((0, 0), (0, 0))
_EVERYWHERE = (
    "active-defrag-cycle-max active-defrag-cycle-min active-defrag-ignore-bytes active-defrag-threshold-lower "
    "active-defrag-threshold-upper activerehashing client-query-buffer-limit cluster-require-full-coverage databases "
    "hash-max-ziplist-entries hash-max-ziplist-value hll-sparse-max-bytes lazyfree-lazy-eviction lazyfree-lazy-expire "
    "lazyfree-lazy-server-del lfu-decay-time lfu-log-factor list-compress-depth list-max-ziplist-size lua-time-limit "
    "maxclients maxmemory-policy maxmemory-samples min-slaves-max-lag min-slaves-to-write notify-keyspace-events "
    "proto-max-bulk-len repl-backlog-size repl-backlog-ttl repl-timeout set-max-intset-entries "
    "slowlog-log-slower-than slowlog-max-len tcp-keepalive timeout zset-max-ziplist-entries zset-max-ziplist-value"
)
_KNOWN_SINCE: dict[str, tuple[_Version | None, _Version | None]] = {
    **dict.fromkeys(_EVERYWHERE.split(), _ALWAYS),
    "active-defrag-max-scan-fields": ((5, 0), (0, 0)),
    "min-replicas-max-lag": ((5, 0), (0, 0)),
    "min-replicas-to-write": ((5, 0), (0, 0)),
    "replica-ignore-maxmemory": ((5, 0), (0, 0)),
    "stream-node-max-bytes": ((5, 0), (0, 0)),
    "stream-node-max-entries": ((5, 0), (0, 0)),
    "active-expire-effort": ((6, 0), (0, 0)),
    "acllog-max-len": ((6, 0), (0, 0)),
    "cluster-allow-reads-when-down": ((6, 0), (0, 0)),
    "lazyfree-lazy-user-del": ((6, 0), (0, 0)),
    "tracking-table-max-keys": ((6, 0), (0, 0)),
    "acl-pubsub-default": ((6, 2), (0, 0)),
    "cluster-allow-pubsubshard-when-down": ((7, 0), (0, 0)),
    "hash-max-listpack-entries": ((7, 0), (0, 0)),
    "hash-max-listpack-value": ((7, 0), (0, 0)),
    "latency-tracking": ((7, 0), (0, 0)),
    "zset-max-listpack-entries": ((7, 0), (0, 0)),
    "zset-max-listpack-value": ((7, 0), (0, 0)),
    "extended-redis-compatibility": (None, (8, 0)),
    "commandlog-large-reply-max-len": (None, (8, 1)),
    "commandlog-large-request-max-len": (None, (8, 1)),
    "commandlog-reply-larger-than": (None, (8, 1)),
    "commandlog-request-larger-than": (None, (8, 1)),
    "cluster-databases": (None, (9, 0)),
}
_LEFT_OUT: dict[str, str] = {
    "activedefrag": "needs a server built with the engine's own jemalloc; distributions build with the system's",
    "appendonly": "ElastiCache runs without an append-only file",
    "appendfsync": "ElastiCache runs without an append-only file",
    "close-on-replica-write": "only ElastiCache's own engine can do this; others answer READONLY and stay connected",
    "close-on-slave-write": "only ElastiCache's own engine can do this; others answer READONLY and stay connected",
    "rename-commands": "a renamed command breaks replication on the engines that there are",
    "search-default-timeout-ms": "needs the search module",
    "search-enable-partial-results": "needs the search module",
    "search-fanout-target-mode": "needs the search module",
    "list-max-ziplist-entries": "gone from engines since 3.2",
    "list-max-ziplist-value": "gone from engines since 3.2",
    "lua-replicate-commands": "gone from engines since 7.0, where scripts always replicate their effects",
    "replica-allow-chaining": "decides who may be followed, which Cachekeep does itself",
    "slave-allow-chaining": "decides who may be followed, which Cachekeep does itself",
    "replica-lazy-flush": "is set by Cachekeep itself",
}
# The running server could change some of these too, but ElastiCache says that they wait for a reboot, or they hold for a process's
# life.
_BOOT = {"activerehashing", "databases", "cluster-databases", "acl-pubsub-default"}
_CLUSTER_ONLY = {"cluster-databases"}
NODE_TIMEOUT_MS = 15_000
PATIENT_MS = 86_400_000
"""Of a node in cluster mode whose primary is without, and so is not heard from: were it given up, the node would serve its clients
only five seconds after it has taken the lead."""
MAX_LAG_SECONDS = 2
"""Of a primary that may be starved: a replica that has acknowledged nothing for longer does not count.
Replicas do so once a second."""
_OUR_OWN_LIVE = {"replica-lazy-flush": "yes"}
CLIENTS_BOUNDED_SINCE = (7, 0)
IDLE_CLIENT_BYTES = 5 << 10
"""Of a connected client that waits: 1.5 KiB (Redis 7.0, Valkey 8.0) to 4.5 KiB (Valkey 9.1), measured with 9,000 of them."""
ENGINES_OWN_FILES = 128
"""Descriptors of an engine that are no clients: it keeps 32 back, and its event loop has no place for more than 128 (server.h,
``CONFIG_MIN_RESERVED_FDS``, ``CONFIG_FDSET_INCR``)."""
OWN_CONNECTIONS = 2
"""So many connections an engine takes on top of what the parameter group allows: the line that the control plane keeps to each, and
a spare one."""
BOUNDS = ("maxmemory", "maxmemory-clients", "maxclients", "client-output-buffer-limit", "repl-backlog-size")
"""The settings by which an engine's needs of memory and descriptors are bounded: they are read back at every look. Of
Memcached it is ``cache_memlimit``, which any client may change."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's server is to run with. Memcached's names are ElastiCache's; ``launch`` turns them into arguments."""

    live: dict[str, str]
    """What a running server can change (``CONFIG SET``)."""
    boot: dict[str, str]
    """What only a restart changes."""
    left_out: dict[str, str]
    """Parameter → why it does not reach the server."""


class Sort(NamedTuple):
    """All that settings and limits depend on: nodes of one sort share them, so each sort is worked out once."""

    engine: str
    version: str
    node_type: str
    node_timeout_ms: int
    """Cluster mode: after how long others count as lost; 0: no cluster mode."""
    abstains: bool
    """Cluster mode: the engines are kept from electing it."""
    min_replicas: int
    parameters: tuple[tuple[str, str], ...]

    @property
    def numbers(self) -> _Version:
        """Redis 7.1 exists at AWS only and is served by 7.0: nothing in the tables starts at 7.1."""
        major, minor = (*self.version.split("."), "0")[:2]
        return int(major), int(minor)

    @property
    def machine(self) -> NodeType:
        """Raises KeyError for a node type that is not in the table."""
        machine = node_type(self.node_type)
        if machine is None:
            raise KeyError(f"{self.node_type} is not a node type")
        return machine


def sort(cache: Cache, node: Node) -> Sort:
    """What ``node`` is, as far as its settings and limits depend on it."""
    wanted, shard = cache.wanted, cache.shard(node.shard)
    needed = shard.min_replicas if shard is not None and shard.primary == node.name else 0
    timeout = 0
    if cache.in_cluster_mode(node):
        timeout = PATIENT_MS if node in cache.decided.successors else NODE_TIMEOUT_MS
    change = shard.change if shard is not None else None
    abstains = bool(timeout) and isinstance(change, Election) and change.seize and change.to != node.name
    return Sort(node.engine, node.version, node.node_type, timeout, abstains, needed, tuple(wanted.parameters.items()))


def settings(cache: Cache, node: Node) -> EngineSettings:
    """The settings of ``node`` in ``cache``: to be read only. Raises KeyError for a node type that is not in the table."""
    return settings_of(sort(cache, node))


@lru_cache(maxsize=1024)
def settings_of(node: Sort) -> EngineSettings:
    """The settings of all nodes of a sort: to be read only."""
    machine = node.machine
    values = parameter_values(node)
    if traits(node.engine).speaks == "memcached":
        return EngineSettings(live={"cache_memlimit": str(item_mb(values))}, boot=values, left_out={})
    data = maxmemory(values, machine)
    live: dict[str, str] = {"maxmemory": str(data), **_buffer_limits(values)} | _OUR_OWN_LIVE
    if node.numbers >= CLIENTS_BOUNDED_SINCE:
        live["maxmemory-clients"] = str(client_memory(data, machine))
    boot: dict[str, str] = {}
    left_out: dict[str, str] = {}
    if node.min_replicas:
        values |= _armed(values, node.min_replicas)
    for name, value in values.items():
        if name in _MAPPED or name.startswith("client-output-buffer-limit-"):
            continue
        if name in _CLUSTER_ONLY and not node.node_timeout_ms:
            left_out[name] = "only with cluster mode"
        elif (reason := _unknown(name, node)) is not None:
            left_out[name] = reason
        else:
            (boot if name in _BOOT else live)[name] = value
    live["maxclients"] = str(int(live["maxclients"]) + OWN_CONNECTIONS)
    if node.node_timeout_ms:
        boot["cluster-enabled"] = "yes"
        live["cluster-node-timeout"] = str(node.node_timeout_ms)
        live["cluster-replica-no-failover"] = "yes" if node.abstains else "no"
        if node.numbers >= (7, 0):
            live["cluster-preferred-endpoint-type"] = "ip"  # tls-dynamic: host names come with TLS
    return EngineSettings(live=live, boot=boot, left_out=left_out)


def _armed(values: dict[str, str], min_replicas: int) -> dict[str, str]:
    """The guard of a primary that may be starved: what the parameter group asks for where that is stricter."""
    lag = int(values.get("min-replicas-max-lag", "0")) or MAX_LAG_SECONDS  # 0: the engine would not count at all
    return {
        "min-replicas-to-write": str(max(min_replicas, int(values.get("min-replicas-to-write", "0")))),
        "min-replicas-max-lag": str(min(lag, MAX_LAG_SECONDS)),
    }


_MAPPED = {"maxmemory", "reserved-memory", "reserved-memory-percent", "cluster-enabled", "cluster-preferred-endpoint-type"}


def maxmemory(values: dict[str, str], machine: NodeType) -> int:
    """Bytes that the server may fill with data: the node type's, less what is reserved [AWS: Managing reserved memory].

    ``reserved-memory`` (bytes) wins where it is not 0, as the percentage always has a default.
    """
    reserved = int(values.get("reserved-memory", "0"))
    if reserved:
        return max(machine.maxmemory - reserved, 1)  # 0 would mean "no limit"
    percent = int(values.get("reserved-memory-percent", "0"))
    return max(machine.maxmemory * (100 - percent) // 100, 1)


def client_memory(data: int, machine: NodeType) -> int:
    """Bytes that all clients' buffers together may take (``maxmemory-clients``); whoever holds most of them is dropped above that.

    Without a bound, a client that sends half of a large value, or reads nothing, takes memory that no eviction can
    free. Half as much as data, and never less than what so many idle clients need as may connect.
    """
    return max(data // 2, machine.maxclients * IDLE_CLIENT_BYTES)


def within(live: dict[str, str], open_files: int | None) -> dict[str, str]:
    """These settings, with no more clients than so many open files allow: an engine refuses all that it is told
    together with more."""
    if open_files is None or "maxclients" not in live:
        return live
    return live | {"maxclients": str(min(int(live["maxclients"]), max(open_files - ENGINES_OWN_FILES, 1)))}


def item_mb(values: Mapping[str, str]) -> int:
    """Memcached's item memory, MiB [AWS: Memcached specific parameters, memcached_connections_overhead]."""
    return max(int(values["max_cache_memory"]) - int(values["memcached_connections_overhead"]), 8)


def bounds(cache: Cache, node: Node, open_files: int | None) -> dict[str, str]:
    """What an engine says of its ``BOUNDS`` when all is as it should be, where it is held to so many open files."""
    live = within(settings(cache, node).live, open_files)
    return {name: live[name] for name in (*BOUNDS, "cache_memlimit") if name in live}


def parameter_values(node: Sort) -> dict[str, str]:
    """Every parameter of the node's own family: default, node type's value, or the group's.

    Right after an engine upgrade the group may still be of the old family: names that the new one lacks are not for this server.
    """
    family = family_of(node.engine, node.version)
    known = parameters(family)
    by_type = {name: value for name in known if (value := node_type_value(name, node.machine)) is not None}
    chosen = {name: value for name, value in node.parameters if name in known}
    if "reserved-memory-percent" in chosen:
        chosen["reserved-memory"] = "0"
    return defaults(family) | by_type | chosen


def _unknown(name: str, node: Sort) -> str | None:
    """Why the server does not know the parameter; None if it does."""
    if name in _LEFT_OUT:
        return _LEFT_OUT[name]
    redis, valkey = _KNOWN_SINCE.get(name, (None, None))
    since = redis if node.engine == "redis" else valkey
    if since is None:
        return f"{node.engine} has no such setting"
    return None if node.numbers >= since else f"{node.engine} knows it from {since[0]}.{since[1]} on"


def _buffer_limits(values: dict[str, str]) -> dict[str, str]:
    """ElastiCache splits ``client-output-buffer-limit`` into nine names: put them together again."""
    classes = []
    for name in ("normal", "replica", "pubsub"):
        parts = [_buffer_limit(values, name, kind) for kind in ("hard-limit", "soft-limit", "soft-seconds")]
        classes.append(f"{name} {' '.join(parts)}")
    return {"client-output-buffer-limit": " ".join(classes)}


def _buffer_limit(values: dict[str, str], client: str, kind: str) -> str:
    names = [f"client-output-buffer-limit-{c}-{kind}" for c in ((client, "slave") if client == "replica" else (client,))]
    return next((values[n] for n in names if n in values), "0")
