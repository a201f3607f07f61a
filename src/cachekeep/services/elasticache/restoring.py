"""A new cache from a snapshot: what the request leaves open is the snapshot's, and what cannot be is refused before anything is
made [AWS: "Restoring from a backup into a new cache"]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from cachekeep.engines.catalogue import numbers
from cachekeep.engines.limits import data_bytes
from cachekeep.model import Cache, Event, Restore, Snapshot, SnapshotEnd, Wanted
from cachekeep.plan.slots.ranges import Ranges
from cachekeep.services.core.caches import told
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.elasticache import render, shards, snapshots
from cachekeep.store.contract import Transaction


class Origin(NamedTuple):
    """A snapshot that is there, whole."""

    found: Snapshot
    end: SnapshotEnd

    @property
    def clustered(self) -> bool:
        return self.found.settings.clustered


async def source(params: Params, tx: Transaction) -> Origin | None:
    """What the request restores, if anything. Raises ApiError InvalidParameterValue, or InvalidParameterCombination for a snapshot
    that is not available."""
    name = params.get("SnapshotName")
    if not name:
        return None
    found = await tx.get(Snapshot, name.lower())
    if found is None:
        raise value_error(f"Snapshot {name.lower()} not found. Nothing was made.")
    end = await tx.get(SnapshotEnd, found.uid)
    if end is None or end.problem or found.deleted:
        raise combination_error(f"Snapshot {found.name} is {snapshots.status(found, end)}: one that is available can be restored.")
    return Origin(found, end)


def filled(params: Params, of: Origin | None) -> Params:
    """The request, with the snapshot's own where it says nothing of engine, node type and node groups.

    Raises ApiError InvalidParameterCombination for other node groups than those of the snapshot.
    """
    if of is None:
        return params
    was = of.found.settings
    own: dict[str, Any] = {"Engine": was.engine, "CacheNodeType": was.node_type}
    if params.get("Engine", was.engine).lower() == was.engine:
        own["EngineVersion"] = was.version
    found = {**own, **params}
    if of.clustered:
        found["NodeGroupConfiguration"] = _node_groups(params, of)
        found["NumNodeGroups"] = len(of.found.nodes)
    return found


def _node_groups(params: Params, of: Origin) -> Sequence[Mapping[str, Any]]:
    """Those of the snapshot, with what the request says of each: in the order of the snapshot's, or by the slots that it names."""
    stored = of.found.nodes
    given: Sequence[Params] = params.get("NodeGroupConfiguration", ())
    count = params.get("NumNodeGroups", len(given) or len(stored))
    if count != len(stored) or len(given) not in (0, len(stored)):
        raise combination_error(
            f"Snapshot {of.found.name} has {len(stored)} node groups and cannot be restored into {count or len(given)}. Restore it "
            "as it is, then change their number with ModifyReplicationGroupShardConfiguration, which moves slots while it serves."
        )
    by_slots = {shards.slots_of(each["Slots"]): each for each in given if each.get("Slots")}
    if by_slots and set(by_slots) != {tuple(map(tuple, n.slots)) for n in stored}:
        raise combination_error(
            f"The Slots that are asked for are not those of snapshot {of.found.name}. Restore it as it is (leave Slots out), then "
            "change them with ModifyReplicationGroupShardConfiguration, which moves slots while it serves."
        )
    found = []
    for index, node in enumerate(stored):
        mine = by_slots.get(node.slots, {}) if by_slots else given[index] if given else {}
        own: dict[str, Any] = {"NodeGroupId": node.shard, "Slots": render.slots_text(node.slots)}
        if "ReplicasPerNodeGroup" not in params and "ReplicaAvailabilityZones" not in mine:
            own["ReplicaCount"] = node.replicas
        found.append(own | dict(mine) | {"Slots": own["Slots"]})
    return found


