"""What AWS accepts, supplies and answers, where it has been recorded: other rules or other words break callers that work there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.services.rig import Rig, refused

ON = "default.valkey8.cluster.on"
ONE_SHARD: dict[str, Any] = {"EngineVersion": "8.0", "CacheParameterGroupName": ON}

# ------------------------------------------------------------------ what is accepted, and what is supplied


@pytest.mark.parametrize(
    "params",
    [
        {"NumCacheClusters": None, "NumNodeGroups": 2, "ReplicasPerNodeGroup": 1},
        {"NumCacheClusters": None, "NumNodeGroups": 2, "ReplicasPerNodeGroup": 0},
        {"NumCacheClusters": None, "ClusterMode": "enabled"},
        ONE_SHARD,
    ],
    ids=str,
)
def test_cluster_mode_comes_with_automatic_failover(rig: Rig, params: dict[str, Any]) -> None:
    rig.group(**params)
    assert (rig.show()["AutomaticFailover"], rig.show()["ClusterEnabled"]) == ("enabled", True)
    assert rig.stored("demo").wanted.automatic_failover


def test_without_cluster_mode_automatic_failover_is_off_unless_asked_for(rig: Rig) -> None:
    rig.group()
    assert rig.show()["AutomaticFailover"] == "disabled"


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_a_cluster_of_one_shard_may_be_counted_in_nodes(rig: Rig, nodes: int) -> None:
    rig.group(NumCacheClusters=nodes, **ONE_SHARD)
    assert [m["CacheClusterId"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]] == [
        f"demo-0001-00{n}" for n in range(1, nodes + 1)
    ]


@pytest.mark.parametrize(
    "more",
    [{"ReplicasPerNodeGroup": 2}, {"NodeGroupConfiguration": [{"ReplicaCount": 2}]}, {"NodeGroupConfiguration": [{}]}],
    ids=str,
)
def test_the_same_number_may_be_said_twice(rig: Rig, more: dict[str, Any]) -> None:
    rig.group(NumCacheClusters=3, **more)
    assert len(rig.show()["MemberClusters"]) == 3


@pytest.mark.parametrize(
    "more",
    [{"ReplicasPerNodeGroup": 1}, {"NodeGroupConfiguration": [{"ReplicaCount": 1}]}, {"NumNodeGroups": 2}],
    ids=str,
)
def test_two_numbers_are_refused(rig: Rig, more: dict[str, Any]) -> None:
    assert refused(rig.group, NumCacheClusters=3, keep=False, **more).code == "InvalidParameterCombination"


@pytest.mark.parametrize(
    ("configuration", "first", "others"),
    [
        ({"ReplicaAvailabilityZones": ["us-east-1b", "us-east-1b"]}, ["us-east-1a", "us-east-1c"], ["us-east-1b"] * 2),
        ({"ReplicaAvailabilityZones": ["us-east-1c"], "ReplicaCount": 1}, ["us-east-1a", "us-east-1b"], ["us-east-1c"]),
        ({"PrimaryAvailabilityZone": "us-east-1c", "ReplicaCount": 1}, ["us-east-1c"], None),
        ({"PrimaryAvailabilityZone": "us-east-1b", "ReplicaAvailabilityZones": ["us-east-1b"]}, ["us-east-1b"], ["us-east-1b"]),
        ({"PrimaryAvailabilityZone": "us-east-1b"}, ["us-east-1b"], []),
    ],
    ids=str,
)
@pytest.mark.parametrize("clustered", [False, True])
def test_zones_may_be_named_for_the_primary_or_for_the_replicas(
    rig: Rig, configuration: dict[str, Any], first: list[str], others: list[str] | None, clustered: bool
) -> None:
    rig.group(NumCacheClusters=None, NodeGroupConfiguration=[configuration], **(ONE_SHARD if clustered else {}))
    zones = [m["PreferredAvailabilityZone"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]]
    assert zones[0] in first
    assert zones[1:] == others if others is not None else zones[1] not in first


def test_nodes_named_for_several_zones_are_across_zones(rig: Rig) -> None:
    """[CreateCacheCluster, AZMode: single-az is assumed where neither it nor zones are given]."""
    chosen = ["us-east-1a", "us-east-1b", "us-east-1b"]
    rig.memcached(PreferredAvailabilityZones=chosen)
    assert [n["CustomerAvailabilityZone"] for n in rig.show_cluster("mc")["CacheNodes"]] == chosen
    rig.cache.modify_cache_cluster(CacheClusterId="mc", NumCacheNodes=4, NewAvailabilityZones=["us-east-1c"], ApplyImmediately=True)
    rig.keep()
    assert [n["CustomerAvailabilityZone"] for n in rig.show_cluster("mc")["CacheNodes"]] == [*chosen, "us-east-1c"]


def test_new_nodes_named_for_another_zone_make_a_cluster_across_zones(rig: Rig) -> None:
    rig.memcached(nodes=1, PreferredAvailabilityZone="us-east-1a")
    modify = {"CacheClusterId": "mc", "NumCacheNodes": 2, "NewAvailabilityZones": ["us-east-1c"], "ApplyImmediately": True}
    assert refused(rig.cache.modify_cache_cluster, AZMode="single-az", **modify).code == "InvalidParameterCombination"
    rig.cache.modify_cache_cluster(**modify)
    rig.keep()
    assert rig.show_cluster("mc")["PreferredAvailabilityZone"] == "Multiple"


def test_zones_of_every_shard_may_be_named_when_shards_are_added(rig: Rig) -> None:
    """[AWS: Adding shards, whose example names the zones of the shards that are there, too]."""
    rig.group(NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
    there = [[m["PreferredAvailabilityZone"] for m in g["NodeGroupMembers"]] for g in rig.show()["NodeGroups"]]
    modify = rig.cache.modify_replication_group_shard_configuration
    asked = {"ReplicationGroupId": "demo", "NodeGroupCount": 3, "ApplyImmediately": True}
    new = ["us-east-1c", "us-east-1c"]
    elsewhere = [["us-east-1c", "us-east-1c"], there[1], new]
    configuration = [{"PreferredAvailabilityZones": zones} for zones in elsewhere]
    assert refused(modify, ReshardingConfiguration=configuration, **asked).code == "InvalidParameterCombination"
    modify(ReshardingConfiguration=[{"PreferredAvailabilityZones": zones} for zones in (*there, new)], **asked)
    assert [m.zone for m in rig.stored("demo").wanted.shards[2].members] == new


# ------------------------------------------------------------------ codes and words

Ask = Callable[[Rig], Any]


def _replicas(change: str, **params: Any) -> Ask:
    return lambda rig: getattr(rig.cache, f"{change}_replica_count")(ReplicationGroupId="demo", ApplyImmediately=True, **params)


CLUSTERED = {"NumCacheClusters": None, "NumNodeGroups": 2, "ReplicasPerNodeGroup": 1}
LAST = "Must have at least 1 replica when cluster mode is disabled with auto failover enabled."
TWO = "When using automatic failover, there must be at least 2 cache clusters in the replication group."
OFF = "Turning off automatic failover for replication group with cluster mode enabled is not supported."
ONLY = (
    "Cannot delete the cache cluster because it is the only read replica for replication group demo which has autofailover enabled "
    "or pending. You can disable autofailover and then delete this cache cluster. Alternatively, to delete the entire replication "
    "group, use DeleteReplicationGroup."
)
FAILING_OVER = {"AutomaticFailoverEnabled": True}
RECORDED: list[tuple[dict[str, Any] | None, Ask, str, str]] = [
    (
        None,
        lambda rig: rig.group(**CLUSTERED, AutomaticFailoverEnabled=False),
        "InvalidParameterValue",
        "Redis with cluster mode enabled cannot be created with auto failover turned off.",
    ),
    (None, lambda rig: rig.group(NumCacheClusters=1, **FAILING_OVER), "InvalidParameterCombination", TWO),
    (FAILING_OVER, _replicas("decrease", NewReplicaCount=0), "InvalidParameterValue", LAST),
    (FAILING_OVER, _replicas("decrease", ReplicasToRemove=["demo-002"]), "InvalidParameterValue", LAST),
    (FAILING_OVER, lambda rig: rig.cache.delete_cache_cluster(CacheClusterId="demo-002"), "InvalidCacheClusterState", ONLY),
    (
        CLUSTERED,
        lambda rig: rig.cache.modify_replication_group(ReplicationGroupId="demo", AutomaticFailoverEnabled=False),
        "InvalidParameterCombination",
        OFF,
    ),
    (
        {},
        lambda rig: rig.cache.create_cache_cluster(CacheClusterId="x", ReplicationGroupId="demo", CacheNodeType="cache.t3.small"),
        "InvalidParameterCombination",
        "Cannot specify additional cache cluster parameters when creating a replica cluster: CacheNodeType of a replica is that of "
        "its replication group.",
    ),
    (
        None,
        lambda rig: rig.cache.describe_cache_clusters(CacheClusterId="Nope"),
        "CacheClusterNotFound",
        "CacheCluster not found: nope",
    ),
    (
        None,
        lambda rig: rig.cache.describe_replication_groups(ReplicationGroupId="Nope"),
        "ReplicationGroupNotFoundFault",
        "ReplicationGroup nope not found.",
    ),
    (
        None,
        lambda rig: rig.group(CacheParameterGroupName="Nope"),
        "CacheParameterGroupNotFound",
        "CacheParameterGroup not found: nope",
    ),
    (
        None,
        lambda rig: rig.cache.describe_cache_parameters(CacheParameterGroupName="Nope"),
        "CacheParameterGroupNotFound",
        "CacheParameterGroup not found: nope",
    ),
    (
        None,
        lambda rig: rig.cache.describe_cache_parameter_groups(CacheParameterGroupName="Nope"),
        "CacheParameterGroupNotFound",
        "CacheParameterGroup nope not found.",
    ),
    (
        None,
        lambda rig: rig.cache.create_cache_parameter_group(
            CacheParameterGroupName="default.redis7", CacheParameterGroupFamily="redis7", Description="d"
        ),
        "CacheParameterGroupAlreadyExists",
        "Parameter group default.redis7 already exists",
    ),
    ({}, lambda rig: rig.group(), "ReplicationGroupAlreadyExists", "Replication group with specified name already exists."),
    (
        None,
        lambda rig: rig.cache.list_tags_for_resource(ResourceName=rig.arn("user", "nope")),
        "UserNotFound",
        "nope is not available for tagging",
    ),
    (
        None,
        lambda rig: rig.cache.list_tags_for_resource(ResourceName=rig.arn("cluster", "nope")),
        "CacheClusterNotFound",
        "Cache cluster nope is either not present or not available.",
    ),
    (
        None,
        lambda rig: rig.group(CacheSubnetGroupName="Nope"),
        "CacheSubnetGroupNotFoundFault",
        "Cache Subnet Group nope does not exist.",
    ),
]


@pytest.mark.parametrize(("before", "ask", "code", "text"), RECORDED, ids=[row[3][:60] for row in RECORDED])
def test_a_refusal_is_that_of_aws(rig: Rig, before: dict[str, Any] | None, ask: Ask, code: str, text: str) -> None:
    if before is not None:
        rig.group(**before)
    error = refused(ask, rig=rig)
    assert (error.code, error.message) == (code, text)


# ------------------------------------------------------------------ what would have no effect

OUTPOST = "arn:aws:outposts:us-east-1:000000000000:outpost/op-1"
IDLE: list[tuple[Ask, str]] = [
    (
        lambda rig: rig.group("x", NumCacheClusters=None, NodeGroupConfiguration=[{"PrimaryOutpostArn": OUTPOST}]),
        "PrimaryOutpostArn",
    ),
    (
        lambda rig: rig.group("x", NumCacheClusters=None, NodeGroupConfiguration=[{"ReplicaOutpostArns": [OUTPOST]}]),
        "ReplicaOutpostArns",
    ),
    (
        _replicas(
            "increase", ReplicaConfiguration=[{"NodeGroupId": "0001", "NewReplicaCount": 2, "PreferredOutpostArns": [OUTPOST]}]
        ),
        "PreferredOutpostArns",
    ),
    (
        _replicas("decrease", ReplicasToRemove=["demo-002"], ReplicaConfiguration=[{"NodeGroupId": "0001", "NewReplicaCount": 1}]),
        "ReplicaConfiguration",
    ),
]


@pytest.mark.parametrize(("ask", "name"), IDLE, ids=[name for _, name in IDLE])
def test_what_would_have_no_effect_is_refused_by_name(rig: Rig, ask: Ask, name: str) -> None:
    rig.group()
    before = rig.stored("demo")
    error = refused(ask, rig=rig)
    assert (error.code, name in error.message) == ("InvalidParameterCombination", True)
    assert rig.stored("demo") == before
