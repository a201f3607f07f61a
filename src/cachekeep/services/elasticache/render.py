"""Our nouns in AWS's shapes. Pure: a cache, its condition if a keeper stands by it, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.engines.catalogue import Catalogue, numbers, offer_of
from cachekeep.model import (
    Cache,
    Condition,
    NamedUsers,
    Node,
    ParameterGroup,
    Shard,
    SubnetGroup,
    TokenHolders,
    WantedShard,
    fingerprint,
)
from cachekeep.model.endpoint import Endpoint, endpoint, node_endpoint
from cachekeep.model.traits import traits
from cachekeep.plan.slots.ranges import Ranges
from cachekeep.plan.slots.reshard import percent
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.hold import current
from cachekeep.services.elasticache import in_force
from cachekeep.services.elasticache.names import arn
from cachekeep.services.elasticache.status import cluster_status, group_status, node_status

DEFAULT_SUBNET_GROUP: Final = "default"

Shape = dict[str, Any]


# ------------------------------------------------------------------ replication groups


def group(cache: Cache, condition: Condition | None, context: Context) -> Shape:
    """A ReplicationGroup."""
    wanted = cache.wanted
    clustered = cache.clustered
    status = group_status(cache, condition)
    shape: Shape = {
        "ReplicationGroupId": cache.name,
        "Description": wanted.description,
        "Status": status,
        "PendingModifiedValues": _pending_group(cache) | _token_on_its_way(cache, condition),
        "MemberClusters": list(cache.cluster_ids()),
        "NodeGroups": [_node_group(cache, shard, status, clustered) for shard in _shards(cache)],
        "AutomaticFailover": _automatic_failover(cache),
        "MultiAZ": "enabled" if wanted.multi_az else "disabled",
        "SnapshotRetentionLimit": wanted.snapshot_retention_days,
        "SnapshotWindow": wanted.snapshot_window,
        "ClusterEnabled": clustered,
        "ClusterMode": cache.cluster_mode,
        "CacheNodeType": in_force.node_type(cache),
        **_token(cache),
        **_transit(cache),
        "AtRestEncryptionEnabled": False,
        "StorageEncryptionType": "none",
        "ARN": arn(context.settings, "replicationgroup", cache.name),
        "UserGroupIds": [wanted.clients.group] if isinstance(wanted.clients, NamedUsers) else [],
        "LogDeliveryConfigurations": [],
        "ReplicationGroupCreateTime": cache.created_at,
        "DataTiering": "disabled",
        "AutoMinorVersionUpgrade": wanted.auto_minor_version_upgrade,
        "NetworkType": "ipv4",
        "IpDiscovery": "ipv4",
        "Engine": in_force.engine(cache)[0],
    }
    if wanted.snapshotting_id:
        shape["SnapshottingClusterId"] = wanted.snapshotting_id
    return shape | _told(ConfigurationEndpoint=endpoint(cache, "configuration"))


def _token(cache: Cache) -> Shape:
    """The token itself is never told."""
    clients = cache.wanted.clients
    if not isinstance(clients, TokenHolders):
        return {"AuthTokenEnabled": False}
    return {"AuthTokenEnabled": True, "AuthTokenLastModifiedDate": clients.changed_at}


def _token_on_its_way(cache: Cache, condition: Condition | None) -> Shape:
    """Until all nodes that answer let in who has it [AuthTokenUpdateStatus]."""
    clients = cache.wanted.clients
    told = condition is not None and condition.clients_told == fingerprint(clients)
    if not isinstance(clients, TokenHolders) or told or not cache.decided.available_at:
        return {}
    return {"AuthTokenStatus": "ROTATING" if clients.optional or len(clients.tokens) > 1 else "SETTING"}


def _transit(cache: Cache) -> Shape:
    """The mode is told only where there is one."""
    now = cache.decided.transit if cache.decided.nodes else cache.wanted.transit
    return {"TransitEncryptionEnabled": now != "disabled"} | ({"TransitEncryptionMode": now} if now != "disabled" else {})


def _automatic_failover(cache: Cache) -> str:
    """Nothing can fail over before it has been available."""
    if not cache.wanted.automatic_failover:
        return "disabled"
    return "enabled" if cache.decided.available_at else "enabling"


def _pending_group(cache: Cache) -> Shape:
    promoted = [e.nodes[0] for e in cache.errands_left if e.kind == "promote"]
    pending: Shape = {"PrimaryClusterId": promoted[-1]} if promoted else {}
    if cache.cluster_mode != cache.wanted.cluster_mode:
        pending["ClusterMode"] = cache.wanted.cluster_mode
    if (percent := _resharding(cache)) is not None:
        pending["Resharding"] = {"SlotMigration": {"ProgressPercentage": percent}}
    return pending


def _resharding(cache: Cache) -> float | None:
    """How far a change of node groups has come, in percent of the slots that move; None when none is under way."""
    if not cache.clustered or cache.decided.available_at is None:
        return None
    decided = cache.decided
    if decided.resharding:
        return round(percent(decided), 2)
    asked = any(e.kind == "rebalance" for e in cache.errands_left)
    return 0.0 if asked or {w.id for w in cache.wanted.shards} != {x.id for x in decided.shards if x.slots} else None


def _shards(cache: Cache) -> list[WantedShard]:
    """The wanted shards, then those that are still there and no longer wanted."""
    wanted = list(cache.wanted.shards)
    known = {shard.id for shard in wanted}
    return wanted + [WantedShard(id=s.id, members=(), slots=s.slots) for s in cache.decided.shards if s.id not in known]


def _node_group(cache: Cache, wanted: WantedShard, status: str, clustered: bool) -> Shape:
    shard = cache.shard(wanted.id)
    shape: Shape = {
        "NodeGroupId": wanted.id,
        "Status": status if status in ("creating", "available", "deleting") else "modifying",
        "NodeGroupMembers": _members(cache, wanted, shard, clustered),
    }
    if clustered:
        slots = shard.owned if shard else wanted.slots
        shape["Slots"] = slots_text(slots)
    primary, reader = endpoint(cache, "primary", wanted.id), endpoint(cache, "reader", wanted.id)
    return shape | _told(PrimaryEndpoint=primary, ReaderEndpoint=reader)


def slots_text(slots: Ranges) -> str:
    """As the API has it: ``0-5460,5462``."""
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in slots)


def _members(cache: Cache, wanted: WantedShard, shard: Shard | None, clustered: bool) -> list[Shape]:
    """The shard's nodes: the primary first, the others always in the same order."""
    zones = {m.name: m.zone for m in wanted.members}
    zones |= {n.member: n.zone for n in cache.decided.nodes if n.shard == wanted.id}
    leader = cache.node(shard.primary) if shard and shard.primary else None
    primary = leader.member if leader else None
    shapes = []
    for name in sorted(zones, key=lambda name: name != primary):
        node = cache.member(name)
        shape: Shape = {"CacheClusterId": name, "CacheNodeId": "0001", "PreferredAvailabilityZone": zones[name]}
        if node and not clustered:
            shape |= _told(ReadEndpoint=node_endpoint(node))
            shape["CurrentRole"] = "primary" if name == primary else "replica"
        shapes.append(shape)
    return shapes


