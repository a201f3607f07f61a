"""Rules of security groups, as requests give them and answers show them [API reference: IpPermission, SecurityGroupRule]."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.model.security_group import ANY, SecurityGroup, SecurityGroupRule
from cachekeep.services.core.context import Params, ServiceSettings, value_error
from cachekeep.services.ec2.answers import Shape
from cachekeep.wire.faults import ApiError

_PROTOCOLS: Final = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "all": ANY}
_WITH_PORTS: Final = ("tcp", "udp")
_WITH_TYPES: Final = ("icmp", "icmpv6")
_DESCRIPTION: Final = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
_LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of a request, and what it may: a rule without an id. ``described``: whether the request says anything of a
    description."""

    rule: SecurityGroupRule
    described: bool = False


def asked(params: Params, groups: Mapping[str, SecurityGroup], settings: ServiceSettings, *, egress: bool) -> list[Permission]:
    """The permissions of a request, each with one peer. Raises ApiError."""
    whole = list(params.get("IpPermissions", ()))
    if "CidrIp" in params or "IpProtocol" in params:  # the short form
        if whole:
            raise ApiError("InvalidParameterCombination", "ipPermissions may not be used with cidrIp or ipProtocol")
        if "CidrIp" not in params:
            raise _missing("cidrIp")
        short = {name: params[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in params}
        whole = [short | {"IpRanges": [{"CidrIp": params["CidrIp"]}]}]
    found = [each for permission in whole for each in _peers(permission, groups, settings, egress=egress)]
    if not found:
        raise _missing("ipPermissions")
    if len({each.rule.subject for each in found}) < len(found):
        raise value_error("The same permission must not appear multiple times")
    return found


def _missing(name: str) -> ApiError:
    return ApiError("MissingParameter", f"The request must contain the parameter {name}")


def _peers(
    permission: Params, groups: Mapping[str, SecurityGroup], settings: ServiceSettings, *, egress: bool
) -> Iterator[Permission]:
    protocol, from_port, to_port = _what(permission)

    def one(peer: str, given: Params) -> Permission:
        rule = SecurityGroupRule(
            id="",
            egress=egress,
            protocol=protocol,
            from_port=from_port,
            to_port=to_port,
            peer=peer,
            description=description(given.get("Description", "")),
        )
        return Permission(rule=rule, described="Description" in given)

    for each in permission.get("IpRanges", ()):
        yield one(block(each.get("CidrIp", ""), 4, egress=egress), each)
    for each in permission.get("Ipv6Ranges", ()):
        yield one(block(each.get("CidrIpv6", ""), 6, egress=egress), each)
    for each in permission.get("UserIdGroupPairs", ()):
        yield one(_group(each, groups, settings), each)


def _what(given: Params) -> tuple[str, int | None, int | None]:
    """Protocol and ports, or types. Raises ApiError."""
    protocol, low, high = str(given.get("IpProtocol", "")).lower(), given.get("FromPort"), given.get("ToPort")
    if not protocol:
        raise _missing("ipProtocol")
    protocol = _PROTOCOLS.get(protocol, protocol)
    known = protocol in (*_WITH_PORTS, *_WITH_TYPES, ANY) or (protocol.isascii() and protocol.isdigit() and int(protocol) < 256)
    if not known:
        raise value_error(f"Invalid value '{protocol}' for IP protocol. Unknown protocol.")
    if protocol in _WITH_TYPES:
        return protocol, -1 if low is None else low, -1 if high is None else high
    if protocol not in _WITH_PORTS:
        return protocol, None, None
    if low is None or high is None:
        raise value_error("Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.")
    if (low, high) == (-1, -1):
        low, high = 0, 65535
    if not 0 <= low <= high <= 65535:
        raise value_error(f"Invalid {protocol.upper()} port range ({low}-{high})")
    return protocol, low, high


def block(text: str, version: int, *, egress: bool) -> str:
    """A block of addresses in its canonical form. Raises ApiError for what is none, or would let in whoever says so."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or network.version != version or "/" not in text:
        raise value_error(f"CIDR block {text} is malformed")
    if not egress and isinstance(network, ipaddress.IPv4Network) and network != _LOOPBACK and network.subnet_of(_LOOPBACK):
        raise value_error(
            f"{network} is within 127.0.0.0/8, where every user of this machine may take any address, so it keeps nobody out. "
            "Let a user in by `cachekeep allow CACHE --uid USER`, or all of them by 127.0.0.0/8. Nothing was changed."
        )
    return str(network)


def _group(pair: Params, groups: Mapping[str, SecurityGroup], settings: ServiceSettings) -> str:
    asked = pair.get("GroupId") or pair.get("GroupName") or ""
    if not asked:
        raise _missing("groupId or groupName")
    found = (groups if pair.get("GroupId") else {group.group_name: group for group in groups.values()}).get(asked)
    elsewhere = pair.get("UserId", settings.account) != settings.account or pair.get("VpcId", settings.vpc_id) != settings.vpc_id
    if found is None or elsewhere:
        raise group_not_found(asked)
    return found.name


def group_not_found(id: str) -> ApiError:
    """[EC2 error codes: InvalidGroup.NotFound]."""
    return ApiError("InvalidGroup.NotFound", f"The security group '{id}' does not exist")


def description(text: str) -> str:
    """A rule's. Raises ApiError."""
    if not _DESCRIPTION.fullmatch(text):
        raise value_error(
            "Invalid rule description. Valid descriptions are strings less than 256 characters from the following set:  "
            "a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*"
        )
    return text


def changed(rule: SecurityGroupRule, request: Params, groups: Mapping[str, SecurityGroup]) -> SecurityGroupRule:
    """A rule after a request: what it says takes the place of the rule, which keeps its direction, id and tags. Raises ApiError."""
    protocol, from_port, to_port = _what(request)
    peers = [name for name in ("CidrIpv4", "CidrIpv6", "ReferencedGroupId") if request.get(name)]
    if len(peers) != 1:
        raise value_error("A rule has exactly one of CidrIpv4, CidrIpv6, ReferencedGroupId.")
    given = request[peers[0]]
    if peers[0] == "ReferencedGroupId":
        if given not in groups:
            raise group_not_found(given)
        peer = given
    else:
        peer = block(given, 4 if peers[0] == "CidrIpv4" else 6, egress=rule.egress)
    said = description(request.get("Description", ""))
    return replace(rule, protocol=protocol, from_port=from_port, to_port=to_port, peer=peer, description=said)


# ------------------------------------------------------------------ answers


def told(rule: SecurityGroupRule) -> str:
    """A rule in the words of EC2's errors."""
    ports = "" if rule.from_port is None else f", from port: {rule.from_port}, to port: {rule.to_port}"
    protocol = "ALL" if rule.protocol == ANY else rule.protocol.upper()
    return f'"peer: {rule.peer}, {protocol}{ports}, ALLOW"'


def tag_list(tags: Mapping[str, str]) -> list[Shape]:
    """As answers have it."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def group_shape(group: SecurityGroup, settings: ServiceSettings) -> Shape:
    """A security group."""
    return {
        "GroupId": group.name,
        "GroupName": group.group_name,
        "Description": group.description,
        "VpcId": settings.vpc_id,
        "OwnerId": settings.account,
        "SecurityGroupArn": f"arn:aws:ec2:{settings.region}:{settings.account}:security-group/{group.name}",
        "IpPermissions": _permissions((r for r in group.rules if not r.egress), settings),
        "IpPermissionsEgress": _permissions((r for r in group.rules if r.egress), settings),
        "Tags": tag_list(group.tags),
    }


def _permissions(rules: Iterable[SecurityGroupRule], settings: ServiceSettings) -> list[Shape]:
    """Rules that differ in nothing but their peer are one permission."""
    found: dict[tuple[str, int | None, int | None], Shape] = {}
    for rule in rules:
        key = rule.protocol, rule.from_port, rule.to_port
        ports = {} if rule.from_port is None else {"FromPort": rule.from_port, "ToPort": rule.to_port}
        empty: Shape = {"IpRanges": [], "Ipv6Ranges": [], "UserIdGroupPairs": [], "PrefixListIds": []}
        shape = found.setdefault(key, {"IpProtocol": rule.protocol, **ports, **empty})
        said = {"Description": rule.description} if rule.description else {}
        if rule.of_group:
            shape["UserIdGroupPairs"].append({"GroupId": rule.peer, "UserId": settings.account, **said})
        elif ":" in rule.peer:
            shape["Ipv6Ranges"].append({"CidrIpv6": rule.peer, **said})
        else:
            shape["IpRanges"].append({"CidrIp": rule.peer, **said})
    return list(found.values())


def rule_shape(group: SecurityGroup, rule: SecurityGroupRule, settings: ServiceSettings) -> Shape:
    """A rule by itself."""
    return {
        **_of_rule(group, rule),
        **({"ReferencedGroupInfo": {"GroupId": rule.peer, "UserId": settings.account}} if rule.of_group else {}),
        "GroupOwnerId": settings.account,
        "SecurityGroupRuleArn": f"arn:aws:ec2:{settings.region}:{settings.account}:security-group-rule/{rule.id}",
        "Tags": tag_list(rule.tags),
    }


def revoked_shape(group: SecurityGroup, rule: SecurityGroupRule) -> Shape:
    """A rule that is no more."""
    return {**_of_rule(group, rule), **({"ReferencedGroupId": rule.peer} if rule.of_group else {})}


def _of_rule(group: SecurityGroup, rule: SecurityGroupRule) -> Shape:
    block = {} if rule.of_group else {"CidrIpv6" if ":" in rule.peer else "CidrIpv4": rule.peer}
    return {
        "SecurityGroupRuleId": rule.id,
        "GroupId": group.name,
        "IsEgress": rule.egress,
        "IpProtocol": rule.protocol,
        "FromPort": -1 if rule.from_port is None else rule.from_port,
        "ToPort": -1 if rule.to_port is None else rule.to_port,
        **block,
        **({"Description": rule.description} if rule.description else {}),
    }


def tagged(specifications: Iterable[Params], kind: str) -> dict[str, str]:
    """The tags that a request gives to what it makes. Raises ApiError."""
    found: dict[str, str] = {}
    for each in specifications:
        if each.get("ResourceType") != kind:
            raise value_error(f"'{each.get('ResourceType')}' is not a valid taggable resource type for this operation.")
        found |= tags_of(each.get("Tags", ()))
    return found


def tags_of(listed: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Tags of a request [Tag restrictions: 50 of them, keys of 128 characters, values of 256]. Raises ApiError."""
    found: dict[str, str] = {}
    for each in listed:
        key, value = each.get("Key", ""), each.get("Value", "")
        if not 1 <= len(key) <= 128 or key.lower().startswith("aws:"):
            raise value_error(f"Tag keys must have 1 to 128 characters and not begin with aws: ({key[:130]!r})")
        if len(value) > 256:
            raise value_error(f"Tag value exceeds the maximum length of 256 characters (key {key!r})")
        if key in found:
            raise value_error(f"Duplicate tag key '{key}' specified.")
        found[key] = value
    return within(found)


def within(tags: dict[str, str]) -> dict[str, str]:
    """They, if one resource may have so many. Raises ApiError TagLimitExceeded."""
    if len(tags) > 50:
        raise ApiError("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
    return tags
