"""Replication groups, asked for by an unmodified boto3."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, SETTINGS, Rig, SetClock, refused

from cachekeep.model import Condition, NodeCondition
from cachekeep.services.core.hold import settled
from cachekeep.services.elasticache.quotas import NODES, TEST_FAILOVERS_PER_DAY
from cachekeep.services.elasticache.status import group_status
from cachekeep.store import SqlStore

NODE = "cache.t3.micro"


def test_a_new_group_is_creating_and_then_available(rig: Rig) -> None:
    created = rig.group(NumCacheClusters=3, keep=False)
    assert created["Status"] == "creating"
    assert created["MemberClusters"] == ["demo-001", "demo-002", "demo-003"]
    assert rig.show()["Status"] == "creating"
    rig.keep()
    shown = rig.show()
    assert shown["Status"] == "available"
    group = shown["NodeGroups"][0]
    assert group["PrimaryEndpoint"]["Port"] == 6379
    assert group["PrimaryEndpoint"]["Address"] != group["ReaderEndpoint"]["Address"]
    assert [m["CurrentRole"] for m in group["NodeGroupMembers"]] == ["primary", "replica", "replica"]
    assert len({m["PreferredAvailabilityZone"] for m in group["NodeGroupMembers"]}) == 3


def test_endpoints_are_shown_only_once_decided(rig: Rig) -> None:
    created = rig.group(keep=False)
    assert "PrimaryEndpoint" not in created["NodeGroups"][0]
    assert "ReadEndpoint" not in created["NodeGroups"][0]["NodeGroupMembers"][0]


@pytest.mark.parametrize("name", ["Engine", "MemberClusters", "NodeGroups", "ARN", "ReplicationGroupCreateTime", "CacheNodeType"])
def test_what_terraform_reads_is_never_null(rig: Rig, name: str) -> None:
    assert rig.group(keep=False)[name]
    assert rig.show()[name]
    rig.keep()
    assert rig.show()[name]
    rig.cache.delete_replication_group(ReplicationGroupId="demo")
    assert rig.show()[name]


def test_no_configuration_endpoint_without_cluster_mode(rig: Rig) -> None:
    rig.group()
    assert "ConfigurationEndpoint" not in rig.show()
    assert rig.show()["ClusterEnabled"] is False


def test_the_recorded_answer_of_aws_has_nothing_that_ours_lacks(rig: Rig) -> None:
    """Member names of awscli's recorded create-replication-group and describe-replication-groups."""
    rig.group()
    shown = rig.show()
    recorded = (
        "ReplicationGroupId Description Status PendingModifiedValues MemberClusters NodeGroups AutomaticFailover "
        "SnapshotRetentionLimit SnapshotWindow ClusterEnabled CacheNodeType AuthTokenEnabled TransitEncryptionEnabled "
        "AtRestEncryptionEnabled ARN LogDeliveryConfigurations"
    )
    assert set(recorded.split()) <= shown.keys()
    assert shown["ARN"] == f"arn:aws:elasticache:us-east-1:{ACCOUNT}:replicationgroup:demo"
    group = "NodeGroupId Status PrimaryEndpoint ReaderEndpoint NodeGroupMembers"
    assert set(group.split()) <= shown["NodeGroups"][0].keys()
    member = "CacheClusterId CacheNodeId ReadEndpoint PreferredAvailabilityZone CurrentRole"
    assert set(member.split()) <= shown["NodeGroups"][0]["NodeGroupMembers"][0].keys()


def test_ids_are_stored_in_lower_case_and_found_in_any(rig: Rig) -> None:
    assert rig.group("Demo-A")["ReplicationGroupId"] == "demo-a"
    assert rig.show("DEMO-a")["ReplicationGroupId"] == "demo-a"


@pytest.mark.parametrize("name", ["1demo", "demo-", "de--mo", "de_mo", "a" * 41, "-a", "dé"])
def test_bad_ids(rig: Rig, name: str) -> None:
    error = refused(
        rig.cache.create_replication_group, ReplicationGroupId=name, ReplicationGroupDescription="d", CacheNodeType=NODE
    )
    assert (error.code, error.status) == ("InvalidParameterValue", 400)
    assert refused(rig.show, name=name).status == 404


