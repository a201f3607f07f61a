"""Cluster mode: nodes that start from a seeded nodes.conf agree by themselves, and a cluster client can use them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.engines.servers import PASSWORD, REDIS_LIKE, Server, build_of, cache_of, node_of, until
from valkey import Valkey
from valkey.cluster import ValkeyCluster

from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import Shard

SLOTS = [(0, 5460), (5461, 10922), (10923, 16383)]


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_three_shards_agree_without_being_introduced(engine: str, major: int, tmp_path: Path) -> None:
    build = build_of(engine, major)
    shards = tuple(
        Shard(id=f"{i:04}", primary=f"demo-{i:04}-001", slots=(s,), owned=(s,), epoch=i) for i, s in enumerate(SLOTS, start=1)
    )
    nodes = [
        msgspec.structs.replace(node_of(build, f"demo-{shard.id}-00{member}"), shard=shard.id)
        for shard in shards
        for member in (1, 2)
    ]
    cache = cache_of(*nodes, shards=shards, cluster_mode="enabled")
    running = [Server(build, cache, node, tmp_path / node.name) for node in nodes]
    try:
        for server in running:
            await asyncio.to_thread(server.start)
        admins = [
            Valkey(n.address, n.port, username="cachekeep-admin", password=PASSWORD.value, decode_responses=True) for n in nodes
        ]

        def agree() -> bool:
            infos = [a.execute_command("CLUSTER INFO") for a in admins]
            texts = [str(i) for i in infos]
            replicas = [a.info("replication") for a in admins[1::2]]
            good = all("ok" in t and "16384" in t for t in texts) and all(i["cluster_state"] == "ok" for i in infos)
            return good and all(r.get("master_link_status") == "up" for r in replicas)

        await until(agree)
        assert [a.info("replication")["role"] for a in admins] == ["master", "slave"] * 3
        assert [a.execute_command("CLUSTER MYID") for a in admins] == [cluster_node_id(cache, n) for n in nodes]
        client = ValkeyCluster(host=nodes[0].address, port=nodes[0].port)
        for number in range(50):
            client.set(f"k{number}", number)
        assert [client.get(f"k{number}") for number in range(50)] == [str(number).encode() for number in range(50)]
        client.close()
        for admin in admins:
            admin.close()
    finally:
        for server in running:
            server.kill()
