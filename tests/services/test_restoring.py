"""A new cache from a snapshot: what it takes over, and what is refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import Rig, refused

from cachekeep.model import Snapshot, SnapshotEnd


def snapshot(rig: Rig, name: str = "nightly", of: str = "demo", **changes: Any) -> None:
    """Taken; ``changes`` are of what was read of each shard."""
    rig.cache.create_snapshot(SnapshotName=name, ReplicationGroupId=of)
    rig.keep()

    async def change() -> None:
        async with rig.store.transaction() as tx:
            found = await tx.get(Snapshot, name)
            assert found is not None
            end = await tx.get(SnapshotEnd, found.uid)
            assert end is not None
            await tx.put(replace(end, holding="5e7", copies=tuple(replace(c, **changes) for c in end.copies)))

    rig.run(change())


def restore(rig: Rig, **more: Any) -> Any:
    params = {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d", "SnapshotName": "nightly"} | more
    return rig.cache.create_replication_group(**params)["ReplicationGroup"]


def test_what_the_request_leaves_open_is_the_snapshots(rig: Rig) -> None:
    rig.group(CacheNodeType="cache.m7g.large")
    snapshot(rig)
    restore(rig)
    wanted = rig.stored("new").wanted
    assert (wanted.engine, wanted.version, wanted.node_type) == ("valkey", "8.0", "cache.m7g.large")
    assert wanted.restore is not None
    assert wanted.restore.objects == {"0001": "0001.rdb"}
    assert wanted.restore.holding == "5e7"


@pytest.mark.parametrize("again", [False, True], ids=str)
def test_tls_and_users_are_asked_for_again(rig: Rig, again: bool) -> None:
    rig.cache.create_user(UserId="app", UserName="app", Engine="valkey", AccessString="on ~* +@all", Passwords=["p" * 16])
    rig.cache.create_user_group(UserGroupId="team", Engine="valkey", UserIds=["app"])
    shut: dict[str, Any] = {"TransitEncryptionEnabled": True, "UserGroupIds": ["team"]}
    rig.group(**shut)
    snapshot(rig)
    made = restore(rig, **(shut if again else {}))
    assert (made["TransitEncryptionEnabled"], made["UserGroupIds"]) == ((True, ["team"]) if again else (False, []))


def test_what_the_request_says_goes_first(rig: Rig) -> None:
    rig.group(Engine="redis", EngineVersion="7.0")
    snapshot(rig)
    restore(rig, Engine="valkey", CacheNodeType="cache.m7g.large", NumCacheClusters=3, Port=7000)
    wanted = rig.stored("new").wanted
    assert (wanted.engine, wanted.node_type, wanted.port) == ("valkey", "cache.m7g.large", 7000)
    assert len(wanted.shards[0].members) == 3


def test_a_cluster_has_the_layout_that_is_stored(rig: Rig) -> None:
    slots = ["0-99", "100-16383"]
    groups = [{"NodeGroupId": f"000{n}", "Slots": s, "ReplicaCount": 1} for n, s in zip((7, 8), slots, strict=True)]
    rig.group(NumCacheClusters=None, NodeGroupConfiguration=groups)
    snapshot(rig)
    restore(rig)
    shards = rig.stored("new").wanted.shards
    assert [(s.id, s.slots, len(s.members)) for s in shards] == [("0007", ((0, 99),), 2), ("0008", ((100, 16383),), 2)]
    backwards = [{"NodeGroupId": "0001", "Slots": slots[1]}, {"NodeGroupId": "0002", "Slots": slots[0]}]
    restore(rig, ReplicationGroupId="other", NodeGroupConfiguration=backwards, ReplicasPerNodeGroup=0)
    wanted = rig.stored("other").wanted
    assert wanted.restore is not None
    assert {s.id: (s.slots, wanted.restore.objects[s.id], len(s.members)) for s in wanted.shards} == {
        "0001": (((100, 16383),), "0008.rdb", 1),
        "0002": (((0, 99),), "0007.rdb", 1),
    }


@pytest.mark.parametrize(
    ("of", "params", "words"),
    [
        ({}, {"NumNodeGroups": 3}, "is restored into one node group"),
        ({"clustered": True}, {"NumNodeGroups": 3}, "has 2 node groups and cannot be restored into 3"),
        ({"clustered": True}, {"ClusterMode": "disabled"}, "ClusterMode"),
        (
            {"clustered": True},
            {"NodeGroupConfiguration": [{"Slots": "0-9"}, {"Slots": "10-16383"}]},
            "not those of snapshot nightly",
        ),
        ({}, {"Engine": "redis", "EngineVersion": "7.0"}, "cannot be restored into redis"),
        ({"EngineVersion": "9.1"}, {"EngineVersion": "8.0"}, "into the older 8.0"),
        ({"used_bytes": 1 << 30}, {"CacheNodeType": "cache.t3.micro"}, "Choose a larger node type"),
        ({"other_databases": (3,)}, {"ClusterMode": "enabled"}, "has keys in database 3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    rig: Rig, of: dict[str, Any], params: dict[str, Any], words: str
) -> None:
    read = {name: of[name] for name in ("used_bytes", "other_databases") if name in of}
    more = {"NumCacheClusters": None, "NumNodeGroups": 2} if of.get("clustered") else {}
    rig.group(**more, **({"EngineVersion": of["EngineVersion"]} if "EngineVersion" in of else {}))
    snapshot(rig, **read)
    params = {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d", "SnapshotName": "nightly"} | params
    error = refused(rig.cache.create_replication_group, **params)
    assert error.code == "InvalidParameterCombination"
    assert words in error.message
    assert [g["ReplicationGroupId"] for g in rig.cache.describe_replication_groups()["ReplicationGroups"]] == ["demo"]


def test_only_what_is_there_is_restored(rig: Rig) -> None:
    rig.group()
    assert refused(restore, rig=rig).code == "InvalidParameterValue"
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    error = refused(restore, rig=rig)
    assert (error.code, error.message) == (
        "InvalidParameterCombination",
        "Snapshot nightly is creating: one that is available can be restored.",
    )


DUMP = "arn:aws:s3:::dumps/of/a.rdb"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"SnapshotArns": [DUMP], "SnapshotName": "nightly"}, "InvalidParameterCombination"),
        ({"SnapshotArns": [DUMP, DUMP]}, "InvalidParameterCombination"),
        ({"SnapshotArns": [DUMP, DUMP], "NumNodeGroups": 2}, "InvalidParameterCombination"),
        ({"SnapshotArns": ["arn:aws:s3:::none/a.rdb"]}, "InvalidParameterValue"),
        ({"SnapshotArns": ["arn:aws:s3:::dumps/a,b.rdb"]}, "InvalidParameterValue"),
        ({"SnapshotArns": ["arn:aws:s3:::dumps/../b.rdb"]}, "InvalidParameterValue"),
        ({"SnapshotArns": ["dumps/a.rdb"]}, "InvalidParameterValue"),
    ],
)
def test_what_cannot_be_imported_is_refused(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.group()
    snapshot(rig)
    new = {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d", "Engine": "valkey", "CacheNodeType": "cache.t3.micro"}
    assert refused(rig.cache.create_replication_group, **(new | params)).code == code
    assert refused(rig.memcached, name="mem", SnapshotArns=[DUMP]).code == "InvalidParameterCombination"
    assert len(rig.cache.describe_cache_clusters()["CacheClusters"]) == 2


def test_plain_files_go_to_the_node_groups_in_their_order(rig: Rig) -> None:
    groups = [{"Slots": "0-99"}, {"Slots": "100-16383"}]
    rig.group("new", NumCacheClusters=None, NodeGroupConfiguration=groups, SnapshotArns=[DUMP, DUMP.replace("a.rdb", "b.rdb")])
    wanted = rig.stored("new").wanted
    assert wanted.restore is not None
    assert wanted.restore.objects == {"0001": "dumps/of/a.rdb", "0002": "dumps/of/b.rdb"}
    assert wanted.restore.holding == ""
