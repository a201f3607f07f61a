"""Snapshots: taken, told of, deleted. A request only writes what is asked for; a keeper takes one, and a worker removes what is not
to be there any more."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import Cache, Export, Snapshot, SnapshotEnd, SnapshotNode, SnapshotSource
from cachekeep.model.traits import traits
from cachekeep.plan.restores import going_on
from cachekeep.plan.snapshots import nodes_of, settings_of
from cachekeep.services.core import paging
from cachekeep.services.core.caches import every, save
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.paging import PageRule
from cachekeep.services.elasticache import find, names, quotas, render, tags
from cachekeep.services.elasticache.absent import MISSING
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_PAGES: Final = PageRule(most=50, default=50)
_SOURCES: Final[Mapping[str, SnapshotSource]] = {"user": "manual", "system": "automated"}
_QUOTA_SPAN: Final = dt.timedelta(days=1)


# ------------------------------------------------------------------ create


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Takes a snapshot of a replication group, all shards at once, or of a single node: from a replica where one is in sync."""
    params = call.params
    name = names.identifier(params["SnapshotName"], "SnapshotName", names.NAME_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    cache, cluster_id = await _source(params, tx)
    found = await _put(tx, context, cache, name, cluster_id)
    named = tuple(filter(None, [cluster_id or cache.wanted.snapshotting_id]))
    await save(tx, cache, replace(cache.wanted, errands=with_errand(cache, "snapshot", nodes=named, snapshot=found.uid)))
    await tags.replace_all(tx, names.arn(context.settings, "snapshot", name), given)
    return {"Snapshot": shape(found, None, context)}


async def _put(tx: Transaction, context: Context, cache: Cache, name: str, cluster_id: str = "") -> Snapshot:
    """What a manual snapshot of a cache is. Raises ApiError SnapshotAlreadyExistsFault, SnapshotQuotaExceededFault or
    SnapshotFeatureNotSupportedFault."""
    if not traits(cache.wanted.engine).snapshots or cache.wanted.node_type == "cache.t1.micro":
        told = f"Snapshots are not supported for {cache.wanted.engine} on {cache.wanted.node_type}. Nothing was changed."
        raise ApiError("SnapshotFeatureNotSupportedFault", told)
    if await tx.get(Snapshot, name) is not None:
        raise ApiError("SnapshotAlreadyExistsFault", f"Snapshot {name} already exists.")
    since = context.clock.now() - _QUOTA_SPAN
    lately = [s for s in await tx.list(Snapshot) if s.cache_uid == cache.uid and s.source == "manual" and s.asked_at > since]
    quotas.SNAPSHOTS_PER_DAY.check(len(lately) + 1, context.settings.quotas)
    return await tx.put(
        Snapshot(
            name=name,
            uid=f"{context.clock.new_id()}/{name}",
            source="manual",
            asked_at=context.clock.now(),
            cache_uid=cache.uid,
            group=cache.name if cache.kind == "group" else "",
            cluster_id=cluster_id,
            settings=settings_of(cache),
            nodes=nodes_of(cache, cluster_id),
        )
    )


async def _source(params: Params, tx: Transaction) -> tuple[Cache, str]:
    """The cache, and the node if one is named [CreateSnapshot: ReplicationGroupId, CacheClusterId; Ansible sends both]."""
    group_id, cluster_id = params.get("ReplicationGroupId", "").lower(), params.get("CacheClusterId", "").lower()
    if not group_id and not cluster_id:
        raise combination_error("ReplicationGroupId or CacheClusterId must be given: of what is a snapshot to be taken?")
    if group_id:
        cache = await find.group_to_change(tx, group_id)
        if cluster_id and cluster_id not in cache.cluster_ids():
            raise combination_error(f"Cache cluster {cluster_id} is not a member of replication group {cache.name}.")
    else:
        cache = await find.cluster(tx, cluster_id)
        if cache.kind == "group" and cache.clustered:
            told = f"Cache cluster {cluster_id} belongs to replication group {cache.name}, which is in cluster mode: name the group"
            raise combination_error(f"{told} in ReplicationGroupId, of which all shards are taken together. Nothing was changed.")
        await find.cluster_to_change(tx, cluster_id)
    return cache, "" if cache.clustered else cluster_id


# ------------------------------------------------------------------ copy


async def copy_snapshot(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Copies a snapshot: into another, or, with `TargetBucket`, as one plain `.rdb` file for each shard into a bucket."""
    params = call.params
    source = await find_one(tx, params["SourceSnapshotName"])
    end = await tx.get(SnapshotEnd, source.uid)
    if (now := status(source, end)) != "available" or end is None:
        raise ApiError("InvalidSnapshotState", f"Snapshot {source.name} is {now}, and cannot be copied now. Nothing was changed.")
    given = tags.parse(params.get("Tags", ()), context)
    if bucket := params.get("TargetBucket"):
        return await _export(params, tx, context, source, end, bucket)
    name = names.identifier(params["TargetSnapshotName"], "TargetSnapshotName", names.NAME_MAX)
    if await tx.get(Snapshot, name) is not None:
        raise ApiError("SnapshotAlreadyExistsFault", f"Snapshot {name} already exists.")
    made = replace(
        source,
        name=name,
        uid=f"{context.clock.new_id()}/{name}",
        source="manual",
        asked_at=context.clock.now(),
        cache_uid="",
        copy_of=source.uid,
        version=0,
    )
    made = await tx.put(made)
    await tags.replace_all(tx, names.arn(context.settings, "snapshot", name), given)
    return {"Snapshot": shape(made, None, context)}


def no_bucket(name: str, context: Context) -> str:
    return (
        f"The S3 bucket {name} does not exist: the buckets of this endpoint are "
        f"{', '.join(sorted(context.settings.buckets)) or 'none'} (`cachekeep up --bucket NAME=URL`). Nothing was changed."
    )


async def _export(
    params: Params, tx: Transaction, context: Context, source: Snapshot, end: SnapshotEnd, bucket: str
) -> Mapping[str, Any]:
    if bucket not in context.settings.buckets:
        raise value_error(no_bucket(bucket, context))
    target = params["TargetSnapshotName"]
    if not _EXPORT.fullmatch(target):
        raise value_error(f"Invalid value {target} for TargetSnapshotName: letters, digits, and . _ - / in between, at most 1000.")
    if params.get("Tags"):
        raise combination_error("Tags cannot be used with TargetBucket: files in a bucket have none here.")
    if await tx.get(Export, f"{bucket}/{target}") is not None:
        raise ApiError("SnapshotAlreadyExistsFault", f"{target} is being written to {bucket} already.")
    await tx.put(Export(name=f"{bucket}/{target}", snapshot=source.name))
    return {"Snapshot": shape(source, end, context)}


_EXPORT: Final = re.compile(r"(?=.{1,1000}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]|[./](?=[A-Za-z0-9_-]))*")


# ------------------------------------------------------------------ describe


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All snapshots in pages, those of a group, a cluster or a source, or one by its name."""
    params = call.params
    source = params.get("SnapshotSource")
    if source is not None and source not in _SOURCES:
        raise value_error(f"Invalid value {source} for SnapshotSource: valid values are user, system.")
    after, size = paging.start(params, _PAGES)
    if name := params.get("SnapshotName"):
        rows = [await find_one(tx, name)]
    else:
        rows = await tx.list(Snapshot, after=after or "")
    group_id, cluster_id = params.get("ReplicationGroupId", "").lower(), params.get("CacheClusterId", "").lower()
    rows = [s for s in rows if source is None or s.source == _SOURCES[source]]
    rows = [s for s in rows if group_id in ("", s.group)]
    rows = [s for s in rows if cluster_id in ("", s.cluster_id, *(n.cluster_id for n in s.nodes))]
    if cluster_id and not rows:
        await find.cluster(tx, cluster_id)
    shown, marker = paging.finish(rows[: size + 1], size, lambda s: s.name, _PAGES)
    with_slots = params.get("ShowNodeGroupConfig", False)
    shapes = []
    for found in shown:
        of = shape(found, await tx.get(SnapshotEnd, found.uid), context, with_slots=with_slots)
        if of["SnapshotStatus"] == "available" and (used := await _in_use(tx, found)):
            of = {**of, "SnapshotStatus": used}
        shapes.append(of)
    return {"Snapshots": shapes, **marker}


async def find_one(tx: Transaction, name: str) -> Snapshot:
    """Raises ApiError SnapshotNotFoundFault."""
    found = await tx.get(Snapshot, name.lower())
    if found is None:
        raise MISSING["snapshot"](name.lower())
    return found


def status(found: Snapshot, end: SnapshotEnd | None) -> str:
    """Derived, as all statuses are."""
    if found.deleted:
        return "deleting"
    if end is None:
        return "creating"
    return "failed" if end.problem else "available"


def shape(found: Snapshot, end: SnapshotEnd | None, context: Context, *, with_slots: bool = False) -> Mapping[str, Any]:
    """A Snapshot. ``with_slots``: with the layout of its node groups."""
    was = found.settings
    shown: dict[str, Any] = {
        "SnapshotName": found.name,
        "SnapshotStatus": status(found, end),
        "SnapshotSource": found.source,
        "CacheNodeType": was.node_type,
        "Engine": was.engine,
        "EngineVersion": render.shown_version(context.catalogue, was.engine, was.version),
        "NumNodeGroups": len(found.nodes),
        "PreferredMaintenanceWindow": was.maintenance_window,
        "Port": was.port,
        "CacheParameterGroupName": was.parameter_group,
        "CacheSubnetGroupName": was.subnet_group or render.DEFAULT_SUBNET_GROUP,
        "VpcId": context.settings.vpc_id,
        "AutoMinorVersionUpgrade": was.auto_minor_version_upgrade,
        "SnapshotRetentionLimit": was.retention_days,
        "SnapshotWindow": was.snapshot_window,
        "AutomaticFailover": "enabled" if was.automatic_failover else "disabled",
        "NodeSnapshots": [_node(found, node, end, with_slots) for node in found.nodes],
        "ARN": names.arn(context.settings, "snapshot", found.name),
        "DataTiering": "disabled",
    }
    if found.group:
        shown |= {"ReplicationGroupId": found.group, "ReplicationGroupDescription": was.description}
    if found.cluster_id or not found.group:
        shown["CacheClusterId"] = found.cluster_id or found.nodes[0].cluster_id
        shown |= {"NumCacheNodes": 1, "PreferredAvailabilityZone": was.zone, "CacheClusterCreateTime": was.created_at}
    return shown


def _node(found: Snapshot, node: SnapshotNode, end: SnapshotEnd | None, with_slots: bool) -> Mapping[str, Any]:
    copy = next((c for c in end.copies if c.shard == node.shard), None) if end is not None else None
    shown: dict[str, Any] = {"CacheNodeId": "0001", "CacheNodeCreateTime": node.created_at or found.settings.created_at}
    if found.settings.clustered:
        shown["NodeGroupId"] = node.shard
    else:
        shown["CacheClusterId"] = node.cluster_id
    if copy is not None:
        shown |= {"CacheSize": f"{-(-copy.used_bytes >> 20)} MB", "SnapshotCreateTime": copy.taken_at}
    if with_slots and found.settings.clustered:
        shown["NodeGroupConfiguration"] = {
            "NodeGroupId": node.shard,
            "Slots": render.slots_text(node.slots),
            "ReplicaCount": node.replicas,
        }
    return shown


# ------------------------------------------------------------------ delete


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Removes a snapshot with its data; one that is still being taken cannot be."""
    found = await find_one(tx, call.params["SnapshotName"])
    end = await tx.get(SnapshotEnd, found.uid)
    used = await _in_use(tx, found)
    if found.deleted or end is None or used:
        now = used or status(found, end)
        raise ApiError("InvalidSnapshotState", f"Snapshot {found.name} is {now}, and cannot be deleted now. Nothing was changed.")
    found = await tx.put(replace(found, deleted=True))
    await tags.drop(tx, names.arn(context.settings, "snapshot", found.name))
    return {"Snapshot": shape(found, end, context)}


async def _in_use(tx: Transaction, found: Snapshot) -> str:
    """What its data are needed for just now, if anything [SnapshotStatus: copying, restoring]."""
    copied = [s.uid for s in await tx.list(Snapshot) if s.copy_of == found.uid and not s.deleted]
    if any([await tx.get(SnapshotEnd, uid) is None for uid in copied]):
        return "copying"
    if any(e.snapshot == found.name for e in await tx.list(Export)):
        return "copying"
    restored = every(tx, lambda c: c.wanted.restore is not None and c.wanted.restore.snapshot == found.uid)
    return "restoring" if [c async for c in restored if going_on(c) and not c.wanted.deleted] else ""


async def delete_cache(tx: Transaction, context: Context, cache: Cache, last: str | None) -> Cache:
    """Have a cache deleted, once a snapshot named ``last`` is there [FinalSnapshotIdentifier: read from the primary]. Automatic
    snapshots go with their cache, manual ones stay; one that is being taken fails.

    Raises what ``CreateSnapshot`` refuses with.
    """
    await _cache_deleted(tx, context, cache)
    wanted = replace(cache.wanted, deleted=True, last_snapshot="")
    if last is not None:
        found = await _put(tx, context, cache, names.identifier(last, "FinalSnapshotIdentifier", names.NAME_MAX))
        primaries = tuple(n.cluster_id for n in found.nodes)
        errands = with_errand(cache, "snapshot", nodes=primaries, snapshot=found.uid)
        wanted = replace(wanted, errands=errands, last_snapshot=errands[-1].id)
    return await save(tx, cache, wanted)


async def _cache_deleted(tx: Transaction, context: Context, cache: Cache) -> None:
    for found in await tx.list(Snapshot):
        if found.cache_uid != cache.uid or found.deleted:
            continue
        if found.source == "automated":
            await tx.put(replace(found, deleted=True))
        elif await tx.get(SnapshotEnd, found.uid) is None:
            problem = f"{cache.name} was deleted while it was being taken"
            await tx.put(SnapshotEnd(name=found.uid, at=context.clock.now(), problem=problem))


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateSnapshot": writes(create),
    "CopySnapshot": writes(copy_snapshot),
    "DescribeSnapshots": reads(describe),
    "DeleteSnapshot": writes(delete),
}