def into(wanted: Wanted, of: Origin | None) -> Wanted:
    """What is wanted, with what it starts with. Raises ApiError InvalidParameterCombination for what could not hold it."""
    if of is None:
        return wanted
    was, name = of.found.settings, of.found.name
    if (was.engine, wanted.engine) not in ((wanted.engine, wanted.engine), ("redis", "valkey")):
        raise combination_error(f"Snapshot {name} is one of {was.engine}, and cannot be restored into {wanted.engine}.")
    if was.engine == wanted.engine and numbers(wanted.version) < numbers(was.version):
        raise combination_error(
            f"Snapshot {name} was taken of {was.engine} {was.version}, and cannot be restored into the older {wanted.version}."
        )
    clustered = wanted.cluster_mode == "enabled"
    if of.clustered and not clustered:
        raise combination_error(f"Snapshot {name} was taken in cluster mode, and cannot be restored into a cache without.")
    if clustered and not of.clustered:
        _check_becomes_cluster(wanted, of)
    largest = max(c.used_bytes for c in of.end.copies)
    if largest > (room := data_bytes(wanted)):
        raise combination_error(
            f"Snapshot {name} needs {largest >> 20} MiB on one node, and {wanted.node_type} has room for {room >> 20} MiB of data "
            "beside what the parameter group reserves. Choose a larger node type. Nothing was made."
        )
    by_slots: dict[Ranges, str] = {tuple(n.slots): n.shard for n in of.found.nodes}
    first = of.found.nodes[0].shard
    objects = {w.id: f"{by_slots[w.slots] if of.clustered else first}.rdb" for w in wanted.shards}
    size = max(c.size_bytes for c in of.end.copies)
    return replace(
        wanted, restore=Restore(snapshot=of.found.uid, name=name, holding=of.end.holding, objects=objects, size_bytes=size)
    )


def _check_becomes_cluster(wanted: Wanted, of: Origin) -> None:
    others = sorted({number for c in of.end.copies for number in c.other_databases})
    if others:
        raise combination_error(
            f"Snapshot {of.found.name} has keys in database {', '.join(map(str, others))}, and in cluster mode there is only "
            "database 0. Nothing was made."
        )
    if len(wanted.shards) > 1:
        raise combination_error(
            f"Snapshot {of.found.name} was taken without cluster mode, and is restored into one node group. Create it with one, "
            "then change their number with ModifyReplicationGroupShardConfiguration, which moves slots while it serves."
        )


_ARN: Final = re.compile(r"arn:aws:s3:::([a-z0-9.-]+)/([^,]*[^,/])")


def imported(wanted: Wanted, params: Params, context: Context) -> Wanted:
    """What is wanted, with the plain files that it starts with [SnapshotArns: one for each node group].

    Raises ApiError InvalidParameterValue or InvalidParameterCombination.
    """
    arns: Sequence[str] = params.get("SnapshotArns", ())
    if not arns:
        return wanted
    if wanted.engine == "memcached":
        raise combination_error("SnapshotArns cannot be used with memcached, which has no snapshots. Nothing was made.")
    if params.get("SnapshotName"):
        raise combination_error("SnapshotArns cannot be used together with SnapshotName.")
    if len(arns) != len(wanted.shards):
        raise combination_error(f"{len(arns)} SnapshotArns are given for {len(wanted.shards)} node groups; give one for each.")
    if len(arns) > 1 and not all(w.slots for w in wanted.shards):
        raise combination_error("With several SnapshotArns, NodeGroupConfiguration must say the Slots of each node group.")
    objects = {w.id: _object(arn, context) for w, arn in zip(wanted.shards, arns, strict=True)}
    return replace(wanted, restore=Restore(snapshot="", name=" ".join(arns), holding="", objects=objects))


def _object(arn: str, context: Context) -> str:
    found = _ARN.fullmatch(arn)
    if found is None or ".." in found[2].split("/"):
        raise value_error(f"Invalid ARN {arn}: arn:aws:s3:::bucket/key.rdb names a file, without commas.")
    if found[1] not in context.settings.buckets:
        raise value_error(snapshots.no_bucket(found[1], context))
    return f"{found[1]}/{found[2]}"


def told_of(cache: Cache) -> tuple[Event, ...]:
    """That a new cache starts with data, and with which."""
    restore = cache.wanted.restore
    return (told(cache, f"{cache.name} is created with the data of {restore.name}"),) if restore is not None else ()