def test_a_name_can_be_used_once(rig: Rig) -> None:
    rig.group()
    assert refused(rig.group, name="DEMO").code == "ReplicationGroupAlreadyExists"


def test_member_names_pass_over_clusters_that_have_them(rig: Rig) -> None:
    rig.single("demo-002")
    assert rig.group(NumCacheClusters=3)["MemberClusters"] == ["demo-001", "demo-003", "demo-004"]


def test_engine_version_is_that_of_the_build_of_the_same_line(rig: Rig) -> None:
    rig.group(EngineVersion="8.0")
    assert rig.show_cluster("demo-001")["EngineVersion"] == "8.0.1"
    assert rig.show_cluster("demo-001")["CacheParameterGroup"]["CacheParameterGroupName"] == "default.valkey8"


def test_seven_one_is_shown_as_seven_one_nought(rig: Rig) -> None:
    rig.group(Engine="redis", EngineVersion="7.1")
    assert rig.show_cluster("demo-001")["EngineVersion"] == "7.1.0"


def test_the_engine_is_redis_unless_named(rig: Rig) -> None:
    rig.group(Engine=None)
    assert rig.show()["Engine"] == "redis"


@pytest.mark.parametrize(
    ("version", "code"),
    [("9.9", "InvalidParameterCombination"), ("8.0.3", "InvalidParameterValue"), ("7.2", "InvalidParameterCombination")],
)
def test_versions_that_nothing_serves(rig: Rig, version: str, code: str) -> None:
    assert refused(rig.group, EngineVersion=version).code == code


def test_empty_means_unset(rig: Rig) -> None:
    rig.group(
        EngineVersion="", CacheParameterGroupName="", CacheSecurityGroupNames=[], SecurityGroupIds=[], CacheSubnetGroupName=""
    )
    assert rig.show()["Status"] == "available"


def test_what_terraform_always_sends_is_accepted(rig: Rig) -> None:
    rig.group(
        AutomaticFailoverEnabled=False,
        TransitEncryptionEnabled=False,
        AtRestEncryptionEnabled=False,
        SnapshotRetentionLimit=0,
        SnapshotWindow="01:00-02:00",
        AutoMinorVersionUpgrade=True,
        PreferredMaintenanceWindow="Mon:02:00-Mon:03:00",
        NetworkType="ipv4",
        IpDiscovery="ipv4",
        ClusterMode="disabled",
        DataTieringEnabled=False,
        SecurityGroupIds=[SETTINGS.security_group_id],
        Port=7000,
        Tags=[{"Key": "a", "Value": "b"}],
    )
    shown, member = rig.show(), rig.show_cluster("demo-001")
    assert shown["SnapshotWindow"] == "01:00-02:00"
    assert shown["NodeGroups"][0]["PrimaryEndpoint"]["Port"] == 7000
    assert member["PreferredMaintenanceWindow"] == "mon:02:00-mon:03:00"
    assert member["SecurityGroups"] == [{"SecurityGroupId": SETTINGS.security_group_id, "Status": "active"}]


LOG = [
    {
        "LogType": "slow-log",
        "DestinationType": "cloudwatch-logs",
        "DestinationDetails": {"CloudWatchLogsDetails": {"LogGroup": "g"}},
        "LogFormat": "json",
    }
]


