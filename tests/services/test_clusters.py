"""Cache clusters, Memcached and single nodes, and members of groups."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import SETTINGS, Rig, refused

from cachekeep.model import NodeCondition

NODE = "cache.t3.micro"


def test_a_memcached_cluster(rig: Rig) -> None:
    created = rig.memcached(nodes=3, keep=False)
    assert (created["CacheClusterStatus"], created["NumCacheNodes"]) == ("creating", 3)
    assert "ConfigurationEndpoint" not in created
    rig.keep()
    shown = rig.show_cluster("mc")
    assert shown["CacheClusterStatus"] == "available"
    assert shown["ConfigurationEndpoint"]["Port"] == 11211
    assert [n["CacheNodeId"] for n in shown["CacheNodes"]] == ["0001", "0002", "0003"]
    assert len({n["Endpoint"]["Address"] for n in shown["CacheNodes"]}) == 3
    assert "SnapshotWindow" not in shown


@pytest.mark.parametrize(
    "member",
    ["CacheNodeId", "CacheNodeStatus", "CacheNodeCreateTime", "Endpoint", "ParameterGroupStatus", "CustomerAvailabilityZone"],
)
def test_cache_nodes_have_what_terraform_needs(rig: Rig, member: str) -> None:
    rig.group()
    rig.memcached()
    rig.single()
    for name in ("demo-001", "mc", "one"):
        assert all(node[member] for node in rig.show_cluster(name)["CacheNodes"])


def test_the_recorded_answer_of_aws_has_nothing_that_ours_lacks(rig: Rig) -> None:
    """Member names of awscli's recorded describe-cache-clusters; the landing page for downloads and the topic we do not have."""
    rig.group()
    recorded = (
        "CacheClusterId CacheNodeType Engine EngineVersion CacheClusterStatus NumCacheNodes PreferredAvailabilityZone "
        "CacheClusterCreateTime PreferredMaintenanceWindow PendingModifiedValues CacheSecurityGroups CacheParameterGroup "
        "CacheSubnetGroupName AutoMinorVersionUpgrade SecurityGroups ReplicationGroupId SnapshotRetentionLimit SnapshotWindow "
        "AuthTokenEnabled TransitEncryptionEnabled AtRestEncryptionEnabled ARN ReplicationGroupLogDeliveryEnabled "
        "LogDeliveryConfigurations"
    )
    shown = rig.show_cluster("demo-001")
    assert set(recorded.split()) <= shown.keys()
    assert shown["CacheParameterGroup"] == {
        "CacheParameterGroupName": shown["CacheParameterGroup"]["CacheParameterGroupName"],
        "ParameterApplyStatus": "in-sync",
        "CacheNodeIdsToReboot": [],
    }
    assert shown["CacheSubnetGroupName"] == "default"


def test_nodes_are_listed_only_when_asked_for(rig: Rig) -> None:
    rig.single()
    assert "CacheNodes" not in rig.cache.describe_cache_clusters(CacheClusterId="one")["CacheClusters"][0]


def test_members_of_groups_are_listed_and_can_be_left_out(rig: Rig) -> None:
    rig.group()
    rig.memcached()
    rig.single()
    everything = rig.cache.describe_cache_clusters()["CacheClusters"]
    assert [c["CacheClusterId"] for c in everything] == ["demo-001", "demo-002", "mc", "one"]
    assert [c.get("ReplicationGroupId") for c in everything] == ["demo", "demo", None, None]
    alone = rig.cache.describe_cache_clusters(ShowCacheClustersNotInReplicationGroups=True)["CacheClusters"]
    assert [c["CacheClusterId"] for c in alone] == ["mc", "one"]


@pytest.mark.parametrize("alone", [True, False])
def test_pages_of_clusters(rig: Rig, alone: bool) -> None:
    for n in range(25):
        rig.single(f"c{n:02}", keep=False)
    pages = list(
        rig.cache.get_paginator("describe_cache_clusters").paginate(
            ShowCacheClustersNotInReplicationGroups=alone, PaginationConfig={"PageSize": 20}
        )
    )
    assert [c["CacheClusterId"] for p in pages for c in p["CacheClusters"]] == [f"c{n:02}" for n in range(25)]


