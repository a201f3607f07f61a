"""What a user does, with the tools that users have: the AWS command line, boto3, valkey-py, Memcached clients."""

from __future__ import annotations

import asyncio
from typing import Any

import elasticache_auto_discovery
import emcache
import pytest
import valkey
from botocore.exceptions import ClientError
from pymemcache.client.base import Client
from pymemcache.client.hash import HashClient
from tests.acceptance.installation import Installation, created, deleted, eventually


def test_a_group_of_three_by_the_aws_command_line(installation: Installation) -> None:
    aws = installation.aws
    description = ("--replication-group-id", "demo", "--replication-group-description", "d")
    size = ("--engine", "valkey", "--cache-node-type", "cache.t3.micro", "--num-cache-clusters", "3")
    assert aws("elasticache", "create-replication-group", *description, *size)["ReplicationGroup"]["Status"] == "creating"
    aws("elasticache", "wait", "replication-group-available", "--replication-group-id", "demo")
    (group,) = aws("elasticache", "describe-replication-groups", "--replication-group-id", "demo")["ReplicationGroups"]
    assert group["Status"] == "available"
    (shard,) = group["NodeGroups"]

    primary = valkey.Valkey(shard["PrimaryEndpoint"]["Address"], shard["PrimaryEndpoint"]["Port"], decode_responses=True)
    primary.set("a", "1")
    assert primary.execute_command("WAIT", 2, 5000) == 2
    replicas = [m for m in shard["NodeGroupMembers"] if m["CurrentRole"] == "replica"]
    assert len(replicas) == 2
    for member in replicas:
        replica = valkey.Valkey(member["ReadEndpoint"]["Address"], member["ReadEndpoint"]["Port"], decode_responses=True)
        assert replica.get("a") == "1"
        with pytest.raises(valkey.ReadOnlyError):
            replica.set("a", "2")
    for _ in range(4):
        reader = valkey.Valkey(shard["ReaderEndpoint"]["Address"], shard["ReaderEndpoint"]["Port"], decode_responses=True)
        assert reader.get("a") == "1"
        assert reader.role()[0] == "slave"
    assert len({m["PreferredAvailabilityZone"] for m in shard["NodeGroupMembers"]}) == 3

    before = installation.processes()
    aws("elasticache", "delete-replication-group", "--replication-group-id", "demo")
    aws("elasticache", "wait", "replication-group-deleted", "--replication-group-id", "demo")
    assert not any(name.startswith("demo") for name in installation.records())
    assert len(installation.processes()) == len(before) - 4, "three nodes and the readers' balancer are gone"


@pytest.mark.parametrize(("engine", "offered"), [("redis", "7.1"), ("valkey", "9.1")])
def test_other_engines(installation: Installation, client: Any, engine: str, offered: str) -> None:
    known = client.describe_cache_engine_versions(Engine=engine)["CacheEngineVersions"]
    if not any(offered.startswith(v["EngineVersion"]) or v["EngineVersion"].startswith(offered) for v in known):
        pytest.skip(f"needs {engine} {offered}")
    group = created(client, f"other-{engine}", Engine=engine, EngineVersion=offered, NumCacheClusters=1)
    where = group["NodeGroups"][0]["PrimaryEndpoint"]
    about = valkey.Valkey(where["Address"], where["Port"], decode_responses=True).info("server")
    assert about.get("server_name", "redis") == engine
    deleted(client, f"other-{engine}")


@pytest.fixture(scope="module")
def memcached(installation: Installation) -> Any:
    client = installation.client()
    client.create_cache_cluster(CacheClusterId="mc", Engine="memcached", NumCacheNodes=3, CacheNodeType="cache.t3.micro")
    client.get_waiter("cache_cluster_available").wait(CacheClusterId="mc")
    (cluster,) = client.describe_cache_clusters(CacheClusterId="mc", ShowCacheNodeInfo=True)["CacheClusters"]
    yield cluster
    client.delete_cache_cluster(CacheClusterId="mc")
    client.get_waiter("cache_cluster_deleted").wait(CacheClusterId="mc")
    assert not any(name.startswith("mc.") for name in installation.records())


