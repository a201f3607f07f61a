"""How many nodes a new group gets, where they go and what they are called; the same for one shard and for many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cachekeep.model import Member, Wanted, WantedShard
from cachekeep.plan.slots.ranges import SLOTS, Ranges, count, union
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.elasticache import wanted as want
from cachekeep.services.elasticache import zones
from cachekeep.services.elasticache.quotas import NODES_PER_SHARD_MAX
from cachekeep.store.contract import Transaction


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """One shard as it was asked for. ``zones`` has one entry a node, the primary's first, None where it may be any; empty: an
    even spread."""

    id: str
    nodes: int
    zones: tuple[str | None, ...] = ()
    slots: Ranges = ()


PORT_MAX: Final = 65535 - 10_000
"""Nodes of a cluster speak to each other on their port + 10000."""
SHARDS_MAX: Final = 500
"""[AWS: up to 500 node groups in a cluster; 90 before the quota is raised]."""
_SLOTS: Final = re.compile(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*")


def layouts(params: Params) -> list[Layout]:
    """The shards that CreateReplicationGroup asks for [API reference: NumCacheClusters, NumNodeGroups, NodeGroupConfiguration].

    Raises ApiError InvalidParameterValue or InvalidParameterCombination.
    """
    configurations: Sequence[Params] = params.get("NodeGroupConfiguration", ())
    shards = params.get("NumNodeGroups", len(configurations) or 1)
    if "NumCacheClusters" in params and shards > 1:
        raise combination_error(
            "NumCacheClusters cannot be used with more than one node group; use ReplicasPerNodeGroup or NodeGroupConfiguration."
        )
    if not 1 <= shards <= SHARDS_MAX:
        raise value_error(f"NumNodeGroups must be between 1 and {SHARDS_MAX}.")
    if shards > 1 and params.get("PreferredCacheClusterAZs"):
        raise combination_error("PreferredCacheClusterAZs is for one node group; use NodeGroupConfiguration for several.")
    if configurations and len(configurations) != shards:
        raise combination_error(f"NodeGroupConfiguration has {len(configurations)} entries for {shards} node groups.")
    nodes = params.get("NumCacheClusters", params.get("ReplicasPerNodeGroup", 0) + 1)
    chosen: Sequence[str] = params.get("PreferredCacheClusterAZs", ())
    if configurations:
        if chosen:
            raise combination_error("PreferredCacheClusterAZs cannot be used together with NodeGroupConfiguration.")
        found = [_configured(index, each, nodes) for index, each in enumerate(configurations, 1)]
        everywhere = all("ReplicaCount" in each for each in configurations)
        if "ReplicasPerNodeGroup" in params and everywhere and any(layout.nodes != nodes for layout in found):
            raise combination_error(
                f"ReplicasPerNodeGroup is {nodes - 1}, and NodeGroupConfiguration says another ReplicaCount for each node group."
            )
    else:
        if chosen and "NumCacheClusters" not in params and "ReplicasPerNodeGroup" not in params:
            nodes = len(chosen)
        found = [Layout(id=f"{index:04}", nodes=nodes, zones=tuple(chosen)) for index in range(1, shards + 1)]
    for layout in found:
        _check(layout)
        _check_count(params, layout)
    if len({layout.id for layout in found}) < len(found):
        raise value_error("Each NodeGroupId may be used once.")
    _check_slots(found)
    return found


def _check_count(params: Params, layout: Layout) -> None:
    """What is said of one shard's nodes in several ways must be the same. Raises ApiError InvalidParameterCombination."""
    said = params.get("NumCacheClusters"), params.get("ReplicasPerNodeGroup", layout.nodes - 1) + 1, layout.nodes
    if said[0] is not None and len(set(said)) > 1:
        raise combination_error(
            f"NumCacheClusters is {said[0]}, and ReplicasPerNodeGroup or NodeGroupConfiguration asks for another number of nodes."
        )


def _check_slots(found: Sequence[Layout]) -> None:
    given = [layout for layout in found if layout.slots]
    if not given:
        return
    if len(given) < len(found):
        raise combination_error("Slots must be given for every node group or for none.")
    if union(*(x.slots for x in given)) != ((0, SLOTS - 1),) or sum(count(x.slots) for x in given) != SLOTS:
        raise value_error(f"The Slots of all node groups together must cover 0-{SLOTS - 1}, each slot once.")


def slots_of(text: str) -> Ranges:
    """``0-5460,5462``. Raises ApiError InvalidParameterValue."""
    found = []
    for part in text.split(","):
        read = _SLOTS.fullmatch(part)
        first, last = (int(read[1]), int(read[2] or read[1])) if read else (1, 0)
        if first > last or last >= SLOTS:
            raise value_error(f"Slots {text!r} is not a list of ranges within 0-{SLOTS - 1}, such as 0-5460,8000.")
        found.append((first, last))
    if count(union(tuple(found))) != count(tuple(found)):
        raise value_error(f"Slots {text!r} names a slot twice.")
    return union(tuple(found))


def asks_for_cluster_mode(params: Params, found: Sequence[Layout]) -> bool:
    """Whether a request can only mean cluster mode. Raises ApiError for a mode that cannot be had."""
    mode = params.get("ClusterMode", "")
    if mode == "compatible":
        raise combination_error(
            "ClusterMode=compatible is a step between disabled and enabled: "
            "create the group with ClusterMode=disabled, then modify it."
        )
    return mode == "enabled" or len(found) > 1 or any(layout.slots for layout in found)


