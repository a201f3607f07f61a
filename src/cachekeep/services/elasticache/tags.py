"""Tags, of every kind of resource that exists. A member of a replication group has its group's tags, and its own over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.engines.parameters import default_groups
from cachekeep.model import Cache, CacheUser, ParameterGroup, Snapshot, SubnetGroup, Tags, UserGroup, WantedShard
from cachekeep.services.core.context import Context, Params, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.elasticache import find, names, quotas, render
from cachekeep.services.elasticache.absent import MISSING
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

KEY_MAX: Final = 128
VALUE_MAX: Final = 256
_NOT_PRESENT: Final = " is either not present or not available"
"""What AWS says of a cluster to whoever asks for its tags."""


# ------------------------------------------------------------------ for the other operations


def parse(listed: Iterable[Params], context: Context) -> dict[str, str]:
    """Tags of a request. Raises ApiError InvalidParameterValue or TagQuotaPerResourceExceeded."""
    values: dict[str, str] = {}
    for each in listed:
        key, value = each.get("Key", ""), each.get("Value", "")
        if not 1 <= len(key) <= KEY_MAX:
            raise value_error(f"A tag's key must have 1 to {KEY_MAX} characters.")
        if len(value) > VALUE_MAX:
            raise value_error(f"The value of the tag {key} must have at most {VALUE_MAX} characters.")
        if key.lower().startswith("aws:"):
            raise value_error(f"The tag {key} cannot be set: keys that begin with aws: are reserved.")
        if key in values:
            raise value_error(f"The tag {key} is there twice.")
        values[key] = value
    quotas.TAGS.check(len(values), context.settings.quotas)
    return values


async def replace_all(tx: Transaction, arn: str, values: Mapping[str, str]) -> None:
    """Give a new resource its tags, and nothing of what had its name before."""
    await tx.delete(Tags, arn)
    if values:
        await tx.put(Tags(name=arn, values=dict(values)))


async def drop(tx: Transaction, *arns: str) -> None:
    """Forget the tags of resources that go."""
    for arn in arns:
        await tx.delete(Tags, arn)


async def forget(tx: Transaction, context: Context, cache: Cache) -> None:
    """Drop the tags of a cache that is being deleted, and of its members."""
    if cache.kind == "group":
        await tx.delete(Tags, names.arn(context.settings, "replicationgroup", cache.name))
    for cluster_id in cache.cluster_ids():
        await tx.delete(Tags, names.arn(context.settings, "cluster", cluster_id))


async def forget_members(tx: Transaction, context: Context, cache: Cache, left: Iterable[WantedShard]) -> None:
    """Drop the tags of the members of a group that are not among those that are left."""
    stay = {m.name for s in left for m in s.members}
    await drop(tx, *(names.arn(context.settings, "cluster", name) for name in cache.wanted_names() if name not in stay))


# ------------------------------------------------------------------ the operations


async def add(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds tags or changes their values; other tags stay."""
    arn, inherited = await _resource(call, tx, context, changes=True)
    own = await tx.get(Tags, arn) or Tags(name=arn, values={})
    values = own.values | parse(call.params["Tags"], context)
    quotas.TAGS.check(len(inherited | values), context.settings.quotas)
    await tx.put(replace(own, values=values))
    return render.tag_list(inherited | values)


async def remove(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Removes tags by key."""
    arn, inherited = await _resource(call, tx, context, changes=True)
    own = await tx.get(Tags, arn) or Tags(name=arn, values={})
    unknown = [key for key in call.params["TagKeys"] if key not in own.values]
    if unknown:
        of_group = " of its own (its replication group has it)" if unknown[0] in inherited else ""
        raise ApiError("TagNotFound", f"The resource {arn} has no tag {unknown[0]}{of_group}.")
    values = {key: value for key, value in own.values.items() if key not in call.params["TagKeys"]}
    await tx.put(replace(own, values=values))
    return render.tag_list(inherited | values)


async def list_tags(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All tags of a resource, in any state that it may be in."""
    arn, inherited = await _resource(call, tx, context)
    own = await tx.get(Tags, arn)
    return render.tag_list(inherited | (own.values if own else {}))


async def _resource(call: Call, tx: Transaction, context: Context, *, changes: bool = False) -> tuple[str, dict[str, str]]:
    """The ARN as it is stored, and the tags that come from a member's group.

    What is being deleted has lost its tags and takes no others: they would be those of the next resource of its name.
    Raises ApiError InvalidARN, the resource kind's own not-found error, or for ``changes`` of what is being deleted
    InvalidReplicationGroupState or CacheClusterNotFound [AddTagsToResource declares no other error for a cluster].
    """
    kind, name = names.parse_arn(context.settings, call.params["ResourceName"])
    arn = names.arn(context.settings, kind, name)
    match kind:
        case "replicationgroup":
            if (await find.group(tx, name)).wanted.deleted and changes:
                raise find.group_state_error(name)
        case "cluster":
            cache = await tx.cache_of(name)
            if cache is None:
                raise ApiError("CacheClusterNotFound", f"Cache cluster {name}{_NOT_PRESENT}.")
            if changes and (cache.wanted.deleted or name not in {n.partition(".")[0] for n in cache.wanted_names()}):
                gone = "it is being deleted, and its tags with it."
                raise ApiError("CacheClusterNotFound", f"Cache cluster {name}{_NOT_PRESENT}: {gone}")
            if cache.kind == "group":
                group = await tx.get(Tags, names.arn(context.settings, "replicationgroup", cache.name))
                return arn, dict(group.values) if group else {}
        case "parametergroup":
            if name not in default_groups() and await tx.get(ParameterGroup, name) is None:
                raise find.parameter_group_not_found(name)
        case "subnetgroup":
            if name != render.DEFAULT_SUBNET_GROUP and await tx.get(SubnetGroup, name) is None:
                raise find.subnet_group_not_found(name)
        case "user":
            if name != "default" and await tx.get(CacheUser, name) is None:
                raise ApiError("UserNotFound", f"{name} is not available for tagging")  # AWS's own words
        case "usergroup":
            if await tx.get(UserGroup, name) is None:
                raise ApiError("UserGroupNotFound", f"{name} is not available for tagging")
        case "snapshot" if (found := await tx.get(Snapshot, name)) is not None and not found.deleted:
            pass
        case _:
            raise MISSING[kind](name)
    return arn, {}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "AddTagsToResource": writes(add),
    "RemoveTagsFromResource": writes(remove),
    "ListTagsForResource": reads(list_tags),
}
