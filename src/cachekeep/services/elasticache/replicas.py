"""More and fewer replicas: by number, by shard, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import Cache, Member, WantedShard
from cachekeep.services.core.caches import save, told
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.operation import Operation, writes
from cachekeep.services.elasticache import find, render, tags, zones
from cachekeep.services.elasticache import wanted as want
from cachekeep.services.elasticache.quotas import NODES_PER_SHARD_MAX
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_INCREASING: Final = "Increasing number of requested nodes"
_LAST_REPLICA: Final = "Must have at least 1 replica when cluster mode is disabled with auto failover enabled."
_LAST_MEMBER: Final = (
    "Cannot delete the cache cluster because it is the only read replica for replication group {group} which has autofailover "
    "enabled or pending. You can disable autofailover and then delete this cache cluster. Alternatively, to delete the entire "
    "replication group, use DeleteReplicationGroup."
)
"""Both are AWS's own words."""


class _Target:
    """What a request asks of one shard. ``zones`` names one for each node that is wanted, the primary's included."""

    def __init__(self, shard: WantedShard, replica_count: int, zones: Sequence[str] = ()) -> None:
        self.shard, self.replica_count, self.zones = shard, replica_count, zones

    @property
    def difference(self) -> int:
        return self.replica_count + 1 - len(self.shard.members)


