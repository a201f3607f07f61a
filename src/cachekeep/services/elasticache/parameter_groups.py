"""Parameter groups: the default ones are always there and never change; the others hold what differs from their family.

Whoever changes a group rewrites ``wanted.parameters`` of every cache that uses it, in the same transaction: the servers get the new
values because their cache wants them, and no cache ever sees half a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.engines import parameters as tables
from cachekeep.engines.parameters import NodeTypeParameter, Parameter
from cachekeep.model import Cache, Event, ParameterGroup
from cachekeep.services.core import paging
from cachekeep.services.core.caches import save
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.elasticache import names, quotas, render, tags
from cachekeep.services.elasticache import wanted as want
from cachekeep.store.contract import Transaction
from cachekeep.store.every import every
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_CHANGES_MAX: Final = 20
_SOURCES: Final = ("user", "system", "engine-default")


# ------------------------------------------------------------------ the groups


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Makes a group with its family's values, to be modified next."""
    params = call.params
    name = _custom_name(params["CacheParameterGroupName"])
    family = params["CacheParameterGroupFamily"]
    tables.parameters(family)
    given = tags.parse(params.get("Tags", ()), context)
    if await tx.get(ParameterGroup, name):
        raise ApiError("CacheParameterGroupAlreadyExists", f"Parameter group {name} already exists")
    quotas.PARAMETER_GROUPS.check(len(await tx.list(ParameterGroup)) + 1, context.settings.quotas)
    group = await tx.put(ParameterGroup(name=name, family=family, description=params["Description"]))
    await tags.replace_all(tx, names.arn(context.settings, "parametergroup", name), given)
    await _tell(tx, name, f"Created cache parameter group {name}")
    return {"CacheParameterGroup": render.parameter_group(group, context.settings)}


def _custom_name(text: str) -> str:
    """Raises ApiError InvalidParameterValue."""
    if text.lower() in tables.default_groups():
        raise ApiError("CacheParameterGroupAlreadyExists", f"Parameter group {text.lower()} already exists")
    return names.identifier(text, "CacheParameterGroupName", names.NAME_MAX)


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The default groups and the custom ones."""
    if asked := call.params.get("CacheParameterGroupName"):
        found = [await _find(tx, asked, "CacheParameterGroup {name} not found.")]
    else:
        found = [*map(_default, tables.default_groups()), *await tx.list(ParameterGroup)]
    return paging.page(
        found, call.params, lambda g: g.name, lambda g: render.parameter_group(g, context.settings), "CacheParameterGroups"
    )


def _default(name: str) -> ParameterGroup:
    family = tables.default_groups()[name]
    clustered = name.endswith(".cluster.on")
    description = f"Default parameter group for {family}" + (" with cluster mode on" if clustered else "")
    return ParameterGroup(name=name, family=family, description=description, values={"cluster-enabled": "yes"} if clustered else {})


async def _find(tx: Transaction, text: str, missing: str = "CacheParameterGroup not found: {name}") -> ParameterGroup:
    """Raises ApiError CacheParameterGroupNotFound with AWS's words, which are others where groups are described."""
    name = text.lower()
    if name in tables.default_groups():
        return _default(name)
    found = await tx.get(ParameterGroup, name)
    if found is None:
        raise ApiError("CacheParameterGroupNotFound", missing.format(name=name))
    return found


async def _find_custom(tx: Transaction, text: str, verb: str) -> ParameterGroup:
    """Raises ApiError CacheParameterGroupNotFound, or InvalidCacheParameterGroupState for a default group."""
    if text.lower() in tables.default_groups():
        raise ApiError("InvalidCacheParameterGroupState", f"The default parameter group {text.lower()} cannot be {verb}.")
    return await _find(tx, text)


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes a group that no cache uses."""
    group = await _find_custom(tx, call.params["CacheParameterGroupName"], "deleted")
    if users := [cache.name async for cache in _users(tx, group.name)]:
        message = f"Cache parameter group {group.name} is used by {', '.join(users[:5])} and cannot be deleted."
        raise ApiError("InvalidCacheParameterGroupState", message)
    await tx.delete(ParameterGroup, group.name)
    await tags.drop(tx, names.arn(context.settings, "parametergroup", group.name))
    await _tell(tx, group.name, f"Deleted cache parameter group {group.name}")
    return {}


def _users(tx: Transaction, name: str) -> Any:
    return every(tx, lambda cache: cache.wanted.parameter_group == name)


# ------------------------------------------------------------------ modify and reset


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Up to 20 values at once; running servers get them at once, or at their next restart for those that need one."""
    group = await _find_custom(tx, call.params["CacheParameterGroupName"], "modified")
    changes = _changes(call.params["ParameterNameValues"])
    if not changes:
        raise value_error("ParameterNameValues must name at least one parameter.")
    for name, value in changes.items():
        if value is None:
            raise value_error(f"The parameter {name} needs a ParameterValue.")
    users = [cache async for cache in _users(tx, group.name)]
    values = dict(group.values)
    for name, value in changes.items():
        values[name] = tables.validate(group.family, name, value or "", attached=bool(users))
    await _save(tx, context, group, values, users, changes)
    return {"CacheParameterGroupName": group.name}