def test_an_id_belongs_to_one_cluster_even_inside_a_group(rig: Rig) -> None:
    rig.group()
    assert refused(rig.single, name="demo-001").code == "CacheClusterAlreadyExists"
    rig.single()
    assert refused(rig.memcached, name="ONE").code == "CacheClusterAlreadyExists"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"NumCacheNodes": 0}, "InvalidParameterValue"),
        ({"NumCacheNodes": 61}, "NodeQuotaForClusterExceeded"),
        ({"Engine": "valkey", "NumCacheNodes": 2}, "InvalidParameterValue"),
        ({"Engine": "mysql"}, "InvalidParameterValue"),
        ({"EngineVersion": "1.6.22"}, "InvalidParameterCombination"),
        ({"CacheNodeType": "cache.c1.xlarge9"}, "InvalidParameterValue"),
        ({"AZMode": "cross-az", "NumCacheNodes": 1}, "InvalidParameterCombination"),
        ({"Engine": "valkey", "AZMode": "cross-az", "NumCacheNodes": 1}, "InvalidParameterCombination"),
        ({"PreferredAvailabilityZones": ["us-east-1a"]}, "InvalidParameterCombination"),
        ({"PreferredAvailabilityZones": ["us-east-1a", "us-east-1b"], "AZMode": "single-az"}, "InvalidParameterCombination"),
        ({"PreferredAvailabilityZone": "us-east-1z"}, "InvalidParameterValue"),
        ({"AZMode": "cross-az", "PreferredAvailabilityZone": "us-east-1a"}, "InvalidParameterCombination"),
        (
            {"Engine": "valkey", "NumCacheNodes": 1, "CacheParameterGroupName": "default.valkey8.cluster.on"},
            "InvalidParameterCombination",
        ),
        ({"SnapshotName": "s"}, "InvalidParameterValue"),
        ({"TransitEncryptionEnabled": True}, "InvalidParameterCombination"),
        ({"PreferredOutpostArn": "arn:x"}, "InvalidParameterCombination"),
    ],
    ids=str,
)
def test_bad_input_of_create(rig: Rig, params: dict[str, Any], code: str) -> None:
    assert (
        refused(rig.memcached, **({"nodes": 2} | {"nodes" if k == "NumCacheNodes" else k: v for k, v in params.items()})).code
        == code
    )
    assert rig.cache.describe_cache_clusters()["CacheClusters"] == []


def test_a_single_zone_or_several(rig: Rig) -> None:
    rig.memcached("near", 3)
    rig.memcached("far", 3, AZMode="cross-az")
    rig.memcached("named", 2, AZMode="cross-az", PreferredAvailabilityZones=["us-east-1c", "us-east-1a"])
    assert len({n["CustomerAvailabilityZone"] for n in rig.show_cluster("near")["CacheNodes"]}) == 1
    assert rig.show_cluster("near")["PreferredAvailabilityZone"].startswith("us-east-1")
    assert {n["CustomerAvailabilityZone"] for n in rig.show_cluster("far")["CacheNodes"]} == set(rig.settings.zones)
    assert rig.show_cluster("far")["PreferredAvailabilityZone"] == "Multiple"
    assert [n["CustomerAvailabilityZone"] for n in rig.show_cluster("named")["CacheNodes"]] == ["us-east-1c", "us-east-1a"]


# ------------------------------------------------------------------ more and fewer nodes


def change(rig: Rig, **params: Any) -> dict[str, Any]:
    return rig.cache.modify_cache_cluster(CacheClusterId="mc", **params)["CacheCluster"]


def ids(rig: Rig) -> list[str]:
    return [node["CacheNodeId"] for node in rig.show_cluster("mc")["CacheNodes"]]


