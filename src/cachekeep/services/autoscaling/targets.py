"""Scalable targets: which number of which cache may be changed, and between which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model.scaling import ScalableTarget, ScalingPolicy, ScheduledAction, Suspended
from cachekeep.model.traits import traits
from cachekeep.services.autoscaling import find
from cachekeep.services.core.context import Context, Params
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_BOUNDS: Final[Mapping[str, tuple[int, int]]] = {
    "elasticache:replication-group:NodeGroups": (1, 250),
    "elasticache:replication-group:Replicas": (1, 5),
    "elasticache:cache-cluster:Nodes": (1, 60),
}
"""[ElastiCache User Guide, "Auto Scaling": shards to 250, replicas 1 to 5; the quota of nodes of a Memcached cluster]"""
_TAGS_MAX: Final = 50


async def register(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A number of a cache that policies and schedules may change between two bounds; or other bounds, or a suspension, for it."""
    params, settings = call.params, context.settings
    await _check(tx, params)
    if params.get("RoleARN", role := find.role(settings)) != role:
        raise find.invalid(f"elasticache is scaled by its service-linked role: leave RoleARN out, or give {role}.")
    before = await tx.get(ScalableTarget, find.named(params))
    if before is None and not ("MinCapacity" in params and "MaxCapacity" in params):
        raise find.invalid("MinCapacity and MaxCapacity must both be given when a scalable target is registered.")
    if before is not None and params.get("Tags"):
        raise find.invalid("Tags can only be given when a scalable target is registered; use TagResource.")
    now = context.clock.now()
    old = before or ScalableTarget(
        name=find.named(params),
        id=find.fresh_id(find.named(params), now.isoformat())[:30],
        resource=params["ResourceId"],
        dimension=params["ScalableDimension"],
        least=params["MinCapacity"],
        most=params["MaxCapacity"],
        created_at=now.replace(microsecond=0),
        tags=_tags(params.get("Tags", {})),
    )
    least, most = params.get("MinCapacity", old.least), params.get("MaxCapacity", old.most)
    check_bounds(old.dimension, least, most)
    new = replace(old, least=least, most=most, suspended=_suspended(old.suspended, params.get("SuspendedState", {})))
    if new != before:
        await tx.put(new)
    return {"ScalableTargetARN": find.arn(settings, new)}


async def _check(tx: Transaction, params: Params) -> None:
    """Whether there is such a number. Raises ApiError ValidationException."""
    resource, dimension = params["ResourceId"], params["ScalableDimension"]
    kind, _, name = resource.partition("/")
    if params["ServiceNamespace"] != find.NAMESPACE or dimension not in find.DIMENSIONS or dimension.split(":")[1] != kind:
        raise find.invalid(f"Unsupported service namespace, resource type or scalable dimension: {find.scope(params)}")
    cache = await tx.cache(name, "group" if kind == "replication-group" else "cluster")
    if cache is None or cache.wanted.deleted:
        raise find.invalid(f"The resource {resource} does not exist.")
    if kind == "replication-group" and cache.cluster_mode != "enabled":
        raise find.invalid(f"{name} is not a cluster mode enabled replication group: only those are scaled automatically.")
    if kind == "cache-cluster" and not traits(cache.wanted.engine).listed:
        raise find.invalid(f"{name} is not a Memcached cluster: it has one node.")


def check_bounds(dimension: str, least: int, most: int) -> None:
    """Raises ApiError ValidationException."""
    low, high = _BOUNDS[dimension]
    if least > most:
        raise find.invalid(f"Maximum capacity cannot be less than minimum capacity: {most} is less than {least}.")
    if not (low <= least and most <= high):
        raise find.invalid(f"Capacities of {dimension} must be between {low} and {high}.")