@pytest.mark.parametrize(
    "params",
    [
        {"AtRestEncryptionEnabled": True},
        {"TransitEncryptionEnabled": True, "TransitEncryptionMode": "preferred"},
        {"KmsKeyId": "k"},
        {"LogDeliveryConfigurations": LOG},
        {"NotificationTopicArn": "arn:aws:sns:us-east-1:000000000000:t"},
        {"DataTieringEnabled": True},
        {"CacheNodeType": "cache.r6gd.xlarge"},
        {"GlobalReplicationGroupId": "g"},
        {"NetworkType": "dual_stack"},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_has_no_effect_yet_is_refused_and_says_so(rig: Rig, params: dict[str, Any]) -> None:
    error = refused(rig.group, **params)
    assert error.code == "InvalidParameterCombination"
    assert "not supported by this version of Cachekeep; nothing was changed." in error.message
    assert refused(rig.show).code == "ReplicationGroupNotFoundFault"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"NumCacheClusters": 7}, "InvalidParameterValue"),
        ({"NumCacheClusters": 0}, "InvalidParameterValue"),
        ({"NumCacheClusters": 1, "AutomaticFailoverEnabled": True}, "InvalidParameterCombination"),
        ({"MultiAZEnabled": True}, "InvalidParameterCombination"),
        (
            {"MultiAZEnabled": True, "AutomaticFailoverEnabled": True, "PreferredCacheClusterAZs": ["us-east-1a"] * 2},
            "InvalidParameterCombination",
        ),
        ({"PreferredCacheClusterAZs": ["us-east-1a"]}, "InvalidParameterCombination"),
        ({"PreferredCacheClusterAZs": ["us-east-1a", "us-east-1z"]}, "InvalidParameterValue"),
        ({"CacheNodeType": "cache.nano"}, "InvalidParameterValue"),
        ({"CacheNodeType": None}, "InvalidParameterValue"),
        ({"Engine": "memcached"}, "InvalidParameterValue"),
        ({"Port": 80}, "InvalidParameterValue"),
        ({"Port": 70000}, "InvalidParameterValue"),
        ({"SecurityGroupIds": ["default"]}, "InvalidParameterValue"),
        ({"SecurityGroupIds": ["sg-12345678"]}, "InvalidParameterValue"),
        (
            {"NumCacheClusters": None, "ReplicasPerNodeGroup": 3, "NodeGroupConfiguration": [{"ReplicaCount": 1}]},
            "InvalidParameterCombination",
        ),
        ({"CacheSecurityGroupNames": ["x"]}, "InvalidParameterValue"),
        ({"CacheParameterGroupName": "nope"}, "CacheParameterGroupNotFound"),
        ({"CacheParameterGroupName": "default.redis7"}, "InvalidParameterCombination"),
        ({"CacheSubnetGroupName": "nope"}, "CacheSubnetGroupNotFoundFault"),
        ({"PreferredMaintenanceWindow": "sun:05:00"}, "InvalidParameterValue"),
        ({"PreferredMaintenanceWindow": "sun:05:00-sun:05:30"}, "InvalidParameterValue"),
        ({"SnapshotWindow": "05:00-05:59"}, "InvalidParameterValue"),
        ({"SnapshotWindow": "05:30-06:30", "PreferredMaintenanceWindow": "sun:05:00-sun:06:00"}, "InvalidParameterValue"),
        ({"SnapshotWindow": "23:30-01:00", "PreferredMaintenanceWindow": "sun:00:00-sun:02:00"}, "InvalidParameterValue"),
        ({"Tags": [{"Key": "aws:x", "Value": "1"}]}, "InvalidParameterValue"),
        ({"Tags": [{"Key": f"k{n}", "Value": "1"} for n in range(51)]}, "TagQuotaPerResourceExceeded"),
        ({"PrimaryClusterId": "nope", "NumCacheClusters": None}, "CacheClusterNotFound"),
    ],
    ids=str,
)
def test_bad_input_of_create(rig: Rig, params: dict[str, Any], code: str) -> None:
    assert refused(rig.group, **params).code == code
    assert rig.cache.describe_replication_groups()["ReplicationGroups"] == []


def test_one_window_makes_room_for_the_other(rig: Rig) -> None:
    rig.group("a", SnapshotWindow="05:00-07:00")
    rig.group("b", PreferredMaintenanceWindow="wed:02:30-wed:04:30")
    assert rig.show_cluster("a-001")["PreferredMaintenanceWindow"] == "sun:03:00-sun:04:00"
    assert rig.show("b")["SnapshotWindow"] == "05:00-06:00"