def test_nodes_are_added_and_removed_at_once(rig: Rig) -> None:
    rig.memcached(nodes=2)
    pending = change(rig, NumCacheNodes=4, ApplyImmediately=True)
    assert (pending["CacheClusterStatus"], pending["NumCacheNodes"]) == ("modifying", 2)
    assert pending["PendingModifiedValues"] == {"NumCacheNodes": 4}
    rig.keep()
    assert ids(rig) == ["0001", "0002", "0003", "0004"]
    pending = change(rig, NumCacheNodes=2, CacheNodeIdsToRemove=["0001", "0003"], ApplyImmediately=True)
    assert pending["PendingModifiedValues"] == {"NumCacheNodes": 2, "CacheNodeIdsToRemove": ["0001", "0003"]}
    rig.keep()
    assert ids(rig) == ["0002", "0004"]
    assert rig.show_cluster("mc")["PendingModifiedValues"] == {}
    change(rig, NumCacheNodes=3, ApplyImmediately=True)
    rig.keep()
    assert sorted(ids(rig)) == ["0001", "0002", "0004"]


def test_a_change_of_number_waits_for_the_window_and_can_be_taken_back(rig: Rig) -> None:
    rig.memcached(nodes=2)
    change(rig, NumCacheNodes=4)
    rig.keep()
    shown = rig.show_cluster("mc")
    assert (shown["CacheClusterStatus"], shown["NumCacheNodes"]) == ("available", 2)
    assert shown["PendingModifiedValues"] == {"NumCacheNodes": 4}
    change(rig, NumCacheNodes=3)
    rig.keep()
    assert rig.show_cluster("mc")["PendingModifiedValues"] == {"NumCacheNodes": 3}
    change(rig, NumCacheNodes=2)
    rig.keep()
    assert rig.show_cluster("mc")["PendingModifiedValues"] == {}
    change(rig, NumCacheNodes=3)
    rig.keep()
    change(rig, ApplyImmediately=True)
    rig.keep()
    assert len(ids(rig)) == 3


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"NumCacheNodes": 1}, "InvalidParameterCombination"),
        ({"NumCacheNodes": 1, "CacheNodeIdsToRemove": ["0001", "0002"]}, "InvalidParameterCombination"),
        ({"NumCacheNodes": 1, "CacheNodeIdsToRemove": ["0009"]}, "InvalidParameterValue"),
        ({"NumCacheNodes": 3, "CacheNodeIdsToRemove": ["0001"]}, "InvalidParameterCombination"),
        ({"NumCacheNodes": 61}, "NodeQuotaForClusterExceeded"),
        ({"NumCacheNodes": 0}, "InvalidParameterValue"),
        ({"NumCacheNodes": 4, "NewAvailabilityZones": ["us-east-1a"]}, "InvalidParameterCombination"),
        ({"NumCacheNodes": 3, "NewAvailabilityZones": ["us-east-1z"]}, "InvalidParameterValue"),
        ({"Engine": "valkey"}, "InvalidParameterCombination"),
        ({"ScaleConfig": {"ScalePercentage": 10}}, "InvalidParameterCombination"),
        ({}, "InvalidParameterCombination"),
    ],
    ids=str,
)
def test_bad_input_of_modify(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.memcached(nodes=2)
    before = rig.stored("mc")
    assert refused(rig.cache.modify_cache_cluster, CacheClusterId="mc", ApplyImmediately=True, **params).code == code
    assert rig.stored("mc") == before


def test_nodes_may_come_to_other_zones(rig: Rig) -> None:
    rig.memcached(nodes=1, PreferredAvailabilityZone="us-east-1a")
    change(rig, NumCacheNodes=2, NewAvailabilityZones=["us-east-1b"], AZMode="cross-az", ApplyImmediately=True)
    rig.keep()
    assert rig.show_cluster("mc")["PreferredAvailabilityZone"] == "Multiple"


def test_members_are_modified_through_their_group(rig: Rig) -> None:
    rig.group()
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="demo-001", CacheNodeType="cache.t3.small")
    assert error.code == "InvalidParameterCombination"
    assert "ModifyReplicationGroup" in error.message


