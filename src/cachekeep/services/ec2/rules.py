"""Rules of security groups: given, changed, taken away. A change is in force within a second, for connections that exist, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model.security_group import SecurityGroup, SecurityGroupRule
from cachekeep.services.core.context import Context, digest
from cachekeep.services.core.operation import Handler, Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, Moot, NotYet
from cachekeep.services.core.quotas import Quota
from cachekeep.services.core.security_groups import WAKE, check_filter, security_groups
from cachekeep.services.ec2 import permissions
from cachekeep.services.ec2.answers import MEANT, Picked, dry, listed
from cachekeep.services.ec2.groups import meant
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

RULES: Final = Quota(
    default=60,
    code="RulesPerSecurityGroupLimitExceeded",
    message="The maximum number of rules per security group has been reached.",
)


async def _keep(tx: Transaction, context: Context, group: SecurityGroup, rules: Sequence[SecurityGroupRule]) -> SecurityGroup:
    """Store a group's new rules. Raises ApiError for too many, in either direction [60 each]."""
    for egress in (False, True):
        RULES.check(sum(rule.egress is egress for rule in rules), context.settings.quotas)
    saved = await tx.put(replace(group, rules=tuple(rules)))
    tx.wake(WAKE)
    return saved


def _authorize(*, egress: bool) -> Handler:
    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        settings = context.settings
        check_filter(settings)
        group, groups = await meant(call, tx, context), await security_groups(tx, settings)
        tags = permissions.tagged(call.params.get("TagSpecifications", ()), "security-group-rule")
        asked = permissions.asked(call.params, groups, settings, egress=egress)
        there = {rule.subject for rule in group.rules}
        for each in asked:
            if each.rule.subject in there:
                text = f"the specified rule {permissions.told(each.rule)} already exists"
                raise ApiError("InvalidPermission.Duplicate", text)
        now = context.clock.now().isoformat()
        new = [replace(p.rule, id="sgr-" + digest(group.name, str(p.rule.subject), now), tags=tags) for p in asked]
        await _keep(tx, context, group, (*group.rules, *new))
        return {"Return": True, "SecurityGroupRules": [permissions.rule_shape(group, rule, settings) for rule in new]}

    handler.__doc__ = f"Lets {'members out to' if egress else 'in what comes from'} peers: blocks of addresses, or groups."
    return dry(handler)