def test_zones_are_used_in_the_order_asked(rig: Rig) -> None:
    rig.group(PreferredCacheClusterAZs=["us-east-1c", "us-east-1a"])
    assert [m["PreferredAvailabilityZone"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]] == ["us-east-1c", "us-east-1a"]


def test_one_node_group_by_configuration(rig: Rig) -> None:
    rig.group(
        NumCacheClusters=None,
        NumNodeGroups=1,
        NodeGroupConfiguration=[
            {"ReplicaCount": 1, "PrimaryAvailabilityZone": "us-east-1b", "ReplicaAvailabilityZones": ["us-east-1c"]}
        ],
    )
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-002"]
    assert [m["PreferredAvailabilityZone"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]] == ["us-east-1b", "us-east-1c"]


def test_replicas_per_node_group(rig: Rig) -> None:
    rig.group(NumCacheClusters=None, NumNodeGroups=1, ReplicasPerNodeGroup=2)
    assert len(rig.show()["MemberClusters"]) == 3


# ------------------------------------------------------------------ describe


def test_pages_of_groups(rig: Rig) -> None:
    names = [f"g{n:03}" for n in range(45)]
    for name in names:
        rig.group(name, keep=False, NumCacheClusters=1)
    pages = list(rig.cache.get_paginator("describe_replication_groups").paginate(PaginationConfig={"PageSize": 20}))
    assert [len(page["ReplicationGroups"]) for page in pages] == [20, 20, 5]
    assert [g["ReplicationGroupId"] for page in pages for g in page["ReplicationGroups"]] == names
    assert "Marker" not in pages[-1]


@pytest.mark.parametrize("params", [{"MaxRecords": 19}, {"MaxRecords": 101}, {"Marker": "nonsense"}], ids=str)
def test_bad_pages(rig: Rig, params: dict[str, Any]) -> None:
    assert refused(rig.cache.describe_replication_groups, **params).code == "InvalidParameterValue"


def test_nothing_is_available_on_no_evidence(rig: Rig) -> None:
    """A control plane that has just been started again has not looked yet."""
    rig.group()
    assert rig.show()["Status"] == "available"
    rig.clock.passed = dt.timedelta(days=800)  # the keeper's lease has run out
    assert rig.show()["Status"] == "modifying"
    assert rig.show_cluster("demo-001")["CacheClusterStatus"] == "modifying"


def test_a_condition_of_an_older_row_says_nothing(rig: Rig) -> None:
    rig.group()
    cache = rig.stored("demo")
    known = Condition(status="available", because="", settled=True, version=cache.version)
    assert group_status(cache, known) == "available"
    assert group_status(replace(cache, version=cache.version + 1), known) == "modifying"
    assert not settled(replace(cache, version=cache.version + 1), known)


# ------------------------------------------------------------------ modify


def test_a_change_is_under_way_until_the_keeper_has_seen_to_it(rig: Rig) -> None:
    rig.group()
    changed = rig.cache.modify_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="new")
    assert changed["ReplicationGroup"]["Status"] == "modifying"
    assert refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", ReplicationGroupDescription="newer").code == (
        "InvalidReplicationGroupState"
    )
    rig.keep()
    assert (rig.show()["Status"], rig.show()["Description"]) == ("available", "new")


def test_messages_that_clients_match_on(rig: Rig) -> None:
    rig.group(keep=False)
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", ReplicationGroupDescription="n")
    assert (error.code, " not in available state" in error.message) == ("InvalidReplicationGroupState", True)
    rig.keep()
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", ApplyImmediately=True)
    assert (error.code, error.message) == ("InvalidParameterCombination", "No modifications were requested")
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", PrimaryClusterId="other")
    assert "not a member" in error.message
    error = refused(rig.cache.delete_cache_cluster, CacheClusterId="demo-001")
    assert (error.code, "serving as primary" in error.message) == ("InvalidCacheClusterState", True)