def cluster_mode(params: Params, found: Sequence[Layout], values: Mapping[str, str]) -> bool:
    """Whether a new group runs in cluster mode: its parameter group says so, and the rest of the request must agree. It then has
    automatic failover without being asked.

    Raises ApiError InvalidParameterCombination, or InvalidParameterValue for automatic failover that is turned off.
    """
    clustered = values.get("cluster-enabled") == "yes"
    if asks_for_cluster_mode(params, found) and not clustered:
        raise combination_error("Cluster mode needs a parameter group with cluster-enabled, such as default.valkey8.cluster.on.")
    if clustered and params.get("ClusterMode") == "disabled":
        raise combination_error("ClusterMode=disabled cannot be used with a parameter group that has cluster-enabled.")
    if clustered and not params.get("AutomaticFailoverEnabled", True):
        raise value_error("Redis with cluster mode enabled cannot be created with auto failover turned off.")  # AWS's own words
    return clustered


def _configured(index: int, configuration: Params, nodes: int) -> Layout:
    if "ReplicaCount" in configuration:
        nodes = configuration["ReplicaCount"] + 1
    replicas: Sequence[str] = configuration.get("ReplicaAvailabilityZones", ())
    primary: str | None = configuration.get("PrimaryAvailabilityZone")
    if replicas and "ReplicaCount" not in configuration and nodes == 1:
        nodes = len(replicas) + 1
    if replicas and len(replicas) != nodes - 1:
        raise combination_error(
            f"ReplicaAvailabilityZones names {len(replicas)} zones for {nodes - 1} replicas; name one for each."
        )
    others = replicas or (None,) * (nodes - 1)
    where = (primary, *others) if primary or replicas else ()
    return Layout(
        id=configuration.get("NodeGroupId", f"{index:04}").zfill(4),
        nodes=nodes,
        zones=where,
        slots=slots_of(configuration["Slots"]) if configuration.get("Slots") else (),
    )


def _check(layout: Layout) -> None:
    if not 1 <= layout.nodes <= NODES_PER_SHARD_MAX:
        raise value_error(
            f"The number of cache clusters in a node group must be between 1 and {NODES_PER_SHARD_MAX}, and not {layout.nodes}."
        )
    if layout.zones and len(layout.zones) != layout.nodes:
        raise combination_error(
            f"{len(layout.zones)} availability zones are named for {layout.nodes} cache clusters; name one for each."
        )


async def build(
    tx: Transaction,
    context: Context,
    group_id: str,
    found: Iterable[Layout],
    *,
    clustered: bool,
    allowed: Sequence[str],
    first: Member | None = None,
) -> tuple[WantedShard, ...]:
    """The wanted shards, every member named and placed. ``first`` is a member that is there already: the first shard's primary."""
    built: list[WantedShard] = []
    for layout in found:
        prefix = f"{group_id}-{layout.id}-" if clustered else f"{group_id}-"
        here = [first] if first is not None and not built else []
        asked = list(layout.zones or [None] * layout.nodes)
        if here and asked[0] not in (None, here[0].zone):
            raise combination_error(f"{here[0].name} is in {here[0].zone}, and the first availability zone named is {asked[0]}.")
        asked[: len(here)] = [m.zone for m in here]
        where = zones.filled(asked, allowed, f"{group_id}-{layout.id}")
        new = await want.new_names(tx, prefix, 3, layout.nodes - len(here), (m.name for m in here))
        members = [*here, *(Member(name=name, zone=zone) for name, zone in zip(new, where[len(here) :], strict=True))]
        built.append(WantedShard(id=layout.id, members=tuple(members), slots=layout.slots))
    return tuple(built)


def check_port(number: int, *, clustered: bool) -> None:
    """Raises ApiError InvalidParameterValue for a port whose cluster bus would have none."""
    if clustered and number > PORT_MAX:
        raise value_error(
            f"Invalid port {number}: with cluster mode it must be at most {PORT_MAX}, "
            "because nodes speak to each other on port + 10000."
        )


def check_failover(wanted: Wanted) -> None:
    """The rules of AutomaticFailoverEnabled and MultiAZEnabled [fact sheet §3]. Raises ApiError InvalidParameterCombination."""
    automatic, multi_az, node_type = wanted.automatic_failover, wanted.multi_az, wanted.node_type
    clustered = wanted.cluster_mode == "enabled"
    if wanted.cluster_mode != "disabled" and not automatic:
        raise combination_error(
            "Turning off automatic failover for replication group with cluster mode enabled is not supported."  # AWS's own words
        )
    if multi_az and not automatic:
        raise combination_error(
            "Multi-AZ needs automatic failover: MultiAZEnabled cannot be true while AutomaticFailoverEnabled is false."
        )
    if automatic and node_type.startswith("cache.t1."):
        raise combination_error(f"Automatic failover is not supported for the cache node type {node_type}.")
    for shard in wanted.shards:
        if automatic and not clustered and len(shard.members) < 2:
            raise combination_error(  # AWS's own words
                "When using automatic failover, there must be at least 2 cache clusters in the replication group."
            )
        if multi_az and len({m.zone for m in shard.members}) < 2:
            raise combination_error("Multi-AZ needs cache clusters in at least two availability zones.")
