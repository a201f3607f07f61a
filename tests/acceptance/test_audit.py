"""The record of calls in a whole installation, read by aws-cli: it outlives a crash, and is nobody else's to read."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError
from tests.acceptance.installation import Installation


def test_aws_cloudtrail_lookup_events(another: Callable[..., Installation]) -> None:
    installation = another().up()
    client = installation.client()
    client.create_cache_parameter_group(CacheParameterGroupName="mine", CacheParameterGroupFamily="valkey8", Description="d")
    with pytest.raises(ClientError):
        client.delete_replication_group(ReplicationGroupId="none")
    installation.run("failover", "none", check=False)
    installation.kill()
    installation.up()
    told = installation.aws("cloudtrail", "lookup-events", "--lookup-attributes", "AttributeKey=ReadOnly,AttributeValue=false")
    by_hand, newest, oldest = told["Events"]
    assert (by_hand["EventName"], by_hand["EventSource"]) == ("failover", "cachekeep.amazonaws.com")
    assert (oldest["EventName"], oldest["Username"]) == ("CreateCacheParameterGroup", "root")
    assert oldest["Resources"] == [{"ResourceType": "AWS::ElastiCache::ParameterGroup", "ResourceName": "mine"}]
    assert json.loads(newest["CloudTrailEvent"])["errorCode"] == "ReplicationGroupNotFoundFault"
    directory = installation.data_dir / "audit"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*.jsonl")} == {0o600}
