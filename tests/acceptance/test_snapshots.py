"""Snapshots of a real installation: taken while it serves, whole or not there when the control plane dies in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkey
from tests.acceptance.installation import Installation, eventually

BLOB = bytes(range(256)) * 4


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path, "--bucket", f"dumps={tmp_path / 'dumps'}")
    try:
        yield made.up()
    finally:
        made.close()


def group(aws: Any, name: str = "demo", **more: Any) -> None:
    settings = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro", "NumCacheClusters": 2} | more
    settings = {key: value for key, value in settings.items() if value is not None}
    aws.create_replication_group(ReplicationGroupId=name, ReplicationGroupDescription="d", **settings)
    available(aws, name)


def available(aws: Any, name: str = "demo") -> dict[str, Any]:
    def shown() -> Any:
        found = aws.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"][0]
        return found if found["Status"] == "available" else None

    return eventually(shown, seconds=120)


def client(aws: Any, name: str = "demo") -> valkey.Valkey:
    shown = available(aws, name)
    found = shown["NodeGroups"][0]["PrimaryEndpoint"]
    return valkey.Valkey(found["Address"], found["Port"], ssl=shown["TransitEncryptionEnabled"], ssl_cert_reqs="none")


def cluster(aws: Any, name: str = "demo") -> valkey.ValkeyCluster:
    found = available(aws, name)["ConfigurationEndpoint"]
    return valkey.ValkeyCluster(found["Address"], found["Port"])


def taken(aws: Any, name: str) -> dict[str, Any]:
    def shown() -> Any:
        found = aws.describe_snapshots(SnapshotName=name)["Snapshots"][0]
        assert found["SnapshotStatus"] in ("creating", "available"), found
        return found if found["SnapshotStatus"] == "available" else None

    return eventually(shown, seconds=120)


def test_a_group_begins_with_a_snapshot_of_another(installation: Installation) -> None:
    """More replicas, Valkey in place of Redis; what was written after the snapshot is not there."""
    aws = installation.client()
    group(aws, Engine="redis")
    with client(aws) as db:
        db.set("blob", BLOB)
        db.hset("hash", mapping={str(n): n for n in range(600)})
        db.expire("hash", 10_000)
        db.function_load("#!lua name=mine\nredis.register_function('one', function() return 1 end)")
        aws.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
        shown = taken(aws, "nightly")
        assert shown["NodeSnapshots"][0]["CacheSize"].endswith(" MB")
        db.flushall()
    verified = eventually(lambda: [s for s in json.loads(installation.run("snapshots", "--json").stdout) if s["at"]])
    assert [(s["name"], s["verified"], s["how"], s["keys"]) for s in verified] == [("nightly", True, "loaded", 2)]
    events = [e["Message"] for e in aws.describe_events(SourceType="replication-group", SourceIdentifier="demo")["Events"]]
    assert "Snapshot succeeded for snapshot with ID 'nightly' of replication group with ID 'demo'" in events
    group(aws, "again", SnapshotName="nightly", CacheNodeType=None, NumCacheClusters=3)
    with client(aws, "again") as db:
        assert db.get("blob") == BLOB
        assert db.hlen("hash") == 600
        assert 9000 < db.ttl("hash") <= 10_000
        assert db.fcall("one", 0) == 1
        assert db.dbsize() == 2
        assert db.wait(2, 60_000) == 2
    eventually(lambda: not list((installation.data_dir / "kept").iterdir()))


def test_a_cluster_comes_back_with_its_slots(installation: Installation) -> None:
    aws = installation.client()
    group(aws, NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
    with cluster(aws) as db:
        for number in range(500):
            db.set(f"key-{number}", number)
    aws.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    taken(aws, "nightly")
    aws.delete_replication_group(ReplicationGroupId="demo")
    group(aws, "again", SnapshotName="nightly", NumCacheClusters=None, ReplicasPerNodeGroup=0)
    with cluster(aws, "again") as db:
        assert [db.get(f"key-{number}") for number in range(500)] == [str(number).encode() for number in range(500)]


def delete_when_free(aws: Any, name: str) -> None:
    eventually(lambda: aws.describe_snapshots(SnapshotName=name)["Snapshots"][0]["SnapshotStatus"] == "available")
    aws.delete_snapshot(SnapshotName=name)


def manifests(installation: Installation) -> int:
    return len(list((installation.data_dir / "vault").glob("snapshots/*/manifest")))


def test_one_is_carried_on_when_the_control_plane_dies_and_leaves_nothing_when_it_is_deleted(installation: Installation) -> None:
    """Of a node that is spoken to by TLS."""
    aws = installation.client()
    group(aws, Engine="redis", NumCacheClusters=1, TransitEncryptionEnabled=True)
    with client(aws) as db:
        for number in range(1000):
            db.set(f"blob-{number}", BLOB)
    aws.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    installation.kill()
    assert manifests(installation) <= 1
    installation.up()
    aws = installation.client()
    taken(aws, "nightly")
    assert manifests(installation) == 1
    aws.delete_replication_group(ReplicationGroupId="demo")
    eventually(lambda: not aws.describe_replication_groups()["ReplicationGroups"], seconds=120)
    taken(aws, "nightly")
    aws.copy_snapshot(SourceSnapshotName="nightly", TargetSnapshotName="kept")
    taken(aws, "kept")
    aws.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="out/plain", TargetBucket="dumps")
    dump = installation.data_dir.parent / "dumps" / "out" / "plain-0001.rdb"
    eventually(dump.exists)
    assert dump.read_bytes().startswith(b"REDIS0")
    group(aws, "imported", NumCacheClusters=1, SnapshotArns=["arn:aws:s3:::dumps/out/plain-0001.rdb"])
    with client(aws, "imported") as db:
        assert db.dbsize() == 1000
        assert db.get("blob-999") == BLOB
    dump.write_bytes(dump.read_bytes()[:-1000])
    truncated = {"ReplicationGroupId": "bad", "SnapshotArns": ["arn:aws:s3:::dumps/out/plain-0001.rdb"], "Engine": "valkey"}
    aws.create_replication_group(ReplicationGroupDescription="d", CacheNodeType="cache.t3.micro", **truncated)
    bad = {"ReplicationGroupId": "bad"}
    eventually(lambda: aws.describe_replication_groups(**bad)["ReplicationGroups"][0]["Status"] == "create-failed", seconds=120)
    for name in ("nightly", "kept"):
        delete_when_free(aws, name)
    eventually(lambda: not aws.describe_snapshots()["Snapshots"])
    assert not list((installation.data_dir / "vault").glob("snapshots/*/*"))
