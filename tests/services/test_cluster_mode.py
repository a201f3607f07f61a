"""Cluster mode through the API: what is asked for, and what is refused. What it does is tried in tests/live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import Rig, refused

from cachekeep.model import (
    UNKNOWN,
    Conversion,
    Preparing,
    Resharding,
)
from cachekeep.plan.slots.ranges import count, even

ON, OFF = "default.valkey8.cluster.on", "default.valkey8"


def cluster(rig: Rig, *, keep: bool = True, **more: Any) -> dict[str, Any]:
    each = {} if "NodeGroupConfiguration" in more else {"ReplicasPerNodeGroup": 1}
    asked = {"NumNodeGroups": 3, **each, "AutomaticFailoverEnabled": True, "NumCacheClusters": None}
    return rig.group(keep=keep, **(asked | {"CacheParameterGroupName": "default.valkey8.cluster.on"} | more))


def reshard(rig: Rig, number: int, **more: Any) -> Any:
    modify = rig.cache.modify_replication_group_shard_configuration
    return modify(ReplicationGroupId="demo", NodeGroupCount=number, ApplyImmediately=True, **more)["ReplicationGroup"]


def test_names_modes_and_endpoints_are_those_of_elasticache(rig: Rig) -> None:
    cluster(rig, keep=False)
    wanted = rig.stored("demo").wanted
    assert wanted.cluster_mode == "enabled"
    assert [m.name for s in wanted.shards for m in s.members] == [f"demo-000{s}-00{n}" for s in (1, 2, 3) for n in (1, 2)]
    shown = rig.show()
    assert shown["ClusterEnabled"] is True
    assert shown["ClusterMode"] == "enabled"
    assert [g["NodeGroupId"] for g in shown["NodeGroups"]] == ["0001", "0002", "0003"]
    assert all("PrimaryEndpoint" not in g and "ReaderEndpoint" not in g for g in shown["NodeGroups"])
    assert all("CurrentRole" not in m for g in shown["NodeGroups"] for m in g["NodeGroupMembers"])


@pytest.mark.parametrize("number", [1, 2])
def test_fewer_than_three_node_groups_are_a_cluster_too(rig: Rig, number: int) -> None:
    cluster(rig, NumNodeGroups=number, ReplicasPerNodeGroup=0, keep=False)
    assert len(rig.stored("demo").wanted.shards) == number
    assert rig.show()["ClusterEnabled"] is True


def test_cluster_mode_asked_for_without_a_parameter_group_gets_the_default_one(rig: Rig) -> None:
    cluster(rig, CacheParameterGroupName=None, ClusterMode="enabled", keep=False)
    assert rig.stored("demo").wanted.parameter_group == "default.valkey8.cluster.on"


def test_slots_are_dealt_out_as_asked(rig: Rig) -> None:
    given = [{"NodeGroupId": "0001", "Slots": "0-99,200-16383"}, {"NodeGroupId": "0002", "Slots": "100-199"}]
    cluster(rig, NumNodeGroups=2, NodeGroupConfiguration=given, keep=False)
    assert [s.slots for s in rig.stored("demo").wanted.shards] == [((0, 99), (200, 16383)), ((100, 199),)]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"AutomaticFailoverEnabled": False}, "InvalidParameterValue"),
        ({"CacheParameterGroupName": "default.valkey8"}, "InvalidParameterCombination"),
        ({"ClusterMode": "disabled"}, "InvalidParameterCombination"),
        ({"NumNodeGroups": 2, "NumCacheClusters": 2}, "InvalidParameterCombination"),
        ({"NumNodeGroups": 0}, "InvalidParameterValue"),
        ({"NumNodeGroups": 501}, "InvalidParameterValue"),
        ({"ReplicasPerNodeGroup": 6}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {"Slots": "101-16000"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {"Slots": "100-16383"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {}]}, "InvalidParameterCombination"),
        ({"NumNodeGroups": 1, "NodeGroupConfiguration": [{"Slots": "0-16384"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 1, "NodeGroupConfiguration": [{"Slots": "all"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"ReplicaCount": 1}] * 3}, "InvalidParameterCombination"),
        ({"PreferredCacheClusterAZs": ["us-east-1a", "us-east-1b"]}, "InvalidParameterCombination"),
        ({"CacheParameterGroupName": "default.valkey9.cluster.on"}, "InvalidParameterCombination"),
        ({"ReplicasPerNodeGroup": 0, "MultiAZEnabled": True}, "InvalidParameterCombination"),
        ({"ClusterMode": "compatible"}, "InvalidParameterCombination"),
        ({"PrimaryClusterId": "nobody"}, "CacheClusterNotFound"),
        ({"Engine": "memcached"}, "InvalidParameterValue"),
        ({"Port": 55536}, "InvalidParameterValue"),
    ],
    ids=str,
)
def test_what_makes_no_cluster_is_refused(rig: Rig, params: dict[str, Any], code: str) -> None:
    assert refused(lambda **p: cluster(rig, keep=False, **p), **params).code == code
    assert refused(rig.show).code == "ReplicationGroupNotFoundFault"


def test_node_groups_come_and_go(rig: Rig) -> None:
    cluster(rig)
    shown = reshard(rig, 5)
    assert shown["Status"] == "modifying"
    assert shown["PendingModifiedValues"]["Resharding"] == {"SlotMigration": {"ProgressPercentage": 0.0}}
    wanted = rig.stored("demo").wanted
    assert [s.id for s in wanted.shards] == ["0001", "0002", "0003", "0004", "0005"]
    assert [m.name for m in wanted.shards[4].members] == ["demo-0005-001", "demo-0005-002"]
    rig.keep()
    reshard(rig, 2, NodeGroupsToRetain=["0002", "0005"])
    assert [s.id for s in rig.stored("demo").wanted.shards] == ["0002", "0005"]


UNEVEN = [{"Slots": "0-99"}, {"Slots": "100-199"}, {"Slots": "200-16383"}]


def test_the_same_number_deals_the_slots_out_anew(rig: Rig) -> None:
    cluster(rig, NodeGroupConfiguration=UNEVEN)
    reshard(rig, 3)
    assert [e.kind for e in rig.stored("demo").wanted.errands] == ["rebalance"]


@pytest.mark.parametrize(
    ("number", "params", "code"),
    [
        (2, {}, "InvalidParameterCombination"),
        (2, {"NodeGroupsToRemove": ["0009"]}, "InvalidParameterValue"),
        (2, {"NodeGroupsToRemove": ["0001", "0002"]}, "InvalidParameterCombination"),
        (2, {"NodeGroupsToRemove": ["0001"], "NodeGroupsToRetain": ["0002", "0003"]}, "InvalidParameterCombination"),
        (4, {"NodeGroupsToRemove": ["0001"]}, "InvalidParameterCombination"),
        (4, {"ReshardingConfiguration": [{"NodeGroupId": "0004"}, {"NodeGroupId": "0005"}]}, "InvalidParameterCombination"),
        (4, {"ReshardingConfiguration": [{"NodeGroupId": "0001"}]}, "InvalidParameterValue"),
        (0, {}, "InvalidParameterValue"),
        (3, {"NodeGroupsToRemove": ["0001"]}, "InvalidParameterCombination"),
    ],
    ids=str,
)
def test_resharding_that_makes_no_sense_is_refused(rig: Rig, number: int, params: dict[str, Any], code: str) -> None:
    cluster(rig)
    before = rig.stored("demo")
    assert refused(lambda **p: reshard(rig, number, **p), **params).code == code
    assert rig.stored("demo") == before


def test_slots_that_are_even_are_left_alone(rig: Rig) -> None:
    cluster(rig)
    failed = refused(lambda: reshard(rig, 3))
    assert failed.code == "InvalidReplicationGroupState"
    assert "uniformly distributed" in failed.message


def test_new_node_groups_are_as_large_as_the_smallest(rig: Rig) -> None:
    cluster(rig, NumNodeGroups=2, NodeGroupConfiguration=[{"ReplicaCount": 2}, {"ReplicaCount": 1}])
    reshard(rig, 3)
    assert [len(s.members) for s in rig.stored("demo").wanted.shards] == [3, 2, 2]


Ask = Callable[[Any], Any]
OTHER_CHANGES: list[tuple[str, Ask, str]] = [
    ("DeleteCacheCluster", lambda c: c.delete_cache_cluster(CacheClusterId="demo-0001-002"), "InvalidParameterCombination"),
    (
        "CreateCacheCluster",
        lambda c: c.create_cache_cluster(CacheClusterId="more", ReplicationGroupId="demo"),
        "InvalidParameterCombination",
    ),
    (
        "RebootCacheCluster",
        lambda c: c.reboot_cache_cluster(CacheClusterId="demo-0001-001", CacheNodeIdsToReboot=["0001"]),
        "InvalidParameterCombination",
    ),
    (
        "RetainPrimaryCluster",
        lambda c: c.delete_replication_group(ReplicationGroupId="demo", RetainPrimaryCluster=True),
        "InvalidParameterCombination",
    ),
    *(
        (f"{name}={value}", lambda c, p={name: value}: c.modify_replication_group(ReplicationGroupId="demo", **p), code)
        for name, value, code in [
            ("PrimaryClusterId", "demo-0001-002", "InvalidParameterCombination"),
            ("PrimaryClusterId", "demo-0009-001", "InvalidParameterValue"),
            ("AutomaticFailoverEnabled", False, "InvalidParameterCombination"),
            ("CacheParameterGroupName", "default.valkey8", "InvalidParameterCombination"),
            ("CacheParameterGroupName", "default.valkey9.cluster.on", "InvalidParameterCombination"),
            ("ClusterMode", "disabled", "InvalidParameterCombination"),
            ("ClusterMode", "compatible", "InvalidParameterCombination"),
            ("ClusterMode", "no", "InvalidParameterValue"),
            ("SnapshottingClusterId", "demo-0001-002", "InvalidParameterCombination"),
        ]
    ),
]


@pytest.mark.parametrize(("change", "code"), [pytest.param(c, code, id=name) for name, c, code in OTHER_CHANGES])
def test_what_does_not_go_with_cluster_mode_is_refused(rig: Rig, change: Ask, code: str) -> None:
    cluster(rig, NumNodeGroups=1)
    before = rig.stored("demo")
    assert refused(lambda: change(rig.cache)).code == code
    assert rig.stored("demo") == before


def test_a_node_group_of_primaries_only_cannot_be_in_several_zones(rig: Rig) -> None:
    cluster(rig, ReplicasPerNodeGroup=0)
    multi = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", MultiAZEnabled=True)
    assert multi.code == "InvalidParameterCombination"


@pytest.mark.parametrize("wider", [{"NumNodeGroups": 251}, {"NumNodeGroups": 100, "ReplicasPerNodeGroup": 5}], ids=str)
def test_a_cluster_has_no_more_nodes_than_its_quota(rig: Rig, wider: dict[str, Any]) -> None:
    failed = refused(lambda: cluster(rig, keep=False, **wider))
    assert failed.code == "NodeQuotaForCustomerExceeded"


def test_a_stand_alone_cluster_has_no_cluster_mode(rig: Rig) -> None:
    asked = {"CacheClusterId": "one", "Engine": "valkey", "CacheNodeType": "cache.t3.micro", "NumCacheNodes": 1}
    asked["CacheParameterGroupName"] = "default.valkey8.cluster.on"
    assert refused(rig.cache.create_cache_cluster, **asked).code == "InvalidParameterCombination"


def test_the_cluster_bus_needs_a_port_too(rig: Rig) -> None:
    failed = refused(lambda: cluster(rig, Port=55536, keep=False))
    assert failed.code == "InvalidParameterValue"
    assert "55535" in failed.message
    cluster(rig, Port=55535)
    assert rig.stored("demo").wanted.port == 55535
    rig.group("plain", Port=65535)
    assert rig.stored("plain").wanted.port == 65535


def test_a_group_without_cluster_mode_has_no_shards_to_change(rig: Rig) -> None:
    rig.group()
    assert refused(lambda: reshard(rig, 2)).code == "InvalidParameterCombination"


def test_replicas_of_one_node_group(rig: Rig) -> None:
    cluster(rig)
    configuration = [{"NodeGroupId": "0002", "NewReplicaCount": 2}]
    rig.cache.increase_replica_count(ReplicationGroupId="demo", ReplicaConfiguration=configuration, ApplyImmediately=True)
    assert [len(s.members) for s in rig.stored("demo").wanted.shards] == [2, 3, 2]
    rig.keep()
    rig.cache.decrease_replica_count(ReplicationGroupId="demo", NewReplicaCount=0, ApplyImmediately=True)
    assert [len(s.members) for s in rig.stored("demo").wanted.shards] == [1, 1, 1]


def test_progress_is_that_of_the_slots_that_move(rig: Rig) -> None:
    cluster(rig, NumNodeGroups=2)
    cache = rig.stored("demo")
    first, second = even(["0001", "0002"]).values()
    half = ((0, 4095),)
    shards = (
        replace(cache.decided.shards[0], slots=half, owned=first),
        replace(cache.decided.shards[1], slots=((4096, 16383),), owned=second),
    )
    reshard = Resharding(slots=2 * (count(first) - count(half)))
    moved = replace(cache, decided=replace(cache.decided, shards=shards, reshard=reshard))
    from cachekeep.services.elasticache.render import _resharding

    assert _resharding(moved) == 50.0


# ------------------------------------------------------------------ another mode for a group that exists


def plain(rig: Rig, **more: Any) -> None:
    """A group that may become compatible."""
    rig.group(**({"EngineVersion": "8.0", "AutomaticFailoverEnabled": True} | more))


def mode(rig: Rig, to: str, **more: Any) -> dict[str, Any]:
    changed = rig.cache.modify_replication_group(ReplicationGroupId="demo", ClusterMode=to, ApplyImmediately=True, **more)
    return dict(changed["ReplicationGroup"])


def named(rig: Rig, name: str, *, on: bool, family: str = "valkey8") -> str:
    """A parameter group of the user's own."""
    rig.cache.create_cache_parameter_group(CacheParameterGroupName=name, CacheParameterGroupFamily=family, Description="d")
    if on:
        values = [{"ParameterName": "cluster-enabled", "ParameterValue": "yes"}]
        rig.cache.modify_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=values)
    return name


