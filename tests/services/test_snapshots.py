"""Snapshots as clients see them: taken, told of, deleted; which keeper has taken one, and what has become of the cache."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import Rig, refused

from cachekeep.model import UNKNOWN, Failed, Job, Snapshot, SnapshotEnd


def show(rig: Rig, name: str = "nightly", **more: Any) -> dict[str, Any]:
    return rig.cache.describe_snapshots(SnapshotName=name, **more)["Snapshots"][0]


def test_a_group_is_snapshotting_until_its_snapshot_is_there(rig: Rig) -> None:
    rig.group()
    told = rig.cache.create_snapshot(SnapshotName="Nightly", ReplicationGroupId="demo")["Snapshot"]
    assert (told["SnapshotName"], told["SnapshotStatus"], told["SnapshotSource"]) == ("nightly", "creating", "manual")
    assert rig.show()["Status"] == "snapshotting"
    rig.keep()
    shown = show(rig)
    assert shown["SnapshotStatus"] == "available"
    assert rig.show()["Status"] == "available"
    assert shown["ReplicationGroupId"] == "demo"
    assert [n["CacheSize"] for n in shown["NodeSnapshots"]] == ["3 MB"]
    assert shown["ARN"] == rig.arn("snapshot", "nightly")


def test_all_shards_are_in_the_snapshot_of_a_cluster(rig: Rig) -> None:
    rig.group(NumCacheClusters=None, NumNodeGroups=3, ReplicasPerNodeGroup=1)
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    rig.keep()
    shown = show(rig)
    assert shown["NumNodeGroups"] == 3
    assert [n["NodeGroupId"] for n in shown["NodeSnapshots"]] == ["0001", "0002", "0003"]
    assert "NodeGroupConfiguration" not in shown["NodeSnapshots"][0]
    slots = [n["NodeGroupConfiguration"]["Slots"] for n in show(rig, ShowNodeGroupConfig=True)["NodeSnapshots"]]
    assert slots[0].startswith("0-")
    assert slots[2].endswith("-16383")
    error = refused(rig.cache.create_snapshot, SnapshotName="other", CacheClusterId="demo-0001-001")
    assert error.code == "InvalidParameterCombination"
    assert "ReplicationGroupId" in error.message


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"ReplicationGroupId": "none"}, "ReplicationGroupNotFoundFault"),
        ({"CacheClusterId": "none"}, "CacheClusterNotFound"),
        ({"CacheClusterId": "mc"}, "SnapshotFeatureNotSupportedFault"),
        ({"ReplicationGroupId": "demo", "CacheClusterId": "one"}, "InvalidParameterCombination"),
        ({}, "InvalidParameterCombination"),
        ({"ReplicationGroupId": "demo", "SnapshotName": "there"}, "SnapshotAlreadyExistsFault"),
        ({"ReplicationGroupId": "demo", "SnapshotName": "a--b"}, "InvalidParameterValue"),
        ({"ReplicationGroupId": "new"}, "InvalidReplicationGroupState"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_leaves_nothing(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.group(), rig.memcached(), rig.single()
    rig.cache.create_snapshot(SnapshotName="there", CacheClusterId="one")
    rig.keep()
    rig.group("new", keep=False)
    assert refused(rig.cache.create_snapshot, **({"SnapshotName": "nightly"} | params)).code == code
    assert [s["SnapshotName"] for s in rig.cache.describe_snapshots()["Snapshots"]] == ["there"]


def test_one_is_taken_at_a_time_and_twenty_a_day(rig: Rig) -> None:
    rig.group()
    for number in range(20):
        rig.cache.create_snapshot(SnapshotName=f"s{number}", ReplicationGroupId="demo", CacheClusterId="demo-002")
        assert (
            refused(rig.cache.create_snapshot, SnapshotName="two", ReplicationGroupId="demo").code == "InvalidReplicationGroupState"
        )
        rig.keep()
    error = refused(rig.cache.create_snapshot, SnapshotName="more", ReplicationGroupId="demo")
    assert error.code == "SnapshotQuotaExceededFault"
    assert error.message == "The maximum number of manual snapshots for this cluster taken within 24 hours has been reached"
    rig.clock.ahead += dt.timedelta(days=1, seconds=1)
    rig.cache.create_snapshot(SnapshotName="more", ReplicationGroupId="demo")


def test_a_manual_snapshot_outlives_its_cache_and_an_automatic_one_does_not(rig: Rig) -> None:
    rig.single()
    for name in ("nightly", "daily"):
        rig.cache.create_snapshot(SnapshotName=name, CacheClusterId="one")
        rig.keep()

    async def automatic() -> None:
        async with rig.store.transaction() as tx:
            found = await tx.get(Snapshot, "daily")
            assert found is not None
            await tx.put(replace(found, source="automated"))

    rig.run(automatic())
    assert [s["SnapshotName"] for s in rig.cache.describe_snapshots(SnapshotSource="system")["Snapshots"]] == ["daily"]
    rig.cache.delete_cache_cluster(CacheClusterId="one")
    rig.keep()
    assert show(rig)["SnapshotStatus"] == "available"
    assert show(rig, "daily")["SnapshotStatus"] == "deleting"
    assert [s["SnapshotName"] for s in rig.cache.describe_snapshots(CacheClusterId="one")["Snapshots"]] == ["daily", "nightly"]


def test_a_snapshot_fails_with_its_cache(rig: Rig) -> None:
    rig.single()
    rig.cache.create_snapshot(SnapshotName="nightly", CacheClusterId="one")
    rig.cache.delete_cache_cluster(CacheClusterId="one")
    assert show(rig)["SnapshotStatus"] == "failed"

    async def end() -> SnapshotEnd | None:
        async with rig.store.reading() as tx:
            found = await tx.get(Snapshot, "nightly")
            return await tx.get(SnapshotEnd, found.uid) if found else None

    found = rig.run(end())
    assert found is not None
    assert found.problem == "one was deleted while it was being taken"


def test_a_snapshot_is_deleted_once_it_is_there(rig: Rig) -> None:
    rig.group()
    tags = [{"Key": "k", "Value": "v"}]
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo", Tags=tags)
    assert refused(rig.cache.delete_snapshot, SnapshotName="nightly").code == "InvalidSnapshotState"
    rig.keep()
    arn = rig.arn("snapshot", "nightly")
    assert rig.cache.list_tags_for_resource(ResourceName=arn)["TagList"] == tags
    assert rig.cache.delete_snapshot(SnapshotName="NIGHTLY")["Snapshot"]["SnapshotStatus"] == "deleting"
    assert refused(rig.cache.list_tags_for_resource, ResourceName=arn).code == "SnapshotNotFoundFault"
    assert refused(rig.cache.delete_snapshot, SnapshotName="nightly").code == "InvalidSnapshotState"
    assert refused(rig.cache.delete_snapshot, SnapshotName="none").code == "SnapshotNotFoundFault"


@pytest.mark.parametrize(("days", "code"), [(36, "InvalidParameterValue"), (-1, "InvalidParameterValue")])
def test_automatic_snapshots_are_kept_for_35_days_at_most(rig: Rig, days: int, code: str) -> None:
    assert refused(rig.group, SnapshotRetentionLimit=days).code == code
    assert refused(rig.memcached, SnapshotRetentionLimit=1).code == "InvalidParameterCombination"
    rig.memcached(SnapshotRetentionLimit=0)
    rig.group(SnapshotRetentionLimit=35)
    assert rig.show()["SnapshotRetentionLimit"] == 35


@pytest.mark.parametrize(
    ("asked", "kept"), [("demo-002", "demo-002"), ("DEMO-001", "demo-001"), ("demo-009", None), ("demo-0001-001", None)]
)
def test_automatic_snapshots_are_read_from_a_member(rig: Rig, asked: str, kept: str | None) -> None:
    rig.group()
    change = {"ReplicationGroupId": "demo", "SnapshottingClusterId": asked}
    if kept is None:
        assert refused(rig.cache.modify_replication_group, **change).code == "InvalidParameterValue"
    else:
        rig.cache.modify_replication_group(**change)
    assert rig.show().get("SnapshottingClusterId") == kept


def test_terraform_turns_automatic_snapshots_on(rig: Rig) -> None:
    """It names the member that it takes for the first, also where that has gone, or, in cluster mode, has never been."""
    rig.group(NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
    rig.cache.modify_replication_group(
        ReplicationGroupId="demo", ApplyImmediately=True, SnapshotRetentionLimit=5, SnapshottingClusterId="demo-001"
    )
    assert rig.show()["SnapshotRetentionLimit"] == 5


def test_what_is_deleted_with_a_last_snapshot_goes_when_that_is_there(rig: Rig) -> None:
    rig.group()
    deleted = {"ReplicationGroupId": "demo", "FinalSnapshotIdentifier": "Last"}
    assert rig.cache.delete_replication_group(**deleted)["ReplicationGroup"]["Status"] == "deleting"
    assert rig.show()["Status"] == "deleting"
    assert show(rig, "last")["SnapshotStatus"] == "creating"
    cache = rig.stored("demo")
    assert not cache.ending
    (errand,) = cache.errands_left
    assert errand.nodes == ("demo-001",)  # from the primary
    assert refused(rig.cache.delete_replication_group, ReplicationGroupId="demo").code == "InvalidReplicationGroupState"
    rig.keep()
    assert refused(rig.show).code == "ReplicationGroupNotFoundFault"
    assert show(rig, "last")["SnapshotStatus"] == "available"


def test_what_lacks_its_last_snapshot_may_be_deleted_again(rig: Rig) -> None:
    rig.single()
    rig.cache.delete_cache_cluster(CacheClusterId="one", FinalSnapshotIdentifier="last")
    cache = rig.stored("one")
    job = Job(id="errand-1", work=cache.errands_left[0], began_at=UNKNOWN, deadline_seconds=1.0, state=Failed("the vault is full"))
    rig.run(rig.keeper.save(replace(cache, decided=replace(cache.decided, jobs=(job,)))))
    assert not rig.stored("one").ending
    assert refused(rig.cache.delete_cache_cluster, CacheClusterId="one", FinalSnapshotIdentifier="last").code
    rig.cache.delete_cache_cluster(CacheClusterId="one")
    assert rig.stored("one").ending


@pytest.mark.parametrize(
    ("call", "params", "code"),
    [
        ("delete_replication_group", {"RetainPrimaryCluster": True}, "InvalidParameterCombination"),
        ("delete_cache_cluster", {"CacheClusterId": "demo-002"}, "InvalidParameterCombination"),
        ("delete_cache_cluster", {"CacheClusterId": "mc"}, "SnapshotFeatureNotSupportedFault"),
        (
            "delete_replication_group",
            {"ReplicationGroupId": "demo", "FinalSnapshotIdentifier": "there"},
            "SnapshotAlreadyExistsFault",
        ),
        ("delete_replication_group", {"FinalSnapshotIdentifier": "-"}, "InvalidParameterValue"),
    ],
)
def test_a_last_snapshot_that_cannot_be_is_refused_and_nothing_is_deleted(
    rig: Rig, call: str, params: dict[str, Any], code: str
) -> None:
    rig.group(), rig.memcached()
    rig.cache.create_snapshot(SnapshotName="there", ReplicationGroupId="demo")
    rig.keep()
    of = {"ReplicationGroupId": "demo"} if "group" in call else {}
    assert refused(getattr(rig.cache, call), **({"FinalSnapshotIdentifier": "last"} | of | params)).code == code
    assert not rig.stored("demo").wanted.deleted
    assert not rig.stored("mc").wanted.deleted


def test_a_copy_is_a_manual_snapshot_of_its_own(rig: Rig) -> None:
    rig.group()
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    copied = {"SourceSnapshotName": "nightly", "TargetSnapshotName": "Kept"}
    assert refused(rig.cache.copy_snapshot, **copied).code == "InvalidSnapshotState"
    rig.keep()
    told = rig.cache.copy_snapshot(**copied)["Snapshot"]
    assert (told["SnapshotName"], told["SnapshotStatus"], told["SnapshotSource"]) == ("kept", "creating", "manual")
    assert show(rig)["SnapshotStatus"] == "copying"
    assert refused(rig.cache.delete_snapshot, SnapshotName="nightly").code == "InvalidSnapshotState"
    assert refused(rig.cache.copy_snapshot, **copied).code == "SnapshotAlreadyExistsFault"
    assert refused(rig.cache.copy_snapshot, SourceSnapshotName="none", TargetSnapshotName="x").code == "SnapshotNotFoundFault"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"TargetBucket": "none"}, "the buckets of this endpoint are dumps"),
        ({"TargetSnapshotName": "../up"}, "Invalid value ../up"),
        ({"TargetSnapshotName": "a//b"}, "Invalid value a//b"),
        ({"TargetSnapshotName": "/etc/a"}, "Invalid value /etc/a"),
        ({"Tags": [{"Key": "k", "Value": "v"}]}, "Tags cannot be used"),
    ],
)
def test_what_cannot_be_exported_is_refused(rig: Rig, params: dict[str, Any], words: str) -> None:
    rig.group()
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    rig.keep()
    exported = {"SourceSnapshotName": "nightly", "TargetSnapshotName": "out/nightly.1", "TargetBucket": "dumps"}
    assert words in refused(rig.cache.copy_snapshot, **(exported | params)).message
    rig.cache.copy_snapshot(**exported)
    assert show(rig)["SnapshotStatus"] == "copying"


def test_what_is_being_restored_stays(rig: Rig) -> None:
    rig.group()
    rig.cache.create_snapshot(SnapshotName="nightly", ReplicationGroupId="demo")
    rig.keep()
    rig.cache.create_replication_group(ReplicationGroupId="new", ReplicationGroupDescription="d", SnapshotName="nightly")
    assert show(rig)["SnapshotStatus"] == "restoring"
    assert refused(rig.cache.delete_snapshot, SnapshotName="nightly").code == "InvalidSnapshotState"
    rig.keep()
    assert show(rig)["SnapshotStatus"] == "available"
    rig.cache.delete_snapshot(SnapshotName="nightly")
