"""Every call is on record, as CloudTrail tells it, and without a secret."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, SETTINGS, Rig, refused
from tests.services.test_enforced import Bob

from cachekeep.audit import lookup
from cachekeep.audit.trail import NotRecorded, Trail
from cachekeep.services import SERVICES
from cachekeep.wire.audit import HIDDEN, Auditor, secrets_of, shown
from cachekeep.wire.model import catalogue, service_model

NODE = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro"}


class Audited(Rig):
    """An endpoint that records."""

    def __init__(self, directory: Path, most: int = 1 << 24, **more: Any) -> None:
        self.trails = Trail("known", directory / "known", most), Trail("strangers", directory / "strangers", most)
        for trail in self.trails:
            trail.open()
        super().__init__(replace(SETTINGS, trails=self.trails), **more)
        self.gateway._auditor = Auditor(*self.trails, self.clock)
        self.gateway._changes, self.gateway._identify = self.services.changes, self.services.identify
        self.trail = self.client("cloudtrail")

    def close(self) -> None:
        super().close()
        for trail in self.trails:
            trail.close()

    def events(self, key: str = "", value: str = "", **more: Any) -> list[dict[str, Any]]:
        """All pages."""
        if key:
            more["LookupAttributes"] = [{"AttributeKey": key, "AttributeValue": value}]
        pages = self.trail.get_paginator("lookup_events").paginate(**more)
        return [event for page in pages for event in page["Events"]]

    def records(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(event["CloudTrailEvent"]) for event in self.events("EventName", name)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Audited]:
    rig = Audited(tmp_path, auth="enforce")
    yield rig
    rig.close()


@pytest.fixture
def bob(rig: Audited) -> Bob:
    return Bob(rig)


def test_a_change_is_on_record(rig: Audited, bob: Bob) -> None:
    bob.may({})
    bob.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    (found,) = rig.records("CreateCacheCluster")
    user_id = bob.iam.get_user(UserName="Bob")["User"]["UserId"]
    assert found["userIdentity"] == {
        "type": "IAMUser",
        "principalId": user_id,
        "arn": f"arn:aws:iam::{ACCOUNT}:user/Bob",
        "accountId": ACCOUNT,
        "accessKeyId": bob.key["AccessKeyId"],
        "userName": "Bob",
    }
    assert found["eventVersion"] == "1.11"
    assert (found["eventSource"], found["awsRegion"], found["sourceIPAddress"]) == (
        "elasticache.amazonaws.com",
        "us-east-1",
        "127.0.0.1",
    )
    assert "Boto3" in found["userAgent"]
    assert found["requestParameters"] == {"cacheClusterId": "one", "engine": "valkey", "cacheNodeType": "cache.t3.micro"}
    assert found["responseElements"]["cacheCluster"]["cacheClusterStatus"] == "creating"
    assert found["readOnly"] is False
    assert found["additionalEventData"]["durationMilliseconds"] > 0
    assert found["resources"] == [
        {
            "ARN": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:one",
            "accountId": ACCOUNT,
            "type": "AWS::ElastiCache::CacheCluster",
        }
    ]
    assert (found["eventType"], found["managementEvent"], found["eventCategory"]) == ("AwsApiCall", True, "Management")
    assert found["recipientAccountId"] == ACCOUNT


def test_each_request_is_one_line_with_its_id(rig: Audited) -> None:
    ids = [rig.cache.describe_cache_clusters()["ResponseMetadata"]["RequestId"] for _ in range(3)]
    ids.append(rig.cache.create_cache_cluster(CacheClusterId="one", **NODE)["ResponseMetadata"]["RequestId"])
    assert [json.loads(each["CloudTrailEvent"])["requestID"] for each in rig.events()][:4] == ids[::-1]
    assert rig.records("DescribeCacheClusters")[0]["responseElements"] is None
    assert len({event["EventId"] for event in rig.events()}) == len(rig.events()) - 1


def test_who_is_refused_is_on_record(rig: Audited, bob: Bob) -> None:
    error = refused(bob.cache.delete_cache_cluster, CacheClusterId="one")
    (found,) = rig.records("DeleteCacheCluster")
    assert (found["errorCode"], found["errorMessage"]) == ("AccessDenied", error.message)
    assert (found["userIdentity"]["userName"], found["responseElements"]) == ("Bob", None)
    assert found["resources"][0]["ARN"].endswith(":cluster:one")


def test_what_cannot_be_read_is_on_record_with_who_sent_it(rig: Audited, bob: Bob) -> None:
    refused(bob.cache.delete_cache_cluster)
    refused(bob.cache.purchase_reserved_cache_nodes_offering, ReservedCacheNodesOfferingId="x")
    for name in ("DeleteCacheCluster", "PurchaseReservedCacheNodesOffering"):
        (found,) = rig.records(name)
        assert found["userIdentity"]["userName"] == "Bob"
        assert found["errorCode"] != "InternalFailure"
    assert len(rig.events("Username", "Bob")) == 2


def test_a_stranger_is_on_record_and_pushes_out_nobody(tmp_path: Path) -> None:
    rig = Audited(tmp_path, 1 << 16, auth="enforce")
    rig.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    wrong = rig.client_of("elasticache", "AKIDEXAMPLE", "not the secret")
    for _ in range(200):
        assert refused(wrong.create_cache_cluster, CacheClusterId="two", **NODE).code == "SignatureDoesNotMatch"
    for trail in rig.trails:
        trail.settle(60)
    found = rig.records("CreateCacheCluster")
    theirs = [each for each in found if "errorCode" in each]
    assert len(found) == len(theirs) + 1  # the root's own is still there
    assert 0 < len(theirs) < 200  # and the oldest of the strangers' are gone
    assert theirs[0]["errorCode"] == "SignatureDoesNotMatch"
    assert theirs[0]["userIdentity"] == {"type": "Unknown", "accessKeyId": "AKIDEXAMPLE"}
    assert theirs[0]["requestParameters"] is None
    rig.close()


# ------------------------------------------------------------------ LookupEvents


def test_all_attributes(rig: Audited, bob: Bob) -> None:
    bob.may({})
    bob.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    (event,) = rig.events("EventName", "CreateCacheCluster")
    assert event["Resources"] == [{"ResourceType": "AWS::ElastiCache::CacheCluster", "ResourceName": "one"}]
    assert (event["Username"], event["ReadOnly"], event["AccessKeyId"]) == ("Bob", "false", bob.key["AccessKeyId"])
    for key, value in (
        ("EventId", event["EventId"]),
        ("EventSource", "elasticache.amazonaws.com"),
        ("AccessKeyId", bob.key["AccessKeyId"]),
        ("Username", "Bob"),
        ("ResourceType", "AWS::ElastiCache::CacheCluster"),
        ("ResourceName", "one"),
    ):
        assert rig.events(key, value) == [event], key
        assert rig.events(key, value + "x") == [], key
    assert event in rig.events("ReadOnly", "false")
    assert event not in rig.events("ReadOnly", "true")
    assert {each["Username"] for each in rig.events("EventName", "CreateUser")} == {"root"}


def test_pages_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Audited(tmp_path)  # signatures would be old for the clock of this test
    for number in range(5):
        refused(rig.cache.delete_cache_cluster, CacheClusterId=f"c{number}")
        rig.clock.passed += dt.timedelta(minutes=1)
    about = {"LookupAttributes": [{"AttributeKey": "EventName", "AttributeValue": "DeleteCacheCluster"}]}
    first = rig.trail.lookup_events(MaxResults=2, **about)
    second = rig.trail.lookup_events(MaxResults=2, NextToken=first["NextToken"], **about)
    names = [event["Resources"][0]["ResourceName"] for page in (first, second) for event in page["Events"]]
    assert names == ["c4", "c3", "c2", "c1"]
    at = second["Events"][0]["EventTime"]
    assert [e["Resources"][0]["ResourceName"] for e in rig.events(StartTime=at, EndTime=at, **about)] == ["c2"]
    monkeypatch.setattr(lookup, "READ_BYTES_MAX", 1)
    short = rig.trail.lookup_events(LookupAttributes=[{"AttributeKey": "Username", "AttributeValue": "nobody"}])
    assert (short["Events"], "NextToken" in short) == ([], True)
    assert len(rig.events("EventName", "DeleteCacheCluster")) == 5
    rig.clock.passed += dt.timedelta(days=lookup.KEPT_DAYS)
    assert rig.events("EventName", "DeleteCacheCluster") == []
    rig.close()


def test_what_is_refused(rig: Audited, bob: Bob) -> None:
    look = rig.trail.lookup_events
    one = {"AttributeKey": "EventName", "AttributeValue": "x"}
    assert refused(look, LookupAttributes=[one, one]).code == "InvalidLookupAttributesException"
    now = dt.datetime.now(dt.UTC)
    assert refused(look, StartTime=now, EndTime=now - dt.timedelta(1)).code == "InvalidTimeRangeException"
    for token in ("x", "5b5d", "5b5b5b2d312c305d2c6e756c6c5d5d"):
        assert refused(look, NextToken=token).code == "InvalidNextTokenException"
    assert look(EventCategory="insight")["Events"] == []
    assert refused(bob.client("cloudtrail").lookup_events).code == "AccessDeniedException"
    bob.may({"Action": "cloudtrail:LookupEvents"})
    bob.client("cloudtrail").lookup_events()


# ------------------------------------------------------------------ no record, no change


def test_a_change_that_cannot_be_recorded_is_not_made(rig: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise NotRecorded("No space left on device")

    monkeypatch.setattr(rig.trails[0], "check", check)
    error = refused(rig.cache.create_cache_cluster, CacheClusterId="one", **NODE)
    assert (error.code, error.status) == ("ServiceUnavailable", 503)
    assert "nothing was changed" in error.message
    assert rig.cache.describe_cache_clusters()["CacheClusters"] == []  # reads are answered
    monkeypatch.undo()
    rig.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    made, *kept_out = rig.records("CreateCacheCluster")  # boto3 tried twice
    assert "errorCode" not in made
    assert {each["errorCode"] for each in kept_out} == {"ServiceUnavailable"}


def test_who_made_a_change_is_told_when_its_record_is_late(rig: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(text: bytes) -> None:
        raise NotRecorded("it takes nothing", kept=True)

    monkeypatch.setattr(rig.trails[0], "write", write)
    error = refused(rig.cache.create_cache_cluster, CacheClusterId="one", **NODE)
    assert (error.code, "The change was made" in error.message) == ("ChangeNotRecorded", True)
    assert len(rig.cache.describe_cache_clusters()["CacheClusters"]) == 1


# ------------------------------------------------------------------ no secret


def test_no_secret_is_on_record(rig: Audited, tmp_path: Path) -> None:
    token = "verysecretauthtoken123"
    refused(
        rig.cache.create_replication_group,
        ReplicationGroupId="demo",
        ReplicationGroupDescription="d",
        AuthToken=token,
        **NODE,
    )
    refused(rig.cache.create_user, UserId="u", UserName="u", Engine="valkey", AccessString=f"on >{token}", Passwords=[token])
    refused(rig.cache.create_user, UserId="u", UserName="u", Engine="redis", AccessString=f"on (>{token} +get)")
    refused(rig.cache.modify_user, UserId="u", AppendAccessString=f">{token}")
    refused(rig.cache.modify_user, UserId="u", AuthenticationMode={"Type": "password", "Passwords": [token]})
    key = Bob(rig).key
    for trail in rig.trails:
        trail.settle(60)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert key["SecretAccessKey"].encode() not in kept
    assert token.encode() not in kept
    (found,) = rig.records("CreateAccessKey")
    assert found["responseElements"]["accessKey"]["secretAccessKey"] == HIDDEN
    assert found["responseElements"]["accessKey"]["accessKeyId"] == key["AccessKeyId"]


def test_every_secret_of_every_model_is_hidden() -> None:
    """What AWS's models mark, what is binary, and whatever is named as a secret."""
    from tests.wire.shapes import botocore_model, full

    for service in catalogue():
        for name in service_model(service).operation_names:
            shape = service_model(service).operation(name).input
            theirs = botocore_model(service).operation_model(name).input_shape
            if shape is None or theirs is None:
                continue
            params = full(theirs)
            json.dumps(shown(shape, params), default=str)
            for secret in secrets_of(shape, params):
                assert isinstance(secret, str)
            for member in ("AuthToken", "Passwords", "SecretAccessKey", "SessionToken", "Plaintext", "NewPassword"):
                if member in params:
                    assert shown(shape, params)[member] == HIDDEN, (service, name, member)


def test_every_type_of_resource_has_a_name() -> None:
    from cachekeep.security.policy.keys import authorization
    from cachekeep.wire.audit import type_of

    for service in (each.name for each in SERVICES if each.title):
        for kind, arn in authorization()[service]["resources"].items():
            assert type_of(arn).startswith("AWS::"), kind


def test_what_is_named_by_its_arn_is_on_record(rig: Audited) -> None:
    """Policies, roles and keys."""
    kms, iam = rig.client("kms"), rig.client("iam")
    key = kms.create_key()["KeyMetadata"]
    blob = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"secret")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    assert rig.records("Decrypt")[0]["resources"][0]["ARN"] == key["Arn"]
    assert rig.records("Encrypt")[0]["requestParameters"]["plaintext"] == HIDDEN
    arn = "arn:aws:iam::aws:policy/IAMFullAccess"
    iam.get_policy(PolicyArn=arn)
    assert rig.records("GetPolicy")[0]["resources"][0]["ARN"] == arn