async def reset(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Some values or all of them go back to the family's."""
    group = await _find_custom(tx, call.params["CacheParameterGroupName"], "reset")
    everything, listed = call.params.get("ResetAllParameters", False), call.params.get("ParameterNameValues", ())
    if everything and listed:
        raise combination_error("ResetAllParameters and ParameterNameValues cannot be used together.")
    if not everything and not listed:
        raise combination_error("Name the parameters to reset in ParameterNameValues, or set ResetAllParameters.")
    known = tables.parameters(group.family)
    for name in _changes(listed):
        if name not in known:
            raise value_error(f"Parameter {name} doesn't exist")
    dropped = set(group.values) if everything else set(_changes(listed)) & set(group.values)
    users = [cache async for cache in _users(tx, group.name)]
    for name in dropped:
        if users and known[name].unattached_only:
            raise value_error(f"The parameter {name} cannot be modified while a cache uses the parameter group.")
    values = {name: value for name, value in group.values.items() if name not in dropped}
    defaults = tables.defaults(group.family)
    await _save(tx, context, group, values, users, {name: defaults.get(name, "its default") for name in sorted(dropped)})
    return {"CacheParameterGroupName": group.name}


def _changes(listed: Iterable[Params]) -> dict[str, str | None]:
    """Name → value. Raises ApiError InvalidParameterValue."""
    listed = list(listed)
    if len(listed) > _CHANGES_MAX:
        raise value_error(f"At most {_CHANGES_MAX} parameters can be changed in one request.")
    changes = {each.get("ParameterName", ""): each.get("ParameterValue") for each in listed}
    if "" in changes or len(changes) < len(listed):
        raise value_error("Each entry of ParameterNameValues must name another parameter.")
    return changes


async def _save(
    tx: Transaction,
    context: Context,
    group: ParameterGroup,
    values: dict[str, str],
    users: list[Cache],
    told: Mapping[str, str | None],
) -> None:
    tables.check_together(group.family, values)
    if values == group.values:
        return
    await tx.put(replace(group, values=values))
    for cache in users:
        wanted = replace(cache.wanted, parameters=values)
        if shortage := await want.memory_shortage(tx, context, wanted, cache):
            raise combination_error(shortage)  # AWS has always room for what a group reserves, and declares no code for it here
        await save(tx, cache, wanted)
    await _tell(tx, group.name, *(f"Updated parameter {name} to {value}" for name, value in told.items()))


async def _tell(tx: Transaction, name: str, *messages: str) -> None:
    await tx.tell(*(Event(source_type="cache-parameter-group", source=name, message=message) for message in messages))


# ------------------------------------------------------------------ the parameters


async def describe_parameters(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Every parameter of a group with its value and where the value comes from."""
    group = await _find(tx, call.params["CacheParameterGroupName"])
    asked = call.params.get("Source")
    if asked is not None and asked not in _SOURCES:
        raise value_error(f"Invalid value {asked} for Source: valid values are {', '.join(_SOURCES)}.")
    return _listed(group.family, group.values, call.params, asked)


async def describe_defaults(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Every parameter of a family with its default."""
    family = call.params["CacheParameterGroupFamily"]
    return {"EngineDefaults": {"CacheParameterGroupFamily": family, **_listed(family, {}, call.params)}}


def _listed(family: str, values: Mapping[str, str], params: Params, asked: str | None = None) -> dict[str, Any]:
    """One page over both lists of the answer, by name: a parameter is in the one or in the other."""
    plain = {p.name: _parameter(p, values) for p in tables.parameters(family).values() if p.default is not None or p.name in values}
    by_type = {p.parameter.name: _by_node_type(p) for p in tables.node_type_parameters(family) if p.parameter.name not in values}
    every = {**plain, **by_type}
    rows = [name for name, shape in every.items() if asked in (None, shape["Source"])]
    found = paging.page(rows, params, str, str, "names")
    marker = {key: found[key] for key in found if key != "names"}
    return {
        "Parameters": [plain[name] for name in found["names"] if name in plain],
        "CacheNodeTypeSpecificParameters": [by_type[name] for name in found["names"] if name in by_type],
        **marker,
    }


def _parameter(p: Parameter, values: Mapping[str, str]) -> dict[str, Any]:
    return {"ParameterValue": values.get(p.name, p.default)} | _described(p, "user" if p.name in values else "system")


def _by_node_type(p: NodeTypeParameter) -> dict[str, Any]:
    specific = [{"CacheNodeType": node_type, "Value": value} for node_type, value in p.values.items()]
    return {"CacheNodeTypeSpecificValues": specific} | _described(p.parameter, "system")


def _described(p: Parameter, source: str) -> dict[str, Any]:
    """Clients know only ``integer`` and ``string``."""
    shape = {
        "ParameterName": p.name,
        "Description": p.description,
        "Source": source,
        "DataType": "integer" if p.data_type == "integer" else "string",
        "IsModifiable": p.modifiable,
        "MinimumEngineVersion": p.min_engine_version,
        "ChangeType": p.change_type,
    }
    return shape | ({"AllowedValues": p.allowed} if p.allowed else {})


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateCacheParameterGroup": writes(create),
    "DescribeCacheParameterGroups": reads(describe),
    "ModifyCacheParameterGroup": writes(modify),
    "ResetCacheParameterGroup": writes(reset),
    "DeleteCacheParameterGroup": writes(delete),
    "DescribeCacheParameters": reads(describe_parameters),
    "DescribeEngineDefaultParameters": reads(describe_defaults),
}