def _suspended(old: Suspended, asked: Params) -> Suspended:
    return Suspended(
        scale_in=asked.get("DynamicScalingInSuspended", old.scale_in),
        scale_out=asked.get("DynamicScalingOutSuspended", old.scale_out),
        scheduled=asked.get("ScheduledScalingSuspended", old.scheduled),
    )


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Scalable targets, all or those of some resources."""

    def shape(found: ScalableTarget) -> Mapping[str, Any]:
        return {
            "ServiceNamespace": find.NAMESPACE,
            "ResourceId": found.resource,
            "ScalableDimension": found.dimension,
            "MinCapacity": found.least,
            "MaxCapacity": found.most,
            "RoleARN": find.role(context.settings),
            "CreationTime": found.created_at,
            "SuspendedState": {
                "DynamicScalingInSuspended": found.suspended.scale_in,
                "DynamicScalingOutSuspended": found.suspended.scale_out,
                "ScheduledScalingSuspended": found.suspended.scheduled,
            },
            "ScalableTargetARN": find.arn(context.settings, found),
        }

    rows = [row for row in await tx.list(ScalableTarget) if find.chosen(row.name, call.params)]
    return find.page(rows, call.params, lambda row: row.name, shape, "ScalableTargets")


async def deregister(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A target goes, with its policies and scheduled actions. The cache stays as it is."""
    await remove(tx, await find.target(tx, call.params))
    return {}


async def remove(tx: Transaction, target: ScalableTarget) -> None:
    """A target goes with all that belongs to it, but for what is told of its past."""
    for policy in await tx.list(ScalingPolicy):
        if policy.target == target.name:
            await tx.delete(ScalingPolicy, policy.name)
    for action in await tx.list(ScheduledAction):
        if action.target == target.name:
            await tx.delete(ScheduledAction, action.name)
    await tx.delete(ScalableTarget, target.name)


async def _tagged(call: Call, tx: Transaction, context: Context) -> ScalableTarget:
    """Raises ApiError ResourceNotFoundException."""
    asked = call.params["ResourceARN"]
    for found in await tx.list(ScalableTarget):
        if find.arn(context.settings, found) == asked:
            return found
    raise ApiError("ResourceNotFoundException", f"The specified resource doesn't exist: {asked}")


def _tags(asked: Mapping[str, str]) -> dict[str, str]:
    if len(asked) > _TAGS_MAX:
        raise ApiError("TooManyTagsException", f"A scalable target has at most {_TAGS_MAX} tags.")
    return dict(asked)


async def tag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Tags of a target are added or replaced."""
    found = await _tagged(call, tx, context)
    await tx.put(replace(found, tags=_tags({**found.tags, **call.params["Tags"]})))
    return {}


async def untag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Tags of a target go."""
    found = await _tagged(call, tx, context)
    await tx.put(replace(found, tags={key: value for key, value in found.tags.items() if key not in call.params["TagKeys"]}))
    return {}


async def list_tags(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The tags of a target."""
    return {"Tags": (await _tagged(call, tx, context)).tags}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "RegisterScalableTarget": writes(register),
    "DescribeScalableTargets": reads(describe),
    "DeregisterScalableTarget": writes(deregister),
    "TagResource": writes(tag),
    "UntagResource": writes(untag),
    "ListTagsForResource": reads(list_tags),
}

PARAMETERS: Final[Declared] = {
    "ServiceNamespace": Effect("whose targets: those of `elasticache` are all there are"),
    "ResourceId": Effect("the cache: `replication-group/NAME` or `cache-cluster/NAME`"),
    "ResourceIds": Effect("the caches"),
    "ScalableDimension": Effect("which of its numbers"),
    "MinCapacity": Effect("the least there may be"),
    "MaxCapacity": Effect("the most there may be"),
    "RoleARN": Effect("must be the service-linked role, which scales in any case"),
    "SuspendedState": Effect("what is done to it by nobody for the time being"),
    "SuspendedState.DynamicScalingInSuspended": Effect("no policy makes it less"),
    "SuspendedState.DynamicScalingOutSuspended": Effect("no policy makes it more"),
    "SuspendedState.ScheduledScalingSuspended": Effect("no schedule changes it"),
    "Tags": Effect("the target's tags"),
    "TagKeys": Effect("the tags that go"),
    "ResourceARN": Effect("the target"),
    "MaxResults": Effect("the most that one answer has"),
    "NextToken": Effect("where the answer goes on"),
}