def test_a_modification_that_changes_nothing_is_over_at_once(rig: Rig) -> None:
    rig.group()
    changed = rig.cache.modify_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="d")
    assert changed["ReplicationGroup"]["Status"] == "available"


def test_a_node_type_waits_for_the_window_unless_told_otherwise(rig: Rig) -> None:
    rig.group()
    rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheNodeType="cache.m7g.large")
    assert rig.stored("demo").wanted.deferred == {"node_type"}
    rig.keep()
    member = rig.show_cluster("demo-001")
    assert (member["CacheNodeType"], member["PendingModifiedValues"]) == (NODE, {"CacheNodeType": "cache.m7g.large"})
    assert rig.show()["CacheNodeType"] == NODE
    rig.cache.modify_replication_group(ReplicationGroupId="demo", ApplyImmediately=True)
    assert rig.stored("demo").wanted.deferred == frozenset()
    rig.keep()
    member = rig.show_cluster("demo-001")
    assert (member["CacheNodeType"], member["PendingModifiedValues"]) == ("cache.m7g.large", {})


def test_an_engine_upgrade_takes_the_default_parameter_group_along(rig: Rig) -> None:
    rig.group(EngineVersion="8.0")
    rig.cache.modify_replication_group(ReplicationGroupId="demo", EngineVersion="9.1", ApplyImmediately=True)
    rig.keep()
    member = rig.show_cluster("demo-002")
    assert member["EngineVersion"] == "9.1.2"
    assert member["CacheParameterGroup"]["CacheParameterGroupName"] == "default.valkey9"


def test_redis_becomes_valkey_and_not_back(rig: Rig) -> None:
    rig.group(Engine="redis", EngineVersion="7.0")
    rig.cache.modify_replication_group(
        ReplicationGroupId="demo",
        Engine="valkey",
        EngineVersion="8.0",
        ApplyImmediately=True,
        CacheParameterGroupName="default.valkey8",
    )
    rig.keep()
    assert (rig.show()["Engine"], rig.show_cluster("demo-001")["EngineVersion"]) == ("valkey", "8.0.1")
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", Engine="redis", EngineVersion="7.0")
    assert error.code == "InvalidParameterCombination"


def test_versions_only_go_up(rig: Rig) -> None:
    rig.group(EngineVersion="9.1")
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", EngineVersion="8.0", ApplyImmediately=True)
    assert error.code == "InvalidParameterCombination"


def test_a_custom_parameter_group_must_be_replaced_by_name(rig: Rig) -> None:
    rig.cache.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    rig.group(EngineVersion="8.0", CacheParameterGroupName="mine")
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", EngineVersion="9.1", ApplyImmediately=True)
    assert error.code == "InvalidParameterCombination"
    assert "valkey9" in error.message


@pytest.mark.parametrize(
    "params",
    [
        {"TransitEncryptionEnabled": True, "TransitEncryptionMode": "preferred"},
        {"LogDeliveryConfigurations": LOG},
        {"NotificationTopicArn": "arn:aws:sns:us-east-1:000000000000:t"},
    ],
    ids=lambda params: next(iter(params)),
)
def test_modifications_without_an_effect_are_refused(rig: Rig, params: dict[str, Any]) -> None:
    rig.group(EngineVersion="8.0")
    before = rig.stored("demo")
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", ApplyImmediately=True, **params)
    assert "not supported by this version of Cachekeep; nothing was changed." in error.message
    assert rig.stored("demo") == before


def test_failover_settings_and_their_event(rig: Rig) -> None:
    rig.group()
    rig.cache.modify_replication_group(ReplicationGroupId="demo", AutomaticFailoverEnabled=True, MultiAZEnabled=True)
    rig.keep()
    assert (rig.show()["AutomaticFailover"], rig.show()["MultiAZ"]) == ("enabled", "enabled")
    assert rig.told()[-1].message == "Automatic failover has been turned on for replication group demo"
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", AutomaticFailoverEnabled=False)
    assert error.code == "InvalidParameterCombination"


