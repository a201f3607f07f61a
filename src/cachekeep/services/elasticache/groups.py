"""Replication groups: create, describe, modify, delete, test a failover."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.engines.catalogue import family_of, numbers
from cachekeep.engines.limits import data_bytes
from cachekeep.engines.parameters import default_groups
from cachekeep.model import Cache, Member, Wanted
from cachekeep.model.traits import traits
from cachekeep.services.core import paging
from cachekeep.services.core.caches import save, told
from cachekeep.services.core.context import Context, Params, combination_error, unsupported, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Held, Operation, reads, writes
from cachekeep.services.elasticache import (
    admission,
    find,
    in_force,
    mode,
    names,
    quotas,
    render,
    restoring,
    shards,
    snapshots,
    tags,
)
from cachekeep.services.elasticache import wanted as want
from cachekeep.store.contract import AlreadyThere, Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

# ------------------------------------------------------------------ create


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Creates one primary and up to five replicas, in the zones asked for; or a group around an existing stand-alone cluster."""
    params = call.params
    group_id = names.identifier(params["ReplicationGroupId"], "ReplicationGroupId", names.GROUP_ID_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    if await tx.cache(group_id, "group"):
        raise _already_exists(group_id)
    if "PrimaryClusterId" in params:
        cache = await _around(params, tx, context, group_id)
    else:
        restored = await restoring.source(params, tx)
        params = restoring.filled(params, restored)
        if "CacheNodeType" not in params:
            raise value_error("The parameter CacheNodeType must be provided and must not be blank.")
        cache = await _new(params, tx, context, group_id, restored)
    await tags.replace_all(tx, names.arn(context.settings, "replicationgroup", group_id), given)
    tx.wake(cache.uid)
    return {"ReplicationGroup": render.group(cache, None, context)}


def _already_exists(group_id: str) -> ApiError:
    return ApiError("ReplicationGroupAlreadyExists", "Replication group with specified name already exists.")


async def _new(params: Params, tx: Transaction, context: Context, group_id: str, restored: restoring.Origin | None) -> Cache:
    engine = params.get("Engine", "redis").lower()
    if engine not in ("redis", "valkey"):
        raise value_error(f"Invalid engine {engine}: a replication group runs redis or valkey.")
    transit = want.transit(params)
    offer = want.choose_version(context, engine, params.get("EngineVersion"), transit)
    node_type = want.check_node_type(engine, params["CacheNodeType"])
    found = shards.layouts(params)
    asked = params.get("CacheParameterGroupName")
    if asked is None and shards.asks_for_cluster_mode(params, found):
        asked = f"default.{offer.family}.cluster.on"
    group_name, values = await want.parameter_group(tx, asked, offer.family)
    clustered = shards.cluster_mode(params, found, values)
    port = names.port(params.get("Port"), want.DEFAULT_PORTS[engine])
    shards.check_port(port, clustered=clustered)
    subnet_group = params.get("CacheSubnetGroupName", "").lower() or None
    allowed = await want.zones_for(tx, context, subnet_group)
    wanted = Wanted(
        engine=engine,
        version=offer.version,
        node_type=node_type,
        port=port,
        shards=await shards.build(tx, context, group_id, found, clustered=clustered, allowed=allowed),
        cluster_mode="enabled" if clustered else "disabled",
        parameter_group=group_name,
        parameters=values,
        subnet_group=subnet_group,
        **want.encrypted(context, transit, offer, node_type),
        clients=await admission.of_new(params, tx, context.clock.now(), engine=engine, version=offer.version, transit=transit),
        **({"automatic_failover": clustered} | await want.plain(tx, params, context.settings)),
        **want.windows(params, engine),
    )
    shards.check_failover(wanted)
    wanted = restoring.imported(restoring.into(wanted, restored), params, context)
    try:
        cache = await want.insert(tx, context, "group", group_id, wanted)
        await tx.tell(*restoring.told_of(cache))
        return cache
    except AlreadyThere:
        raise _already_exists(group_id) from None


_FROM_PRIMARY: Final = (
    "Engine",
    "EngineVersion",
    "CacheNodeType",
    "CacheParameterGroupName",
    "CacheSubnetGroupName",
    "Port",
    "TransitEncryptionEnabled",
    "TransitEncryptionMode",
)
"""What a group takes over from the cluster that becomes its primary."""


async def _around(params: Params, tx: Transaction, context: Context, group_id: str) -> Cache:
    """The group that an existing cluster becomes: same row, same node, same data, new name and kind."""
    primary_id = params["PrimaryClusterId"].lower()
    cache = await find.cluster_to_change(tx, primary_id)
    if cache.kind == "group":
        raise ApiError("InvalidCacheClusterState", f"Cache cluster {primary_id} belongs to replication group {cache.name} already.")
    if not traits(cache.wanted.engine).replicates:
        raise combination_error(f"Cache cluster {primary_id} runs {cache.wanted.engine}, which cannot be replicated.")
    clashing = [name for name in _FROM_PRIMARY if name in params and not _agrees(name, params[name], cache.wanted, context)]
    if clashing:
        raise combination_error(f"{', '.join(clashing)} cannot differ from those of the primary cluster {primary_id}.")
    found = shards.layouts(params)
    if shards.asks_for_cluster_mode(params, found):
        raise combination_error("A cache cluster that exists can become the primary of a group without cluster mode only.")
    allowed = await want.zones_of(tx, context, cache)
    first = cache.wanted.shards[0].members[0]
    built = await shards.build(tx, context, group_id, found, clustered=False, allowed=allowed, first=first)
    # The node goes on in the shard that it was decided in.
    built = (replace(built[0], id=cache.wanted.shards[0].id),)
    changes = await want.plain(tx, params, context.settings) | want.windows(params, cache.wanted.engine, cache.wanted)
    if "UserGroupIds" in params or "AuthToken" in params:
        engine, version = in_force.engine(cache)
        changes["clients"] = await admission.of_new(
            params, tx, context.clock.now(), engine=engine, version=version, transit=cache.wanted.transit
        )
    wanted = replace(cache.wanted, shards=built, **changes)
    shards.check_failover(wanted)
    await want.check_room(tx, context, wanted, cache)
    try:
        return await tx.save_wanted(replace(cache, name=group_id, kind="group", wanted=wanted))
    except AlreadyThere:
        raise _already_exists(group_id) from None


def _agrees(parameter: str, value: Any, wanted: Wanted, context: Context) -> bool:
    if parameter == "EngineVersion":
        return want.choose_version(context, wanted.engine, value).version == wanted.version
    own = {
        "Engine": wanted.engine,
        "CacheNodeType": wanted.node_type,
        "CacheParameterGroupName": wanted.parameter_group,
        "CacheSubnetGroupName": wanted.subnet_group or render.DEFAULT_SUBNET_GROUP,
        "Port": wanted.port,
        "TransitEncryptionEnabled": wanted.transit != "disabled",
        "TransitEncryptionMode": wanted.transit,
    }[parameter]
    return bool((value.lower() if isinstance(value, str) else value) == own)


# ------------------------------------------------------------------ describe


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All groups in pages, or one by its id; the one is held for a moment while it is in transition."""
    after, size = paging.start(call.params)
    if name := call.params.get("ReplicationGroupId"):
        found: Sequence[Cache] = [await find.group(tx, name)]
        marker: Mapping[str, str] = {}
    else:
        rows = await tx.caches(kind="group", after=after or "", limit=size + 1)
        found, marker = paging.finish(rows, size, lambda cache: cache.name)
    conditions = await tx.conditions([cache.uid for cache in found])
    shapes = [render.group(cache, conditions.get(cache.uid), context) for cache in found]
    return {"ReplicationGroups": shapes, **marker}


# ------------------------------------------------------------------ modify


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Changes node type, engine version, parameter group, user group or AUTH token, failover settings, windows, description;
    or cluster mode; or another primary."""
    params = call.params
    cache = await find.group(tx, params["ReplicationGroupId"])
    asked = params.keys() - {"ReplicationGroupId", "ApplyImmediately", "NodeGroupId"}
    immediately = params.get("ApplyImmediately", False)
    if not asked and not (immediately and cache.wanted.deferred):
        raise combination_error("No modifications were requested")
    cache = cache if mode.on_the_way(params, cache) else await find.group_to_change(tx, cache.name, stuck=True)
    before = cache.wanted
    want.check_transit_stays(params, before)
    if params.get("ClusterMode", before.cluster_mode) != before.cluster_mode:
        changes = await mode.change(params, tx, cache)
        await want.check_room(tx, context, replace(before, **changes), cache)
        told_of = (
            f"Cluster mode of replication group {cache.name} is changed from {before.cluster_mode} to {changes['cluster_mode']}"
        )
        cache = await save(tx, cache, replace(before, **changes), told(cache, told_of))
        return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}
    changes = await want.plain(tx, params, context.settings) | want.windows(params, before.engine, before)
    if "CacheNodeType" in params:
        changes["node_type"] = await change_node_type(tx, cache, params["CacheNodeType"])
    if admission.CHANGES & params.keys():
        changes["clients"] = await admission.of_changed(params, tx, context.clock.now(), cache)
    changes |= await change_engine(params, tx, context, cache, immediately=immediately)
    if "SnapshottingClusterId" in params:
        changes["snapshotting_id"] = _snapshotting(cache, params["SnapshottingClusterId"].lower())
    if "PrimaryClusterId" in params:
        changes |= _promote(cache, params["PrimaryClusterId"].lower())
    wanted = want.revise(cache, changes, immediately=immediately)
    shards.check_failover(wanted)
    await want.check_room(tx, context, wanted, cache)
    events = []
    if wanted.automatic_failover != before.automatic_failover:
        turned = "on" if wanted.automatic_failover else "off"
        events.append(told(cache, f"Automatic failover has been turned {turned} for replication group {cache.name}"))
    if admission.still_open(wanted.clients) and not admission.still_open(before.clients):
        events.append(told(cache, admission.STILL_OPEN))
    cache = await save(tx, cache, wanted, *events)
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


