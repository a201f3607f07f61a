"""Every metric of a node that is measured: its name, its unit, and what of the engine's own words it is. Pure.

[AWS, "Host-level metrics", "Metrics for Valkey and Redis OSS", "Metrics for Memcached"]. What has no cause here has no metric:
there are no CPU credits, no shaped packets, no data tiering, no global datastore.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final, Literal

import msgspec

NAMESPACE: Final = "AWS/ElastiCache"
LATENCIES: Final = {"SuccessfulReadRequestLatency": "GetType", "SuccessfulWriteRequestLatency": "SetType"}
"""Metric → family of the commands whose durations it tells."""


class Metric(msgspec.Struct, frozen=True):
    """``source`` is a field of the engine's: of ``INFO``, or of Memcached's ``stats``. ``rule``: the field as it is (``gauge``),
    by how much it grew (``growth``), or something that ``points`` computes. ``pair``: it is known by cluster and node only, not
    by cluster."""

    unit: str
    rule: Literal["gauge", "growth", "computed"] = "computed"
    source: str = ""
    pair: bool = False


def _gauge(unit: str, source: str, *, pair: bool = False) -> Metric:
    return Metric(unit, "gauge", source, pair)


def _growth(unit: str, source: str, *, pair: bool = False) -> Metric:
    return Metric(unit, "growth", source, pair)


HOST: Final[Mapping[str, Metric]] = {
    "CPUUtilization": Metric("Percent"),
    "FreeableMemory": Metric("Bytes"),
    "SwapUsage": Metric("Bytes"),
    "MajorPageFaults": Metric("Count", pair=True),
    "NetworkBytesIn": Metric("Bytes"),
    "NetworkBytesOut": Metric("Bytes"),
    "NetworkBaselineUsageInPercentage": Metric("Percent", pair=True),
    "NetworkBaselineUsageOutPercentage": Metric("Percent", pair=True),
}

FAMILIES: Final = (
    "ClusterBased",
    "EvalBased",
    "GeoSpatialBased",
    "GetType",
    "HashBased",
    "HyperLogLogBased",
    "KeyBased",
    "ListBased",
    "NonKeyType",
    "PubSubBased",
    "SetBased",
    "SetType",
    "SortedSetBased",
    "StreamBased",
    "StringBased",
)

REDIS: Final[Mapping[str, Metric]] = {
    "ActiveDefragHits": _growth("Count", "active_defrag_hits"),
    "AuthenticationFailures": _growth("Count", "acl_access_denied_auth"),
    "CommandAuthorizationFailures": _growth("Count", "acl_access_denied_cmd"),
    "KeyAuthorizationFailures": _growth("Count", "acl_access_denied_key"),
    "ChannelAuthorizationFailures": _growth("Count", "acl_access_denied_channel", pair=True),
    "DatabaseAuthorizationFailures": _growth("Count", "acl_access_denied_db", pair=True),
    "BytesUsedForCache": _gauge("Bytes", "used_memory"),
    "CacheHits": _growth("Count", "keyspace_hits"),
    "CacheMisses": _growth("Count", "keyspace_misses"),
    "CacheHitRate": Metric("Percent"),
    "CurrConnections": _gauge("Count", "connected_clients"),
    "BlockedConnections": _gauge("Count", "blocked_clients", pair=True),
    "RejectedConnections": _growth("Count", "rejected_connections", pair=True),
    "NewConnections": _growth("Count", "total_connections_received"),
    "CurrItems": Metric("Count"),
    "CurrVolatileItems": Metric("Count", pair=True),
    "CurrItemsWithVolatileFields": Metric("Count", pair=True),
    "ReclaimedFields": _growth("Count", "expired_fields", pair=True),
    "DatabaseMemoryUsagePercentage": Metric("Percent"),
    "DatabaseMemoryUsageCountedForEvictPercentage": Metric("Percent", pair=True),
    "DatabaseCapacityUsagePercentage": Metric("Percent", pair=True),
    "DatabaseCapacityUsageCountedForEvictPercentage": Metric("Percent", pair=True),
    "DB0AverageTTL": Metric("Milliseconds"),
    "EngineCPUUtilization": Metric("Percent"),
    "Evictions": _growth("Count", "evicted_keys"),
    "Reclaimed": _growth("Count", "expired_keys"),
    "IsMaster": Metric("Count"),
    "KeysTracked": _gauge("Count", "tracking_total_keys"),
    "MasterLinkHealthStatus": Metric("Count"),
    "MemoryFragmentationRatio": _gauge("None", "mem_fragmentation_ratio"),
    "AllocatorFragmentationBytes": _gauge("Bytes", "allocator_frag_bytes", pair=True),
    "AllocatorFragmentationRatio": _gauge("None", "allocator_frag_ratio", pair=True),
    "UsedMemoryDataset": _gauge("Bytes", "used_memory_dataset", pair=True),
    "ProcessedCommands": _growth("Count", "total_commands_processed", pair=True),
    "PubSubChannels": _gauge("Count", "pubsub_channels", pair=True),
    "PubSubShardChannels": _gauge("Count", "pubsubshard_channels", pair=True),
    "ReplicationBytes": Metric("Bytes"),
    "ReplicationLag": Metric("Seconds"),
    "SaveInProgress": _gauge("Count", "rdb_bgsave_in_progress"),
    "ErrorCount": _growth("Count", "total_error_replies", pair=True),
    **{name: Metric("Microseconds", pair=True) for name in LATENCIES},
    **{f"{family}Cmds": Metric("Count") for family in FAMILIES},
    **{f"{family}CmdsLatency": Metric("Microseconds") for family in FAMILIES},
}

MEMCACHED: Final[Mapping[str, Metric]] = {
    "BytesReadIntoMemcached": _growth("Bytes", "bytes_read"),
    "BytesWrittenOutFromMemcached": _growth("Bytes", "bytes_written"),
    "BytesUsedForCacheItems": _gauge("Bytes", "bytes"),
    "BytesUsedForHash": _gauge("Bytes", "hash_bytes"),
    "CasBadval": _growth("Count", "cas_badval"),
    "CasHits": _growth("Count", "cas_hits"),
    "CasMisses": _growth("Count", "cas_misses"),
    "CmdFlush": _growth("Count", "cmd_flush"),
    "CmdGet": _growth("Count", "cmd_get"),
    "CmdSet": _growth("Count", "cmd_set"),
    "CmdTouch": _growth("Count", "cmd_touch"),
    "CurrConnections": _gauge("Count", "curr_connections"),
    "CurrItems": _gauge("Count", "curr_items"),
    "DecrHits": _growth("Count", "decr_hits"),
    "DecrMisses": _growth("Count", "decr_misses"),
    "DeleteHits": _growth("Count", "delete_hits"),
    "DeleteMisses": _growth("Count", "delete_misses"),
    "EvictedUnfetched": _growth("Count", "evicted_unfetched"),
    "Evictions": _growth("Count", "evictions"),
    "ExpiredUnfetched": _growth("Count", "expired_unfetched"),
    "GetHits": _growth("Count", "get_hits"),
    "GetMisses": _growth("Count", "get_misses"),
    "IncrHits": _growth("Count", "incr_hits"),
    "IncrMisses": _growth("Count", "incr_misses"),
    "NewConnections": _growth("Count", "total_connections"),
    "NewItems": _growth("Count", "total_items"),
    "Reclaimed": _growth("Count", "reclaimed"),
    "SlabsMoved": _growth("Count", "slabs_moved"),
    "TouchHits": _growth("Count", "touch_hits"),
    "TouchMisses": _growth("Count", "touch_misses"),
    "UnusedMemory": Metric("Bytes"),
}

OF_GROUPS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {
    "EngineCPUUtilization": (
        frozenset({"ReplicationGroupId"}),
        frozenset({"ReplicationGroupId", "NodeGroupId"}),
        frozenset({"ReplicationGroupId", "Role"}),
    ),
    "DatabaseMemoryUsageCountedForEvictPercentage": (
        frozenset({"ReplicationGroupId"}),
        frozenset({"ReplicationGroupId", "NodeGroupId"}),
    ),
    "DatabaseCapacityUsageCountedForEvictPercentage": (
        frozenset({"ReplicationGroupId"}),
        frozenset({"ReplicationGroupId", "NodeGroupId"}),
    ),
}
"""What is told of groups and shards too, over all their nodes, and by which dimensions: what auto scaling reads."""


def metrics_of(engine: str) -> Mapping[str, Metric]:
    """All that a node of this engine can tell, by name."""
    return {**HOST, **(MEMCACHED if engine == "memcached" else REDIS)}


def told_by_cluster(name: str) -> bool:
    """Whether the metric is known by ``CacheClusterId`` alone, too."""
    metric = HOST.get(name) or REDIS.get(name) or MEMCACHED.get(name)
    return metric is not None and not metric.pair


@cache
def families() -> Mapping[str, frozenset[str]]:
    """Command, in small letters and without its subcommand → families in which it counts. From the engines' own ACL categories
    (Redis 7.0, Valkey 8.0 and 9.1)."""
    text = files("cachekeep.metrics").joinpath("data/commands.csv").read_text()
    return {row["command"]: frozenset(row["families"].split()) for row in csv.DictReader(text.splitlines())}
