"""IncreaseReplicaCount and DecreaseReplicaCount."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.rig import Rig, refused


def more(rig: Rig, **params: Any) -> Any:
    return rig.cache.increase_replica_count(ReplicationGroupId="demo", ApplyImmediately=True, **params)["ReplicationGroup"]


def fewer(rig: Rig, **params: Any) -> Any:
    return rig.cache.decrease_replica_count(ReplicationGroupId="demo", ApplyImmediately=True, **params)["ReplicationGroup"]


def test_replicas_come_and_go(rig: Rig) -> None:
    rig.group(NumCacheClusters=1)
    assert more(rig, NewReplicaCount=2)["Status"] == "modifying"
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-002", "demo-003"]
    zones = [m["PreferredAvailabilityZone"] for m in rig.show()["NodeGroups"][0]["NodeGroupMembers"]]
    assert len(set(zones)) == 3
    fewer(rig, NewReplicaCount=1)
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-002"]


def test_scaling_is_an_event_of_the_group(rig: Rig) -> None:
    rig.group(NumCacheClusters=1)
    more(rig, NewReplicaCount=1)
    assert (rig.told()[-1].source, rig.told()[-1].message) == ("demo", "Increasing number of requested nodes")


def test_the_primary_stays_whatever_its_number(rig: Rig) -> None:
    """Member -001 may be a replica, or gone, after a failover."""
    rig.group(NumCacheClusters=3)
    rig.cache.modify_replication_group(ReplicationGroupId="demo", PrimaryClusterId="demo-003")
    rig.keep()
    fewer(rig, NewReplicaCount=1)
    rig.keep()
    assert sorted(rig.show()["MemberClusters"]) == ["demo-001", "demo-003"]
    fewer(rig, NewReplicaCount=0)
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-003"]
    more(rig, NewReplicaCount=2)
    rig.keep()
    members = rig.show()["NodeGroups"][0]["NodeGroupMembers"]
    assert [m["CacheClusterId"] for m in members] == ["demo-003", "demo-001", "demo-002"]
    assert members[0]["CurrentRole"] == "primary"


def test_named_replicas_go(rig: Rig) -> None:
    rig.group(NumCacheClusters=4)
    fewer(rig, ReplicasToRemove=["Demo-002"])
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-003", "demo-004"]
    fewer(rig, ReplicasToRemove=["demo-003", "demo-004"], NewReplicaCount=0)
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001"]


def test_zones_by_configuration(rig: Rig) -> None:
    rig.group(PreferredCacheClusterAZs=["us-east-1a", "us-east-1b"])
    wanted = {"NodeGroupId": "0001", "NewReplicaCount": 2, "PreferredAvailabilityZones": ["us-east-1a", "us-east-1b", "us-east-1b"]}
    more(rig, ReplicaConfiguration=[wanted])
    rig.keep()
    assert rig.show_cluster("demo-003")["PreferredAvailabilityZone"] == "us-east-1b"
    wanted = {"NodeGroupId": "0001", "NewReplicaCount": 1, "PreferredAvailabilityZones": ["us-east-1b", "us-east-1b"]}
    error = refused(
        rig.cache.decrease_replica_count, ReplicationGroupId="demo", ApplyImmediately=True, ReplicaConfiguration=[wanted]
    )
    assert error.code == "InvalidParameterCombination"  # the primary is in us-east-1a
    more(rig, NewReplicaCount=3)
    rig.keep()
    assert rig.show_cluster("demo-004")["PreferredAvailabilityZone"] == "us-east-1c"
    wanted = {"NodeGroupId": "1", "NewReplicaCount": 1, "PreferredAvailabilityZones": ["us-east-1a", "us-east-1c"]}
    fewer(rig, ReplicaConfiguration=[wanted])
    rig.keep()
    assert rig.show()["MemberClusters"] == ["demo-001", "demo-004"]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"NewReplicaCount": 1}, "NoOperationFault"),
        ({"NewReplicaCount": 0}, "InvalidParameterValue"),
        ({"NewReplicaCount": 6}, "InvalidParameterValue"),
        ({}, "InvalidParameterCombination"),
        ({"NewReplicaCount": 2, "ApplyImmediately": False}, "InvalidParameterValue"),
        ({"ReplicaConfiguration": [{"NodeGroupId": "0007", "NewReplicaCount": 2}]}, "InvalidParameterValue"),
        (
            {"ReplicaConfiguration": [{"NodeGroupId": "0001", "NewReplicaCount": 2, "PreferredAvailabilityZones": ["us-east-1a"]}]},
            "InvalidParameterCombination",
        ),
        ({"NewReplicaCount": 2, "ReplicationGroupId": "nope"}, "ReplicationGroupNotFoundFault"),
    ],
    ids=str,
)
def test_bad_increases(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.group()
    base = {"ReplicationGroupId": "demo", "ApplyImmediately": True}
    assert refused(rig.cache.increase_replica_count, **(base | params)).code == code


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"NewReplicaCount": 1}, "NoOperationFault"),
        ({"NewReplicaCount": 2}, "InvalidParameterValue"),
        ({"NewReplicaCount": 0}, "InvalidParameterValue"),
        ({"NewReplicaCount": -1}, "InvalidParameterValue"),
        ({"ReplicasToRemove": ["demo-001"]}, "InvalidParameterValue"),
        ({"ReplicasToRemove": ["demo-009"]}, "InvalidParameterValue"),
        ({"ReplicasToRemove": ["demo-002"], "NewReplicaCount": 1}, "InvalidParameterCombination"),
    ],
    ids=str,
)
def test_bad_decreases_with_automatic_failover(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.group(AutomaticFailoverEnabled=True)
    base = {"ReplicationGroupId": "demo", "ApplyImmediately": True}
    assert refused(rig.cache.decrease_replica_count, **(base | params)).code == code


def test_only_one_change_at_a_time(rig: Rig) -> None:
    rig.group()
    more(rig, NewReplicaCount=2)
    error = refused(rig.cache.increase_replica_count, ReplicationGroupId="demo", ApplyImmediately=True, NewReplicaCount=3)
    assert error.code == "InvalidReplicationGroupState"
