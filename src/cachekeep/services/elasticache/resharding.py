"""More and fewer node groups, and slots dealt out anew, while all of them serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import Cache, WantedShard
from cachekeep.plan.slots.ranges import count
from cachekeep.services.core.caches import save
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Operation, writes
from cachekeep.services.elasticache import find, render, shards, tags
from cachekeep.services.elasticache import wanted as want
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


async def modify_shards(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds or removes node groups, or spreads the slots evenly over those that there are; slots move while clients are served."""
    params = call.params
    await find.group(tx, params["ReplicationGroupId"])
    if not params.get("ApplyImmediately"):
        raise value_error("ApplyImmediately must be true: node groups cannot be changed in the maintenance window.")
    cache = await find.group_to_change(tx, params["ReplicationGroupId"])
    if cache.wanted.cluster_mode != "enabled":
        raise combination_error(f"Replication group {cache.name} does not run in cluster mode: it has one node group.")
    wanted, number = cache.wanted, params["NodeGroupCount"]
    if not 1 <= number <= shards.SHARDS_MAX:
        raise value_error(f"NodeGroupCount must be between 1 and {shards.SHARDS_MAX}.")
    if number > len(wanted.shards):
        wanted = replace(wanted, shards=(*wanted.shards, *await _more(params, tx, context, cache, number - len(wanted.shards))))
    elif number < len(wanted.shards):
        wanted = replace(wanted, shards=_fewer(params, cache, number))
        await tags.forget_members(tx, context, cache, wanted.shards)
    else:
        _refuse(params, "ReshardingConfiguration", "NodeGroupsToRemove", "NodeGroupsToRetain", why="when their number stays")
        _refuse_if_even(cache)
        wanted = replace(wanted, errands=with_errand(cache, "rebalance"))
    shards.check_failover(wanted)
    await want.check_room(tx, context, wanted, cache)
    cache = await save(tx, cache, wanted)
    return {"ReplicationGroup": render.group(cache, await tx.condition(cache.uid), context)}


def _refuse_if_even(cache: Cache) -> None:
    """Raises ApiError InvalidReplicationGroupState [AWS: equal count, slots already even]."""
    shares = [count(s.slots) for s in cache.decided.shards]
    if shares and max(shares) - min(shares) <= 1:
        raise ApiError("InvalidReplicationGroupState", "Slots in the replication group are uniformly distributed. Nothing to do.")


def _refuse(params: Params, *names: str, why: str) -> None:
    for name in names:
        if params.get(name):
            raise combination_error(f"{name} cannot be used {why}.")


async def _more(params: Params, tx: Transaction, context: Context, cache: Cache, number: int) -> tuple[WantedShard, ...]:
    """New node groups, with as many replicas as the smallest present one has [AWS: adding shards]."""
    _refuse(params, "NodeGroupsToRemove", "NodeGroupsToRetain", why="to add node groups")
    listed: Sequence[Params] = params.get("ReshardingConfiguration", ())
    if len(listed) == len(cache.wanted.shards) + number:
        _check_present(cache, listed[: len(cache.wanted.shards)])
        listed = listed[len(cache.wanted.shards) :]
    if listed and len(listed) != number:
        raise combination_error(
            f"ReshardingConfiguration has {len(listed)} entries for {number} new node groups: name those, or all."
        )
    used = {s.id for s in cache.wanted.shards} | {s.id for s in cache.decided.shards}
    fresh = [id for id in (f"{i:04}" for i in range(1, 10_000)) if id not in used][:number]
    nodes = min(len(s.members) for s in cache.wanted.shards)
    layouts = []
    for id, each in zip(fresh, listed or [{}] * number, strict=True):
        id, zones = each.get("NodeGroupId", id).zfill(4), tuple(each.get("PreferredAvailabilityZones", ()))
        if id in used:
            raise value_error(f"Node group {id} exists already, or is on its way out.")
        if zones and len(zones) != nodes:
            raise combination_error(f"PreferredAvailabilityZones must name {nodes} zones: one for each node of a node group.")
        layouts.append(shards.Layout(id=id, nodes=nodes, zones=zones))
        used.add(id)
    allowed = await want.zones_of(tx, context, cache)
    return await shards.build(tx, context, cache.name, layouts, clustered=True, allowed=allowed)


def _check_present(cache: Cache, listed: Sequence[Params]) -> None:
    """What is said of node groups that are there must be as it is. Raises ApiError InvalidParameterCombination."""
    for shard, each in zip(cache.wanted.shards, listed, strict=True):
        zones = each.get("PreferredAvailabilityZones")
        other = each.get("NodeGroupId", shard.id).zfill(4) != shard.id
        if other or (zones and sorted(zones) != sorted(m.zone for m in shard.members)):
            raise combination_error(
                f"The first entries of ReshardingConfiguration are those of the node groups that are there, and {shard.id} is in "
                f"{', '.join(m.zone for m in shard.members)}: nodes are not moved."
            )


def _fewer(params: Params, cache: Cache, number: int) -> tuple[WantedShard, ...]:
    """The node groups that stay. Which go has to be said, one way or the other [API reference]."""
    _refuse(params, "ReshardingConfiguration", why="to remove node groups")
    removed: Sequence[str] = params.get("NodeGroupsToRemove", ())
    retained: Sequence[str] = params.get("NodeGroupsToRetain", ())
    if bool(removed) == bool(retained):
        raise combination_error("Give either NodeGroupsToRemove or NodeGroupsToRetain to have fewer node groups.")
    named = {id.zfill(4) for id in (*removed, *retained)}
    unknown = named - {s.id for s in cache.wanted.shards}
    if unknown:
        raise value_error(f"Node group {min(unknown)} of {cache.name} not found.")  # the model declares no other code here
    stay = tuple(s for s in cache.wanted.shards if (s.id in named) == bool(retained))
    if len(stay) != number:
        raise combination_error(f"{len(stay)} node groups would stay, and NodeGroupCount is {number}.")
    return stay


OPERATIONS: Final[Mapping[str, Operation]] = {"ModifyReplicationGroupShardConfiguration": writes(modify_shards)}