# ------------------------------------------------------------------ cache clusters


def cluster(cache: Cache, condition: Condition | None, cluster_id: str, context: Context, *, nodes: bool = False) -> Shape:
    """A CacheCluster: a stand-alone one, or one member of a group. ``nodes``: with its CacheNodes."""
    wanted = cache.wanted
    here = [n for n in cache.decided.nodes if n.cluster_id == cluster_id]
    zones = {n.name: n.zone for n in here} or {
        m.name: m.zone for s in wanted.shards for m in s.members if m.name.partition(".")[0] == cluster_id
    }
    engine, version = in_force.engine(cache, here)
    memcached = traits(engine).listed
    reboot = _pending_reboot(condition, here)
    groups = wanted.security_group_ids or (context.settings.security_group_id,)
    shape: Shape = {
        "CacheClusterId": cluster_id,
        "CacheNodeType": in_force.node_type(cache, here),
        "Engine": engine,
        "EngineVersion": shown_version(context.catalogue, engine, version),
        "CacheClusterStatus": cluster_status(cache, condition, cluster_id),
        "NumCacheNodes": len([n for n in here if not n.leaving]) or len(zones),
        "PreferredAvailabilityZone": next(iter(zones.values())) if len(set(zones.values())) == 1 else "Multiple",
        "CacheClusterCreateTime": _created_at(cache, here),
        "PreferredMaintenanceWindow": wanted.maintenance_window,
        "PendingModifiedValues": _pending_cluster(cache, here, context.catalogue) | _token_on_its_way(cache, condition),
        "CacheSecurityGroups": [],
        "CacheParameterGroup": {
            "CacheParameterGroupName": in_force.parameter_group(cache, here),
            "ParameterApplyStatus": _apply_status(cache, condition, bool(reboot)),
            "CacheNodeIdsToReboot": reboot,
        },
        "CacheSubnetGroupName": wanted.subnet_group or DEFAULT_SUBNET_GROUP,
        "AutoMinorVersionUpgrade": wanted.auto_minor_version_upgrade,
        "SecurityGroups": [{"SecurityGroupId": group_id, "Status": "active"} for group_id in groups],
        **_token(cache),
        **_transit(cache),
        "AtRestEncryptionEnabled": False,
        "ARN": arn(context.settings, "cluster", cluster_id),
        "ReplicationGroupLogDeliveryEnabled": False,
        "LogDeliveryConfigurations": [],
        "NetworkType": "ipv4",
        "IpDiscovery": "ipv4",
    }
    if not memcached:
        shape |= {"SnapshotRetentionLimit": wanted.snapshot_retention_days, "SnapshotWindow": wanted.snapshot_window}
    if cache.kind == "group":
        shape["ReplicationGroupId"] = cache.name
    if memcached:
        shape |= _told(ConfigurationEndpoint=endpoint(cache, "configuration"))
    if nodes:
        shape["CacheNodes"] = [_cache_node(cache, condition, node, node.node_id in reboot) for node in here]
    return shape


