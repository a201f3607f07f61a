"""Answers show what is in force, not what is wanted: a change may wait for its window, or for its keeper's next look."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.rig import Rig, refused

from cachekeep.model import NodeCondition


def modify(rig: Rig, **params: Any) -> dict[str, Any]:
    return rig.cache.modify_replication_group(ReplicationGroupId="demo", **params)["ReplicationGroup"]


def modifications(rig: Rig, **which: str) -> tuple[list[str], list[str]]:
    found = rig.cache.list_allowed_node_type_modifications(**(which or {"ReplicationGroupId": "demo"}))
    return found["ScaleUpModifications"], found["ScaleDownModifications"]


def test_a_deferred_node_type_is_not_the_one_to_scale_from(rig: Rig) -> None:
    rig.group(CacheNodeType="cache.m7g.large")
    before = modifications(rig)
    modify(rig, CacheNodeType="cache.t3.micro", ApplyImmediately=False)
    rig.keep()
    assert modifications(rig) == before
    assert modifications(rig, CacheClusterId="demo-001") == before
    modify(rig, ApplyImmediately=True)
    rig.keep()
    up, down = modifications(rig)
    assert "cache.m7g.large" in up
    assert "cache.t3.micro" not in up + down


def test_types_whose_room_is_too_small_for_the_data_are_not_offered(rig: Rig) -> None:
    """What a request would be refused for is in no list."""
    rig.group(CacheNodeType="cache.m7g.large")
    up, down = modifications(rig)
    assert {"cache.t3.micro", "cache.t3.medium"} <= {*down}
    rig.keep(nodes=(NodeCondition(name="demo-001", status="available", holds_bytes=900 << 20),))
    fewer = modifications(rig)
    assert fewer[0] == up
    assert "cache.t3.medium" in fewer[1]
    for name in set(down) - set(fewer[1]):
        assert refused(modify, rig=rig, CacheNodeType=name, ApplyImmediately=True).code == "InvalidParameterCombination"
    assert "cache.t3.micro" in set(down) - set(fewer[1])


def test_memcached_may_become_smaller_whatever_it_holds(rig: Rig) -> None:
    rig.memcached(CacheNodeType="cache.m7g.large")
    rig.keep(nodes=(NodeCondition(name="mc.0001", status="available", holds_bytes=900 << 20),))
    assert "cache.t3.micro" in modifications(rig, CacheClusterId="mc")[1]


def test_a_full_node_may_take_back_the_smaller_type_that_it_waits_for(rig: Rig) -> None:
    rig.group(CacheNodeType="cache.t3.micro")
    modify(rig, CacheNodeType="cache.t3.small", ApplyImmediately=False)
    rig.keep(nodes=(NodeCondition(name="demo-001", status="available", holds_bytes=900 << 20),))
    modify(rig, CacheNodeType="cache.t3.micro", ApplyImmediately=True)
    rig.keep()
    assert rig.show()["CacheNodeType"] == "cache.t3.micro"


def test_another_version_may_take_the_place_of_one_that_waits(rig: Rig) -> None:
    rig.group(EngineVersion="8.0")
    modify(rig, EngineVersion="9.1", ApplyImmediately=False)
    rig.keep()
    shown = rig.show_cluster("demo-001")
    assert (shown["EngineVersion"], shown["PendingModifiedValues"]["EngineVersion"]) == ("8.0.1", "9.1.2")
    assert shown["CacheParameterGroup"]["CacheParameterGroupName"] == "default.valkey8"
    modify(rig, EngineVersion="8.0", ApplyImmediately=True)
    rig.keep()
    shown = rig.show_cluster("demo-001")
    assert (shown["EngineVersion"], "EngineVersion" in shown["PendingModifiedValues"]) == ("8.0.1", False)
    assert rig.stored("demo").wanted.parameter_group == "default.valkey8"


def test_a_cluster_may_wait_for_a_version_of_the_next_family(rig: Rig) -> None:
    rig.group(EngineVersion="8.0", NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
    modify(rig, EngineVersion="9.1", ApplyImmediately=False)
    rig.keep()
    shown = rig.show_cluster("demo-0001-001")["CacheParameterGroup"]
    assert shown["CacheParameterGroupName"] == "default.valkey8.cluster.on"
    modify(rig, ApplyImmediately=True)
    rig.keep()
    shown = rig.show_cluster("demo-0001-001")["CacheParameterGroup"]
    assert shown["CacheParameterGroupName"] == "default.valkey9.cluster.on"


@pytest.mark.parametrize("values", [True, False])
def test_values_of_another_family_do_not_come_before_their_version(rig: Rig, values: bool) -> None:
    """Neither do those that are in force go."""
    for name, family in (("old", "valkey8"), ("new", "valkey9")):
        rig.cache.create_cache_parameter_group(CacheParameterGroupName=name, CacheParameterGroupFamily=family, Description="d")
    changed = {"ParameterName": "timeout", "ParameterValue": "30"}
    rig.cache.modify_cache_parameter_group(CacheParameterGroupName="new" if values else "old", ParameterNameValues=[changed])
    rig.group(EngineVersion="8.0", CacheParameterGroupName="default.valkey8" if values else "old")
    to = {"EngineVersion": "9.1", "CacheParameterGroupName": "new" if values else "default.valkey9"}
    error = refused(modify, rig=rig, ApplyImmediately=False, **to)
    assert (error.code, "ApplyImmediately=false" in error.message) == ("InvalidParameterCombination", True)
    modify(rig, ApplyImmediately=True, **to)


def test_nodes_that_are_there_may_be_rebooted_whatever_waits(rig: Rig) -> None:
    rig.memcached(nodes=2)
    rig.cache.modify_cache_cluster(CacheClusterId="mc", NumCacheNodes=1, CacheNodeIdsToRemove=["0002"], ApplyImmediately=False)
    rig.keep()
    rig.cache.reboot_cache_cluster(CacheClusterId="mc", CacheNodeIdsToReboot=["0002"])
    assert rig.show_cluster("mc")["CacheNodes"][1]["CacheNodeStatus"] == "rebooting"
    rig.keep()
    rig.cache.modify_cache_cluster(CacheClusterId="mc", NumCacheNodes=3, ApplyImmediately=False)
    rig.keep()
    error = refused(rig.cache.reboot_cache_cluster, CacheClusterId="mc", CacheNodeIdsToReboot=["0003"])
    assert (error.code, error.message) == ("InvalidParameterValue", "Cache node 0003 does not exist. Cache nodes: 0001, 0002.")


def test_nothing_fails_over_before_it_has_been_available(rig: Rig) -> None:
    assert rig.group(AutomaticFailoverEnabled=True, keep=False)["AutomaticFailover"] == "enabling"
    rig.keep()
    assert rig.show()["AutomaticFailover"] == "enabled"
    assert modify(rig, ReplicationGroupDescription="other")["AutomaticFailover"] == "enabled"
    rig.keep()
    assert modify(rig, AutomaticFailoverEnabled=False)["AutomaticFailover"] == "disabled"


def test_parameters_are_in_sync_when_they_have_been_seen_so(rig: Rig) -> None:
    rig.cache.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    rig.group(CacheParameterGroupName="mine")
    assert rig.show_cluster("demo-001")["CacheParameterGroup"]["ParameterApplyStatus"] == "in-sync"
    changed = {"ParameterName": "timeout", "ParameterValue": "30"}
    rig.cache.modify_cache_parameter_group(CacheParameterGroupName="mine", ParameterNameValues=[changed])
    shown = rig.show_cluster("demo-001")
    assert shown["CacheParameterGroup"]["ParameterApplyStatus"] == "applying"
    assert {n["ParameterGroupStatus"] for n in shown["CacheNodes"]} == {"applying"}
    rig.keep()
    assert rig.show_cluster("demo-001")["CacheParameterGroup"]["ParameterApplyStatus"] == "in-sync"
