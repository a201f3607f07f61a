"""Every change reaches the servers: settings, reboots, replicas more and fewer, another primary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import valkey
from botocore.exceptions import ClientError
from tests.acceptance.installation import Installation, available, created, deleted, eventually


@pytest.fixture(scope="module")
def parameters(installation: Installation) -> Iterator[str]:
    client = installation.client()
    client.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    yield "mine"
    client.delete_cache_parameter_group(CacheParameterGroupName="mine")


@pytest.fixture(scope="module")
def group(installation: Installation, parameters: str) -> Iterator[str]:
    client = installation.client()
    options = {"AutomaticFailoverEnabled": True, "CacheParameterGroupName": parameters, "EngineVersion": "8.0"}
    created(client, "changing", NumCacheClusters=2, **options)
    yield "changing"
    deleted(client, "changing")


def primary_of(client: Any, name: str) -> valkey.Valkey:
    """A client that connects anew for every command, as pools do after an error."""
    where = available(client, name)["NodeGroups"][0]["PrimaryEndpoint"]
    return valkey.Valkey(where["Address"], where["Port"], decode_responses=True)


def members(client: Any, name: str) -> dict[str, tuple[str, str, int]]:
    shard = available(client, name)["NodeGroups"][0]
    return {
        m["CacheClusterId"]: (m["CurrentRole"], m["ReadEndpoint"]["Address"], m["ReadEndpoint"]["Port"])
        for m in shard["NodeGroupMembers"]
    }


def set_parameter(client: Any, name: str, value: str) -> None:
    client.modify_cache_parameter_group(
        CacheParameterGroupName="mine", ParameterNameValues=[{"ParameterName": name, "ParameterValue": value}]
    )


def policy_in_force(client: Any, name: str) -> set[str]:
    """What each node says itself: clients may not read the configuration, but INFO tells this setting."""
    return {
        valkey.Valkey(address, port, decode_responses=True).info("memory")["maxmemory_policy"]
        for _, address, port in members(client, name).values()
    }


def test_a_changed_parameter_reaches_running_servers(client: Any, group: str) -> None:
    assert policy_in_force(client, group) == {"volatile-lru"}
    runs = {valkey.Valkey(a, p).info("server")["run_id"] for _, a, p in members(client, group).values()}
    set_parameter(client, "maxmemory-policy", "allkeys-lfu")
    eventually(lambda: policy_in_force(client, group) == {"allkeys-lfu"})
    assert {valkey.Valkey(a, p).info("server")["run_id"] for _, a, p in members(client, group).values()} == runs, (
        "nothing restarted"
    )
    client.reset_cache_parameter_group(CacheParameterGroupName="mine", ResetAllParameters=True)
    eventually(lambda: policy_in_force(client, group) == {"volatile-lru"})


def test_clients_get_what_elasticache_gives_and_no_more(client: Any, group: str) -> None:
    primary = primary_of(client, group)
    for command in ("CONFIG GET maxmemory", "DEBUG SLEEP 0", "REPLICAOF NO ONE", "SHUTDOWN", "ACL SETUSER x"):
        with pytest.raises(valkey.ResponseError):
            primary.execute_command(*command.split())


def test_cluster_clients_are_served_beside_plain_ones(client: Any, group: str) -> None:
    before = available(client, group)
    assert before["ClusterMode"] == "disabled"
    on = {"ClusterMode": "compatible", "CacheParameterGroupName": "default.valkey8.cluster.on"}
    changed = client.modify_replication_group(ReplicationGroupId=group, ApplyImmediately=True, **on)["ReplicationGroup"]
    assert changed["PendingModifiedValues"]["ClusterMode"] == "compatible"
    shown = available(client, group)
    assert (shown["ClusterMode"], shown["NodeGroups"]) == ("compatible", before["NodeGroups"])
    where = shown["ConfigurationEndpoint"]
    clustered = valkey.ValkeyCluster(host=where["Address"], port=where["Port"], decode_responses=True)
    clustered.set("by", "cluster")
    assert primary_of(client, group).get("by") == "cluster"
    clustered.close()
    off = {"ClusterMode": "disabled", "CacheParameterGroupName": "mine"}
    client.modify_replication_group(ReplicationGroupId=group, ApplyImmediately=True, **off)
    eventually(lambda: "ConfigurationEndpoint" not in available(client, group))
    assert available(client, group)["ClusterMode"] == "disabled"
    with pytest.raises(valkey.exceptions.ConnectionError):
        valkey.Valkey(where["Address"], where["Port"]).ping()


def test_more_and_fewer_replicas(installation: Installation, client: Any, group: str) -> None:
    primary_of(client, group).set("kept", "1")
    client.increase_replica_count(ReplicationGroupId=group, NewReplicaCount=2, ApplyImmediately=True)
    assert len(members(client, group)) == 3
    shard = available(client, group)["NodeGroups"][0]
    for role, address, port in members(client, group).values():
        node = valkey.Valkey(address, port, decode_responses=True)
        assert node.get("kept") == "1"
        assert node.role()[0] == {"primary": "master", "replica": "slave"}[role]
    where = shard["ReaderEndpoint"]
    reader = valkey.Valkey(where["Address"], where["Port"], decode_responses=True)
    assert reader.get("kept") == "1"
    client.decrease_replica_count(ReplicationGroupId=group, NewReplicaCount=1, ApplyImmediately=True)
    assert len(members(client, group)) == 2
    eventually(lambda: len([n for n in installation.records() if n.startswith(group)]) == 2)
    again = valkey.Valkey(where["Address"], where["Port"], decode_responses=True)
    eventually(lambda: _reads(again, "kept") == "1")


def _reads(client: valkey.Valkey, key: str) -> str | None:
    try:
        return str(client.get(key))
    except valkey.ConnectionError:
        return None


def test_a_rebooted_replica_is_another_process_with_the_data(installation: Installation, client: Any, group: str) -> None:
    primary_of(client, group).set("kept", "2")
    replica = next(name for name, (role, _, _) in members(client, group).items() if role == "replica")
    before = installation.pids()
    client.reboot_cache_cluster(CacheClusterId=replica, CacheNodeIdsToReboot=["0001"])
    client.get_waiter("cache_cluster_available").wait(CacheClusterId=replica)
    available(client, group)
    after = installation.pids()
    assert after[replica] != before[replica]
    assert {n: p for n, p in after.items() if n != replica} == {n: p for n, p in before.items() if n != replica}
    _, address, port = members(client, group)[replica]
    assert valkey.Valkey(address, port, decode_responses=True).get("kept") == "2"


def test_a_failover_by_hand_keeps_every_write(installation: Installation, client: Any, group: str) -> None:
    primary_of(client, group).set("kept", "3")
    to = next(name for name, (role, _, _) in members(client, group).items() if role == "replica")
    assert to in installation.run("failover", group, "--to", to).stdout
    eventually(lambda: members(client, group)[to][0] == "primary")
    assert primary_of(client, group).get("kept") == "3"
    again = installation.run("failover", group, "--to", to, check=False)
    assert again.returncode == 1
    assert "is the primary of shard 0001 already" in again.stderr


def test_events_tell_the_story(client: Any, group: str) -> None:
    told = client.describe_events(SourceIdentifier=group, SourceType="replication-group", Duration=60)["Events"]
    assert any(e["Message"] == f"Replication group {group} created" for e in told)


def test_unknown_and_impossible_values_change_nothing(installation: Installation, client: Any, group: str) -> None:
    before = client.describe_replication_groups(ReplicationGroupId=group)["ReplicationGroups"]
    for name, value, code in (
        ("no-such", "1", "InvalidParameterValue"),
        ("maxmemory-policy", "whatever", "InvalidParameterValue"),
        ("maxmemory-samples", "-1", "InvalidParameterValue"),
    ):
        with pytest.raises(ClientError) as refused:
            set_parameter(client, name, value)
        assert refused.value.response["Error"]["Code"] == code
    with pytest.raises(ClientError, match="InvalidParameter"):
        client.create_replication_group(
            ReplicationGroupId="1bad--name-", ReplicationGroupDescription="d", CacheNodeType="cache.t3.micro"
        )
    assert client.describe_replication_groups(ReplicationGroupId=group)["ReplicationGroups"] == before