def test_promotion_by_hand_needs_failover_to_be_off(rig: Rig) -> None:
    rig.group(AutomaticFailoverEnabled=True)
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", PrimaryClusterId="demo-002")
    assert error.code == "InvalidParameterCombination"
    rig.cache.modify_replication_group(ReplicationGroupId="demo", AutomaticFailoverEnabled=False)
    rig.keep()
    changed = rig.cache.modify_replication_group(ReplicationGroupId="demo", PrimaryClusterId="demo-002")["ReplicationGroup"]
    assert changed["PendingModifiedValues"] == {"PrimaryClusterId": "demo-002"}
    errand = rig.stored("demo").wanted.errands[-1]
    assert (errand.kind, errand.nodes) == ("promote", ("demo-002",))
    rig.keep()
    members = rig.show()["NodeGroups"][0]["NodeGroupMembers"]
    assert [(m["CacheClusterId"], m["CurrentRole"]) for m in members] == [("demo-002", "primary"), ("demo-001", "replica")]


def test_errands_are_numbered_once_and_forgotten_when_done(rig: Rig) -> None:
    rig.group()
    for target in ("demo-002", "demo-001", "demo-002"):
        rig.cache.modify_replication_group(ReplicationGroupId="demo", PrimaryClusterId=target)
        rig.keep()
    assert [e.serial for e in rig.stored("demo").wanted.errands] == [3]


# ------------------------------------------------------------------ test failover


def test_test_failover_is_an_errand_and_an_event(rig: Rig) -> None:
    rig.group(AutomaticFailoverEnabled=True)
    rig.cache.test_failover(ReplicationGroupId="demo", NodeGroupId="0001")
    errand = rig.stored("demo").wanted.errands[-1]
    assert (errand.kind, errand.shard) == ("test-failover", "0001")
    event = rig.told()[-1]
    assert (event.source_type, event.message) == ("replication-group", "Test Failover API called for node group 0001")


def test_test_failover_refusals(rig: Rig) -> None:
    rig.group()
    assert refused(rig.cache.test_failover, ReplicationGroupId="demo", NodeGroupId="0001").code == "InvalidParameterCombination"
    error = refused(rig.cache.test_failover, ReplicationGroupId="demo", NodeGroupId="0002")
    assert (error.code, error.status) == ("NodeGroupNotFoundFault", 404)


def test_the_daily_limit_of_test_failovers() -> None:
    rig = Rig(replace(SETTINGS, quotas={TEST_FAILOVERS_PER_DAY: 2}))
    rig.group(AutomaticFailoverEnabled=True)
    for _ in range(2):
        rig.cache.test_failover(ReplicationGroupId="demo", NodeGroupId="0001")
        rig.keep()
    error = refused(rig.cache.test_failover, ReplicationGroupId="demo", NodeGroupId="0001")
    assert error.code == "APICallRateForCustomerExceeded"
    rig.clock.ahead = dt.timedelta(hours=25)
    rig.cache.test_failover(ReplicationGroupId="demo", NodeGroupId="0001")
    rig.close()


# ------------------------------------------------------------------ delete


def test_deleting_is_said_before_anything_is_gone(rig: Rig) -> None:
    """boto3's waiter fails when it sees "available" after a delete."""
    rig.group()
    assert rig.cache.delete_replication_group(ReplicationGroupId="demo")["ReplicationGroup"]["Status"] == "deleting"
    assert rig.show()["Status"] == "deleting"
    assert rig.show_cluster("demo-001")["CacheClusterStatus"] == "deleting"
    error = refused(rig.cache.delete_replication_group, ReplicationGroupId="demo")
    assert (error.code, " not in available state" in error.message) == ("InvalidReplicationGroupState", True)
    rig.keep()
    error = refused(rig.show)
    assert (error.code, error.status) == ("ReplicationGroupNotFoundFault", 404)


def test_a_group_may_be_deleted_while_it_is_created(rig: Rig) -> None:
    rig.group(keep=False)
    assert rig.cache.delete_replication_group(ReplicationGroupId="demo")["ReplicationGroup"]["Status"] == "deleting"