async def increase(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds replicas to every shard, or to those named."""
    cache, targets = await _read(call.params, tx)
    if any(t.difference < 0 for t in targets):
        raise value_error("The new replica count must be greater than the present one.")
    allowed = await want.zones_of(tx, context, cache)
    wanted = cache.wanted
    for t in targets:
        if t.replica_count + 1 > NODES_PER_SHARD_MAX:
            raise value_error(f"A node group can have at most {NODES_PER_SHARD_MAX - 1} replicas.")
        there = [m.zone for m in t.shard.members]
        zones.check(t.zones, allowed)
        where = zones.missing(t.zones, there) if t.zones else zones.spread(t.difference, allowed, there)
        if len(where) != t.difference:
            raise combination_error(f"The zones named for node group {t.shard.id} do not include those of its present nodes.")
        wanted = replace(wanted, shards=want.with_members(wanted, t.shard.id, await _grown(tx, cache, t.shard, where)))
    await want.check_room(tx, context, wanted, cache)
    cache = await save(tx, cache, wanted, told(cache, _INCREASING))
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


async def decrease(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Takes replicas out of every shard or of those named, or the replicas named; never the primary."""
    params = call.params
    if removed := [name.lower() for name in params.get("ReplicasToRemove", ())]:
        return await _remove(params, tx, context, removed)
    cache, targets = await _read(params, tx)
    if any(t.difference > 0 for t in targets):
        raise value_error("The new replica count must be less than the present one.")
    wanted = cache.wanted
    for t in targets:
        wanted = replace(wanted, shards=want.with_members(wanted, t.shard.id, _shrunk(cache, t)))
    return await _save_fewer(tx, context, cache, wanted.shards)


async def _read(params: Params, tx: Transaction) -> tuple[Cache, list[_Target]]:
    """The group and what is asked of each of its shards that are to change.

    Raises ApiError: not found, not available, NoOperationFault, InvalidParameter….
    """
    cache = await _group(params, tx)
    listed: Sequence[Params] = params.get("ReplicaConfiguration", ())
    if bool(listed) == ("NewReplicaCount" in params):
        raise combination_error("Give either NewReplicaCount, for all node groups, or ReplicaConfiguration, for some.")
    if listed:
        targets = [_configured(cache, each) for each in listed]
    else:
        targets = [_Target(shard, params["NewReplicaCount"]) for shard in cache.wanted.shards]
    if any(t.replica_count < 0 for t in targets):
        raise value_error("The new replica count must not be negative.")
    if len({t.shard.id for t in targets}) < len(targets):
        raise value_error("Each node group may be named once in ReplicaConfiguration.")
    targets = [t for t in targets if t.difference]
    if not targets:
        raise ApiError("NoOperationFault", f"Replication group {cache.name} has that number of replicas already.")
    return cache, targets


async def _group(params: Params, tx: Transaction) -> Cache:
    await find.group(tx, params["ReplicationGroupId"])
    if not params.get("ApplyImmediately"):
        raise value_error("ApplyImmediately must be true: the number of replicas cannot be changed in the maintenance window.")
    return await find.group_to_change(tx, params["ReplicationGroupId"], stuck=True)


def _configured(cache: Cache, configuration: Params) -> _Target:
    shard_id = configuration["NodeGroupId"].zfill(4)
    shard = next((s for s in cache.wanted.shards if s.id == shard_id), None)
    if shard is None:
        # NodeGroupNotFoundFault is declared for TestFailover alone.
        raise value_error(f"Node group {configuration['NodeGroupId']} of {cache.name} not found.")
    count = configuration["NewReplicaCount"]
    named: Sequence[str] = configuration.get("PreferredAvailabilityZones", ())
    if named and len(named) != count + 1:
        raise combination_error(
            f"PreferredAvailabilityZones must name {count + 1} zones: one for the primary and for each replica."
        )
    return _Target(shard, count, named)


async def _grown(tx: Transaction, cache: Cache, shard: WantedShard, where: Sequence[str]) -> tuple[Member, ...]:
    prefix = f"{cache.name}-{shard.id}-" if cache.wanted.cluster_mode == "enabled" else f"{cache.name}-"
    new = await want.new_names(tx, prefix, 3, len(where), want.own_names(cache))
    return (*shard.members, *(Member(name=name, zone=zone) for name, zone in zip(new, where, strict=True)))


def _shrunk(cache: Cache, target: _Target) -> tuple[Member, ...]:
    """The members that stay: the primary, and the first replicas, or those in the zones named."""
    primary = want.primary_of(cache, target.shard)
    candidates = [m for m in reversed(target.shard.members) if m.name != primary]
    leaving = candidates[: -target.difference]
    if target.zones:
        surplus = zones.missing([m.zone for m in target.shard.members], target.zones)
        leaving = []
        for zone in surplus:
            leaving += [m for m in candidates if m.zone == zone and m not in leaving][:1]
        if len(surplus) != -target.difference or len(leaving) != len(surplus):
            raise combination_error(
                f"The zones named do not fit node group {target.shard.id}: "
                "they must be those of its primary and of replicas that stay."
            )
    return tuple(m for m in target.shard.members if m not in leaving)


async def _remove(params: Params, tx: Transaction, context: Context, removed: list[str]) -> Mapping[str, Any]:
    cache = await _group(params, tx)
    if params.get("ReplicaConfiguration"):
        raise combination_error("ReplicaConfiguration cannot be used together with ReplicasToRemove, which names what is to go.")
    check_removable(cache, removed, "InvalidParameterValue")
    shards = tuple(replace(s, members=tuple(m for m in s.members if m.name not in removed)) for s in cache.wanted.shards)
    count = params.get("NewReplicaCount")
    if count is not None and any(len(s.members) != count + 1 for s in shards):
        raise combination_error(f"Removing {', '.join(removed)} does not leave {count} replicas in every node group.")
    return await _save_fewer(tx, context, cache, shards)


def check_removable(cache: Cache, removed: Sequence[str], code: str) -> None:
    """Raises ApiError ``code`` for a primary, InvalidParameterValue for what is no member."""
    primaries = {want.primary_of(cache, shard) for shard in cache.wanted.shards}
    for name in removed:
        if name not in cache.wanted_names():
            raise value_error(f"Cache cluster {name} is not a member of replication group {cache.name}.")
        if name in primaries:
            raise ApiError(
                code, f"Cache cluster {name} is serving as primary for replication group {cache.name} and cannot be removed."
            )


def check_rest(cache: Cache, shards: Sequence[WantedShard], last: ApiError) -> None:
    """Automatic failover needs a replica in every shard. Raises ``last``, or ApiError InvalidParameterCombination."""
    if not cache.wanted.automatic_failover:
        return
    for shard in shards:
        if len(shard.members) < 2:
            raise last
        if cache.wanted.multi_az and len({m.zone for m in shard.members}) < 2:
            raise combination_error(
                f"Replication group {cache.name} is Multi-AZ: its nodes cannot all be in one availability zone."
            )


async def _save_fewer(tx: Transaction, context: Context, cache: Cache, shards: tuple[WantedShard, ...]) -> Mapping[str, Any]:
    if cache.wanted.cluster_mode != "enabled":
        check_rest(cache, shards, value_error(_LAST_REPLICA))
    await tags.forget_members(tx, context, cache, shards)
    cache = await save(tx, cache, replace(cache.wanted, shards=shards))
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


# ------------------------------------------------------------------ one by name: CreateCacheCluster, DeleteCacheCluster

_FROM_GROUP: Final = frozenset({"CacheClusterId", "ReplicationGroupId", "PreferredAvailabilityZone", "Tags", "NumCacheNodes"})
"""What may be said of a new replica beside what its group says for it."""


_REPLICA_HAS_NONE: Final = "Cannot specify additional cache cluster parameters when creating a replica cluster"
"""AWS's own words."""


async def add_named(params: Params, tx: Transaction, context: Context, cluster_id: str) -> Cache:
    """A replica with a name of the user's choice [CreateCacheCluster, ReplicationGroupId]."""
    cache = await find.group_to_change(tx, params["ReplicationGroupId"], stuck=True)
    before = cache.wanted
    own = {"Engine": before.engine, "CacheNodeType": before.node_type, "Port": before.port}
    own |= {"CacheParameterGroupName": before.parameter_group, "AutoMinorVersionUpgrade": before.auto_minor_version_upgrade}
    own |= {"PreferredMaintenanceWindow": before.maintenance_window, "CacheSubnetGroupName": before.subnet_group or "default"}
    own |= {"SnapshotRetentionLimit": before.snapshot_retention_days, "TransitEncryptionEnabled": before.transit != "disabled"}
    own |= {"NetworkType": "ipv4", "IpDiscovery": "ipv4", "AZMode": "single-az"}
    for name, value in params.items():
        if name not in _FROM_GROUP and own.get(name) != (value.lower() if isinstance(value, str) else value):
            raise combination_error(f"{_REPLICA_HAS_NONE}: {name} of a replica is that of its replication group.")
    if before.cluster_mode == "enabled":
        raise combination_error("Use IncreaseReplicaCount to add replicas where cluster mode is enabled.")
    if params.get("NumCacheNodes", 1) != 1:
        raise value_error("NumCacheNodes of a replica must be 1.")
    shard = before.shards[0]
    if len(shard.members) >= NODES_PER_SHARD_MAX:
        message = f"Replication group {cache.name} has {len(shard.members)} nodes already, which is the most that it can have."
        raise ApiError("NodeQuotaForClusterExceeded", message)
    allowed = await want.zones_of(tx, context, cache)
    named = [params["PreferredAvailabilityZone"]] if "PreferredAvailabilityZone" in params else []
    zones.check(named, allowed)
    zone = (named or zones.spread(1, allowed, (m.zone for m in shard.members)))[0]
    members = (*shard.members, Member(name=cluster_id, zone=zone))
    wanted = replace(before, shards=want.with_members(before, shard.id, members))
    await want.check_room(tx, context, wanted, cache)
    return await save(tx, cache, wanted, told(cache, _INCREASING))


async def remove_named(tx: Transaction, cache: Cache, cluster_id: str) -> Cache:
    """Take one replica out of its group [DeleteCacheCluster]."""
    if cluster_id not in cache.wanted_names():
        raise find.cluster_state_error(cluster_id)
    if cache.wanted.cluster_mode == "enabled":
        raise combination_error("Use DecreaseReplicaCount to remove replicas where cluster mode is enabled.")
    if len(cache.wanted_names()) == 1:
        message = f"Cache cluster {cluster_id} is the only member of a replication group; delete the group {cache.name} instead."
        raise ApiError("InvalidCacheClusterState", message)
    check_removable(cache, [cluster_id], "InvalidCacheClusterState")
    cache = await find.member_to_change(tx, cluster_id)
    shards = tuple(replace(s, members=tuple(m for m in s.members if m.name != cluster_id)) for s in cache.wanted.shards)
    check_rest(cache, shards, ApiError("InvalidCacheClusterState", _LAST_MEMBER.format(group=cache.name)))
    return await save(tx, cache, replace(cache.wanted, shards=shards))


OPERATIONS: Final[Mapping[str, Operation]] = {
    "IncreaseReplicaCount": writes(increase),
    "DecreaseReplicaCount": writes(decrease),
}