def test_compatible_is_pending_until_it_is_there(rig: Rig) -> None:
    plain(rig)
    before = rig.show()
    changed = mode(rig, "compatible")
    assert changed["Status"] == "modifying"
    assert changed["ClusterMode"] == "disabled"
    assert changed["PendingModifiedValues"] == {"ClusterMode": "compatible"}
    assert "ConfigurationEndpoint" not in changed
    rig.keep()
    shown = rig.show()
    assert (shown["Status"], shown["ClusterMode"], shown["ClusterEnabled"]) == ("available", "compatible", False)
    assert shown["PendingModifiedValues"] == {}
    assert shown["ConfigurationEndpoint"]["Port"] == 6379
    assert shown["NodeGroups"] == before["NodeGroups"]
    assert rig.show_cluster("demo-001")["CacheParameterGroup"]["CacheParameterGroupName"] == ON
    assert rig.told()[-1].message == "Cluster mode of replication group demo is changed from disabled to compatible"


def test_compatible_goes_back_to_disabled(rig: Rig) -> None:
    plain(rig)
    mode(rig, "compatible")
    rig.keep()
    assert mode(rig, "disabled")["PendingModifiedValues"] == {"ClusterMode": "disabled"}
    rig.keep()
    shown = rig.show()
    assert shown["ClusterMode"] == "disabled"
    assert "ConfigurationEndpoint" not in shown
    assert rig.stored("demo").wanted.parameter_group == OFF
    assert rig.stored("demo").decided.configuration_address is None


