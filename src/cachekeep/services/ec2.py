"""ec2, as far as a cache's user asks: the one default VPC, a subnet for each zone, a security group, zones, region, instance types.

They describe this installation: the VPC is the pool of addresses that nodes and endpoints get, whichever zone a node is in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from cachekeep.engines.node_types import NodeType, node_types
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, ServiceSettings, digest
from cachekeep.services.core.operation import Handler, Service, reads
from cachekeep.services.core.paging import PageRule
from cachekeep.services.core.parameters import Declared, Effect, Moot
from cachekeep.services.core.rights import Rights
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

Shape = dict[str, Any]


_PAGES: Final = PageRule("NextToken", "MaxResults", 5, 1000, 1000)


class _Listing(msgspec.Struct, frozen=True):
    """One Describe: what there is, how it may be picked by id or name, and by filter (filter's name → member of the shape)."""

    result: str
    rows: Callable[[ServiceSettings], Sequence[Shape]]
    picks: Mapping[str, tuple[str, str]]
    """Parameter → (member that it picks by, error code for one that does not exist)."""
    filters: Mapping[str, str]
    pages: PageRule = _PAGES


def _describe(listing: _Listing, summary: str) -> Handler:
    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        params = call.params
        if params.get("DryRun"):
            raise ApiError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", status=412)
        rows = list(listing.rows(context.settings))
        for parameter, (member, code) in listing.picks.items():
            if asked := params.get(parameter):
                known = {row[member] for row in rows}
                if unknown := [name for name in asked if name not in known]:
                    raise ApiError(code, f"{', '.join(unknown)} does not exist")
                rows = [row for row in rows if row[member] in asked]
        for each in params.get("Filters", ()):
            member = listing.filters.get(each.get("Name", ""), "")
            if not member:
                raise ApiError("InvalidParameterValue", f"The filter '{each.get('Name', '')}' is invalid")
            rows = [row for row in rows if any(fnmatchcase(_text(row[member]), value) for value in each.get("Values", ()))]
        numbered = [(f"{index:04}", row) for index, row in enumerate(rows)]
        return paging.page(numbered, params, lambda each: each[0], lambda each: each[1], listing.result, listing.pages)

    handler.__doc__ = summary
    return handler


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------ what there is


def _blocks(settings: ServiceSettings) -> list[str]:
    """The pool as networks, the largest first."""
    if "/" in settings.address_pool:
        return [settings.address_pool.strip()]
    listed = [ipaddress.IPv4Network(part.strip()) for part in settings.address_pool.split(",")]
    return [str(network) for network in sorted(ipaddress.collapse_addresses(listed), key=lambda n: n.prefixlen)]


def _vpcs(settings: ServiceSettings) -> list[Shape]:
    blocks = _blocks(settings)
    return [
        {
            "VpcId": settings.vpc_id,
            "CidrBlock": blocks[0],
            "State": "available",
            "IsDefault": True,
            "InstanceTenancy": "default",
            "OwnerId": settings.account,
            "CidrBlockAssociationSet": [
                {
                    "AssociationId": f"vpc-cidr-assoc-{digest(settings.vpc_id, block)}",
                    "CidrBlock": block,
                    "CidrBlockState": {"State": "associated"},
                }
                for block in blocks
            ],
            "Tags": [],
        }
    ]


def _subnets(settings: ServiceSettings) -> list[Shape]:
    return [
        {
            "SubnetId": settings.subnet_id(zone),
            "VpcId": settings.vpc_id,
            "AvailabilityZone": zone,
            "CidrBlock": _blocks(settings)[0],
            "State": "available",
            "DefaultForAz": True,
            "MapPublicIpOnLaunch": False,
            "OwnerId": settings.account,
            "SubnetArn": f"arn:aws:ec2:{settings.region}:{settings.account}:subnet/{settings.subnet_id(zone)}",
            "Tags": [],
        }
        for zone in settings.zones
    ]


def _security_groups(settings: ServiceSettings) -> list[Shape]:
    """Nothing is filtered yet, and the rules say so."""
    everybody = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}], "UserIdGroupPairs": []}]
    return [
        {
            "GroupId": settings.security_group_id,
            "GroupName": "default",
            "Description": "default VPC security group",
            "VpcId": settings.vpc_id,
            "OwnerId": settings.account,
            "IpPermissions": everybody,
            "IpPermissionsEgress": everybody,
            "Tags": [],
        }
    ]


def _zones(settings: ServiceSettings) -> list[Shape]:
    return [
        {
            "ZoneName": zone,
            "ZoneId": f"{settings.region}-az{number}",
            "RegionName": settings.region,
            "GroupName": settings.region,
            "NetworkBorderGroup": settings.region,
            "ZoneType": "availability-zone",
            "State": "available",
            "OptInStatus": "opt-in-not-required",
            "Messages": [],
        }
        for number, zone in enumerate(settings.zones, 1)
    ]


