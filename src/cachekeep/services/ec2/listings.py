"""What there always is: the one default VPC, a subnet for each zone, zones, region, instance types.

They describe this installation: the VPC is the pool of addresses that nodes and endpoints get, whichever zone a node is in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cachekeep.engines.node_types import NodeType, node_types
from cachekeep.services.core.context import Context, ServiceSettings, digest
from cachekeep.services.core.operation import Handler, Operation, reads
from cachekeep.services.core.paging import PageRule
from cachekeep.services.core.parameters import Declared, Effect, Moot
from cachekeep.services.ec2.answers import MEANT, Picked, Shape, dry, listed
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


def _describe(rows: Callable[[ServiceSettings], Sequence[Shape]], picked: Picked, summary: str) -> Handler:
    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        return listed(picked, rows(context.settings), call.params)

    handler.__doc__ = summary
    return dry(handler)


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


_LISTINGS: Final[Mapping[str, tuple[Callable[[ServiceSettings], Sequence[Shape]], Picked, str]]] = {
    "DescribeVpcs": (
        _vpcs,
        Picked(
            "Vpcs",
            {"VpcIds": ("VpcId", "InvalidVpcID.NotFound")},
            {"vpc-id": "VpcId", "cidr": "CidrBlock", "is-default": "IsDefault", "isDefault": "IsDefault", "state": "State"},
        ),
        "The one VPC: the pool of addresses.",
    ),
    "DescribeSubnets": (
        _subnets,
        Picked(
            "Subnets",
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
    "DescribeAvailabilityZones": (
        _zones,
        Picked(
            "AvailabilityZones",
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
        _regions,
        Picked(
            "Regions",
            {"RegionNames": ("RegionName", "InvalidParameterValue")},
            {"region-name": "RegionName", "opt-in-status": "OptInStatus"},
        ),
        "The one region.",
    ),
    "DescribeInstanceTypes": (
        _instance_types,
        Picked(
            "InstanceTypes",
            {"InstanceTypes": ("InstanceType", "InvalidInstanceType")},
            {"instance-type": "InstanceType", "current-generation": "CurrentGeneration"},
            PageRule("NextToken", "MaxResults", 5, 100, 100),
        ),
        "The node types, named without `cache.`.",
    ),
    "DescribeAccountAttributes": (
        _attributes,
        Picked("AccountAttributes", {"AttributeNames": ("AttributeName", "InvalidParameterValue")}, {}),
        "The platform (VPC) and the default VPC.",
    ),
}


async def _network_interfaces(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """There are none: addresses of nodes belong to the machine. Terraform asks before it deletes a security group."""
    if ids := call.params.get("NetworkInterfaceIds"):
        raise ApiError("InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{ids[0]}' does not exist")
    return {"NetworkInterfaces": []}


_NONE: Final = Moot("there is none to choose from")
_ALL_ARE: Final = Moot("all that there are can be used, and are always shown")
PARAMETERS: Final[Declared] = {
    "AllAvailabilityZones": _ALL_ARE,
    "AllRegions": _ALL_ARE,
    "IncludeUnsupportedInRegion": _ALL_ARE,
    "IncludeManagedResources": _NONE,
    "NetworkInterfaceIds": Effect("those that are meant, of which there are none"),
    **{
        f"DescribeNetworkInterfaces:{name}": _NONE
        for name in ("Filters", "Filters.Name", "Filters.Values", "MaxResults", "NextToken")
    },
    **{parameter: MEANT for _, picked, _ in _LISTINGS.values() for parameter in picked.picks},
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "DescribeNetworkInterfaces": reads(dry(_network_interfaces)),
    **{name: reads(_describe(*row)) for name, row in _LISTINGS.items()},
}