async def change_node_type(tx: Transaction, cache: Cache, name: str) -> str:
    """The node type, if what the nodes were last seen to hold fits [AWS: Scaling down, "large enough to accommodate all the data"].

    Raises ApiError InvalidParameterValue or InvalidParameterCombination.
    """
    name = want.check_node_type(cache.wanted.engine, name)
    want.check_transit(cache.wanted.transit, cache.wanted.engine, name)
    held = in_force.held_bytes(await tx.condition(cache.uid))
    if not in_force.fits(cache, name, held):
        room = data_bytes(replace(cache.wanted, node_type=name))
        raise combination_error(
            f"{cache.name} holds more than {held >> 20} MiB, and {name} has room for {room >> 20} MiB of data beside what the "
            "parameter group reserves; nothing was changed. Choose a larger node type, or remove data first."
        )
    return name


async def change_engine(params: Params, tx: Transaction, context: Context, cache: Cache, *, immediately: bool) -> dict[str, Any]:
    """Engine, version and parameter group after a request [fact sheet §7: upward only; Redis becomes Valkey, never back].

    Raises ApiError InvalidParameterValue, InvalidParameterCombination or CacheParameterGroupNotFound.
    """
    before, (running, version) = cache.wanted, in_force.engine(cache)
    engine = params.get("Engine", before.engine).lower()
    old_family = family = family_of(before.engine, before.version)
    changes: dict[str, Any] = {}
    if engine != running and (running, engine) != ("redis", "valkey"):
        raise combination_error(f"The engine cannot be changed from {running} to {engine}.")
    if engine != before.engine or "EngineVersion" in params:
        offer = want.choose_version(
            context, engine, params.get("EngineVersion", version if engine == running else None), before.transit
        )
        if engine == running and numbers(offer.version) < numbers(version):
            raise combination_error(f"The engine version cannot be changed from {version} down to {offer.version}.")
        family, changes = offer.family, {"engine": engine, "version": offer.version}
    name = params.get("CacheParameterGroupName")
    if name is None and family == old_family:
        return changes
    if name is None and not before.parameter_group.startswith("default."):
        raise combination_error(
            f"The parameter group {before.parameter_group} does not fit {engine} {changes['version']}: "
            f"name one of family {family} in CacheParameterGroupName."
        )
    clustered = before.cluster_mode != "disabled"
    if name is None and clustered:
        name = f"default.{family}.cluster.on"
    group_name, values = await want.parameter_group(tx, name, family)
    defaults = {group_name, before.parameter_group} <= default_groups().keys()
    if not defaults and family != family_of(running, version) and not immediately:
        raise unsupported("A custom parameter group of another family together with ApplyImmediately=false")
    if (values.get("cluster-enabled") == "yes") is not clustered:
        raise combination_error(
            f"The parameter group {group_name} has another cluster-enabled than {before.parameter_group}: "
            "the cluster mode of a group is "
            "changed with ClusterMode only. Nothing was changed."
        )
    return changes | {"parameter_group": group_name, "parameters": values}