def _revoke(*, egress: bool) -> Handler:
    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        settings = context.settings
        check_filter(settings)
        group, ids = await meant(call, tx, context), call.params.get("SecurityGroupRuleIds", ())
        if ids:
            going = [_rule(group, id, egress=egress) for id in dict.fromkeys(ids)]
        else:
            asked = permissions.asked(call.params, await security_groups(tx, settings), settings, egress=egress)
            subjects = {p.rule.subject for p in asked}
            going = [rule for rule in group.rules if rule.subject in subjects]
            if len(going) < len(subjects):
                raise ApiError("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
        await _keep(tx, context, group, [rule for rule in group.rules if rule not in going])
        return {"Return": True, "RevokedSecurityGroupRules": [permissions.revoked_shape(group, rule) for rule in going]}

    handler.__doc__ = f"Takes rules away: what they let {'out' if egress else 'in'} is ended, too."
    return dry(handler)


def _rule(group: SecurityGroup, id: str, *, egress: bool | None = None) -> SecurityGroupRule:
    """A group's rule. Raises ApiError InvalidSecurityGroupRuleId.NotFound."""
    found = group.rule(id)
    if found is None or egress not in (None, found.egress):
        raise ApiError("InvalidSecurityGroupRuleId.NotFound", f"The security group rule ID '{id}' does not exist")
    return found


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Sets other protocols, ports or peers: what a request says takes the place of a rule, which keeps its id."""
    check_filter(context.settings)
    group, groups = await meant(call, tx, context), await security_groups(tx, context.settings)
    rules = list(group.rules)
    for each in call.params["SecurityGroupRules"]:
        rule = _rule(group, each["SecurityGroupRuleId"])
        new = permissions.changed(rule, each.get("SecurityGroupRule", {}), groups)
        rules[rules.index(rule)] = new
    subjects = [rule.subject for rule in rules]
    for rule in rules:
        if subjects.count(rule.subject) > 1:
            text = f"the specified rule {permissions.told(rule)} already exists"
            raise ApiError("InvalidPermission.Duplicate", text)
    await _keep(tx, context, group, rules)
    return {"Return": True}


def _describe_again(*, egress: bool) -> Handler:
    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        settings, params = context.settings, call.params
        check_filter(settings)
        group = await meant(call, tx, context)
        said: dict[str, str] = {}
        if listed_rules := params.get("SecurityGroupRuleDescriptions", ()):
            for each in listed_rules:
                rule = _rule(group, each.get("SecurityGroupRuleId", ""), egress=egress)
                said[rule.id] = permissions.description(each.get("Description", ""))
        else:
            by_subject = {rule.subject: rule for rule in group.rules}
            for p in permissions.asked(params, await security_groups(tx, settings), settings, egress=egress):
                if p.rule.subject not in by_subject:
                    raise ApiError("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
                said[by_subject[p.rule.subject].id] = p.rule.description
        await _keep(tx, context, group, [replace(r, description=said.get(r.id, r.description)) for r in group.rules])
        return {"Return": True}

    handler.__doc__ = f"Sets other descriptions of rules for what goes {'out' if egress else 'in'}; none takes one away."
    return dry(handler)


_PICKED: Final = Picked(
    "SecurityGroupRules",
    {"SecurityGroupRuleIds": ("SecurityGroupRuleId", "InvalidSecurityGroupRuleId.NotFound")},
    {"group-id": "GroupId", "security-group-rule-id": "SecurityGroupRuleId"},
    unknown="The security group rule ID '{}' does not exist",
    tagged=True,
)


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Rules of all groups, one by one."""
    settings = context.settings
    groups = await security_groups(tx, settings)
    return listed(_PICKED, [permissions.rule_shape(g, rule, settings) for g in groups.values() for rule in g.rules], call.params)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "AuthorizeSecurityGroupEgress": writes(_authorize(egress=True)),
    "AuthorizeSecurityGroupIngress": writes(_authorize(egress=False)),
    "DescribeSecurityGroupRules": reads(dry(describe)),
    "ModifySecurityGroupRules": writes(dry(modify)),
    "RevokeSecurityGroupEgress": writes(_revoke(egress=True)),
    "RevokeSecurityGroupIngress": writes(_revoke(egress=False)),
    "UpdateSecurityGroupRuleDescriptionsEgress": writes(_describe_again(egress=True)),
    "UpdateSecurityGroupRuleDescriptionsIngress": writes(_describe_again(egress=False)),
}
_PEER: Final = Effect("peers")
_SAID: Final = Effect("is kept and shown with the rule")
_SHORT: Final = NotYet("naming a peer without IpPermissions")
_PREFIXES: Final = NotYet("a list of prefixes")
_PORTS: Final = {"IpProtocol": Effect("the protocol"), "FromPort": Effect("the first port"), "ToPort": Effect("the last port")}
PARAMETERS: Final[Declared] = {
    "CidrIp": Effect("a block of addresses"),
    **_PORTS,
    **{f"{way}SecurityGroupEgress:{name}": _SHORT for way in ("Authorize", "Revoke") for name in ("CidrIp", *_PORTS)},
    "SourceSecurityGroupName": _SHORT,
    "SourceSecurityGroupOwnerId": _SHORT,
    "IpPermissions": Effect("protocol, ports and peers"),
    **{f"IpPermissions.{name}": does for name, does in _PORTS.items()},
    "IpPermissions.IpRanges": _PEER,
    "IpPermissions.IpRanges.CidrIp": Effect("a block of addresses"),
    "IpPermissions.IpRanges.Description": _SAID,
    "IpPermissions.Ipv6Ranges": _PEER,
    "IpPermissions.Ipv6Ranges.CidrIpv6": Effect("a block of addresses"),
    "IpPermissions.Ipv6Ranges.Description": _SAID,
    "IpPermissions.PrefixListIds": _PREFIXES,
    **{
        f"RevokeSecurityGroup{way}:IpPermissions.{peers}.Description": Moot("a rule is known without it")
        for way in ("Egress", "Ingress")
        for peers in ("IpRanges", "Ipv6Ranges", "UserIdGroupPairs")
    },
    "IpPermissions.UserIdGroupPairs": _PEER,
    "IpPermissions.UserIdGroupPairs.Description": _SAID,
    "IpPermissions.UserIdGroupPairs.GroupId": Effect("a group"),
    "IpPermissions.UserIdGroupPairs.GroupName": Effect("a group, by its name"),
    "IpPermissions.UserIdGroupPairs.PeeringStatus": Moot("there is one VPC, and nothing is peered with it"),
    "IpPermissions.UserIdGroupPairs.UserId": Effect("the account; another has no groups here"),
    "IpPermissions.UserIdGroupPairs.VpcId": Effect("the one VPC; another has no groups here"),
    "IpPermissions.UserIdGroupPairs.VpcPeeringConnectionId": NotYet("a group at the other end of a connection between VPCs"),
    "SecurityGroupRuleDescriptions": Effect("descriptions by the ids of rules"),
    "SecurityGroupRuleDescriptions.Description": Effect("the description; none takes it away"),
    "SecurityGroupRuleDescriptions.SecurityGroupRuleId": Effect("the rule that is meant"),
    "SecurityGroupRuleIds": MEANT,
    "SecurityGroupRules": Effect("what takes the place of rules"),
    "SecurityGroupRules.SecurityGroupRuleId": Effect("the rule that is meant"),
    "SecurityGroupRules.SecurityGroupRule": Effect("what takes its place"),
    **{f"SecurityGroupRules.SecurityGroupRule.{name}": does for name, does in _PORTS.items()},
    "SecurityGroupRules.SecurityGroupRule.CidrIpv4": Effect("a block of addresses"),
    "SecurityGroupRules.SecurityGroupRule.CidrIpv6": Effect("a block of addresses"),
    "SecurityGroupRules.SecurityGroupRule.Description": _SAID,
    "SecurityGroupRules.SecurityGroupRule.PrefixListId": _PREFIXES,
    "SecurityGroupRules.SecurityGroupRule.ReferencedGroupId": Effect("a group"),
}