def _regions(settings: ServiceSettings) -> list[Shape]:
    return [{"RegionName": settings.region, "OptInStatus": "opt-in-not-required"}]


def _instance_types(settings: ServiceSettings) -> list[Shape]:
    return [_instance_type(n) for n in sorted(node_types().values(), key=lambda n: n.name)]


def _instance_type(n: NodeType) -> Shape:
    shape: Shape = {
        "InstanceType": n.name.removeprefix("cache."),
        "CurrentGeneration": n.generation == "current",
        "VCpuInfo": {"DefaultVCpus": n.vcpu},
    }
    return shape | ({"MemoryInfo": {"SizeInMiB": int(n.memory_gib * 1024)}} if n.memory_gib else {})


def _attributes(settings: ServiceSettings) -> list[Shape]:
    values = {"supported-platforms": "VPC", "default-vpc": settings.vpc_id}
    return [{"AttributeName": name, "AttributeValues": [{"AttributeValue": value}]} for name, value in values.items()]


_LISTINGS: Final[Mapping[str, tuple[_Listing, str]]] = {
    "DescribeVpcs": (
        _Listing(
            "Vpcs",
            _vpcs,
            {"VpcIds": ("VpcId", "InvalidVpcID.NotFound")},
            {"vpc-id": "VpcId", "cidr": "CidrBlock", "is-default": "IsDefault", "isDefault": "IsDefault", "state": "State"},
        ),
        "The one VPC: the pool of addresses.",
    ),
    "DescribeSubnets": (
        _Listing(
            "Subnets",
            _subnets,
            {"SubnetIds": ("SubnetId", "InvalidSubnetID.NotFound")},
            {
                "subnet-id": "SubnetId",
                "vpc-id": "VpcId",
                "availability-zone": "AvailabilityZone",
                "availabilityZone": "AvailabilityZone",
                "default-for-az": "DefaultForAz",
                "defaultForAz": "DefaultForAz",
                "cidr-block": "CidrBlock",
                "state": "State",
            },
        ),
        "One subnet for each zone.",
    ),
    "DescribeSecurityGroups": (
        _Listing(
            "SecurityGroups",
            _security_groups,
            {"GroupIds": ("GroupId", "InvalidGroup.NotFound"), "GroupNames": ("GroupName", "InvalidGroup.NotFound")},
            {"group-id": "GroupId", "group-name": "GroupName", "vpc-id": "VpcId", "description": "Description"},
        ),
        "The default security group, which lets everybody in.",
    ),
    "DescribeAvailabilityZones": (
        _Listing(
            "AvailabilityZones",
            _zones,
            {"ZoneNames": ("ZoneName", "InvalidParameterValue"), "ZoneIds": ("ZoneId", "InvalidParameterValue")},
            {
                "zone-name": "ZoneName",
                "zone-id": "ZoneId",
                "region-name": "RegionName",
                "state": "State",
                "zone-type": "ZoneType",
                "opt-in-status": "OptInStatus",
                "group-name": "GroupName",
            },
        ),
        "The zones of this installation.",
    ),
    "DescribeRegions": (
        _Listing(
            "Regions",
            _regions,
            {"RegionNames": ("RegionName", "InvalidParameterValue")},
            {"region-name": "RegionName", "opt-in-status": "OptInStatus"},
        ),
        "The one region.",
    ),
    "DescribeInstanceTypes": (
        _Listing(
            "InstanceTypes",
            _instance_types,
            {"InstanceTypes": ("InstanceType", "InvalidInstanceType")},
            {"instance-type": "InstanceType", "current-generation": "CurrentGeneration"},
            PageRule("NextToken", "MaxResults", 5, 100, 100),
        ),
        "The node types, named without `cache.`.",
    ),
    "DescribeAccountAttributes": (
        _Listing("AccountAttributes", _attributes, {"AttributeNames": ("AttributeName", "InvalidParameterValue")}, {}),
        "The platform (VPC) and the default VPC.",
    ),
}

_MEANT: Final = Effect("those that are meant")
_ALL_ARE: Final = Moot("all that there are can be used, and are always shown")
_PARAMETERS: Final[Declared] = {
    "AllAvailabilityZones": _ALL_ARE,
    "AllRegions": _ALL_ARE,
    "DryRun": Effect("only says that it would have been answered"),
    "Filters": Effect("those that match"),
    "Filters.Name": Effect("what must match"),
    "Filters.Values": Effect("one of them must match; `*` and `?` stand for others"),
    "IncludeUnsupportedInRegion": _ALL_ARE,
    "MaxResults": Effect("how many a page holds"),
    "NextToken": Effect("the page after this one"),
    **{parameter: _MEANT for listing, _ in _LISTINGS.values() for parameter in listing.picks},
}

SERVICE: Final = Service(
    name="ec2",
    title="EC2",
    operations={name: reads(_describe(listing, summary)) for name, (listing, summary) in _LISTINGS.items()},
    parameters=_PARAMETERS,
    rights=Rights(denied="UnauthorizedOperation"),
)