# ------------------------------------------------------------------ around a cluster and back


def test_a_cluster_becomes_the_primary_of_a_group_with_its_node(rig: Rig) -> None:
    rig.single("one")
    node = rig.stored("one").decided.nodes[0]
    made = rig.cache.create_replication_group(
        ReplicationGroupId="demo", ReplicationGroupDescription="d", PrimaryClusterId="ONE", NumCacheClusters=3
    )["ReplicationGroup"]
    assert made["MemberClusters"] == ["one", "demo-001", "demo-002"]
    assert made["Status"] == "modifying"
    rig.keep()
    assert rig.stored("demo").node("one") == node
    members = rig.show()["NodeGroups"][0]["NodeGroupMembers"]
    assert [(m["CacheClusterId"], m["CurrentRole"]) for m in members] == [
        ("one", "primary"),
        ("demo-001", "replica"),
        ("demo-002", "replica"),
    ]
    assert rig.show_cluster("one")["ReplicationGroupId"] == "demo"
    assert refused(
        rig.cache.create_replication_group, ReplicationGroupId="x", ReplicationGroupDescription="d", PrimaryClusterId="one"
    ).code == ("InvalidCacheClusterState")


def test_a_memcached_cluster_cannot_be_replicated(rig: Rig) -> None:
    rig.memcached("mc", 1)
    error = refused(
        rig.cache.create_replication_group, ReplicationGroupId="demo", ReplicationGroupDescription="d", PrimaryClusterId="mc"
    )
    assert error.code == "InvalidParameterCombination"


def test_the_primary_stays_when_it_is_to_be_retained(rig: Rig) -> None:
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    node = rig.stored("demo").node("demo-001")
    answer = rig.cache.delete_replication_group(ReplicationGroupId="demo", RetainPrimaryCluster=True)["ReplicationGroup"]
    assert answer["Status"] == "deleting"
    assert refused(rig.show).code == "ReplicationGroupNotFoundFault"
    rig.keep()
    shown = rig.show_cluster("demo-001")
    assert shown["CacheClusterStatus"] == "available"
    assert "ReplicationGroupId" not in shown
    assert rig.stored("demo-001").node("demo-001") == node
    assert refused(rig.show_cluster, name="demo-002").code == "CacheClusterNotFound"


# ------------------------------------------------------------------ room

MICRO_BYTES = 1854 << 20
"""What a process of cache.t3.micro may use at the worst (engines/limits.py): more than twice the node type's own memory."""


def test_what_does_not_fit_is_refused() -> None:
    rig = Rig(replace(SETTINGS, overcommit=False, capacity_memory_bytes=4 * MICRO_BYTES))
    rig.group("a", NumCacheClusters=3)
    error = refused(rig.group, name="b", NumCacheClusters=2)
    assert (error.code, error.status) == ("InsufficientCacheClusterCapacity", 400)
    error = refused(rig.cache.increase_replica_count, ReplicationGroupId="a", NewReplicaCount=4, ApplyImmediately=True)
    assert error.code == "InsufficientCacheClusterCapacity"
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="a", CacheNodeType="cache.t3.small")
    assert error.code == "InsufficientCacheClusterCapacity"
    rig.group("b", NumCacheClusters=1)
    rig.cache.delete_replication_group(ReplicationGroupId="a")
    rig.group("c", NumCacheClusters=3)
    rig.close()


def test_a_parameter_by_which_caches_need_more_is_refused_where_there_is_none() -> None:
    rig = Rig(replace(SETTINGS, overcommit=False, capacity_memory_bytes=3 * MICRO_BYTES))
    rig.cache.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    rig.group("a", NumCacheClusters=3, CacheParameterGroupName="mine")
    values = [{"ParameterName": "reserved-memory-percent", "ParameterValue": "0"}]
    error = refused(rig.cache.modify_cache_parameter_group, CacheParameterGroupName="mine", ParameterNameValues=values)
    assert error.code == "InvalidParameterCombination"
    assert "Nothing was changed." in error.message
    assert rig.stored_group("mine").values == {}
    assert rig.stored("a").wanted.parameters == {}
    rig.close()