def test_the_same_mode_changes_nothing(rig: Rig) -> None:
    plain(rig)
    before = rig.stored("demo")
    mode(rig, "disabled")
    assert rig.stored("demo") == before
    mode(rig, "disabled", ReplicationGroupDescription="other")  # as Terraform may send it
    assert rig.stored("demo").wanted.description == "other"


def test_a_parameter_group_may_be_named_and_one_of_ones_own_must_be(rig: Rig) -> None:
    plain(rig, CacheParameterGroupName=named(rig, "mine", on=False))
    failed = refused(lambda: mode(rig, "compatible"))
    assert failed.message == (
        "The parameter group mine cannot be used with ClusterMode=compatible: name one of family valkey8 "
        "that has cluster-enabled in "
        "CacheParameterGroupName."
    )
    mode(rig, "compatible", CacheParameterGroupName=named(rig, "mine-on", on=True))
    rig.keep()
    assert rig.stored("demo").wanted.parameter_group == "mine-on"
    assert refused(lambda: mode(rig, "disabled")).code == "InvalidParameterCombination"
    mode(rig, "disabled", CacheParameterGroupName="mine")
    assert rig.stored("demo").wanted.parameters == {}


@pytest.mark.parametrize(
    ("group", "to", "params", "sentence"),
    [
        (
            {"AutomaticFailoverEnabled": False},
            "compatible",
            {},
            "needs automatic failover to be enabled, with at least one replica",
        ),
        (
            {"AutomaticFailoverEnabled": False, "NumCacheClusters": 1},
            "compatible",
            {},
            "needs automatic failover to be enabled, with at least one replica",
        ),
        (
            {"Engine": "redis", "EngineVersion": "6.2"},
            "compatible",
            {},
            "needs Redis OSS 7.0 or Valkey 7.2 or later, and the group runs redis 6.2",
        ),
        ({"Port": 60000}, "compatible", {}, "Invalid port 60000"),
        ({}, "enabled", {}, "cannot be changed from disabled to enabled: it must be compatible first"),
        (
            {},
            "compatible",
            {"CacheParameterGroupName": OFF},
            "needs a parameter group with cluster-enabled, such as default.valkey8.cluster.on",
        ),
        (
            {},
            "compatible",
            {"CacheParameterGroupName": "default.valkey9.cluster.on"},
            "Expected a parameter group of family valkey8",
        ),
        ({}, "compatible", {"CacheParameterGroupName": "nope"}, "CacheParameterGroup not found: nope"),
        (
            {},
            "compatible",
            {"CacheNodeType": "cache.t3.small"},
            "cannot be changed together with CacheNodeType; nothing was changed",
        ),
        (
            {},
            "compatible",
            {"EngineVersion": "9.1", "ReplicationGroupDescription": "x"},
            "cannot be changed together with EngineVersion, ReplicationGroupDescription",
        ),
        ({}, "on", {}, "on"),
    ],
    ids=str,
)
def test_what_does_not_become_compatible(rig: Rig, group: dict[str, Any], to: str, params: dict[str, Any], sentence: str) -> None:
    plain(rig, **group)
    before = rig.stored("demo")
    failed = refused(lambda: mode(rig, to, **params))
    assert failed.code in ("InvalidParameterCombination", "InvalidParameterValue", "CacheParameterGroupNotFound")
    assert sentence in failed.message
    assert rig.stored("demo") == before


