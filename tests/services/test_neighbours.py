"""sts, iam and ec2: what clients ask before they come to caches."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, SETTINGS, Rig, refused


def test_who_am_i(rig: Rig) -> None:
    found = rig.client("sts").get_caller_identity()
    assert (found["Account"], found["Arn"], found["UserId"]) == (ACCOUNT, f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT)
    assert re.fullmatch(r"\d{12}", found["Arn"].split(":")[4])


def test_terraforms_second_and_third_questions(rig: Rig) -> None:
    iam = rig.client("iam")
    assert iam.get_user()["User"]["Arn"] == f"arn:aws:iam::{ACCOUNT}:root"
    assert refused(iam.get_user, UserName="somebody").status == 404
    assert iam.list_roles(MaxItems=1)["Roles"] == []


def test_no_temporary_credentials(rig: Rig) -> None:
    sts = rig.client("sts")
    assert refused(sts.get_session_token).code == "AccessDenied"
    assert refused(sts.assume_role, RoleArn=f"arn:aws:iam::{ACCOUNT}:role/abc", RoleSessionName="abc").code == "AccessDenied"


def test_the_network_is_the_pool_of_addresses(rig: Rig) -> None:
    ec2 = rig.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]
    assert (vpc["CidrBlock"], vpc["IsDefault"]) == (SETTINGS.address_pool, True)
    subnets = ec2.describe_subnets()["Subnets"]
    assert [s["AvailabilityZone"] for s in subnets] == list(SETTINGS.zones)
    assert {s["VpcId"] for s in subnets} == {vpc["VpcId"]}
    group = ec2.describe_security_groups()["SecurityGroups"][0]
    assert group["IpPermissions"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    assert [z["ZoneName"] for z in zones] == list(SETTINGS.zones)
    assert [r["RegionName"] for r in ec2.describe_regions()["Regions"]] == ["us-east-1"]
    assert ec2.describe_account_attributes(AttributeNames=["supported-platforms"])["AccountAttributes"][0]["AttributeValues"] == [
        {"AttributeValue": "VPC"}
    ]


def test_a_page_holds_what_was_asked_for() -> None:
    rig = Rig(replace(SETTINGS, zones=tuple(f"us-east-1{letter}" for letter in "abcdef")))
    first = rig.client("ec2").describe_subnets(MaxResults=5)
    last = rig.client("ec2").describe_subnets(MaxResults=5, NextToken=first["NextToken"])
    assert [len(page["Subnets"]) for page in (first, last)] == [5, 1]
    assert "NextToken" not in last
    rig.close()


def test_a_pool_of_single_addresses() -> None:
    rig = Rig(replace(SETTINGS, address_pool="10.0.0.9, 10.0.0.5,10.0.0.4"))
    vpc = rig.client("ec2").describe_vpcs()["Vpcs"][0]
    assert [b["CidrBlock"] for b in vpc["CidrBlockAssociationSet"]] == ["10.0.0.4/31", "10.0.0.9/32"]
    assert rig.client("ec2").describe_subnets()["Subnets"][0]["CidrBlock"] == "10.0.0.4/31"
    rig.close()


def test_subnets_of_ec2_are_those_of_the_default_subnet_group(rig: Rig) -> None:
    listed = {s["SubnetId"] for s in rig.client("ec2").describe_subnets()["Subnets"]}
    group = rig.cache.describe_cache_subnet_groups(CacheSubnetGroupName="default")["CacheSubnetGroups"][0]
    assert {s["SubnetIdentifier"] for s in group["Subnets"]} == listed
    made = rig.cache.create_cache_subnet_group(CacheSubnetGroupName="s", CacheSubnetGroupDescription="d", SubnetIds=sorted(listed))[
        "CacheSubnetGroup"
    ]
    assert {s["SubnetIdentifier"]: s["SubnetAvailabilityZone"]["Name"] for s in made["Subnets"]} == {
        s["SubnetIdentifier"]: s["SubnetAvailabilityZone"]["Name"] for s in group["Subnets"]
    }


@pytest.mark.parametrize(
    ("call", "result", "params", "count"),
    [
        ("describe_vpcs", "Vpcs", {"Filters": [{"Name": "isDefault", "Values": ["true"]}]}, 1),
        ("describe_vpcs", "Vpcs", {"Filters": [{"Name": "vpc-id", "Values": ["vpc-x"]}]}, 0),
        ("describe_subnets", "Subnets", {"Filters": [{"Name": "availability-zone", "Values": ["*b", "*c"]}]}, 2),
        ("describe_subnets", "Subnets", {"SubnetIds": [SETTINGS.subnet_id("us-east-1a")]}, 1),
        ("describe_security_groups", "SecurityGroups", {"GroupNames": ["default"]}, 1),
        ("describe_instance_types", "InstanceTypes", {"InstanceTypes": ["t3.micro", "m7g.large"]}, 2),
    ],
)
def test_filters(rig: Rig, call: str, result: str, params: dict[str, Any], count: int) -> None:
    assert len(getattr(rig.client("ec2"), call)(**params)[result]) == count


@pytest.mark.parametrize(
    ("call", "params", "code"),
    [
        ("describe_vpcs", {"VpcIds": ["vpc-x"]}, "InvalidVpcID.NotFound"),
        ("describe_subnets", {"SubnetIds": ["subnet-x"]}, "InvalidSubnetID.NotFound"),
        ("describe_security_groups", {"GroupIds": ["sg-x"]}, "InvalidGroup.NotFound"),
        ("describe_instance_types", {"InstanceTypes": ["x9.huge"]}, "InvalidInstanceType"),
        ("describe_vpcs", {"Filters": [{"Name": "shoe-size", "Values": ["1"]}]}, "InvalidParameterValue"),
        ("describe_regions", {"RegionNames": ["mars-1"]}, "InvalidParameterValue"),
        ("describe_vpcs", {"DryRun": True}, "DryRunOperation"),
    ],
)
def test_what_is_not_there(rig: Rig, call: str, params: dict[str, Any], code: str) -> None:
    assert refused(getattr(rig.client("ec2"), call), **params).code == code


def test_node_types_as_instance_types(rig: Rig) -> None:
    pages = rig.client("ec2").get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 30})
    found = {t["InstanceType"]: t for page in pages for t in page["InstanceTypes"]}
    assert found["t3.micro"]["VCpuInfo"]["DefaultVCpus"] == 2
    assert found["t3.micro"]["MemoryInfo"]["SizeInMiB"] == 512
    assert len(found) > 100