def _nodes(cluster: Any) -> set[tuple[str, int]]:
    return {(n["Endpoint"]["Address"], n["Endpoint"]["Port"]) for n in cluster["CacheNodes"]}


def test_memcached_nodes_hold_what_a_hashing_client_stores(memcached: Any) -> None:
    client = HashClient(sorted(_nodes(memcached)))
    for number in range(50):
        client.set(f"key-{number}", str(number), noreply=False)
    assert client.get_many([f"key-{n}" for n in range(50)]) == {f"key-{n}": str(n).encode() for n in range(50)}
    held = [int(Client(node).stats()[b"curr_items"]) for node in _nodes(memcached)]
    assert all(held), "every node took some"


def test_memcached_auto_discovery_by_elasticache_auto_discovery(memcached: Any) -> None:
    where = memcached["ConfigurationEndpoint"]
    found = elasticache_auto_discovery.discover(f"{where['Address']}:{where['Port']}")
    assert {(host.decode(), int(port)) for _, host, port in found} == _nodes(memcached)


def test_memcached_auto_discovery_by_emcache(memcached: Any) -> None:
    where = memcached["ConfigurationEndpoint"]

    async def seen() -> None:
        client = await emcache.create_client([emcache.MemcachedHostAddress(where["Address"], where["Port"])], autodiscovery=True)
        try:
            await client.set(b"from-emcache", b"1")
            item = await client.get(b"from-emcache")
            assert item is not None
            assert item.value == b"1"
        finally:
            await client.close()

    asyncio.run(seen())


def test_a_client_that_flushes_takes_the_discovery_list_away_and_it_comes_back(memcached: Any) -> None:
    node = Client(min(_nodes(memcached)))
    listed = node.get("AmazonElastiCache:cluster")
    assert listed
    node.set("mine", "1", noreply=False)
    node.flush_all(noreply=False)
    eventually(lambda: node.get("AmazonElastiCache:cluster") == listed)
    assert node.get("mine") is None


def test_memcached_grows_and_discovery_says_so(installation: Installation, client: Any, memcached: Any) -> None:
    where = memcached["ConfigurationEndpoint"]
    client.modify_cache_cluster(CacheClusterId="mc", NumCacheNodes=4, ApplyImmediately=True)
    client.get_waiter("cache_cluster_available").wait(CacheClusterId="mc")
    (cluster,) = client.describe_cache_clusters(CacheClusterId="mc", ShowCacheNodeInfo=True)["CacheClusters"]
    assert cluster["NumCacheNodes"] == 4

    def listed() -> bool:
        found = elasticache_auto_discovery.discover(f"{where['Address']}:{where['Port']}")
        return {(host.decode(), int(port)) for _, host, port in found} == _nodes(cluster)

    eventually(listed)
    client.modify_cache_cluster(CacheClusterId="mc", NumCacheNodes=3, CacheNodeIdsToRemove=["0004"], ApplyImmediately=True)
    client.get_waiter("cache_cluster_available").wait(CacheClusterId="mc")
    eventually(lambda: "mc.0004" not in installation.records())


def test_lists_are_paged_and_whole(client: Any) -> None:
    groups = [f"page-{number:02}" for number in range(21)]
    for name in groups:
        client.create_cache_parameter_group(CacheParameterGroupName=name, CacheParameterGroupFamily="valkey8", Description="d")
    pages = list(client.get_paginator("describe_cache_parameter_groups").paginate(PaginationConfig={"PageSize": 20}))
    assert len(pages) > 1
    names = [g["CacheParameterGroupName"] for page in pages for g in page["CacheParameterGroups"]]
    assert len(names) == len(set(names))
    assert set(groups) <= set(names)
    for name in groups:
        client.delete_cache_parameter_group(CacheParameterGroupName=name)


def test_who_am_i(installation: Installation) -> None:
    assert installation.aws("sts", "get-caller-identity")["Arn"] == "arn:aws:iam::000000000000:root"


def test_an_unknown_key_is_refused(installation: Installation) -> None:
    env = installation.aws_environment()
    client = installation.client()
    client._request_signer._credentials.secret_key = "x" * 40
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.describe_cache_clusters()
    assert env["AWS_SECRET_ACCESS_KEY"] not in installation.narration()
