"""Tags of every kind of resource; DescribeEvents."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from tests.services.rig import SETTINGS, Rig, refused

from cachekeep.model import Tags
from cachekeep.services.elasticache.events import span


def listed(rig: Rig, kind: str, name: str) -> dict[str, str]:
    found = rig.cache.list_tags_for_resource(ResourceName=rig.arn(kind, name))["TagList"]
    return {tag["Key"]: tag["Value"] for tag in found}


def tags(**values: str) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in values.items()]


def test_tags_are_given_changed_and_taken_away(rig: Rig) -> None:
    rig.group(Tags=tags(a="1", b="2"))
    arn = rig.arn("replicationgroup", "demo")
    assert listed(rig, "replicationgroup", "DEMO") == {"a": "1", "b": "2"}
    answer = rig.cache.add_tags_to_resource(ResourceName=arn, Tags=tags(b="3", c=""))["TagList"]
    assert answer == tags(a="1", b="3", c="")
    assert rig.cache.remove_tags_from_resource(ResourceName=arn, TagKeys=["a", "c"])["TagList"] == tags(b="3")
    assert refused(rig.cache.remove_tags_from_resource, ResourceName=arn, TagKeys=["a"]).code == "TagNotFound"


def test_members_have_the_tags_of_their_group_and_their_own(rig: Rig) -> None:
    rig.group(Tags=tags(a="1", b="2"))
    rig.cache.add_tags_to_resource(ResourceName=rig.arn("cluster", "demo-001"), Tags=tags(b="own", c="3"))
    assert listed(rig, "cluster", "demo-001") == {"a": "1", "b": "own", "c": "3"}
    assert listed(rig, "cluster", "demo-002") == {"a": "1", "b": "2"}
    assert listed(rig, "replicationgroup", "demo") == {"a": "1", "b": "2"}


def test_tags_of_the_smaller_resources(rig: Rig) -> None:
    rig.cache.create_cache_parameter_group(
        CacheParameterGroupName="p", CacheParameterGroupFamily="valkey8", Description="d", Tags=tags(a="1")
    )
    rig.cache.create_cache_subnet_group(
        CacheSubnetGroupName="s", CacheSubnetGroupDescription="d", SubnetIds=[SETTINGS.subnet_id("us-east-1a")], Tags=tags(a="2")
    )
    rig.memcached(Tags=tags(a="3"))
    assert [listed(rig, *each)["a"] for each in (("parametergroup", "p"), ("subnetgroup", "s"), ("cluster", "mc"))] == [
        "1",
        "2",
        "3",
    ]
    assert listed(rig, "subnetgroup", "default") == {}
    assert listed(rig, "parametergroup", "default.valkey8") == {}


def test_tags_can_be_read_in_every_state(rig: Rig) -> None:
    rig.group(keep=False, Tags=tags(a="1"))
    assert listed(rig, "replicationgroup", "demo") == {"a": "1"}
    rig.keep()
    rig.cache.modify_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="n")
    assert listed(rig, "replicationgroup", "demo") == {"a": "1"}
    rig.cache.add_tags_to_resource(ResourceName=rig.arn("replicationgroup", "demo"), Tags=tags(b="2"))


def test_a_new_resource_has_nothing_of_its_name_sake(rig: Rig) -> None:
    rig.group(Tags=tags(a="1"))
    rig.cache.add_tags_to_resource(ResourceName=rig.arn("cluster", "demo-001"), Tags=tags(c="3"))
    rig.cache.delete_replication_group(ReplicationGroupId="demo")
    rig.keep()
    rig.group()
    assert listed(rig, "replicationgroup", "demo") == {}
    assert listed(rig, "cluster", "demo-001") == {}


def test_a_new_replica_has_nothing_of_an_old_one(rig: Rig) -> None:
    rig.group(NumCacheClusters=3)
    rig.cache.add_tags_to_resource(ResourceName=rig.arn("cluster", "demo-003"), Tags=tags(c="3"))
    rig.cache.decrease_replica_count(ReplicationGroupId="demo", NewReplicaCount=1, ApplyImmediately=True)
    rig.keep()
    rig.cache.increase_replica_count(ReplicationGroupId="demo", NewReplicaCount=2, ApplyImmediately=True)
    rig.keep()
    assert listed(rig, "cluster", "demo-003") == {}


def test_what_is_being_deleted_takes_no_tags_so_that_none_stay_behind(rig: Rig) -> None:
    rig.group(Tags=tags(a="1"))
    rig.memcached()
    rig.cache.delete_replication_group(ReplicationGroupId="demo")
    rig.cache.delete_cache_cluster(CacheClusterId="mc")
    for kind, name, code in (
        ("replicationgroup", "demo", "InvalidReplicationGroupState"),
        ("cluster", "demo-001", "CacheClusterNotFound"),
        ("cluster", "mc", "CacheClusterNotFound"),
    ):
        arn = rig.arn(kind, name)
        assert refused(rig.cache.add_tags_to_resource, ResourceName=arn, Tags=tags(b="2")).code == code
        assert refused(rig.cache.remove_tags_from_resource, ResourceName=arn, TagKeys=["a"]).code == code
        assert listed(rig, kind, name) == {}
    rig.keep()
    rig.group()
    assert listed(rig, "cluster", "demo-001") == {}


def test_a_replica_on_its_way_out_takes_no_tags(rig: Rig) -> None:
    rig.group(NumCacheClusters=3)
    rig.cache.decrease_replica_count(ReplicationGroupId="demo", NewReplicaCount=1, ApplyImmediately=True)
    told = refused(rig.cache.add_tags_to_resource, ResourceName=rig.arn("cluster", "demo-003"), Tags=tags(c="3"))
    assert (told.code, told.message) == (
        "CacheClusterNotFound",
        "Cache cluster demo-003 is either not present or not available: it is being deleted, and its tags with it.",
    )
    rig.cache.add_tags_to_resource(ResourceName=rig.arn("cluster", "demo-002"), Tags=tags(c="3"))


def test_the_members_of_a_node_group_that_goes_leave_no_tags(rig: Rig) -> None:
    rig.group(NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1, AutomaticFailoverEnabled=True)
    for shard in ("0001", "0002"):
        rig.cache.add_tags_to_resource(ResourceName=rig.arn("cluster", f"demo-{shard}-001"), Tags=tags(c=shard))
    reshard = rig.cache.modify_replication_group_shard_configuration
    reshard(ReplicationGroupId="demo", NodeGroupCount=1, NodeGroupsToRemove=["0002"], ApplyImmediately=True)
    rig.keep()
    reshard(ReplicationGroupId="demo", NodeGroupCount=2, ApplyImmediately=True)
    rig.keep()
    assert listed(rig, "cluster", "demo-0001-001") == {"c": "0001"}
    assert listed(rig, "cluster", "demo-0002-001") == {}


def test_tags_that_somehow_stayed_are_replaced(rig: Rig) -> None:
    async def leave() -> None:
        async with rig.store.transaction() as tx:
            await tx.put(Tags(name=rig.arn("replicationgroup", "demo"), values={"old": "1"}))

    rig.run(leave())
    rig.group(Tags=tags(new="2"))
    assert listed(rig, "replicationgroup", "demo") == {"new": "2"}


@pytest.mark.parametrize(
    ("arn", "code", "status"),
    [
        ("nonsense", "InvalidARN", 400),
        ("arn:aws:s3:us-east-1:000000000000:cluster:x", "InvalidARN", 400),
        ("arn:aws:elasticache:us-east-1:000000000000:planet:x", "InvalidARN", 400),
        ("arn:aws:elasticache:eu-west-1:000000000000:cluster:x", "InvalidARN", 400),
        ("arn:aws:elasticache:us-east-1:111111111111:cluster:x", "InvalidARN", 400),
        ("arn:aws:elasticache:us-east-1:000000000000:cluster:x", "CacheClusterNotFound", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:replicationgroup:x", "ReplicationGroupNotFoundFault", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:parametergroup:x", "CacheParameterGroupNotFound", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:subnetgroup:x", "CacheSubnetGroupNotFoundFault", 400),
        ("arn:aws:elasticache:us-east-1:000000000000:snapshot:x", "SnapshotNotFoundFault", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:user:x", "UserNotFound", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:usergroup:x", "UserGroupNotFound", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:serverlesscache:x", "ServerlessCacheNotFoundFault", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:securitygroup:x", "CacheSecurityGroupNotFound", 404),
        ("arn:aws:elasticache:us-east-1:000000000000:reserved-instance:x", "ReservedCacheNodeNotFound", 404),
        ("arn:aws:elasticache::000000000000:globalreplicationgroup:x", "GlobalReplicationGroupNotFoundFault", 404),
    ],
)
def test_bad_arns(rig: Rig, arn: str, code: str, status: int) -> None:
    for call, more in (
        (rig.cache.list_tags_for_resource, {}),
        (rig.cache.add_tags_to_resource, {"Tags": tags(a="1")}),
        (rig.cache.remove_tags_from_resource, {"TagKeys": ["a"]}),
    ):
        error = refused(call, ResourceName=arn, **more)
        assert (error.code, error.status) == (code, status)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([{"Key": "aws:a", "Value": "1"}], "InvalidParameterValue"),
        ([{"Key": "k" * 129, "Value": "1"}], "InvalidParameterValue"),
        ([{"Key": "k", "Value": "v" * 257}], "InvalidParameterValue"),
        ([{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}], "InvalidParameterValue"),
        ([{"Key": f"k{n}", "Value": ""} for n in range(50)], "TagQuotaPerResourceExceeded"),
    ],
    ids=["aws:", "long key", "long value", "twice", "fifty more"],
)
def test_bad_tags(rig: Rig, values: list[dict[str, str]], code: str) -> None:
    rig.group(Tags=tags(a="1"))
    error = refused(rig.cache.add_tags_to_resource, ResourceName=rig.arn("replicationgroup", "demo"), Tags=values)
    assert error.code == code
    assert listed(rig, "replicationgroup", "demo") == {"a": "1"}


# ------------------------------------------------------------------ events


def events(rig: Rig, **params: Any) -> list[str]:
    return [event["Message"] for event in rig.cache.describe_events(**params)["Events"]]


def make_group(rig: Rig, name: str) -> None:
    rig.cache.create_cache_parameter_group(CacheParameterGroupName=name, CacheParameterGroupFamily="valkey8", Description="d")


def test_the_newest_event_comes_first(rig: Rig) -> None:
    make_group(rig, "a")
    make_group(rig, "b")
    found = rig.cache.describe_events()["Events"]
    assert [e["SourceIdentifier"] for e in found] == ["b", "a"]
    assert found[0]["SourceType"] == "cache-parameter-group"
    assert abs(found[0]["Date"] - rig.clock.now()) < dt.timedelta(minutes=1)


def test_events_of_one_source(rig: Rig) -> None:
    make_group(rig, "a")
    make_group(rig, "b")
    rig.group(NumCacheClusters=1)
    rig.cache.increase_replica_count(ReplicationGroupId="demo", NewReplicaCount=1, ApplyImmediately=True)
    assert events(rig, SourceType="cache-parameter-group", SourceIdentifier="A") == ["Created cache parameter group a"]
    assert len(events(rig, SourceType="cache-parameter-group")) == 2
    assert events(rig, SourceType="replication-group") == ["Increasing number of requested nodes"]
    assert refused(rig.cache.describe_events, SourceIdentifier="a").code == "InvalidParameterCombination"
    assert refused(rig.cache.describe_events, SourceType="planet").code == "InvalidParameterValue"


def test_an_hour_is_told_unless_more_is_asked_for(rig: Rig) -> None:
    make_group(rig, "a")
    made = rig.clock.now()
    rig.clock.ahead = dt.timedelta(minutes=90)
    assert events(rig) == []
    assert len(events(rig, Duration=120)) == 1
    assert events(rig, Duration=30) == []
    assert len(events(rig, StartTime=made - dt.timedelta(minutes=5))) == 1
    assert len(events(rig, StartTime=made - dt.timedelta(minutes=5), Duration=10)) == 1
    assert events(rig, StartTime=made - dt.timedelta(minutes=50), Duration=10) == []
    assert len(events(rig, EndTime=made + dt.timedelta(minutes=5))) == 1
    assert events(rig, StartTime=made + dt.timedelta(minutes=1), EndTime=made + dt.timedelta(minutes=2)) == []
    rig.clock.ahead = dt.timedelta(days=15)
    assert events(rig, Duration=14 * 24 * 60) == []


@pytest.mark.parametrize(
    ("hours", "code"),
    [
        ({"StartTime": 2, "EndTime": 1}, "InvalidParameterValue"),
        ({"StartTime": 1, "EndTime": 2, "Duration": 5}, "InvalidParameterCombination"),
        ({"Duration": 0}, "InvalidParameterValue"),
        ({"Duration": 14 * 24 * 60 + 1}, "InvalidParameterValue"),
    ],
    ids=str,
)
def test_bad_spans(rig: Rig, hours: dict[str, int], code: str) -> None:
    day = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    params = {name: value if name == "Duration" else day + dt.timedelta(hours=value) for name, value in hours.items()}
    assert refused(rig.cache.describe_events, **params).code == code


@pytest.mark.parametrize("name", ["StartTime", "EndTime"])
@pytest.mark.parametrize("at", [dt.datetime.min, dt.datetime.max])
@pytest.mark.parametrize("more", [{}, {"Duration": 60}])
def test_times_at_the_ends_of_the_calendar(name: str, at: dt.datetime, more: dict[str, int]) -> None:
    """Found by trying any input."""
    now = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    begin, end = span({name: at.replace(tzinfo=dt.UTC)} | more, now, 14)
    assert now - dt.timedelta(days=16) < begin <= end


def test_pages_of_events(rig: Rig) -> None:
    for n in range(45):
        make_group(rig, f"g{n:02}")
    pages = list(rig.cache.get_paginator("describe_events").paginate(PaginationConfig={"PageSize": 20}))
    assert [len(page["Events"]) for page in pages] == [20, 20, 5]
    assert [e["SourceIdentifier"] for p in pages for e in p["Events"]] == [f"g{n:02}" for n in reversed(range(45))]
    assert "Marker" not in pages[-1]
