"""What cannot exist yet, what is refused, and blanks."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import xform_name
from tests.services.rig import Rig, refused

from cachekeep.services import elasticache
from cachekeep.wire.model import Shape, service_model

OPERATIONS = elasticache.SERVICE.operations
MODEL = service_model("elasticache")
REFUSED = sorted(name for name, operation in OPERATIONS.items() if operation.mode == "refuses")


def least(shape: Shape | None, *, inside: bool = False) -> Any:
    """The smallest input that the model allows."""
    if shape is None:
        return {}
    match shape.type:
        case "structure":
            # A structure inside needs something in it to be seen on the wire.
            chosen = shape.required or (list(shape.members)[:1] if inside else [])
            return {name: least(shape.members[name].shape, inside=True) for name in chosen}
        case "list":
            return [least(shape.item.shape, inside=True)] * max(shape.minimum or 0, 1)
        case "boolean":
            return False
        case "integer":
            return shape.minimum or 1
    return shape.enum[0] if shape.enum else "a" * max(shape.minimum or 1, 1)


def test_every_operation_of_the_model_is_answered() -> None:
    assert set(OPERATIONS) == set(MODEL.operation_names)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_operations_say_so(rig: Rig, name: str) -> None:
    operation = MODEL.operation(name)
    error = refused(getattr(rig.cache, xform_name(name)), **least(operation.input))
    if "CacheSecurityGroup" in name:
        assert (error.code, error.status) == ("InvalidParameterValue", 400)
        assert error.message == "Use of cache security groups is not permitted in this API version for your account."
    else:
        assert (error.code, error.status) == ("InvalidParameterCombination", 400)
        assert error.message.endswith("not supported by this version of Cachekeep; nothing was changed.")


@pytest.mark.parametrize(
    ("call", "result", "named", "code"),
    [
        ("describe_serverless_caches", "ServerlessCaches", "ServerlessCacheName", "ServerlessCacheNotFoundFault"),
        (
            "describe_serverless_cache_snapshots",
            "ServerlessCacheSnapshots",
            "ServerlessCacheSnapshotName",
            "ServerlessCacheSnapshotNotFoundFault",
        ),
        (
            "describe_global_replication_groups",
            "GlobalReplicationGroups",
            "GlobalReplicationGroupId",
            "GlobalReplicationGroupNotFoundFault",
        ),
        ("describe_reserved_cache_nodes", "ReservedCacheNodes", "ReservedCacheNodeId", "ReservedCacheNodeNotFound"),
        (
            "describe_reserved_cache_nodes_offerings",
            "ReservedCacheNodesOfferings",
            "ReservedCacheNodesOfferingId",
            "ReservedCacheNodesOfferingNotFound",
        ),
        ("describe_service_updates", "ServiceUpdates", "ServiceUpdateName", "ServiceUpdateNotFoundFault"),
    ],
)
def test_describes_of_what_is_not_there(rig: Rig, call: str, result: str, named: str, code: str) -> None:
    assert getattr(rig.cache, call)()[result] == []
    assert refused(getattr(rig.cache, call), **{named: "x"}).code == code


def test_update_actions_of_no_update(rig: Rig) -> None:
    rig.group()
    assert rig.cache.describe_update_actions(ReplicationGroupIds=["demo"])["UpdateActions"] == []


def test_snapshots_of_a_cluster(rig: Rig) -> None:
    rig.single()
    assert rig.cache.describe_snapshots(CacheClusterId="one")["Snapshots"] == []
    assert refused(rig.cache.describe_snapshots, CacheClusterId="x").code == "CacheClusterNotFound"
    assert refused(rig.cache.describe_snapshots, MaxRecords=51).code == "InvalidParameterValue"
    assert refused(rig.cache.describe_snapshots, SnapshotSource="x").code == "InvalidParameterValue"


@pytest.mark.parametrize("name", sorted(name for name in OPERATIONS if MODEL.operation(name).input))
def test_blanks_where_something_is_required(rig: Rig, name: str) -> None:
    shape = MODEL.operation(name).input
    assert shape is not None
    required = [m for m in shape.required if shape.members[m].shape.type == "string"]
    for blank in required:
        params = least(shape) | {blank: ""}
        error = refused(getattr(rig.cache, xform_name(name)), **params)
        assert error.code in ("InvalidParameterValue", "InvalidParameterCombination")


# ------------------------------------------------------------------ what can be had


def test_only_versions_with_a_build_are_listed(rig: Rig) -> None:
    found = rig.cache.describe_cache_engine_versions()["CacheEngineVersions"]
    assert {(v["Engine"], v["EngineVersion"]) for v in found} == {
        ("memcached", "1.6.6"),
        ("memcached", "1.6.12"),
        ("memcached", "1.6.17"),
        ("redis", "6.0"),
        ("redis", "6.2"),
        ("redis", "7.0"),
        ("redis", "7.1"),
        ("valkey", "8.0"),
        ("valkey", "9.0"),
        ("valkey", "9.1"),
    }
    one = rig.cache.describe_cache_engine_versions(Engine="Valkey", EngineVersion="8.0")["CacheEngineVersions"]
    assert one[0].pop("CacheEngineVersionDescription").startswith("valkey version 8.0.1 (unsafe: known holes CVE-2025-49844")
    assert one == [
        {
            "Engine": "valkey",
            "EngineVersion": "8.0",
            "CacheParameterGroupFamily": "valkey8",
            "CacheEngineDescription": "Valkey",
        }
    ]
    family = rig.cache.describe_cache_engine_versions(CacheParameterGroupFamily="redis7")["CacheEngineVersions"]
    assert [v["EngineVersion"] for v in family] == ["7.0", "7.1"]
    default = rig.cache.describe_cache_engine_versions(Engine="valkey", DefaultOnly=True)["CacheEngineVersions"]
    assert [v["EngineVersion"] for v in default] == ["9.1"]
    assert rig.cache.describe_cache_engine_versions(Engine="oracle")["CacheEngineVersions"] == []


def test_node_types_to_scale_to(rig: Rig) -> None:
    rig.group(CacheNodeType="cache.m7g.large")
    rig.memcached()
    found = rig.cache.list_allowed_node_type_modifications(ReplicationGroupId="demo")
    assert "cache.m7g.xlarge" in found["ScaleUpModifications"]
    assert "cache.t3.micro" in found["ScaleDownModifications"]
    assert "cache.m7g.large" not in found["ScaleUpModifications"] + found["ScaleDownModifications"]
    assert rig.cache.list_allowed_node_type_modifications(CacheClusterId="mc")["ScaleUpModifications"]
    call = rig.cache.list_allowed_node_type_modifications
    assert refused(call).code == "InvalidParameterCombination"
    assert refused(call, ReplicationGroupId="x").code == "ReplicationGroupNotFoundFault"
    assert refused(call, CacheClusterId="x").code == "CacheClusterNotFound"


def test_every_type_offered_for_scaling_is_accepted(rig: Rig) -> None:
    rig.group()
    found = rig.cache.list_allowed_node_type_modifications(ReplicationGroupId="demo")
    for name in (*found["ScaleUpModifications"], *found["ScaleDownModifications"]):
        rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheNodeType=name, ApplyImmediately=True)
        rig.keep()
        assert rig.show()["CacheNodeType"] == name
