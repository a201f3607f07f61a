"""Subnet groups: which zones nodes may be in."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import SETTINGS, Rig, refused

from cachekeep.services.elasticache.quotas import SUBNET_GROUPS


def own(zone: str) -> str:
    return SETTINGS.subnet_id(f"us-east-1{zone}")


def make(rig: Rig, name: str = "sub", ids: tuple[str, ...] = (own("a"), own("b")), **more: Any) -> dict[str, Any]:
    return rig.cache.create_cache_subnet_group(
        CacheSubnetGroupName=name, CacheSubnetGroupDescription="d", SubnetIds=list(ids), **more
    )["CacheSubnetGroup"]


def test_create_describe_modify_delete(rig: Rig) -> None:
    made = make(rig, "Sub")
    assert made["CacheSubnetGroupName"] == "sub"
    assert made["VpcId"] == SETTINGS.vpc_id
    assert [s["SubnetAvailabilityZone"]["Name"] for s in made["Subnets"]] == ["us-east-1a", "us-east-1b"]
    assert rig.cache.describe_cache_subnet_groups(CacheSubnetGroupName="SUB")["CacheSubnetGroups"] == [made]
    changed = rig.cache.modify_cache_subnet_group(
        CacheSubnetGroupName="sub", CacheSubnetGroupDescription="e", SubnetIds=[own("c")]
    )["CacheSubnetGroup"]
    assert (changed["CacheSubnetGroupDescription"], [s["SubnetIdentifier"] for s in changed["Subnets"]]) == ("e", [own("c")])
    rig.cache.delete_cache_subnet_group(CacheSubnetGroupName="sub")
    error = refused(rig.cache.describe_cache_subnet_groups, CacheSubnetGroupName="sub")
    assert (error.code, error.status) == ("CacheSubnetGroupNotFoundFault", 400)


def test_the_default_group_covers_every_zone_and_stays(rig: Rig) -> None:
    make(rig)
    groups = rig.cache.describe_cache_subnet_groups()["CacheSubnetGroups"]
    assert [g["CacheSubnetGroupName"] for g in groups] == ["default", "sub"]
    assert [s["SubnetAvailabilityZone"]["Name"] for s in groups[0]["Subnets"]] == list(SETTINGS.zones)
    assert refused(make, rig=rig, name="default").code == "CacheSubnetGroupAlreadyExists"
    assert refused(rig.cache.delete_cache_subnet_group, CacheSubnetGroupName="default").code == "InvalidParameterValue"
    assert (
        refused(rig.cache.modify_cache_subnet_group, CacheSubnetGroupName="default", SubnetIds=[own("a")]).code
        == "InvalidParameterValue"
    )


def test_nodes_go_where_the_group_has_subnets(rig: Rig) -> None:
    make(rig, ids=(own("b"), own("c")))
    rig.group(NumCacheClusters=4, CacheSubnetGroupName="sub")
    zones = {m["PreferredAvailabilityZone"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]}
    assert zones == {"us-east-1b", "us-east-1c"}
    assert rig.show_cluster("demo-001")["CacheSubnetGroupName"] == "sub"
    error = refused(rig.group, name="x", CacheSubnetGroupName="sub", PreferredCacheClusterAZs=["us-east-1a", "us-east-1b"])
    assert error.code == "InvalidParameterValue"


UNKNOWN = ("subnet-8d4bacf5", "subnet-0123456789abcdef0")


def test_a_subnet_that_is_none_here_is_refused_as_at_aws(rig: Rig) -> None:
    error = refused(make, rig=rig, ids=(own("a"), *UNKNOWN))
    assert error.code == "InvalidParameterValue"
    assert error.message.startswith(f"Some input subnets in :[{own('a')}, {UNKNOWN[0]}, {UNKNOWN[1]}] are invalid.")
    assert "`cachekeep up --any-subnet`" in error.message
    made = make(rig)
    assert refused(rig.cache.modify_cache_subnet_group, CacheSubnetGroupName="sub", SubnetIds=[UNKNOWN[0]]).message
    assert rig.cache.describe_cache_subnet_groups(CacheSubnetGroupName="sub")["CacheSubnetGroups"] == [made]


def test_subnets_of_another_account_may_stand_for_zones_always_the_same() -> None:
    rig = Rig(replace(SETTINGS, any_subnet=True))
    ids = UNKNOWN
    first = make(rig, "x", ids)["Subnets"]
    assert make(rig, "y", ids)["Subnets"] == first
    assert all(s["SubnetAvailabilityZone"]["Name"] in SETTINGS.zones for s in first)
    error = refused(make, rig=rig, name="z", ids=("10.0.10.0/24",))
    assert (error.code, error.message) == ("InvalidParameterValue", "Some input subnets in :[10.0.10.0/24] are invalid.")
    rig.close()


def test_what_is_in_use_stays(rig: Rig) -> None:
    make(rig, ids=(own("b"),))
    rig.group(CacheSubnetGroupName="sub")
    assert refused(rig.cache.delete_cache_subnet_group, CacheSubnetGroupName="sub").code == "CacheSubnetGroupInUse"
    assert refused(rig.cache.modify_cache_subnet_group, CacheSubnetGroupName="sub", SubnetIds=[own("a")]).code == "SubnetInUse"
    rig.cache.modify_cache_subnet_group(CacheSubnetGroupName="sub", SubnetIds=[own("a"), own("b")])


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"name": "sub"}, "CacheSubnetGroupAlreadyExists"),
        ({"name": "1sub"}, "InvalidParameterValue"),
        ({"name": "x", "ids": ("nonsense",)}, "InvalidParameterValue"),
        ({"name": "x", "ids": ()}, "InvalidParameterValue"),
        ({"name": "x", "ids": tuple(f"subnet-{n:08x}" for n in range(21))}, "CacheSubnetQuotaExceededFault"),
    ],
    ids=str,
)
def test_bad_groups(rig: Rig, params: dict[str, Any], code: str) -> None:
    make(rig)
    assert refused(make, rig=rig, **params).code == code


def test_the_quota_of_groups() -> None:
    rig = Rig(replace(SETTINGS, quotas={SUBNET_GROUPS: 1}))
    make(rig)
    assert refused(make, rig=rig, name="more").code == "CacheSubnetGroupQuotaExceeded"
    rig.close()
