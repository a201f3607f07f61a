"""Cluster mode through the API: what is asked for, and what is refused. What it does is tried in tests/live."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import Rig, refused

from cachekeep.plan.slots import count, even


def cluster(rig: Rig, *, keep: bool = True, **more: Any) -> dict[str, Any]:
    asked = {"NumNodeGroups": 3, "ReplicasPerNodeGroup": 1, "AutomaticFailoverEnabled": True, "NumCacheClusters": None}
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
        ({"AutomaticFailoverEnabled": False}, "InvalidParameterCombination"),
        ({"CacheParameterGroupName": "default.valkey8"}, "InvalidParameterCombination"),
        ({"ClusterMode": "disabled"}, "InvalidParameterCombination"),
        ({"NumNodeGroups": None, "ReplicasPerNodeGroup": None, "NumCacheClusters": 2}, "InvalidParameterCombination"),
        ({"NumNodeGroups": 0}, "InvalidParameterValue"),
        ({"NumNodeGroups": 501}, "InvalidParameterValue"),
        ({"ReplicasPerNodeGroup": 6}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {"Slots": "101-16000"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {"Slots": "100-16383"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 2, "NodeGroupConfiguration": [{"Slots": "0-100"}, {}]}, "InvalidParameterCombination"),
        ({"NumNodeGroups": 1, "NodeGroupConfiguration": [{"Slots": "0-16384"}]}, "InvalidParameterValue"),
        ({"NumNodeGroups": 1, "NodeGroupConfiguration": [{"Slots": "all"}]}, "InvalidParameterValue"),
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


def test_the_same_number_deals_the_slots_out_anew(rig: Rig) -> None:
    cluster(rig)
    reshard(rig, 3)
    assert [e.kind for e in rig.stored("demo").wanted.errands] == ["rebalance"]


@pytest.mark.parametrize(
    ("number", "params", "code"),
    [
        (2, {}, "InvalidParameterCombination"),
        (2, {"NodeGroupsToRemove": ["0009"]}, "NodeGroupNotFoundFault"),
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
    moved = replace(cache, decided=replace(cache.decided, shards=shards, resharding=2 * (count(first) - count(half))))
    from cachekeep.services.render import _resharding

    assert _resharding(moved) == 50.0
