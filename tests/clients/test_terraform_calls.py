"""Terraform's resources from apply to destroy: what the provider asks, the states it sees, and no drift at the next plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.acceptance.installation import Installation
from tests.clients.terraform import Provider, State, code_of

SIZE = "cache.t3.micro"


@pytest.fixture(scope="module")
def client(installation: Installation) -> Any:
    # The provider tries 5xx answers again up to 25 times; here there may be none.
    return installation.client(retries={"total_max_attempts": 1})


@pytest.fixture(scope="module")
def provider(client: Any) -> Provider:
    return Provider(client)


def versions(client: Any, engine: str) -> list[str]:
    return [str(v["EngineVersion"]) for v in client.describe_cache_engine_versions(Engine=engine)["CacheEngineVersions"]]


def planned(read: Callable[[str], State | None], name: str, /, **configured: Any) -> State:
    """The state after a refresh: as configured, and the same at the second look, or ``terraform plan`` would never be empty."""
    state = read(name)
    assert state is not None
    drift = {key: (value, state[key]) for key, value in configured.items() if state[key] != value}
    assert not drift, f"configured, read: {drift}"
    assert read(name) == state, "the second read differs from the first"
    return state


def refused(ask: Callable[..., Any], **parameters: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        ask(**parameters)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in range(400, 500)
    return code_of(caught.value), str(caught.value)


# ------------------------------------------------------------------ the provider's start


def test_the_account_is_found_from_the_caller(installation: Installation) -> None:
    arn = installation.client("sts").get_caller_identity()["Arn"]
    assert len(arn.split(":")) == 6
    assert len(arn.split(":")[4]) == 12


def test_the_account_is_found_without_validation_of_credentials(installation: Installation) -> None:
    iam = installation.client("iam")
    assert len(iam.get_user()["User"]["Arn"].split(":")[4]) == 12
    assert "Roles" in iam.list_roles(MaxItems=1)


def test_what_is_not_served_is_no_reason_to_try_again(installation: Installation) -> None:
    once = {"total_max_attempts": 1}
    refused(installation.client("ec2", retries=once).create_vpc, CidrBlock="10.0.0.0/16")
    refused(installation.client("iam", retries=once).list_virtual_mfa_devices)


# ------------------------------------------------------------------ aws_elasticache_subnet_group


@pytest.fixture(scope="module")
def subnets(installation: Installation) -> list[str]:
    return [str(subnet["SubnetId"]) for subnet in installation.client("ec2").describe_subnets()["Subnets"]]


def test_subnet_group(client: Any, provider: Provider, subnets: list[str]) -> None:
    tags = [{"Key": "a", "Value": "1"}]
    client.create_cache_subnet_group(
        CacheSubnetGroupName="TF-Subnets", CacheSubnetGroupDescription="Managed by Terraform", SubnetIds=subnets, Tags=tags
    )
    configured = {"name": "tf-subnets", "description": "Managed by Terraform", "subnet_ids": set(subnets), "tags": {"a": "1"}}
    state = planned(provider.read_subnet_group, "tf-subnets", **configured)
    assert provider.read_subnet_group("TF-Subnets") == state

    provider.set_tags(state["arn"], state["tags"], {"b": ""})
    client.modify_cache_subnet_group(CacheSubnetGroupName="tf-subnets", CacheSubnetGroupDescription="fewer", SubnetIds=subnets[:1])
    planned(provider.read_subnet_group, "tf-subnets", description="fewer", subnet_ids={subnets[0]}, tags={"b": ""})

    client.delete_cache_subnet_group(CacheSubnetGroupName="tf-subnets")
    assert provider.read_subnet_group("tf-subnets") is None
    assert refused(client.delete_cache_subnet_group, CacheSubnetGroupName="tf-subnets")[0] == "CacheSubnetGroupNotFoundFault"


# ------------------------------------------------------------------ aws_elasticache_parameter_group


@pytest.mark.parametrize("family", ["valkey8", "redis7", "memcached1.6"])
def test_parameter_group(client: Any, provider: Provider, family: str) -> None:
    name = f"tf-{family.replace('.', '-')}"
    client.create_cache_parameter_group(
        CacheParameterGroupName=name.upper(), CacheParameterGroupFamily=family, Description="Managed by Terraform", Tags=[]
    )
    known = [
        p
        for page in client.get_paginator("describe_cache_parameters").paginate(CacheParameterGroupName=name)
        for p in page["Parameters"]
    ]
    # More than a batch; the values are the defaults, and set all the same.
    settable = [p for p in known if p["IsModifiable"] and p.get("ParameterValue")]
    values = {p["ParameterName"]: p["ParameterValue"] for p in settable[:25]}
    assert len(values) > 20 or family.startswith("memcached")
    provider.modify_parameters(name, values)
    planned(provider.read_parameter_group, name, name=name, family=family, parameter=values, tags={})

    fewer = dict(list(values.items())[2:4])
    assert fewer
    provider.update_parameters(name, values, fewer)
    planned(provider.read_parameter_group, name, parameter=fewer)
    provider.update_parameters(name, fewer, {})
    planned(provider.read_parameter_group, name, parameter={})

    client.delete_cache_parameter_group(CacheParameterGroupName=name)
    assert provider.read_parameter_group(name) is None


def test_a_parameter_that_is_unknown_ends_the_apply(client: Any) -> None:
    client.create_cache_parameter_group(CacheParameterGroupName="tf-unknown", CacheParameterGroupFamily="redis7", Description="d")
    values = [{"ParameterName": "no-such", "ParameterValue": "1"}]
    asked = {"CacheParameterGroupName": "tf-unknown", "ParameterNameValues": values}
    assert refused(client.modify_cache_parameter_group, **asked)[0] == "InvalidParameterValue"
    client.delete_cache_parameter_group(CacheParameterGroupName="tf-unknown")


# ------------------------------------------------------------------ aws_elasticache_cluster


def test_memcached_cluster(client: Any, provider: Provider, subnets: list[str]) -> None:
    version = versions(client, "memcached")[-1]
    client.create_cache_subnet_group(CacheSubnetGroupName="tf-mc", CacheSubnetGroupDescription="d", SubnetIds=subnets)
    client.create_cache_cluster(
        CacheClusterId="TF-Mc",
        Engine="memcached",
        EngineVersion=version,
        CacheNodeType=SIZE,
        NumCacheNodes=2,
        Port=11311,
        AZMode="cross-az",
        CacheSubnetGroupName="tf-mc",
        PreferredMaintenanceWindow="sun:05:00-sun:09:00",
        AutoMinorVersionUpgrade=True,
        SecurityGroupIds=[],
        Tags=[{"Key": "a", "Value": "1"}],
    )
    provider.cluster_available("tf-mc")
    configured = {
        "cluster_id": "tf-mc",
        "engine": "memcached",
        "engine_version": version,
        "node_type": SIZE,
        "num_cache_nodes": 2,
        "port": 11311,
        "az_mode": "cross-az",
        "subnet_group_name": "tf-mc",
        "maintenance_window": "sun:05:00-sun:09:00",
        "auto_minor_version_upgrade": True,
        "snapshot_retention_limit": 0,
        "transit_encryption_enabled": False,
        "tags": {"a": "1"},
    }
    state = planned(provider.read_cluster, "tf-mc", **configured)
    assert state["configuration_endpoint"]
    assert refused(client.delete_cache_subnet_group, CacheSubnetGroupName="tf-mc")[0] == "CacheSubnetGroupInUse"

    client.modify_cache_cluster(CacheClusterId="tf-mc", ApplyImmediately=True, NumCacheNodes=4)
    provider.cluster_available("tf-mc")
    grown = planned(provider.read_cluster, "tf-mc", **configured | {"num_cache_nodes": 4})
    assert grown["cache_nodes"][:2] == state["cache_nodes"], "the first two are left alone"
    client.modify_cache_cluster(
        CacheClusterId="tf-mc", ApplyImmediately=True, NumCacheNodes=2, CacheNodeIdsToRemove=["0003", "0004"]
    )
    provider.cluster_available("tf-mc")
    assert planned(provider.read_cluster, "tf-mc", **configured) == state

    client.delete_cache_cluster(CacheClusterId="tf-mc")
    provider.cluster_gone("tf-mc")
    client.delete_cache_subnet_group(CacheSubnetGroupName="tf-mc")


@pytest.mark.parametrize(("engine", "version", "family"), [("redis", "7.1", "redis7"), ("valkey", "8.0", "valkey8")])
def test_cluster_of_one_server(client: Any, provider: Provider, engine: str, version: str, family: str) -> None:
    if not any(v.startswith(version) for v in versions(client, engine)):
        pytest.skip(f"needs {engine} {version}")
    name, group = f"tf-{engine}", f"tf-one-{engine}"
    client.create_cache_parameter_group(CacheParameterGroupName=group, CacheParameterGroupFamily=family, Description="d")
    client.create_cache_cluster(
        CacheClusterId=name,
        Engine=engine,
        EngineVersion=version,
        CacheNodeType=SIZE,
        NumCacheNodes=1,
        Port=6390,
        CacheParameterGroupName=group,
        SnapshotRetentionLimit=0,
        AutoMinorVersionUpgrade=False,
        NetworkType="ipv4",
        IpDiscovery="ipv4",
    )
    provider.cluster_available(name)
    configured = {
        "engine": engine,
        "engine_version": version,
        "node_type": SIZE,
        "num_cache_nodes": 1,
        "port": 6390,
        "parameter_group_name": group,
        "subnet_group_name": "default",
        "az_mode": "single-az",
        "auto_minor_version_upgrade": False,
        "network_type": "ipv4",
        "ip_discovery": "ipv4",
        "log_delivery_configuration": [],
        "replication_group_id": None,
        "tags": {},
    }
    state = planned(provider.read_cluster, name, **configured)
    assert refused(client.delete_cache_parameter_group, CacheParameterGroupName=group)[0] == "InvalidCacheParameterGroupState"

    client.modify_cache_cluster(
        CacheClusterId=name,
        ApplyImmediately=True,
        CacheNodeType="cache.t3.small",
        CacheParameterGroupName=f"default.{family}",
        PreferredMaintenanceWindow="mon:05:00-mon:09:00",
    )
    provider.cluster_available(name)
    changed = {
        "node_type": "cache.t3.small",
        "parameter_group_name": f"default.{family}",
        "maintenance_window": "mon:05:00-mon:09:00",
    }
    after = planned(provider.read_cluster, name, **configured | changed)
    assert after["cache_nodes"] == state["cache_nodes"], "clients find it where it was"
    client.delete_cache_parameter_group(CacheParameterGroupName=group)
    client.delete_cache_cluster(CacheClusterId=name)
    provider.cluster_gone(name)


# ------------------------------------------------------------------ aws_elasticache_replication_group


@pytest.fixture(scope="module")
def parameters(client: Any) -> Iterator[str]:
    client.create_cache_parameter_group(CacheParameterGroupName="tf-group", CacheParameterGroupFamily="redis7", Description="d")
    yield "tf-group"
    client.delete_cache_parameter_group(CacheParameterGroupName="tf-group")


@pytest.fixture(scope="module")
def security_group(installation: Installation) -> str:
    return str(installation.client("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"])


def test_replication_group(client: Any, provider: Provider, parameters: str, subnets: list[str], security_group: str) -> None:
    if not any(v.startswith("7.1") for v in versions(client, "redis")):
        pytest.skip("needs redis 7.1")
    client.create_cache_subnet_group(CacheSubnetGroupName="tf-rg", CacheSubnetGroupDescription="d", SubnetIds=subnets)
    client.create_replication_group(
        ReplicationGroupId="TF-Rg",
        ReplicationGroupDescription="by Terraform",
        Engine="redis",
        EngineVersion="7.1",
        CacheNodeType=SIZE,
        NumCacheClusters=2,
        AutomaticFailoverEnabled=True,
        MultiAZEnabled=True,
        TransitEncryptionEnabled=False,
        AtRestEncryptionEnabled=False,
        AutoMinorVersionUpgrade=True,
        CacheParameterGroupName=parameters,
        CacheSubnetGroupName="tf-rg",
        Port=6391,
        PreferredMaintenanceWindow="sun:05:00-sun:09:00",
        SnapshotWindow="01:00-02:00",
        SecurityGroupIds=[security_group],
        Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}],
    )
    assert provider.tags("arn:aws:elasticache:us-east-1:000000000000:replicationgroup:tf-rg") == {"a": "1", "b": "2"}
    provider.group_available("tf-rg")
    configured: State = {
        "replication_group_id": "tf-rg",
        "description": "by Terraform",
        "engine": "redis",
        "engine_version": "7.1",
        "engine_version_actual": "7.1.0",
        "node_type": SIZE,
        "num_cache_clusters": 2,
        "num_node_groups": 1,
        "replicas_per_node_group": 1,
        "automatic_failover_enabled": True,
        "multi_az_enabled": True,
        "transit_encryption_enabled": False,
        "transit_encryption_mode": None,
        "at_rest_encryption_enabled": False,
        "auth_token_enabled": False,
        "data_tiering_enabled": False,
        "auto_minor_version_upgrade": True,
        "parameter_group_name": parameters,
        "subnet_group_name": "tf-rg",
        "port": 6391,
        "maintenance_window": "sun:05:00-sun:09:00",
        "snapshot_window": "01:00-02:00",
        "snapshot_retention_limit": 0,
        "security_group_ids": {security_group},
        "cluster_enabled": False,
        "cluster_mode": "disabled",
        "user_group_ids": set(),
        "log_delivery_configuration": [],
        "network_type": "ipv4",
        "ip_discovery": "ipv4",
        "kms_key_id": None,
        "tags": {"a": "1", "b": "2"},
    }
    state = planned(provider.read_group, "tf-rg", **configured)
    endpoints = {key: state[key] for key in ("primary_endpoint_address", "reader_endpoint_address")}
    configured |= endpoints

    provider.modify_group("tf-rg")  # an apply in which only attributes of Terraform's own have changed
    assert (
        "No modifications were requested"
        in refused(client.modify_replication_group, ReplicationGroupId="tf-rg", ApplyImmediately=True)[1]
    )

    configured["tags"] = {"b": "3", "c": ""}
    provider.set_tags(state["arn"], state["tags"], configured["tags"])
    provider.scale_up("tf-rg", 4)
    configured |= {"num_cache_clusters": 4, "replicas_per_node_group": 3}
    planned(provider.read_group, "tf-rg", **configured)

    changes = {"CacheNodeType": "cache.t3.small", "ReplicationGroupDescription": "changed", "SnapshotWindow": "02:00-03:00"}
    provider.modify_group("tf-rg", **changes)
    configured |= {"node_type": "cache.t3.small", "description": "changed", "snapshot_window": "02:00-03:00"}
    planned(provider.read_group, "tf-rg", **configured)

    provider.scale_down("tf-rg", 2)
    configured |= {"num_cache_clusters": 2, "replicas_per_node_group": 1}
    planned(provider.read_group, "tf-rg", **configured)

    if any(v.startswith("8.0") for v in versions(client, "valkey")):
        engine = {"Engine": "valkey", "EngineVersion": "8.0", "CacheParameterGroupName": "default.valkey8"}
        provider.modify_group("tf-rg", **engine)
        configured |= {"engine": "valkey", "engine_version": "8.0", "parameter_group_name": "default.valkey8"}
        del configured["engine_version_actual"]
        planned(provider.read_group, "tf-rg", **configured)

    provider.delete_group("tf-rg")
    assert provider.read_group("tf-rg") is None
    assert not [name for name in provider.clusters() if name.startswith("tf-rg")]
    client.delete_cache_subnet_group(CacheSubnetGroupName="tf-rg")


def test_replication_group_without_its_first_member(client: Any, provider: Provider) -> None:
    """After a failover the first member may be the one that goes:
    the group is read from another, and can be changed and deleted."""
    client.create_replication_group(
        ReplicationGroupId="tf-moved",
        ReplicationGroupDescription="d",
        Engine="valkey",
        CacheNodeType=SIZE,
        NumCacheClusters=3,
        AutomaticFailoverEnabled=True,
        TransitEncryptionEnabled=False,
    )
    provider.group_available("tf-moved")
    client.test_failover(ReplicationGroupId="tf-moved", NodeGroupId="0001")
    provider.group_available("tf-moved")
    state = planned(provider.read_group, "tf-moved", num_cache_clusters=3)
    client.decrease_replica_count(
        ReplicationGroupId="tf-moved", NewReplicaCount=1, ReplicasToRemove=["tf-moved-001"], ApplyImmediately=True
    )
    provider.group_available("tf-moved")
    after = planned(provider.read_group, "tf-moved", num_cache_clusters=2, arn=state["arn"])
    assert "tf-moved-001" not in after["member_clusters"]
    provider.scale_up("tf-moved", 3)
    planned(provider.read_group, "tf-moved", num_cache_clusters=3)
    provider.delete_group("tf-moved")


def test_a_replica_as_a_cluster_resource(client: Any, provider: Provider) -> None:
    """``aws_elasticache_cluster`` with ``replication_group_id``: one more replica, with a name of its own."""
    create = {"ReplicationGroupId": "tf-parent", "ReplicationGroupDescription": "d", "Engine": "valkey", "CacheNodeType": SIZE}
    client.create_replication_group(**create, NumCacheClusters=1, AutomaticFailoverEnabled=False)
    provider.group_available("tf-parent")
    client.create_cache_cluster(CacheClusterId="tf-child", ReplicationGroupId="tf-parent", AutoMinorVersionUpgrade=True)
    provider.cluster_available("tf-child")
    planned(provider.read_cluster, "tf-child", replication_group_id="tf-parent", num_cache_nodes=1, node_type=SIZE, engine="valkey")
    client.delete_cache_cluster(CacheClusterId="tf-child")
    provider.cluster_gone("tf-child")
    provider.group_available("tf-parent")
    planned(provider.read_group, "tf-parent", num_cache_clusters=1)
    provider.delete_group("tf-parent")


def test_replication_group_of_shards(client: Any, provider: Provider) -> None:
    """``num_node_groups`` and ``replicas_per_node_group``, each changed by a call of its own."""
    client.create_replication_group(
        ReplicationGroupId="tf-shards",
        ReplicationGroupDescription="d",
        Engine="valkey",
        CacheNodeType=SIZE,
        NumNodeGroups=2,
        ReplicasPerNodeGroup=1,
        CacheParameterGroupName="default.valkey8.cluster.on",
        EngineVersion="8.0",
        AutomaticFailoverEnabled=True,
        TransitEncryptionEnabled=False,
    )
    provider.group_available("tf-shards")
    configured: State = {
        "num_node_groups": 2,
        "replicas_per_node_group": 1,
        "num_cache_clusters": 4,
        "cluster_enabled": True,
        "cluster_mode": "enabled",
        "primary_endpoint_address": None,
        "reader_endpoint_address": None,
        "parameter_group_name": "default.valkey8.cluster.on",
        "engine_version": "8.0",
    }
    state = planned(provider.read_group, "tf-shards", **configured)
    configured |= {key: state[key] for key in ("arn", "configuration_endpoint_address", "port")}
    assert configured["configuration_endpoint_address"]

    provider.scale_shards("tf-shards", 3)
    configured |= {"num_node_groups": 3, "num_cache_clusters": 6}
    planned(provider.read_group, "tf-shards", **configured)
    client.decrease_replica_count(ReplicationGroupId="tf-shards", NewReplicaCount=0, ApplyImmediately=True)
    provider.group_available("tf-shards")
    configured |= {"replicas_per_node_group": 0, "num_cache_clusters": 3}
    planned(provider.read_group, "tf-shards", **configured)
    provider.delete_group("tf-shards")