def _snapshotting(cache: Cache, cluster_id: str) -> str:
    """The member that automatic snapshots are read from. Terraform names the group's first one, be it there or not, and be it in
    cluster mode, where each shard has one: then that says nothing."""
    if cluster_id in cache.wanted_names() and not cache.clustered:
        return cluster_id
    if cluster_id == f"{cache.name}-001":
        return ""
    if cache.clustered:
        raise combination_error(f"SnapshottingClusterId cannot be set for {cache.name}: in cluster mode all shards are read.")
    raise value_error(f"Cache cluster {cluster_id} is not a member of replication group {cache.name}.")


def _promote(cache: Cache, cluster_id: str) -> dict[str, Any]:
    """The errand that makes another node primary [fact sheet §3: with Multi-AZ and automatic failover off]."""
    shard = next((s for s in cache.wanted.shards if any(m.name == cluster_id for m in s.members)), None)
    if shard is None:
        raise value_error(f"Cache cluster {cluster_id} is not a member of replication group {cache.name}.")
    if cache.wanted.automatic_failover or cache.wanted.multi_az:
        raise combination_error(
            f"Replication group {cache.name} has automatic failover or Multi-AZ enabled; "
            "disable both before promoting a replica by hand."
        )
    if want.primary_of(cache, shard) == cluster_id:
        return {}
    return {"errands": with_errand(cache, "promote", nodes=(cluster_id,), shard=shard.id)}


