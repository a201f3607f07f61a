"""What breaks, comes back: the control plane in the middle of its work, an engine under its clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import valkey
from tests.acceptance.installation import Installation, available, created, eventually, kill

GROUPS = [f"g{number:02}" for number in range(10)]


def test_the_control_plane_is_killed_while_it_creates_ten_groups(another: Callable[..., Installation]) -> None:
    one = another().up()
    client = one.client(retries={"max_attempts": 10, "mode": "standard"})
    where = created(client, "first", NumCacheClusters=1)["NodeGroups"][0]["PrimaryEndpoint"]
    connected = valkey.Valkey(where["Address"], where["Port"], single_connection_client=True)
    connection = connected.client_id()
    for name in GROUPS:
        client.create_replication_group(
            ReplicationGroupId=name,
            ReplicationGroupDescription=name,
            Engine="valkey",
            CacheNodeType="cache.t3.micro",
            NumCacheClusters=2,
        )
    for round in range(3):
        eventually(lambda at=2 * round + 2: len(one.pids()) >= at, what="some engines")
        one.kill()
        running = one.pids()
        connected.set("round", round)
        one.up()
        assert running.items() <= one.pids().items(), "what ran before is what runs now"
    for name in GROUPS:
        group = available(client, name)
        assert [m["CurrentRole"] for m in group["NodeGroups"][0]["NodeGroupMembers"]] == ["primary", "replica"]
    assert connected.client_id() == connection, "the same connection all along"
    assert len(one.pids()) == 1 + 2 * len(GROUPS)
    assert one.processes() == set(one.pids().values()), "nothing was started twice, and nothing runs that no record names"
    assert all(record.incarnation == 1 for record in one.records().values()), "nothing had to be started again"


def test_a_killed_primary_is_succeeded_and_told_of(installation: Installation, client: Any) -> None:
    group = created(client, "struck", NumCacheClusters=2, AutomaticFailoverEnabled=True)
    where = group["NodeGroups"][0]["PrimaryEndpoint"]
    endpoint = valkey.Valkey(where["Address"], where["Port"], decode_responses=True)
    endpoint.set("kept", "1")
    assert endpoint.execute_command("WAIT", 1, 5000) == 1
    kill(installation.pids()["struck-001"])

    def writes() -> bool:
        try:
            return bool(endpoint.set("new", "1"))
        except (valkey.ConnectionError, valkey.ReadOnlyError):
            return False

    eventually(writes)
    assert endpoint.get("kept") == "1"
    group = available(client, "struck")
    eventually(
        lambda: [n["in_sync"] for n in installation.status("struck")["nodes"] if n["name"] == "struck-001"] == [True],
        what="the old primary is a replica in sync",
    )
    roles = {n["name"]: n["role"] for n in installation.status("struck")["nodes"]}
    assert roles == {"struck-001": "replica", "struck-002": "primary"}
    eventually(lambda: any("struck-002" in message for message in _told(client, "ailover", Duration=60)))
    client.delete_replication_group(ReplicationGroupId="struck")
    client.get_waiter("replication_group_deleted").wait(ReplicationGroupId="struck")


def _told(client: Any, part: str, **asked: Any) -> list[str]:
    """Events with these words. What is decided in the middle of a failover is stored a moment later (decision 9)."""
    return [e["Message"] for e in client.describe_events(**asked)["Events"] if part in e["Message"]]


def test_a_killed_lone_node_is_started_again(installation: Installation, client: Any) -> None:
    client.create_cache_cluster(CacheClusterId="lone", Engine="valkey", NumCacheNodes=1, CacheNodeType="cache.t3.micro")
    client.get_waiter("cache_cluster_available").wait(CacheClusterId="lone")
    before = installation.pids()["lone"]
    kill(before)
    eventually(lambda: installation.pids().get("lone", before) != before)
    client.get_waiter("cache_cluster_available").wait(CacheClusterId="lone")
    (node,) = client.describe_cache_clusters(CacheClusterId="lone", ShowCacheNodeInfo=True)["CacheClusters"][0]["CacheNodes"]
    eventually(lambda: valkey.Valkey(node["Endpoint"]["Address"], node["Endpoint"]["Port"]).ping())
    eventually(lambda: _told(client, "Recovering", SourceIdentifier="lone", SourceType="cache-cluster"))
    eventually(lambda: _told(client, "Finished recovery", SourceIdentifier="lone", SourceType="cache-cluster"))
    client.delete_cache_cluster(CacheClusterId="lone")
    client.get_waiter("cache_cluster_deleted").wait(CacheClusterId="lone")