def test_one_node_is_one_node(rig: Rig) -> None:
    rig.single()
    rig.cache.modify_cache_cluster(CacheClusterId="one", NumCacheNodes=1, PreferredMaintenanceWindow="tue:01:00-tue:02:00")
    rig.keep()
    assert rig.show_cluster("one")["PreferredMaintenanceWindow"] == "tue:01:00-tue:02:00"
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="one", NumCacheNodes=2)
    assert error.code == "InvalidParameterValue"


def test_changes_wait_for_each_other(rig: Rig) -> None:
    rig.memcached()
    change(rig, NumCacheNodes=4, ApplyImmediately=True)
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="mc", NumCacheNodes=5, ApplyImmediately=True)
    assert (error.code, "not in available state" in error.message) == ("InvalidCacheClusterState", True)


# ------------------------------------------------------------------ reboot


def test_rebooting_has_the_words_that_ansible_knows(rig: Rig) -> None:
    rig.memcached(nodes=2)
    answer = rig.cache.reboot_cache_cluster(CacheClusterId="mc", CacheNodeIdsToReboot=["0002"])["CacheCluster"]
    assert answer["CacheClusterStatus"] == "rebooting cache cluster nodes"
    shown = rig.show_cluster("mc")
    assert shown["CacheClusterStatus"] == "rebooting cache cluster nodes"
    assert [n["CacheNodeStatus"] for n in shown["CacheNodes"]] == ["modifying", "rebooting"]
    assert rig.stored("mc").wanted.errands[-1].nodes == ("mc.0002",)
    rig.keep()
    assert rig.show_cluster("mc")["CacheClusterStatus"] == "available"


def test_rebooting_a_member_leaves_its_group_without_a_foreign_word(rig: Rig) -> None:
    rig.group()
    rig.cache.reboot_cache_cluster(CacheClusterId="demo-002", CacheNodeIdsToReboot=["0001"])
    assert rig.show_cluster("demo-002")["CacheClusterStatus"] == "rebooting cache cluster nodes"
    assert rig.show()["Status"] == "modifying"


@pytest.mark.parametrize("nodes", [["0009"], []], ids=str)
def test_bad_reboots(rig: Rig, nodes: list[str]) -> None:
    rig.memcached()
    assert refused(rig.cache.reboot_cache_cluster, CacheClusterId="mc", CacheNodeIdsToReboot=nodes).code == "InvalidParameterValue"
    assert refused(rig.cache.reboot_cache_cluster, CacheClusterId="x", CacheNodeIdsToReboot=["0001"]).status == 404


def test_nodes_that_need_a_reboot_are_named(rig: Rig) -> None:
    rig.memcached(nodes=2)
    nodes = (
        NodeCondition(name="mc.0001", status="available"),
        NodeCondition(name="mc.0002", status="available", pending_reboot=True),
    )
    rig.keep(nodes=nodes)
    shown = rig.show_cluster("mc")
    assert shown["CacheParameterGroup"]["ParameterApplyStatus"] == "pending-reboot"
    assert shown["CacheParameterGroup"]["CacheNodeIdsToReboot"] == ["0002"]
    assert [n["ParameterGroupStatus"] for n in shown["CacheNodes"]] == ["in-sync", "pending-reboot"]


# ------------------------------------------------------------------ delete


def test_a_deleted_cluster_goes(rig: Rig) -> None:
    rig.single()
    assert rig.cache.delete_cache_cluster(CacheClusterId="ONE")["CacheCluster"]["CacheClusterStatus"] == "deleting"
    assert refused(rig.cache.delete_cache_cluster, CacheClusterId="one").code == "InvalidCacheClusterState"
    rig.keep()
    assert refused(rig.show_cluster, name="one").code == "CacheClusterNotFound"