# ------------------------------------------------------------------ delete


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes all nodes and their data with them; `RetainPrimaryCluster` keeps the primary as a cluster of its own."""
    cache = await find.group(tx, call.params["ReplicationGroupId"])
    last = call.params.get("FinalSnapshotIdentifier")
    if cache.wanted.deleted and cache.kept_from_ending is None:
        raise find.group_state_error(cache.name)
    if call.params.get("RetainPrimaryCluster"):
        if last is not None:
            raise combination_error("FinalSnapshotIdentifier cannot be used with RetainPrimaryCluster, which keeps all data.")
        return await _retain_primary(tx, context, cache)
    if last is not None and not cache.wanted.deleted:
        await find.group_to_change(tx, cache.name)
    cache = await snapshots.delete_cache(tx, context, cache, last)
    await tags.forget(tx, context, cache)
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


async def _retain_primary(tx: Transaction, context: Context, cache: Cache) -> Mapping[str, Any]:
    cache = await find.group_to_change(tx, cache.name)
    if cache.wanted.cluster_mode != "disabled":
        raise combination_error("RetainPrimaryCluster cannot be used with cluster mode: a stand-alone cluster has none.")
    primary = want.primary_of(cache, cache.wanted.shards[0])
    if primary is None or await tx.cache(primary, "cluster"):
        raise ApiError("InvalidReplicationGroupState", f"Replication group {cache.name} has no primary that can be retained now.")
    members: tuple[Member, ...] = tuple(m for m in cache.wanted.shards[0].members if m.name == primary)
    wanted = replace(
        cache.wanted,
        shards=want.with_members(cache.wanted, cache.wanted.shards[0].id, members),
        automatic_failover=False,
        multi_az=False,
        description="",
    )
    shape = render.group(cache, None, context) | {"Status": "deleting"}
    await tags.drop(tx, names.arn(context.settings, "replicationgroup", cache.name))
    await tags.forget_members(tx, context, cache, wanted.shards)
    saved = await tx.save_wanted(replace(cache, name=primary, kind="cluster", wanted=wanted))
    tx.wake(saved.uid)
    return {"ReplicationGroup": shape}


# ------------------------------------------------------------------ test failover

_TEST_TOLD: Final = "Test Failover API called for node group "


async def test_failover(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The primary of a shard is stopped as if it had failed, and a replica takes over."""
    cache = await find.group(tx, call.params["ReplicationGroupId"])
    shard_id = call.params["NodeGroupId"].zfill(4)
    if shard_id not in {s.id for s in cache.wanted.shards}:
        raise ApiError("NodeGroupNotFoundFault", f"Node group {call.params['NodeGroupId']} of {cache.name} not found.")
    cache = await find.group_to_change(tx, cache.name)
    if not cache.wanted.automatic_failover:
        raise combination_error(f"Automatic failover must be enabled for replication group {cache.name} to test it.")
    shard = cache.shard(shard_id)
    if shard is None or not shard.in_sync:
        raise ApiError(
            "TestFailoverNotAvailableFault",
            f"No replica of node group {shard_id} is in sync with its primary, so none could take over. Nothing was changed.",
        )
    await _check_test_quota(tx, context)
    errands = with_errand(cache, "test-failover", shard=shard_id)
    cache = await save(tx, cache, replace(cache.wanted, errands=errands), told(cache, f"{_TEST_TOLD}{shard_id}"))
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


async def _check_test_quota(tx: Transaction, context: Context) -> None:
    since, after, count = context.clock.now() - dt.timedelta(days=1), None, 0
    while rows := await tx.events(start=since, source_type="replication-group", after=after, limit=500):
        count += sum(event.message.startswith(_TEST_TOLD) for _, event in rows)
        after = rows[-1][0]
    quotas.TEST_FAILOVERS_PER_DAY.check(count + 1, context.settings.quotas)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateReplicationGroup": writes(create),
    "DescribeReplicationGroups": reads(describe, Held("ReplicationGroupId", "group")),
    "ModifyReplicationGroup": writes(modify),
    "DeleteReplicationGroup": writes(delete),
    "TestFailover": writes(test_failover),
}
