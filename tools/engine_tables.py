"""Write the node type and parameter tables of cachekeep.engines again, from the fact sheets' CSV files.

    python -m tools.engine_tables NODE_TYPES.csv PARAMETERS.csv

The package's own form is smaller: rows that families share are one row, values that follow from others are left out, and what we do
otherwise than ElastiCache (docs/decisions/0007-parameters.md) is already in it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

DATA = Path(__file__).parents[1] / "src/cachekeep/engines/data"
NODE_FIELDS = {
    "type": "name",
    "vcpu": "vcpu",
    "memory_gib": "memory_gib",
    "redis_maxmemory_bytes": "maxmemory",
    "redis_maxclients": "maxclients",
    "replica_output_buffer_limit_bytes": "replica_buffer",
    "memcached_max_cache_memory_mb": "cache_mb",
    "network": "network",
    "ssd_gib": "ssd_gib",
    "generation": "generation",
}
FAMILIES = {  # family → the version that its own parameters date from
    "redis2.6": "2.6.13",
    "redis2.8": "2.8.6",
    "redis3.2": "3.2.4",
    "redis4.0": "4.0.10",
    "redis5.0": "5.0.0",
    "redis6.x": "6.0",
    "redis7": "7.0",
    "valkey7": "7.2",
    "valkey8": "8.0",
    "valkey9": "9.0",
    "memcached1.4": "1.4.5",
    "memcached1.5": "1.4.5",
    "memcached1.6": "1.4.5",
}
# Values that the sources misprint: neighbours and the rule maxmemory / 2^20 say otherwise.
MISPRINTS = {
    ("cache.t3.medium", "memcached_max_cache_memory_mb"): "3164",
    ("cache.c7gn.12xlarge", "memcached_max_cache_memory_mb"): "80450",
    ("cache.r3.8xlarge", "memcached_max_cache_memory_mb"): "242600",
    ("cache.m2.xlarge", "memcached_max_cache_memory_mb"): "16300",
    ("cache.m2.2xlarge", "memcached_max_cache_memory_mb"): "33400",
}
# What real servers make of a parameter where that is not what the sources print: name → fields.
HERE: dict[str, dict[str, str]] = {
    "cluster-enabled": {"modifiable": "only while group is unattached", "default": "no"},
    "databases": {"modifiable": "yes"},
    "activedefrag": {"modifiable": "no"},
    "activerehashing": {"modifiable": "yes"},
    "appendonly": {"default": "no", "modifiable": "no"},
    "appendfsync": {"default": "everysec", "modifiable": "no"},
    "close-on-replica-write": {"default": "no", "allowed": "no"},
    "close-on-slave-write": {"default": "no", "allowed": "no"},
    "rename-commands": {"allowed": "", "modifiable": "no"},
    "search-default-timeout-ms": {"modifiable": "no"},
    "search-enable-partial-results": {"modifiable": "no"},
    "search-fanout-target-mode": {"modifiable": "no"},
    "cluster-databases": {"default": "1"},
    "lru_crawler metadump": {
        "allowed": "enabled,disabled",
        "default": "enabled",
        "type": "string",
        "change_type": "requires-reboot",
    },
    "watch": {"allowed": "enabled,disabled", "type": "string", "change_type": "requires-reboot"},
    "track_sizes": {"allowed": "enabled,disabled", "type": "string"},
    "inline_ascii_resp": {"modifiable": "no"},
    "expirezero_does_not_evict": {"modifiable": "no"},
    "modern": {"modifiable": "no"},
    "chunk_size": {"allowed": "48-1024"},
    "chunk_size_growth_factor": {"allowed": "1.01-2"},
    "max_item_size": {"allowed": "1024-1073741824"},
    "slab_chunk_max": {"allowed": "1024-524288"},
    "memcached_connections_overhead": {"allowed": "0-"},
    "watcher_logbuf_size": {"modifiable": "no"},
    "worker_logbuf_size": {"modifiable": "no"},
    "acllog-max-len": {"allowed": "0-"},
    "commandlog-reply-larger-than": {"allowed": "-1-"},
    "commandlog-request-larger-than": {"allowed": "-1-"},
    "slowlog-log-slower-than": {"allowed": "-1-"},
    "tracking-table-max-keys": {"allowed": "0-"},
    "repl-timeout": {"modifiable": "no", "allowed": "1-"},
}


def node_types(source: Path) -> list[list[str]]:
    rows = list(csv.DictReader(source.open()))
    by_name = {row["type"]: row for row in rows}
    for (name, field), value in MISPRINTS.items():
        by_name[name][field] = value
    for row in rows:  # data tiering types are r6g with a disk
        if not row["vcpu"]:
            row["vcpu"] = by_name[row["type"].replace("r6gd", "r6g")]["vcpu"]
    return [list(NODE_FIELDS.values()), *([row[field] for field in NODE_FIELDS] for row in rows)]


def parameters(source: Path) -> list[list[str]]:
    shared: dict[tuple[str, ...], list[str]] = {}
    for row in csv.DictReader(source.open()):
        family, name = row["family"], row["name"]
        row |= HERE.get(name, {})
        since = "" if row["min_engine_version"] == FAMILIES[family] else row["min_engine_version"]
        modifiable = {"yes": "yes", "only while group is unattached": "unattached"}.get(row["modifiable"], "no")
        default = {"per node type": "*"}.get(row["default"], row["default"])
        change = "immediate" if row["change_type"] == "immediate" else "requires-reboot"
        description = row["description"][:1].upper() + row["description"][1:]
        key = (name, default, row["allowed"], modifiable, change, row.get("type", row["data_type"]), since, description)
        shared.setdefault(key, []).append(family)
    rows = [["name", "families", "default", "allowed", "modifiable", "change", "type", "since", "description"]]
    for (name, *rest), families in sorted(shared.items(), key=lambda item: (item[0][0], list(FAMILIES).index(item[1][0]))):
        rows.append([name, " ".join(families), *rest])
    return rows


def main() -> None:
    node_source, parameter_source = map(Path, sys.argv[1:3])
    for name, rows in (("node_types.csv", node_types(node_source)), ("parameters.csv", parameters(parameter_source))):
        with (DATA / name).open("w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows(rows)
        print(f"{name}: {len(rows) - 1} rows, {(DATA / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
