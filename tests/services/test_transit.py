"""Encryption in transit, as it is asked for and shown [CreateReplicationGroup, TransitEncryptionEnabled, TransitEncryptionMode]."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.rig import Rig, refused


@pytest.mark.parametrize("mode", [{}, {"TransitEncryptionMode": "required"}], ids=str)
def test_a_group_with_tls_says_so(rig: Rig, mode: dict[str, str]) -> None:
    created = rig.group(EngineVersion="8.0", TransitEncryptionEnabled=True, **mode)
    for shown in (created, rig.show(), rig.show_cluster("demo-001")):
        assert (shown["TransitEncryptionEnabled"], shown["TransitEncryptionMode"]) == (True, "required")
    rig.group("plain", EngineVersion="8.0")
    for shown in (rig.show("plain"), rig.show_cluster("plain-001")):
        assert shown["TransitEncryptionEnabled"] is False
        assert "TransitEncryptionMode" not in shown


def test_a_node_alone_with_tls_becomes_the_primary_of_a_group_with_tls(rig: Rig) -> None:
    rig.cache.create_cache_cluster(
        CacheClusterId="one", Engine="redis", CacheNodeType="cache.t3.micro", TransitEncryptionEnabled=True
    )
    rig.keep()
    assert rig.show_cluster("one")["TransitEncryptionMode"] == "required"
    around = {"ReplicationGroupId": "demo", "ReplicationGroupDescription": "d", "PrimaryClusterId": "one"}
    error = refused(rig.cache.create_replication_group, **around, TransitEncryptionEnabled=False)
    assert error.code == "InvalidParameterCombination"
    assert "TransitEncryptionEnabled cannot differ" in error.message
    rig.cache.create_replication_group(**around, TransitEncryptionEnabled=True)
    rig.keep()
    assert rig.show()["TransitEncryptionEnabled"] is True


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"TransitEncryptionMode": "required"}, "only together with TransitEncryptionEnabled"),
        ({"TransitEncryptionEnabled": False, "TransitEncryptionMode": "required"}, "only together with TransitEncryptionEnabled"),
        ({"TransitEncryptionEnabled": True, "EngineVersion": "9.0"}, "valkey 9.0 with TLS"),
        ({"TransitEncryptionEnabled": True, "CacheNodeType": "cache.m1.small", "Engine": "redis"}, "not supported"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(rig: Rig, params: dict[str, Any], words: str) -> None:
    error = refused(rig.group, **params)
    assert error.code == "InvalidParameterCombination"
    assert words in error.message


def test_a_node_type_without_tls_is_not_entered(rig: Rig) -> None:
    rig.group(TransitEncryptionEnabled=True)
    error = refused(
        rig.cache.modify_replication_group, ReplicationGroupId="demo", CacheNodeType="cache.m2.xlarge", ApplyImmediately=True
    )
    assert error.code == "InvalidParameterCombination"
    assert "Encryption in transit" in error.message


def test_cluster_mode_of_a_group_with_tls_stays(rig: Rig) -> None:
    rig.group(TransitEncryptionEnabled=True, AutomaticFailoverEnabled=True)
    error = refused(rig.cache.modify_replication_group, ReplicationGroupId="demo", ClusterMode="compatible", ApplyImmediately=True)
    assert "Changing ClusterMode of a group with encryption in transit is not supported" in error.message


@pytest.mark.parametrize(("enabled", "mode"), [(True, {"TransitEncryptionMode": "required"}), (False, {})])
def test_as_it_is_may_be_asked_for_again_and_a_change_is_refused(rig: Rig, enabled: bool, mode: dict[str, str]) -> None:
    rig.group(TransitEncryptionEnabled=enabled)
    change = {"ReplicationGroupId": "demo", "ReplicationGroupDescription": "d2", "ApplyImmediately": True}
    rig.cache.modify_replication_group(**change, TransitEncryptionEnabled=enabled, **mode)
    rig.keep()
    assert rig.show()["Description"] == "d2"
    for other in ({"TransitEncryptionEnabled": not enabled}, {"TransitEncryptionMode": "preferred"}):
        error = refused(rig.cache.modify_replication_group, **change, **other)
        assert error.code == "InvalidParameterCombination"
        assert "A change of encryption in transit" in error.message
