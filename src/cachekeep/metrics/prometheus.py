"""What nodes say of themselves, as Prometheus reads it: by the names and labels of redis_exporter and memcached_exporter, so that
the dashboards and rules that people have go on working, and by a few names of our own. Pure.

[https://github.com/oliver006/redis_exporter, exporter/metrics.go; https://github.com/prometheus/memcached_exporter, pkg/exporter;
https://prometheus.io/docs/instrumenting/exposition_formats/]. One scrape tells of all nodes, so each has its ``instance`` label
from us.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from cachekeep.model.sample import Sample
from cachekeep.model.traits import traits

Kind = Literal["gauge", "counter"]
Labels = Mapping[str, str]
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Scraped(msgspec.Struct, frozen=True):
    """A node and what it said; None: nothing."""

    engine: str
    address: str
    port: int
    cache: str
    node: str
    shard: str
    said: Sample | None


class Exposed(msgspec.Struct, frozen=True):
    """One line."""

    name: str
    kind: Kind
    labels: Labels
    value: float


_GAUGES: Final = {
    "uptime_in_seconds": "uptime_in_seconds",
    "connected_clients": "connected_clients",
    "blocked_clients": "blocked_clients",
    "maxclients": "max_clients",
    "tracking_clients": "tracking_clients",
    "used_memory": "memory_used_bytes",
    "used_memory_rss": "memory_used_rss_bytes",
    "used_memory_peak": "memory_used_peak_bytes",
    "used_memory_lua": "memory_used_lua_bytes",
    "used_memory_overhead": "memory_used_overhead_bytes",
    "used_memory_startup": "memory_used_startup_bytes",
    "used_memory_dataset": "memory_used_dataset_bytes",
    "maxmemory": "memory_max_bytes",
    "mem_fragmentation_ratio": "mem_fragmentation_ratio",
    "mem_fragmentation_bytes": "mem_fragmentation_bytes",
    "mem_not_counted_for_evict": "mem_not_counted_for_eviction_bytes",
    "mem_clients_slaves": "mem_clients_slaves",
    "mem_clients_normal": "mem_clients_normal",
    "allocator_active": "allocator_active_bytes",
    "allocator_allocated": "allocator_allocated_bytes",
    "allocator_resident": "allocator_resident_bytes",
    "allocator_frag_ratio": "allocator_frag_ratio",
    "allocator_frag_bytes": "allocator_frag_bytes",
    "allocator_rss_ratio": "allocator_rss_ratio",
    "allocator_rss_bytes": "allocator_rss_bytes",
    "lazyfree_pending_objects": "lazyfree_pending_objects",
    "loading": "loading_dump_file",
    "rdb_changes_since_last_save": "rdb_changes_since_last_save",
    "rdb_bgsave_in_progress": "rdb_bgsave_in_progress",
    "rdb_last_save_time": "rdb_last_save_timestamp_seconds",
    "rdb_last_bgsave_time_sec": "rdb_last_bgsave_duration_sec",
    "rdb_current_bgsave_time_sec": "rdb_current_bgsave_duration_sec",
    "rdb_last_cow_size": "rdb_last_cow_size_bytes",
    "aof_enabled": "aof_enabled",
    "aof_rewrite_in_progress": "aof_rewrite_in_progress",
    "pubsub_channels": "pubsub_channels",
    "pubsub_patterns": "pubsub_patterns",
    "latest_fork_usec": "latest_fork_usec",
    "instantaneous_ops_per_sec": "instantaneous_ops_per_sec",
    "connected_slaves": "connected_slaves",
    "repl_backlog_size": "replication_backlog_bytes",
    "repl_backlog_active": "repl_backlog_is_active",
    "repl_backlog_first_byte_offset": "repl_backlog_first_byte_offset",
    "repl_backlog_histlen": "repl_backlog_history_bytes",
    "master_repl_offset": "master_repl_offset",
    "second_repl_offset": "second_repl_offset",
    "slave_repl_offset": "slave_repl_offset",
    "slave_priority": "slave_priority",
    "cluster_enabled": "cluster_enabled",
    "tracking_total_keys": "tracking_total_keys",
}
_COUNTERS: Final = {
    "total_connections_received": "connections_received_total",
    "total_commands_processed": "commands_processed_total",
    "rejected_connections": "rejected_connections_total",
    "total_net_input_bytes": "net_input_bytes_total",
    "total_net_output_bytes": "net_output_bytes_total",
    "expired_keys": "expired_keys_total",
    "expired_time_cap_reached_count": "expired_time_cap_reached_total",
    "evicted_keys": "evicted_keys_total",
    "keyspace_hits": "keyspace_hits_total",
    "keyspace_misses": "keyspace_misses_total",
    "used_cpu_sys": "cpu_sys_seconds_total",
    "used_cpu_user": "cpu_user_seconds_total",
    "used_cpu_sys_children": "cpu_sys_children_seconds_total",
    "used_cpu_user_children": "cpu_user_children_seconds_total",
    "used_cpu_sys_main_thread": "cpu_sys_main_thread_seconds_total",
    "used_cpu_user_main_thread": "cpu_user_main_thread_seconds_total",
    "unexpected_error_replies": "unexpected_error_replies",
    "total_error_replies": "total_error_replies",
    "total_reads_processed": "total_reads_processed",
    "total_writes_processed": "total_writes_processed",
    "acl_access_denied_auth": "acl_access_denied_auth_total",
    "acl_access_denied_cmd": "acl_access_denied_cmd_total",
    "acl_access_denied_key": "acl_access_denied_key_total",
    "acl_access_denied_channel": "acl_access_denied_channel_total",
}
_INSTANCE: Final = (
    "role",
    "redis_version",
    "redis_build_id",
    "redis_mode",
    "os",
    "maxmemory_policy",
    "tcp_port",
    "run_id",
    "process_id",
)
_MEMCACHED_GAUGES: Final = {
    "uptime": "uptime_seconds",
    "curr_connections": "current_connections",
    "max_connections": "max_connections",
    "bytes": "current_bytes",
    "limit_maxbytes": "limit_bytes",
    "curr_items": "current_items",
}
_MEMCACHED_COUNTERS: Final = {
    "total_connections": "connections_total",
    "rejected_connections": "connections_rejected_total",
    "listen_disabled_num": "connections_listener_disabled_total",
    "bytes_read": "read_bytes_total",
    "bytes_written": "written_bytes_total",
    "total_items": "items_total",
    "evictions": "items_evicted_total",
    "reclaimed": "items_reclaimed_total",
}
_MEMCACHED_COMMANDS: Final = {
    **{(verb, "hit"): f"{verb}_hits" for verb in ("get", "delete", "incr", "decr", "cas", "touch")},
    **{(verb, "miss"): f"{verb}_misses" for verb in ("get", "delete", "incr", "decr", "cas", "touch")},
    ("cas", "badval"): "cas_badval",
    ("flush", "hit"): "cmd_flush",
}


def points_of(node: Scraped) -> Iterator[Exposed]:
    """All that is told of a node."""
    memcached = traits(node.engine).speaks == "memcached"
    base = {"instance": f"{node.address}:{node.port}", "cache": node.cache, "node": node.node, "shard": node.shard}
    prefix = "memcached" if memcached else "redis"
    yield Exposed(f"{prefix}_up", "gauge", base, 0.0 if node.said is None else 1.0)
    if node.said is None:
        return
    names: tuple[tuple[Kind, Mapping[str, str]], ...] = (
        ("gauge", _MEMCACHED_GAUGES if memcached else _GAUGES),
        ("counter", _MEMCACHED_COUNTERS if memcached else _COUNTERS),
    )
    for kind, table in names:
        for field, name in table.items():
            if (value := node.said.number(field)) is not None:
                yield Exposed(f"{prefix}_{name}", kind, base, value)
    yield from _of_memcached(node.said, base) if memcached else _of_redis(node.said, base)


def _of_memcached(said: Sample, base: Labels) -> Iterator[Exposed]:
    yield Exposed("memcached_version", "gauge", {**base, "version": said.fields.get("version", "")}, 1.0)
    for (command, status), field in _MEMCACHED_COMMANDS.items():
        if (value := said.number(field)) is not None:
            yield Exposed("memcached_commands_total", "counter", {**base, "command": command, "status": status}, value)
    stored = said.number("cmd_set")
    if stored is not None:
        yield Exposed("memcached_commands_total", "counter", {**base, "command": "set", "status": "hit"}, stored)
    for way in ("user", "system"):
        if (spent := said.number(f"rusage_{way}")) is not None:
            yield Exposed(f"memcached_process_{way}_cpu_seconds_total", "counter", base, spent)


def _of_redis(said: Sample, base: Labels) -> Iterator[Exposed]:
    fields = said.fields
    yield Exposed("redis_instance_info", "gauge", {**base, **{name: fields.get(name, "") for name in _INSTANCE}}, 1.0)
    for field, text in fields.items():
        parts = dict(part.partition("=")[::2] for part in text.split(",") if "=" in part)
        if field.startswith("db") and field[2:].isdigit():
            database = {**base, "db": field}
            yield Exposed("redis_db_keys", "gauge", database, _float(parts.get("keys")))
            yield Exposed("redis_db_keys_expiring", "gauge", database, _float(parts.get("expires")))
            yield Exposed("redis_db_avg_ttl_seconds", "gauge", database, _float(parts.get("avg_ttl")) / 1000)
        elif field.startswith("cmdstat_"):
            command = {**base, "cmd": field.removeprefix("cmdstat_")}
            yield Exposed("redis_commands_total", "counter", command, _float(parts.get("calls")))
            yield Exposed("redis_commands_duration_seconds_total", "counter", command, _float(parts.get("usec")) / 1e6)
            for name in ("rejected", "failed"):
                if f"{name}_calls" in parts:
                    yield Exposed(f"redis_commands_{name}_calls_total", "counter", command, _float(parts[f"{name}_calls"]))
        elif field.startswith("errorstat_"):
            yield Exposed(
                "redis_errors_total", "counter", {**base, "err": field.removeprefix("errorstat_")}, _float(parts.get("count"))
            )
        elif field.startswith("slave") and field[5:].isdigit():
            replica = {
                **base,
                "slave_ip": parts.get("ip", ""),
                "slave_port": parts.get("port", ""),
                "slave_state": parts.get("state", ""),
            }
            yield Exposed("redis_connected_slave_offset_bytes", "gauge", replica, _float(parts.get("offset")))
            yield Exposed("redis_connected_slave_lag_seconds", "gauge", replica, _float(parts.get("lag")))
    if fields.get("role") == "slave":
        primary = {**base, "master_host": fields.get("master_host", ""), "master_port": fields.get("master_port", "")}
        yield Exposed("redis_master_link_up", "gauge", primary, 1.0 if fields.get("master_link_status") == "up" else 0.0)
        yield Exposed("redis_master_last_io_seconds_ago", "gauge", primary, _float(fields.get("master_last_io_seconds_ago")))
        yield Exposed("redis_master_sync_in_progress", "gauge", primary, _float(fields.get("master_sync_in_progress")))


def _float(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def exposition(points: Sequence[Exposed]) -> str:
    """The text of a scrape: all lines of a metric together, as the format wants it."""
    by_name: dict[str, list[Exposed]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point)
    lines = []
    for name, same in by_name.items():
        lines.append(f"# TYPE {name} {same[0].kind}")
        lines += [f"{name}{{{_labels(point.labels)}}} {_number(point.value)}" for point in same]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items())
    return ",".join(f'{name}="{value}"' for name, value in escaped)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
