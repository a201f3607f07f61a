"""Security groups: made, described, deleted. What they let in is kept by the machine (``control/gatekeeper.py``), or nobody can
make one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cachekeep.model.security_group import ANY, EVERYBODY, SecurityGroup, SecurityGroupRule
from cachekeep.services.core.caches import every
from cachekeep.services.core.context import Context, ServiceSettings, digest, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.services.core.quotas import Quota
from cachekeep.services.core.security_groups import check_filter, security_group, security_groups
from cachekeep.services.ec2.answers import MEANT, Picked, dry, listed
from cachekeep.services.ec2.permissions import group_not_found, group_shape, tag_list, tagged
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

GROUPS: Final = Quota(
    default=2500, code="SecurityGroupLimitExceeded", message="The maximum number of security groups has been reached."
)
_ID: Final = re.compile(r"sg-[0-9a-f]{8,17}")
_TEXT: Final = re.compile(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}")


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Makes a group that lets nobody in, and its members out to everything."""
    params, settings = call.params, context.settings
    check_filter(settings)
    name, said = params["GroupName"], params["Description"]
    for parameter, text in (("GroupName", name), ("GroupDescription", said)):
        if not _TEXT.fullmatch(text):
            raise value_error(
                f"Value ({text[:300]}) for parameter {parameter} is invalid. Valid are 1 to 255 of a-z, A-Z, 0-9, spaces, "
                "and ._-:/()#,@[]+=&;{}!$*"
            )
    if name.lower().startswith("sg-"):
        raise value_error("Invalid value for parameter: groupName. Group names may not be in the format sg-*.")
    if params.get("VpcId", settings.vpc_id) != settings.vpc_id:
        raise ApiError("InvalidVpcID.NotFound", f"The vpc ID '{params['VpcId']}' does not exist")
    tags = tagged(params.get("TagSpecifications", ()), "security-group")
    groups = await security_groups(tx, settings)
    if name == "default":
        raise value_error("Cannot use reserved security group name: default")
    if any(group.group_name == name for group in groups.values()):
        raise ApiError("InvalidGroup.Duplicate", f"The security group '{name}' already exists for VPC '{settings.vpc_id}'")
    GROUPS.check(len(groups) + 1, settings.quotas)
    id = "sg-" + digest(settings.security_group_id, name, context.clock.now().isoformat())
    out = SecurityGroupRule(id="sgr-" + digest(id, "out"), egress=True, protocol=ANY, peer=EVERYBODY[0])
    group = await tx.put(SecurityGroup(name=id, group_name=name, description=said, rules=(out,), tags=tags))
    shape = group_shape(group, settings)
    return {"GroupId": id, "SecurityGroupArn": shape["SecurityGroupArn"], "Tags": tag_list(tags)}


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes a group that no cache, no rule of another group and no user of this machine is in need of."""
    group = await meant(call, tx, context)
    if group.name == context.settings.security_group_id:
        raise ApiError(
            "CannotDelete", f'the specified group: "{group.name}" name: "{group.group_name}" cannot be deleted by a user'
        )
    needs = [cache.name async for cache in every(tx, lambda cache: group.name in cache.wanted.security_group_ids)]
    for other in (await security_groups(tx, context.settings)).values():
        if other.name != group.name and any(rule.peer == group.name for rule in other.rules):
            needs.append(other.name)
    needs += [f"user {user}" for user in group.users]
    if needs:
        raise ApiError("DependencyViolation", f"resource {group.name} has a dependent object ({', '.join(needs)})")
    await tx.delete(SecurityGroup, group.name)
    return {"Return": True, "GroupId": group.name}


async def meant(call: Call, tx: Transaction, context: Context) -> SecurityGroup:
    """The group that a request names. Raises ApiError."""
    id = call.params.get("GroupId")
    if not id:
        if call.params.get("GroupName"):  # ``by_id`` finds no such group
            raise group_not_found(call.params["GroupName"])
        raise ApiError("MissingParameter", "The request must contain the parameter groupName or groupId")
    if not _ID.fullmatch(id):
        raise ApiError("InvalidGroupId.Malformed", f'Invalid id: "{id}" (expecting "sg-...")')
    found = await security_group(tx, context.settings, id)
    if found is None:
        raise group_not_found(id)
    return found


async def by_id(call: Call, tx: Transaction, settings: ServiceSettings) -> Call:
    """The call with the id of the group that it names otherwise: policies know groups by their ids alone."""
    name = call.params.get("GroupName")
    if not name or "GroupId" in call.params or call.operation == "CreateSecurityGroup":
        return call
    found = next((g for g in (await security_groups(tx, settings)).values() if g.group_name == name), None)
    return call if found is None else replace(call, params={**call.params, "GroupId": found.name})


_RULE_FILTERS: Final = {
    "cidr": "IpRanges.CidrIp",
    "from-port": "FromPort",
    "group-id": "UserIdGroupPairs.GroupId",
    "ipv6-cidr": "Ipv6Ranges.CidrIpv6",
    "protocol": "IpProtocol",
    "to-port": "ToPort",
}
_PICKED: Final = Picked(
    "SecurityGroups",
    {"GroupIds": ("GroupId", "InvalidGroup.NotFound"), "GroupNames": ("GroupName", "InvalidGroup.NotFound")},
    {
        "description": "Description",
        "group-id": "GroupId",
        "group-name": "GroupName",
        "owner-id": "OwnerId",
        "vpc-id": "VpcId",
        **{f"ip-permission.{name}": f"IpPermissions.{where}" for name, where in _RULE_FILTERS.items()},
        **{f"egress.ip-permission.{name}": f"IpPermissionsEgress.{where}" for name, where in _RULE_FILTERS.items()},
    },
    unknown="The security group '{}' does not exist",
    tagged=True,
)


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The default security group and the others, with what they let in."""
    groups: Sequence[SecurityGroup] = list((await security_groups(tx, context.settings)).values())
    return listed(_PICKED, [group_shape(group, context.settings) for group in groups], call.params)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateSecurityGroup": writes(dry(create)),
    "DeleteSecurityGroup": writes(dry(delete)),
    "DescribeSecurityGroups": reads(dry(describe)),
}
PARAMETERS: Final[Declared] = {
    "Description": Effect("is kept and shown"),
    "CreateSecurityGroup:GroupName": Effect("by which it is known beside its id"),
    "GroupId": Effect("the group that is meant"),
    "GroupName": Effect("the group that is meant, by its name"),
    "GroupIds": MEANT,
    "GroupNames": MEANT,
    "VpcId": Effect("the one VPC; others are refused"),
}
