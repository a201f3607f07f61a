"""Tags of what EC2 has of a cache's: security groups and their rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model.security_group import SecurityGroup
from cachekeep.services.core.context import Context, Params
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.services.core.security_groups import security_groups
from cachekeep.services.ec2.answers import Picked, Shape, dry, listed
from cachekeep.services.ec2.permissions import tag_list, tags_of, within
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

Change = Callable[[dict[str, str]], dict[str, str]]


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds tags to security groups and their rules, or changes their values."""
    new = tags_of(call.params["Tags"])
    await _change(call, tx, context, lambda tags: within(tags | new))
    return {}


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Takes tags away: those of a key, or of key and value; all of them where none is named."""
    asked = call.params.get("Tags", ())
    await _change(call, tx, context, lambda tags: {k: v for k, v in tags.items() if asked and not _named(asked, k, v)})
    return {}


def _named(asked: list[Params], key: str, value: str) -> bool:
    return any(tag.get("Key") == key and tag.get("Value", value) == value for tag in asked)


async def _change(call: Call, tx: Transaction, context: Context, change: Change) -> None:
    """Change the tags of each resource of a request. Raises ApiError."""
    for id in dict.fromkeys(call.params["Resources"]):
        groups = await security_groups(tx, context.settings)
        if id in groups:
            await tx.put(replace(groups[id], tags=change(groups[id].tags)))
            continue
        group = next((g for g in groups.values() if g.rule(id) is not None), None)
        if group is None:
            raise _not_found(id)
        rules = tuple(replace(rule, tags=change(rule.tags)) if rule.id == id else rule for rule in group.rules)
        await tx.put(replace(group, rules=rules))


def _not_found(id: str) -> ApiError:
    if id.startswith("sg-"):
        return ApiError("InvalidGroup.NotFound", f"The security group '{id}' does not exist")
    if id.startswith("sgr-"):
        return ApiError("InvalidSecurityGroupRuleId.NotFound", f"The security group rule ID '{id}' does not exist")
    return ApiError("InvalidID", f"The ID '{id}' is not valid")


async def of(tx: Transaction, arn: str) -> Mapping[str, str]:
    """The tags of a resource, for policies."""
    kind, _, id = arn.rpartition(":")[2].partition("/")
    if kind == "security-group":
        found = await tx.get(SecurityGroup, id)
        return found.tags if found else {}
    if kind == "security-group-rule":
        for group in await tx.list(SecurityGroup):
            if (rule := group.rule(id)) is not None:
                return rule.tags
    return {}


_PICKED: Final = Picked("Tags", {}, {"key": "Key", "resource-id": "ResourceId", "resource-type": "ResourceType", "value": "Value"})


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Tags of security groups and their rules, one by one."""
    rows: list[Shape] = []
    for group in (await security_groups(tx, context.settings)).values():
        rows += [{"ResourceId": group.name, "ResourceType": "security-group", **tag} for tag in tag_list(group.tags)]
        for rule in group.rules:
            rows += [{"ResourceId": rule.id, "ResourceType": "security-group-rule", **tag} for tag in tag_list(rule.tags)]
    return listed(_PICKED, rows, call.params)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateTags": writes(dry(create)),
    "DeleteTags": writes(dry(delete)),
    "DescribeTags": reads(dry(describe)),
}
PARAMETERS: Final[Declared] = {
    "Resources": Effect("the groups and rules that are meant"),
    "Tags": Effect("tags"),
    "Tags.Key": Effect("a tag's key"),
    "Tags.Value": Effect("a tag's value"),
}
