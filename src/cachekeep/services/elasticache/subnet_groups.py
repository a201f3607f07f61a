"""Subnet groups: they say in which zones a cache's nodes may be placed.

The endpoint's own subnets (ec2:DescribeSubnets) are one for each zone. Any other id is refused, unless the setting ``any_subnet``
lets it stand for a zone, always the same one: configurations written for another account then keep their meaning, so many subnets,
so many zones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from zlib import crc32

from msgspec.structs import replace

from cachekeep.model import Subnet, SubnetGroup
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, ServiceSettings, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.elasticache import find, names, quotas, render, tags
from cachekeep.store.contract import Transaction
from cachekeep.store.every import every
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


def _zone(settings: ServiceSettings, subnet_id: str) -> str | None:
    """The zone that a subnet is in, None for one that does not exist."""
    own = {settings.subnet_id(zone): zone for zone in settings.zones}
    if settings.any_subnet and names.is_subnet_id(subnet_id):
        return own.get(subnet_id) or settings.zones[crc32(subnet_id.encode()) % len(settings.zones)]
    return own.get(subnet_id)


def default_group(settings: ServiceSettings) -> SubnetGroup:
    """The group that is always there: every subnet of the endpoint."""
    return SubnetGroup(
        name=render.DEFAULT_SUBNET_GROUP,
        description="Default CacheSubnetGroup",
        vpc_id=settings.vpc_id,
        subnets=tuple(Subnet(id=settings.subnet_id(zone), zone=zone) for zone in settings.zones),
    )


def _subnets(settings: ServiceSettings, ids: Sequence[str]) -> tuple[Subnet, ...]:
    """Raises ApiError CacheSubnetQuotaExceededFault or InvalidParameterValue."""
    if not ids:
        raise value_error("SubnetIds must name at least one subnet.")
    quotas.SUBNETS_PER_GROUP.check(len(set(ids)), settings.quotas)
    zones = {each: _zone(settings, each) for each in ids}
    if None in zones.values():
        invalid = f"Some input subnets in :[{', '.join(ids)}] are invalid."  # AWS's own words and code
        advice = (
            " ec2:DescribeSubnets lists those that there are; `cachekeep up --any-subnet` takes any other id for one of them, too."
        )
        raise value_error(invalid if settings.any_subnet else invalid + advice)
    return tuple(Subnet(id=each, zone=zone) for each, zone in zones.items() if zone)


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Names a set of subnets, and so of zones."""
    params, settings = call.params, context.settings
    name = names.identifier(params["CacheSubnetGroupName"], "CacheSubnetGroupName", names.NAME_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    if name == render.DEFAULT_SUBNET_GROUP or await tx.get(SubnetGroup, name):
        raise ApiError("CacheSubnetGroupAlreadyExists", f"Cache subnet group {name} already exists.")
    quotas.SUBNET_GROUPS.check(len(await tx.list(SubnetGroup)) + 1, settings.quotas)
    group = SubnetGroup(
        name=name,
        description=params["CacheSubnetGroupDescription"],
        vpc_id=settings.vpc_id,
        subnets=_subnets(settings, params.get("SubnetIds", ())),
    )
    await tx.put(group)
    await tags.replace_all(tx, names.arn(settings, "subnetgroup", name), given)
    return {"CacheSubnetGroup": render.subnet_group(group, settings)}


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The default group and the others."""
    settings = context.settings
    if asked := call.params.get("CacheSubnetGroupName"):
        found = [await _find(tx, settings, asked)]
    else:
        found = [default_group(settings), *await tx.list(SubnetGroup)]
    return paging.page(found, call.params, lambda g: g.name, lambda g: render.subnet_group(g, settings), "CacheSubnetGroups")


async def _find(tx: Transaction, settings: ServiceSettings, text: str) -> SubnetGroup:
    """Raises ApiError CacheSubnetGroupNotFoundFault."""
    name = text.lower()
    found = default_group(settings) if name == render.DEFAULT_SUBNET_GROUP else await tx.get(SubnetGroup, name)
    if found is None:
        raise find.subnet_group_not_found(name)
    return found


async def _find_custom(tx: Transaction, settings: ServiceSettings, text: str, verb: str) -> SubnetGroup:
    if text.lower() == render.DEFAULT_SUBNET_GROUP:
        raise value_error(f"The default cache subnet group cannot be {verb}.")
    return await _find(tx, settings, text)


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Sets another description or other subnets; a zone that nodes are in cannot be taken away."""
    params, settings = call.params, context.settings
    group = await _find_custom(tx, settings, params["CacheSubnetGroupName"], "modified")
    if "CacheSubnetGroupDescription" in params:
        group = replace(group, description=params["CacheSubnetGroupDescription"])
    if "SubnetIds" in params:
        group = replace(group, subnets=_subnets(settings, params["SubnetIds"]))
        left = {each.zone for each in group.subnets}
        async for cache in every(tx, lambda cache: cache.wanted.subnet_group == group.name):
            placed = {m.name: m.zone for s in cache.wanted.shards for m in s.members}
            placed |= {node.member: node.zone for node in cache.decided.nodes}
            for name, zone in placed.items():
                if zone not in left:
                    raise ApiError("SubnetInUse", f"{name} is in {zone}, for which no subnet would be left.")
    await tx.put(group)
    return {"CacheSubnetGroup": render.subnet_group(group, settings)}


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes a group that no cache uses."""
    settings = context.settings
    group = await _find_custom(tx, settings, call.params["CacheSubnetGroupName"], "deleted")
    async for cache in every(tx, lambda cache: cache.wanted.subnet_group == group.name):
        raise ApiError("CacheSubnetGroupInUse", f"Cache subnet group {group.name} is used by {cache.name}.")
    await tx.delete(SubnetGroup, group.name)
    await tags.drop(tx, names.arn(settings, "subnetgroup", group.name))
    return {}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateCacheSubnetGroup": writes(create),
    "DescribeCacheSubnetGroups": reads(describe),
    "ModifyCacheSubnetGroup": writes(modify),
    "DeleteCacheSubnetGroup": writes(delete),
}
