"""Clients of other languages, with their own defaults, write and read while a cluster changes: no error, no write lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.installation import Installation, available
from tests.clients import toolchain
from tests.clients.writing import Writing

SOURCE = toolchain.HERE / "writers"
OTHERS = "get: another value"
"""Redisson reads from replicas unless it is told otherwise: a reply may be older than what was just written."""


def compiled_go(place: Path) -> None:
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    toolchain.run("go", "build", "-o", "writers", ".", cwd=place, env=env, seconds=1200)


def installed_javascript(place: Path) -> None:
    toolchain.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=place)


def compiled_java(place: Path) -> None:
    toolchain.run("mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib", cwd=place, seconds=600)
    toolchain.run("javac", "-nowarn", "-cp", "lib/*", "Writers.java", cwd=place)


MADE = {"go": compiled_go, "javascript": installed_javascript, "java": compiled_java, "python": lambda place: None}
RUN = {
    "go": ("./writers",),
    "javascript": ("node", "writers.mjs"),
    "java": ("java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", ".:lib/*", "Writers"),
    "python": (sys.executable, "writers.py"),
}
LANGUAGES = [
    pytest.param("go", ("go-redis", "rueidis"), marks=toolchain.needs("go")),
    pytest.param("javascript", ("ioredis", "node-redis"), marks=toolchain.needs("node", "npm")),
    pytest.param("java", ("lettuce", "jedis", "redisson"), marks=toolchain.needs("java", "javac", "mvn")),
    pytest.param("python", ("redis-py", "valkey-py")),
]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One that gives stale clients as long as it does by default."""
    made = Installation(tmp_path_factory.mktemp("ck-writers"), "--linger-seconds", "35")
    try:
        yield made.up()
    finally:
        made.close()


@toolchain.slow
@pytest.mark.parametrize(("language", "clients"), LANGUAGES)
def test_nothing_that_is_planned_makes_an_error(
    patient: Installation, language: str, clients: tuple[str, ...], tmp_path: Path
) -> None:
    """3 → 2 shards, 2 → 3, a newer version, one replica more and one less."""
    sources = {path.name: path.read_bytes() for path in (SOURCE / language).iterdir() if path.is_file()}
    program = toolchain.made_once(f"writers-{language}", sources, MADE[language])
    api, name = patient.client(), f"w-{language}"
    api.create_replication_group(
        ReplicationGroupId=name,
        ReplicationGroupDescription=name,
        Engine="valkey",
        EngineVersion="9.0",
        CacheNodeType="cache.t3.micro",
        NumNodeGroups=3,
        ReplicasPerNodeGroup=1,
        AutomaticFailoverEnabled=True,
    )
    group = available(api, name)
    endpoint = group["ConfigurationEndpoint"]["Address"]
    writing = [Writing(c, RUN[language], "cluster", endpoint, program=program, place=tmp_path) for c in clients]
    try:
        for client in writing:
            client.start()
        last = group["NodeGroups"][-1]["NodeGroupId"]
        shards = {"ReplicationGroupId": name, "ApplyImmediately": True}
        api.modify_replication_group_shard_configuration(NodeGroupCount=2, NodeGroupsToRemove=[last], **shards)
        available(api, name)
        api.modify_replication_group_shard_configuration(NodeGroupCount=3, **shards)
        available(api, name)
        api.modify_replication_group(ReplicationGroupId=name, EngineVersion="9.1", ApplyImmediately=True)
        available(api, name)
        api.increase_replica_count(NewReplicaCount=2, **shards)
        available(api, name)
        api.decrease_replica_count(NewReplicaCount=1, **shards)
        available(api, name)
        felt = [client.stop() for client in writing]
    finally:
        for client in writing:
            client.kill()
    nodes = patient.status(name)["nodes"]
    primaries = [n["endpoint"].rpartition(":")[0] for n in nodes if n["role"] == "primary"]
    for each in felt:
        print(each)
        assert len(each.keys) > 100, "it hardly wrote"
        assert each.lost(primaries) == []
        assert set(each.errors) <= {OTHERS} if each.client == "redisson" else not each.errors, str(each)