def _pending_cluster(cache: Cache, here: list[Node], catalogue: Catalogue) -> Shape:
    """What is wanted and not decided yet; nothing while it is created or deleted."""
    wanted, shape = cache.wanted, Shape()
    if not cache.decided.available_at or wanted.deleted or not here:
        return shape
    if any(node.node_type != wanted.node_type for node in here):
        shape["CacheNodeType"] = wanted.node_type
    if any((node.engine, node.version) != (wanted.engine, wanted.version) for node in here):
        shape["EngineVersion"] = shown_version(catalogue, wanted.engine, wanted.version)
    if traits(wanted.engine).listed:
        names, present = set(cache.wanted_names()), {n.name for n in here}
        if names != present:
            shape["NumCacheNodes"] = len(names)
        if present - names:
            shape["CacheNodeIdsToRemove"] = sorted(n.node_id for n in here if n.name not in names)
    return shape


def _cache_node(cache: Cache, condition: Condition | None, node: Node, reboot: bool) -> Shape:
    return {
        "CacheNodeId": node.node_id,
        "CacheNodeStatus": node_status(cache, condition, node),
        "CacheNodeCreateTime": node.created_at or cache.created_at,
        **_told(Endpoint=node_endpoint(node)),
        "ParameterGroupStatus": _apply_status(cache, condition, reboot),
        "CustomerAvailabilityZone": node.zone,
    }


def _apply_status(cache: Cache, condition: Condition | None, reboot: bool) -> str:
    """``applying`` until a keeper has looked at the values that are wanted now."""
    if reboot:
        return "pending-reboot"
    return "in-sync" if current(cache, condition) else "applying"


def _pending_reboot(condition: Condition | None, here: list[Node]) -> list[str]:
    names = {n.name for n in condition.nodes if n.pending_reboot} if condition else set()
    return [node.node_id for node in here if node.name in names]


def _created_at(cache: Cache, here: list[Node]) -> Any:
    """A member that joined later is younger than its group."""
    return min((n.created_at for n in here if n.created_at), default=cache.created_at)


def shown_version(catalogue: Catalogue, engine: str, version: str) -> str:
    """``EngineVersion`` as it is shown: that of the build which serves the version where it is of the same line (``8.0`` →
    ``8.0.1``), else the version with three numbers (``7.1`` → ``7.1.0``, though a build serves it that calls itself 7.0). Decision
    record 0008."""
    asked, build = numbers(version), catalogue.serving(offer_of(engine, version))
    if build is not None and build.numbers[: len(asked)] == asked:
        return build.version
    return ".".join(str(part) for part in (*asked, 0, 0)[:3])


def _told(**endpoints: Endpoint | None) -> Shape:
    """Endpoints in AWS's shape, those that are there."""
    return {name: {"Address": e.address, "Port": e.port} for name, e in endpoints.items() if e is not None}


# ------------------------------------------------------------------ the smaller ones


def parameter_group(found: ParameterGroup, settings: ServiceSettings) -> Shape:
    """A CacheParameterGroup."""
    return {
        "CacheParameterGroupName": found.name,
        "CacheParameterGroupFamily": found.family,
        "Description": found.description,
        "IsGlobal": False,
        "ARN": arn(settings, "parametergroup", found.name),
    }


def subnet_group(found: SubnetGroup, settings: ServiceSettings) -> Shape:
    """A CacheSubnetGroup."""
    return {
        "CacheSubnetGroupName": found.name,
        "CacheSubnetGroupDescription": found.description,
        "VpcId": found.vpc_id,
        "Subnets": [
            {"SubnetIdentifier": s.id, "SubnetAvailabilityZone": {"Name": s.zone}, "SupportedNetworkTypes": ["ipv4"]}
            for s in found.subnets
        ],
        "ARN": arn(settings, "subnetgroup", found.name),
        "SupportedNetworkTypes": ["ipv4"],
    }


def tag_list(values: Mapping[str, str]) -> Shape:
    """A TagListMessage."""
    return {"TagList": [{"Key": key, "Value": value} for key, value in values.items()]}