def test_a_pending_change_comes_first(rig: Rig) -> None:
    plain(rig)
    rig.cache.modify_replication_group(ReplicationGroupId="demo", EngineVersion="9.1")
    rig.keep()
    assert "while a change of version is pending" in refused(lambda: mode(rig, "compatible")).message


COMPATIBLE_CHANGES: list[tuple[str, Ask, str]] = [
    *(
        (f"{name}={value}", lambda c, p={name: value}: c.modify_replication_group(ReplicationGroupId="demo", **p), sentence)
        for name, value, sentence in [
            ("AutomaticFailoverEnabled", False, "Turning off automatic failover for replication group with"),
            ("CacheParameterGroupName", OFF, "has another cluster-enabled than default.valkey8.cluster.on"),
            ("PrimaryClusterId", "demo-002", "has automatic failover or Multi-AZ enabled"),
        ]
    ),
    ("reshard", lambda c: c.modify_replication_group_shard_configuration(
        ReplicationGroupId="demo", NodeGroupCount=2, ApplyImmediately=True
    ), "cluster mode"),
    ("DecreaseReplicaCount", lambda c: c.decrease_replica_count(
        ReplicationGroupId="demo", NewReplicaCount=0, ApplyImmediately=True
    ), "eplica"),
    ("RetainPrimaryCluster", lambda c: c.delete_replication_group(
        ReplicationGroupId="demo", RetainPrimaryCluster=True
    ), "RetainPrimaryCluster cannot be used with cluster mode"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [pytest.param(c, t, id=name) for name, c, t in COMPATIBLE_CHANGES])
def test_what_does_not_go_with_compatible_is_refused(rig: Rig, change: Ask, sentence: str) -> None:
    plain(rig)
    mode(rig, "compatible")
    rig.keep()
    before = rig.stored("demo")
    assert sentence in refused(lambda: change(rig.cache)).message
    assert rig.stored("demo") == before


def test_a_compatible_group_grows_and_is_upgraded(rig: Rig) -> None:
    plain(rig)
    mode(rig, "compatible")
    rig.keep()
    rig.cache.increase_replica_count(ReplicationGroupId="demo", NewReplicaCount=2, ApplyImmediately=True)
    rig.keep()
    assert [m.name for m in rig.stored("demo").wanted.shards[0].members] == ["demo-001", "demo-002", "demo-003"]
    rig.cache.modify_replication_group(ReplicationGroupId="demo", EngineVersion="9.1", ApplyImmediately=True)
    rig.keep()
    assert rig.stored("demo").wanted.parameter_group == "default.valkey9.cluster.on"
    assert rig.show()["ClusterMode"] == "compatible"


def enabling(rig: Rig, **more: Any) -> dict[str, Any]:
    """A group on its way from compatible to enabled."""
    plain(rig, **more)
    mode(rig, "compatible")
    rig.keep()
    return mode(rig, "enabled")


def test_enabled_is_pending_until_it_is_there_and_members_keep_their_names(rig: Rig) -> None:
    changed = enabling(rig)
    before = rig.stored("demo")
    assert (changed["Status"], changed["ClusterMode"], changed["ClusterEnabled"]) == ("modifying", "compatible", False)
    assert changed["PendingModifiedValues"] == {"ClusterMode": "enabled"}
    assert {"PrimaryEndpoint", "ReaderEndpoint"} <= changed["NodeGroups"][0].keys()
    rig.keep()
    shown = rig.show()
    assert (shown["Status"], shown["ClusterMode"], shown["ClusterEnabled"]) == ("available", "enabled", True)
    assert shown["PendingModifiedValues"] == {}
    assert shown["ConfigurationEndpoint"]["Address"] == before.decided.configuration_address
    (node_group,) = shown["NodeGroups"]
    assert not {"PrimaryEndpoint", "ReaderEndpoint"} & node_group.keys()
    assert node_group["Slots"] == "0-16383"
    assert [m["CacheClusterId"] for m in node_group["NodeGroupMembers"]] == ["demo-001", "demo-002"]
    assert all("CurrentRole" not in m for m in node_group["NodeGroupMembers"])
    assert shown["MemberClusters"] == ["demo-001", "demo-002"]
    member = rig.show_cluster("demo-001")
    assert (member["CacheClusterStatus"], member["CacheNodes"][0]["CacheNodeId"]) == ("available", "0001")
    assert member["CacheNodes"][0]["Endpoint"]["Address"] not in {n.address for n in before.decided.nodes}
    assert member["CacheParameterGroup"]["CacheParameterGroupName"] == ON


def test_members_of_a_group_that_was_enabled_are_found_by_their_names(rig: Rig) -> None:
    enabling(rig)
    rig.keep()
    rig.cache.increase_replica_count(ReplicationGroupId="demo", NewReplicaCount=2, ApplyImmediately=True)
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-002", "demo-0001-001"]
    rig.cache.decrease_replica_count(
        ReplicationGroupId="demo", NewReplicaCount=1, ReplicasToRemove=["demo-002"], ApplyImmediately=True
    )
    failed = refused(
        lambda: rig.cache.decrease_replica_count(ReplicationGroupId="demo", ReplicasToRemove=["demo-001"], ApplyImmediately=True)
    )
    assert failed.code in ("InvalidParameterValue", "InvalidReplicationGroupState")
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-0001-001"]
    assert reshard(rig, 2)["PendingModifiedValues"]["Resharding"] == {"SlotMigration": {"ProgressPercentage": 0.0}}
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-0001-001", "demo-0002-001", "demo-0002-002"]


def test_back_to_compatible_while_it_is_on_its_way_and_not_once_it_is_there(rig: Rig) -> None:
    enabling(rig)
    assert refused(lambda: mode(rig, "disabled")).code == "InvalidReplicationGroupState"
    with_another = refused(lambda: mode(rig, "compatible", ReplicationGroupDescription="x"))
    assert "cannot be changed together with ReplicationGroupDescription" in with_another.message
    changed = mode(rig, "compatible")
    assert changed["PendingModifiedValues"] == {}
    assert rig.stored("demo").wanted.parameter_group == ON
    rig.keep()
    mode(rig, "enabled")
    rig.keep()
    for to in ("compatible", "disabled"):
        assert "cannot be turned off again" in refused(lambda to=to: mode(rig, to)).message  # type: ignore[misc]


def test_not_back_any_more_when_the_lead_is_on_its_way(rig: Rig) -> None:
    enabling(rig)
    cache = rig.stored("demo")
    shards = (replace(cache.decided.shards[0], change=Conversion(to="demo-001.cluster", since=UNKNOWN)),)
    rig.run(rig.keeper.save(replace(cache, decided=replace(cache.decided, shards=shards))))
    failed = refused(lambda: mode(rig, "compatible"))
    assert failed.code == "InvalidReplicationGroupState"


def test_on_to_enabled_again_while_there_is_something_to_go_on_with(rig: Rig) -> None:
    """The group may be down for want of it."""
    enabling(rig)
    cache = rig.stored("demo")
    successor = replace(cache.decided.nodes[0], name="demo-001.cluster", in_place_of="demo-001", address="127.77.9.9")
    rig.run(rig.keeper.save(replace(cache, decided=replace(cache.decided, switch=Preparing(successors=(successor,))))))
    mode(rig, "compatible")
    failed = refused(lambda: mode(rig, "enabled", CacheParameterGroupName=ON))
    assert "CacheParameterGroupName cannot be changed" in failed.message
    assert mode(rig, "enabled")["PendingModifiedValues"] == {"ClusterMode": "enabled"}


def test_enabled_needs_what_compatible_needs_and_a_group_of_ones_own_may_be_kept(rig: Rig) -> None:
    plain(rig)
    mode(rig, "compatible", CacheParameterGroupName=named(rig, "mine-on", on=True))
    rig.keep()
    for params, sentence in (
        ({"CacheParameterGroupName": OFF}, "needs a parameter group with cluster-enabled"),
        ({"CacheNodeType": "cache.t3.small"}, "cannot be changed together with CacheNodeType"),
    ):
        assert sentence in refused(lambda params=params: mode(rig, "enabled", **params)).message  # type: ignore[misc]
    mode(rig, "enabled")
    rig.keep()
    assert (rig.show()["ClusterMode"], rig.stored("demo").wanted.parameter_group) == ("enabled", "mine-on")


def test_a_group_is_not_made_compatible_and_says_what_to_do(rig: Rig) -> None:
    failed = refused(lambda: rig.group(ClusterMode="compatible", keep=False))
    assert failed.code == "InvalidParameterCombination"
    assert failed.message == (
        "ClusterMode=compatible is a step between disabled and enabled: create the group with ClusterMode=disabled, then modify it."
    )