def test_a_replica_leaves_its_group(rig: Rig) -> None:
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    answer = rig.cache.delete_cache_cluster(CacheClusterId="demo-002")["CacheCluster"]
    assert answer["CacheClusterStatus"] == "deleting"
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-003", "demo-002"]
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-003"]
    assert refused(rig.cache.delete_cache_cluster, CacheClusterId="demo-003").code == "InvalidCacheClusterState"


def test_the_only_member_of_a_group_stays(rig: Rig) -> None:
    rig.group(NumCacheClusters=1)
    error = refused(rig.cache.delete_cache_cluster, CacheClusterId="demo-001")
    assert (error.code, "only member of a replication group" in error.message) == ("InvalidCacheClusterState", True)


# ------------------------------------------------------------------ a replica by name


def test_a_replica_with_a_name_of_its_own(rig: Rig) -> None:
    rig.group(NumCacheClusters=1)
    made = rig.cache.create_cache_cluster(CacheClusterId="Extra", ReplicationGroupId="DEMO", PreferredAvailabilityZone="us-east-1c")
    assert made["CacheCluster"]["CacheClusterStatus"] == "creating"
    assert made["CacheCluster"]["ReplicationGroupId"] == "demo"
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "extra"]
    assert rig.show_cluster("extra")["PreferredAvailabilityZone"] == "us-east-1c"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"ReplicationGroupId": "nope"}, "ReplicationGroupNotFoundFault"),
        ({"CacheNodeType": "cache.t3.small"}, "InvalidParameterCombination"),
        ({"Engine": "redis"}, "InvalidParameterCombination"),
        ({"NumCacheNodes": 2}, "InvalidParameterValue"),
        ({"PreferredAvailabilityZone": "nowhere"}, "InvalidParameterValue"),
    ],
    ids=str,
)
def test_bad_replicas(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.group()
    assert (
        refused(rig.cache.create_cache_cluster, **({"CacheClusterId": "extra", "ReplicationGroupId": "demo"} | params)).code == code
    )


def test_a_group_has_at_most_six_nodes(rig: Rig) -> None:
    rig.group(NumCacheClusters=6)
    error = refused(rig.cache.create_cache_cluster, CacheClusterId="extra", ReplicationGroupId="demo")
    assert error.code == "NodeQuotaForClusterExceeded"


def test_what_does_not_fit_is_refused() -> None:
    rig = Rig(replace(SETTINGS, overcommit=False, capacity_memory_bytes=2 * 724 << 20))  # of cache.t3.micro, engines/limits.py
    rig.memcached(nodes=2)
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="mc", NumCacheNodes=3, ApplyImmediately=True)
    assert error.code == "InsufficientCacheClusterCapacity"
    rig.close()


def test_a_member_is_not_found_among_those_that_are_in_no_group(rig: Rig) -> None:
    rig.group()
    only = {"ShowCacheClustersNotInReplicationGroups": True}
    assert refused(rig.cache.describe_cache_clusters, CacheClusterId="demo-001", **only).code == "CacheClusterNotFound"
    rig.single("one")
    assert rig.cache.describe_cache_clusters(CacheClusterId="one", **only)["CacheClusters"][0]["CacheClusterId"] == "one"


def test_memcached_has_no_snapshots_and_so_no_window_for_them(rig: Rig) -> None:
    assert refused(rig.memcached, name="new", SnapshotWindow="01:00-02:00").code == "InvalidParameterCombination"
    rig.memcached()
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="mc", SnapshotWindow="01:00-02:00")
    assert error.code == "InvalidParameterCombination"


def test_multiple_is_a_zone_of_several_nodes_in_several_zones_only(rig: Rig) -> None:
    assert refused(rig.memcached, PreferredAvailabilityZone="Multiple").code == "InvalidParameterValue"
    rig.memcached(PreferredAvailabilityZone="Multiple", AZMode="cross-az")
    assert rig.show_cluster("mc")["PreferredAvailabilityZone"] == "Multiple"