def test_on_the_way_to_cluster_mode_there_is_room_for_two_of_each() -> None:
    rig = Rig(replace(SETTINGS, overcommit=False, capacity_memory_bytes=5 * MICRO_BYTES))
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    asked = {"ReplicationGroupId": "demo", "ApplyImmediately": True}
    rig.cache.modify_replication_group(**asked, ClusterMode="compatible")
    rig.keep()
    error = refused(rig.cache.modify_replication_group, **asked, ClusterMode="enabled")
    assert error.code == "InsufficientCacheClusterCapacity"
    assert "may need" in error.message
    assert rig.stored("demo").wanted.cluster_mode == "compatible"
    rig.close()


def test_data_that_do_not_fit_are_not_scaled_down(rig: Rig) -> None:
    rig.group(CacheNodeType="cache.t3.small", NumCacheClusters=2)
    nodes = (
        NodeCondition(name="demo-001", status="available", holds_bytes=900 << 20),
        NodeCondition(name="demo-002", status="available"),
    )
    rig.keep(nodes=nodes)
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", CacheNodeType="cache.t3.micro")
    assert error.code == "InvalidParameterCombination"
    assert "demo holds more than 900 MiB, and cache.t3.micro has room for 384 MiB of data" in error.message
    assert rig.stored("demo").wanted.node_type == "cache.t3.small"
    rig.keep(nodes=())
    rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheNodeType="cache.t3.micro", ApplyImmediately=True)


def test_overcommit_lets_everything_in(rig: Rig) -> None:
    assert rig.settings.capacity_memory_bytes == 0
    rig.group(CacheNodeType="cache.r7g.16xlarge", NumCacheClusters=6)


def test_the_quota_of_nodes() -> None:
    rig = Rig(replace(SETTINGS, quotas={NODES: 3}))
    rig.group("a", NumCacheClusters=2)
    error = refused(rig.group, name="b", NumCacheClusters=2)
    assert error.code == "NodeQuotaForCustomerExceeded"
    assert error.message == "Customer node quota exceeded. You can have at most 3 nodes in this region"
    rig.close()


# ------------------------------------------------------------------ the same over SQL


def test_a_life_over_sqlite(tmp_path: Path) -> None:
    clock = SetClock()
    rig = Rig(store=SqlStore(f"sqlite+aiosqlite:///{tmp_path}/db", clock))
    rig.single("one", EngineVersion="8.0")
    rig.cache.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    rig.cache.create_replication_group(
        ReplicationGroupId="demo", ReplicationGroupDescription="d", PrimaryClusterId="one", NumCacheClusters=3
    )
    rig.keep()
    rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheParameterGroupName="mine", PrimaryClusterId="demo-002")
    rig.keep()
    rig.cache.modify_cache_parameter_group(
        CacheParameterGroupName="mine", ParameterNameValues=[{"ParameterName": "timeout", "ParameterValue": "30"}]
    )
    assert rig.stored("demo").wanted.parameters == {"timeout": "30"}
    rig.keep()
    rig.cache.decrease_replica_count(ReplicationGroupId="demo", NewReplicaCount=0, ApplyImmediately=True)
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-002"]
    rig.single("one")
    assert [c["CacheClusterId"] for c in rig.cache.describe_cache_clusters()["CacheClusters"]] == ["demo-002", "one"]
    rig.cache.delete_replication_group(ReplicationGroupId="demo", RetainPrimaryCluster=True)
    rig.keep()
    assert rig.show_cluster("demo-002")["CacheClusterStatus"] == "available"
    rig.cache.delete_cache_cluster(CacheClusterId="demo-002")
    rig.keep()
    assert rig.told()[-1].message == "Updated parameter timeout to 30"
    assert [c["CacheClusterId"] for c in rig.cache.describe_cache_clusters()["CacheClusters"]] == ["one"]
    rig.close()
