"""Requests that are answered, in which each parameter makes a difference. The last of an operation is the plainest."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from tests.services.rig import SETTINGS
from tests.services.world import KEY_POLICY, KMS_KEYS, RECORDED_AT, TRUST

from cachekeep.model.scaling import ScalableTarget
from cachekeep.model.security_group import SecurityGroupRule
from cachekeep.security.ciphertext import Head, encrypt
from cachekeep.services.autoscaling.find import fresh_id
from cachekeep.services.core.context import digest

NEXT_PAGE: Final = "<the marker of the first page>"

_ARN: Final = "arn:aws:elasticache:us-east-1:000000000000:"
_TAGS: Final = [{"Key": "k", "Value": "v"}]
_WINDOWS: Final = {"PreferredMaintenanceWindow": "tue:01:00-tue:02:00", "SnapshotWindow": "10:00-11:00"}
_NODE: Final = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro"}
_NEW: Final = {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d"} | _NODE
_TOKEN: Final = {"AuthToken": "a-token-of-16-or-more"}
_OTHER_TOKEN: Final = {"AuthToken": "another-of-16-or-more"}
_NEW_USER: Final = {"UserId": "new", "UserName": "newcomer", "Engine": "redis", "AccessString": "on ~* +@all"}
_NEW_ONE: Final = {"CacheClusterId": "new"} | _NODE
_NEW_MEMCACHED: Final = {"CacheClusterId": "new", "Engine": "memcached", "CacheNodeType": "cache.t3.micro"}
_ACCOUNT: Final = "000000000000"
_POLICY: Final = (
    '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "elasticache:Describe*", "Resource": "*",'
    ' "Condition": {"StringEqualsIfExists": {"aws:username": "eve"}}}}'
)
_RESOURCE_POLICY: Final = _POLICY.replace('"Resource"', f'"Principal": {{"AWS": "arn:aws:iam::{_ACCOUNT}:user/bob"}}, "Resource"')
_TRIED: Final = {"PolicyInputList": [_POLICY], "ActionNames": ["elasticache:DescribeEvents", "elasticache:DeleteUser"]}
_TRIED_BOB: Final = {"PolicySourceArn": f"arn:aws:iam::{_ACCOUNT}:user/bob", "ActionNames": _TRIED["ActionNames"]}
_BOB: Final = {"UserName": "bob"}
_DATA_KEY: Final = {"KeyId": KMS_KEYS[0]}
_LIMITED: Final = [{"Limit": 1}, {"Limit": 1, "Marker": NEXT_PAGE}]
ENCRYPTED: Final = encrypt(Head(KMS_KEYS[0], 1), bytes(32), b"x", {"k": "v"})
_OPS: Final = {"GroupName": "ops"}
_OPS_ROLE: Final = {"RoleName": "ops-role"}
_OPS_POLICY: Final = {"PolicyArn": f"arn:aws:iam::{_ACCOUNT}:policy/ops-policy"}
_NEW_ROLE: Final = {"RoleName": "new", "AssumeRolePolicyDocument": TRUST}
_ASSUMED: Final = {"RoleArn": f"arn:aws:iam::{_ACCOUNT}:role/ops-role", "RoleSessionName": "s1"}
_KEY: Final = _BOB | {"AccessKeyId": "AKIABOBSFIRSTKEYAAAA"}
_MANAGED: Final = "arn:aws:iam::aws:policy/"
_ITEMS: Final[list[dict[str, Any]]] = [{"MaxItems": 1}, {"MaxItems": 1, "Marker": NEXT_PAGE}, {}]
_PAGES: Final = [{"MaxRecords": 20}, {"MaxRecords": 20, "Marker": NEXT_PAGE}]
_NO_PAGES: Final = [{"MaxRecords": 20}, {"MaxRecords": 19}, {"Marker": "x"}]
_NO_TOKENS: Final = [{"MaxResults": 20}, {"MaxResults": 51}, {"NextToken": "x"}]
_SCALED: Final = {
    "ServiceNamespace": "elasticache",
    "ResourceId": "replication-group/many",
    "ScalableDimension": "elasticache:replication-group:NodeGroups",
}
_TRACKING: Final = "TargetTrackingScalingPolicyConfiguration"
_CPU: Final = {
    "TargetValue": 60.0,
    "PredefinedMetricSpecification": {"PredefinedMetricType": "ElastiCachePrimaryEngineCPUUtilization"},
}
_DEPTH: Final = {"MetricName": "Depth", "Namespace": "Shop", "Statistic": "Sum"}
_OWN: Final = {"TargetValue": 60.0, "CustomizedMetricSpecification": _DEPTH}
_NEW_POLICY: Final = {"PolicyName": "new", "PolicyType": "TargetTrackingScaling"}
_TARGET_NAME: Final = ScalableTarget.named(_SCALED["ResourceId"], _SCALED["ScalableDimension"])
_TARGET_ID: Final = fresh_id(_TARGET_NAME, "2026-01-01T00:00:00+00:00")[:30]
_TARGET_ARN: Final = f"arn:aws:application-autoscaling:us-east-1:{_ACCOUNT}:scalable-target/{_TARGET_ID}"


def _scaled(**choices: Any) -> list[dict[str, Any]]:
    """Of a listing of Application Auto Scaling: all that narrow it, and pages."""
    own, resource = {"ServiceNamespace": "elasticache"}, {"ResourceId": "replication-group/other"}
    narrowed = [own | {name: value} for name, value in choices.items()] + ([] if "ResourceIds" in choices else [own | resource])
    one = {"ResourceIds": [_SCALED["ResourceId"]]} if "ResourceIds" in choices else {"ResourceId": _SCALED["ResourceId"]}
    dimension = own | one | {"ScalableDimension": _SCALED["ScalableDimension"]}
    return [own | {"MaxResults": 1}, own | {"MaxResults": 1, "NextToken": NEXT_PAGE}, dimension, *narrowed, own]


WEB: Final = "sg-" + digest(SETTINGS.security_group_id, "web", "2026-01-01T00:00:00+00:00")
"""A group; one rule of it lets in 10.0.0.0/8 at port 6379, another out to everything."""
_IN: Final = SecurityGroupRule(id="", protocol="tcp", from_port=6379, to_port=6379, peer="10.0.0.0/8")
WEB_IN: Final = "sgr-" + digest(WEB, str(_IN.subject), "2026-01-01T00:00:00+00:00")
WEB_OUT: Final = "sgr-" + digest(WEB, "out")
_DEFAULT: Final = SETTINGS.security_group_id


def permissions(port: int, **said: str) -> dict[str, Any]:
    """A request for one permission, with peers of each kind. Those of port 6379 are there, both ways, and those of 7000 are not."""
    pairs = [{"GroupId": WEB} | said, {"GroupName": "default"} | said]
    peers = {
        "IpRanges": [{"CidrIp": "10.0.0.0/8"} | said],
        "Ipv6Ranges": [{"CidrIpv6": "fd00::/8"} | said],
        "UserIdGroupPairs": pairs,
    }
    return {"GroupId": WEB, "IpPermissions": [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port} | peers]}


def _elsewhere(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests about groups of another account, or another VPC."""
    (permission,) = request["IpPermissions"]
    pairs = [{"GroupId": WEB, "UserId": "999999999999"}, {"GroupId": WEB, "VpcId": "vpc-1"}]
    return [{"GroupId": WEB, "IpPermissions": [permission | {"UserIdGroupPairs": [pair]}]} for pair in pairs]


def _by_name(request: dict[str, Any]) -> dict[str, Any]:
    return {"GroupName": "web", **{key: value for key, value in request.items() if key != "GroupId"}}


def _tagged(kind: str) -> dict[str, Any]:
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": _TAGS}]}


def _authorized() -> list[dict[str, Any]]:
    """Of an Authorize."""
    new = permissions(7000, Description="d")
    return [new | _tagged("security-group-rule"), *_elsewhere(new), new | {"DryRun": True}, permissions(7000)]


def _revoked(id: str) -> list[dict[str, Any]]:
    by_id, there = {"GroupId": WEB, "SecurityGroupRuleIds": [id]}, permissions(6379)
    return [by_id, by_id | {"DryRun": True}, *_elsewhere(there), there]


def _changed(**rule: Any) -> dict[str, Any]:
    """A request for another rule in the place of one."""
    whole = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2} | rule
    return {"GroupId": WEB, "SecurityGroupRules": [{"SecurityGroupRuleId": WEB_IN, "SecurityGroupRule": whole}]}


def _described(id: str) -> list[dict[str, Any]]:
    """Of an Update of descriptions."""
    by_id = {"GroupId": WEB, "SecurityGroupRuleDescriptions": [{"SecurityGroupRuleId": id, "Description": "other"}]}
    there = permissions(6379, Description="other")
    return [by_id, by_id | {"DryRun": True}, *_elsewhere(there), there]


_SHORT: Final = {"GroupId": WEB, "IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "CidrIp": "10.0.0.0/8"}


def _filters(name: str, value: str) -> list[dict[str, Any]]:
    return [{"Name": name, "Values": [value]}]


def _neighbour(by: dict[str, str], *filters: tuple[str, str]) -> list[dict[str, Any]]:
    """Of an EC2 listing: parameter → a value that picks some; filters that pick some."""
    picks: list[dict[str, Any]] = [{parameter: [value]} for parameter, value in by.items()]
    return [*[{"Filters": _filters(*each)} for each in filters], *picks, {"DryRun": True}, {}]


_DAY: Final = {"StartTime": dt.datetime(2025, 12, 31, tzinfo=dt.UTC), "EndTime": dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)}
_BRIEF: Final = {
    "StartTime": dt.datetime(2025, 12, 31, 18, tzinfo=dt.UTC),
    "EndTime": dt.datetime(2025, 12, 31, 18, 1, tzinfo=dt.UTC),
}
_HOST: Final = [{"Name": "Host", "Value": "a"}]
_HOSTS: Final = {"Namespace": "Mine", "MetricName": "M1", "Dimensions": _HOST}
_TOLD: Final = {"Namespace": "Mine", "MetricName": "M1", "Period": 60}


def _told(**datum: Any) -> dict[str, Any]:
    return {"Namespace": "New", "MetricData": [{"MetricName": "New", **datum}]}


def _query(**more: Any) -> dict[str, Any]:
    return {"Id": "m1", "MetricStat": {"Metric": {"Namespace": "Mine", "MetricName": "M1"}, "Period": 60, "Stat": "Sum"} | more}


_TWO: Final = [_query(), {"Id": "e1", "Expression": "m1 + 1", "Label": "sum"}]
EXAMPLES: Final[dict[str, list[dict[str, Any]]]] = {
    "cloudwatch:GetMetricData": [
        {"MetricDataQueries": _TWO, "ScanBy": "TimestampAscending"} | _BRIEF,
        {"MetricDataQueries": [{"Id": "e1", "Expression": "TIME_SERIES(1)", "Period": 3600}], "ScanBy": "TimestampAscending"}
        | _DAY,
        {"MetricDataQueries": [_query(), {"Id": "e1", "Expression": "m1 + 1", "ReturnData": False}]} | _BRIEF,
        {"MetricDataQueries": [_query(Unit="Bytes")]} | _BRIEF,
        {"MetricDataQueries": [_query(Metric=_HOSTS)]} | _DAY,
        {"MetricDataQueries": _TWO, "MaxDatapoints": 1} | _BRIEF,
        {"MetricDataQueries": _TWO, "MaxDatapoints": 1, "NextToken": NEXT_PAGE} | _BRIEF,
        {"MetricDataQueries": [_query()]} | _BRIEF,
    ],
    "cloudwatch:GetMetricStatistics": [
        _TOLD | _BRIEF | {"Statistics": ["Sum", "Average"]},
        _TOLD | _BRIEF | {"ExtendedStatistics": ["p99"]},
        _TOLD | _BRIEF | {"Statistics": ["Sum"], "Unit": "Bytes"},
        _TOLD | _DAY | {"Statistics": ["Sum"], "Dimensions": _HOST, "Period": 300},
        _TOLD | _DAY | {"Statistics": ["Sum"], "Period": 300, "EndTime": dt.datetime(2025, 12, 31, 18, tzinfo=dt.UTC)},
        _TOLD | _BRIEF | {"Statistics": ["Sum"]},
    ],
    "cloudwatch:ListMetrics": [
        {"Dimensions": _HOST},
        {"MetricName": "M1"},
        {"Namespace": "Other"},
        {"RecentlyActive": "PT3H"},
        {"NextToken": NEXT_PAGE},
        {},
    ],
    "cloudwatch:PutMetricData": [
        _told(Value=1.0, Unit="Count", Dimensions=_HOST, Timestamp=dt.datetime(2025, 12, 31, 12, tzinfo=dt.UTC)),
        _told(Values=[1.0, 2.0], Counts=[1.0, 3.0]),
        _told(StatisticValues={"SampleCount": 2.0, "Sum": 3.0, "Minimum": 1.0, "Maximum": 2.0}),
        _told(Value=1.0),
    ],
    "elasticache:AddTagsToResource": [{"ResourceName": f"{_ARN}cluster:one", "Tags": _TAGS}],
    "elasticache:CreateCacheCluster": [
        {"CacheClusterId": "new", "ReplicationGroupId": "red", "PreferredAvailabilityZone": "us-east-1c"},
        _NEW_MEMCACHED | {"NumCacheNodes": 3, "AZMode": "cross-az", "Port": 12000},
        _NEW_MEMCACHED | {"NumCacheNodes": 2, "PreferredAvailabilityZones": ["us-east-1a", "us-east-1c"]},
        _NEW_ONE
        | {"EngineVersion": "9.1", "Tags": _TAGS, "AutoMinorVersionUpgrade": False, "PreferredAvailabilityZone": "us-east-1a"},
        _NEW_ONE | {"EngineVersion": "8.0", "CacheParameterGroupName": "mine", "CacheSubnetGroupName": "sub"} | _WINDOWS,
        _NEW_ONE | {"SecurityGroupIds": ["sg-12345678"], "SnapshotRetentionLimit": 3},
        {"CacheClusterId": "new", "SnapshotName": "s1"},
        _NEW_ONE | {"SnapshotArns": ["arn:aws:s3:::dumps/a.rdb"]},
        _NEW_ONE | {"EngineVersion": "8.0", "TransitEncryptionEnabled": True} | _TOKEN,
        _NEW_ONE,
    ],
    "elasticache:CreateCacheParameterGroup": [
        {"CacheParameterGroupName": "new", "CacheParameterGroupFamily": "valkey8", "Description": "d", "Tags": _TAGS}
    ],
    "elasticache:CreateCacheSubnetGroup": [
        {
            "CacheSubnetGroupName": "new",
            "CacheSubnetGroupDescription": "d",
            "SubnetIds": ["subnet-12345678"],
            "Tags": _TAGS,
        }
    ],
    "elasticache:CreateUser": [
        _NEW_USER | {"Passwords": ["p" * 16, "q" * 16], "Tags": _TAGS},
        _NEW_USER | {"NoPasswordRequired": True},
        _NEW_USER | {"AuthenticationMode": {"Type": "no-password-required"}},
        _NEW_USER | {"AuthenticationMode": {"Type": "password", "Passwords": ["p" * 16]}},
    ],
    "elasticache:CreateUserGroup": [{"UserGroupId": "new", "Engine": "redis", "UserIds": ["default", "app"], "Tags": _TAGS}],
    "elasticache:CreateReplicationGroup": [
        _NEW | {"NumCacheClusters": 2, "AutomaticFailoverEnabled": True, "MultiAZEnabled": True, "Port": 7000, "Tags": _TAGS},
        _NEW | {"PreferredCacheClusterAZs": ["us-east-1c", "us-east-1a"], "AutoMinorVersionUpgrade": False},
        _NEW | {"NumNodeGroups": 2, "ReplicasPerNodeGroup": 1},
        _NEW | {"ClusterMode": "enabled", "EngineVersion": "9.1"},
        _NEW
        | {
            "NodeGroupConfiguration": [
                {
                    "NodeGroupId": "0007",
                    "Slots": "0-99",
                    "ReplicaCount": 1,
                    "PrimaryAvailabilityZone": "us-east-1c",
                    "ReplicaAvailabilityZones": ["us-east-1a"],
                },
                {"NodeGroupId": "0008", "Slots": "100-16383", "ReplicaCount": 0},
            ]
        },
        _NEW | {"NodeGroupConfiguration": [{"ReplicaCount": 2}]},
        _NEW | {"EngineVersion": "8.0", "CacheParameterGroupName": "mine", "CacheSubnetGroupName": "sub"} | _WINDOWS,
        _NEW | {"SecurityGroupIds": ["sg-12345678"], "SnapshotRetentionLimit": 3},
        _NEW | {"UserGroupIds": ["free"]},
        _NEW | {"TransitEncryptionMode": "required"},
        {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d", "SnapshotName": "sharded"},
        _NEW | {"SnapshotArns": ["arn:aws:s3:::dumps/a.rdb"]},
        _NEW | {"EngineVersion": "8.0", "TransitEncryptionEnabled": True, "TransitEncryptionMode": "required"} | _TOKEN,
        {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d", "PrimaryClusterId": "one"},
        _NEW,
    ],
    "elasticache:DecreaseReplicaCount": [
        {"ReplicationGroupId": "demo", "NewReplicaCount": 1, "ApplyImmediately": True},
        {"ReplicationGroupId": "demo", "ReplicasToRemove": ["demo-002"], "ApplyImmediately": True},
        {
            "ReplicationGroupId": "many",
            "ReplicaConfiguration": [
                {"NodeGroupId": "0002", "NewReplicaCount": 1, "PreferredAvailabilityZones": ["us-east-1b", "us-east-1a"]}
            ],
            "ApplyImmediately": True,
        },
    ],
    "elasticache:DeleteCacheCluster": [{"CacheClusterId": "one", "FinalSnapshotIdentifier": "new"}, {"CacheClusterId": "one"}],
    "elasticache:DeleteCacheParameterGroup": [{"CacheParameterGroupName": "x1"}],
    "elasticache:DeleteCacheSubnetGroup": [{"CacheSubnetGroupName": "x1"}],
    "elasticache:DeleteReplicationGroup": [
        {"ReplicationGroupId": "demo", "FinalSnapshotIdentifier": "new"},
        {"ReplicationGroupId": "demo", "RetainPrimaryCluster": True},
        {"ReplicationGroupId": "demo"},
    ],
    "elasticache:DeleteUser": [{"UserId": "app"}],
    "elasticache:DeleteUserGroup": [{"UserGroupId": "free"}],
    "elasticache:DescribeCacheClusters": [
        *_PAGES,
        {"CacheClusterId": "demo-001", "ShowCacheNodeInfo": True},
        {"ShowCacheClustersNotInReplicationGroups": True},
    ],
    "elasticache:DescribeCacheEngineVersions": [
        {"Engine": "valkey"},
        {"EngineVersion": "8.0"},
        {"CacheParameterGroupFamily": "redis7"},
        {"DefaultOnly": True},
        *_NO_PAGES,
    ],
    "elasticache:DescribeCacheParameterGroups": [*_PAGES, {"CacheParameterGroupName": "mine"}],
    "elasticache:DescribeCacheParameters": [
        *[{"CacheParameterGroupName": "mine"} | each for each in _PAGES],
        {"CacheParameterGroupName": "mine", "Source": "user"},
    ],
    "elasticache:DescribeCacheSubnetGroups": [*_PAGES, {"CacheSubnetGroupName": "sub"}],
    "elasticache:DescribeEngineDefaultParameters": [{"CacheParameterGroupFamily": "valkey8"} | each for each in _PAGES],
    "elasticache:DescribeEvents": [
        *_PAGES,
        {"SourceType": "cache-parameter-group", "SourceIdentifier": "mine"},
        {"StartTime": dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)},
        {"EndTime": dt.datetime(2025, 12, 31, tzinfo=dt.UTC)},
        {"StartTime": dt.datetime(2025, 12, 31, tzinfo=dt.UTC), "Duration": 10},
    ],
    "elasticache:DescribeGlobalReplicationGroups": [*_NO_PAGES, {"GlobalReplicationGroupId": "x"}, {}],
    "elasticache:DescribeReplicationGroups": [*_PAGES, {"ReplicationGroupId": "demo"}],
    "elasticache:DescribeReservedCacheNodes": [*_NO_PAGES, {"ReservedCacheNodeId": "x"}, {}],
    "elasticache:DescribeReservedCacheNodesOfferings": [*_NO_PAGES, {"ReservedCacheNodesOfferingId": "x"}, {}],
    "elasticache:DescribeServerlessCacheSnapshots": [
        *_NO_TOKENS,
        {"ServerlessCacheName": "x"},
        {"ServerlessCacheSnapshotName": "x"},
        {},
    ],
    "elasticache:DescribeServerlessCaches": [*_NO_TOKENS, {"ServerlessCacheName": "x"}, {}],
    "elasticache:CopySnapshot": [
        {"SourceSnapshotName": "s1", "TargetSnapshotName": "new", "Tags": _TAGS},
        {"SourceSnapshotName": "s1", "TargetSnapshotName": "new", "TargetBucket": "dumps"},
        {"SourceSnapshotName": "s1", "TargetSnapshotName": "new"},
    ],
    "elasticache:CreateSnapshot": [
        {"SnapshotName": "new", "CacheClusterId": "demo-002", "Tags": _TAGS},
        {"SnapshotName": "new", "ReplicationGroupId": "demo", "CacheClusterId": "demo-003"},
        {"SnapshotName": "new", "ReplicationGroupId": "demo"},
    ],
    "elasticache:DeleteSnapshot": [{"SnapshotName": "s1"}],
    "elasticache:DescribeSnapshots": [
        *_PAGES,
        {"SnapshotName": "s1"},
        {"CacheClusterId": "x1-001"},
        {"ReplicationGroupId": "x1"},
        {"SnapshotSource": "system"},
        {"SnapshotName": "sharded", "ShowNodeGroupConfig": True},
    ],
    "elasticache:DescribeUserGroups": [*_PAGES, {"UserGroupId": "team"}, {}],
    "elasticache:DescribeUsers": [
        *_PAGES,
        {"Engine": "valkey"},
        {"UserId": "app"},
        {"Filters": _filters("user-name", "nobody")},
        {"Filters": _filters("user-name", "default")},
    ],
    "elasticache:IncreaseReplicaCount": [
        {"ReplicationGroupId": "demo", "NewReplicaCount": 4, "ApplyImmediately": True},
        {
            "ReplicationGroupId": "many",
            "ReplicaConfiguration": [
                {
                    "NodeGroupId": "0002",
                    "NewReplicaCount": 3,
                    "PreferredAvailabilityZones": ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1c"],
                }
            ],
            "ApplyImmediately": True,
        },
    ],
    "elasticache:ListAllowedNodeTypeModifications": [{"CacheClusterId": "mc"}, {"ReplicationGroupId": "demo"}],
    "elasticache:ListTagsForResource": [{"ResourceName": f"{_ARN}cluster:one"}],
    "elasticache:ModifyCacheCluster": [
        {"CacheClusterId": "mc", "NumCacheNodes": 2, "CacheNodeIdsToRemove": ["0002"], "ApplyImmediately": True},
        {
            "CacheClusterId": "mc",
            "NumCacheNodes": 4,
            "NewAvailabilityZones": ["us-east-1c"],
            "AZMode": "cross-az",
            "ApplyImmediately": True,
        },
        {"CacheClusterId": "mc", "AZMode": "cross-az"},
        {"CacheClusterId": "one", "EngineVersion": "9.1", "CacheParameterGroupName": "default.valkey9", "ApplyImmediately": True},
        {"CacheClusterId": "one", "CacheParameterGroupName": "mine", "AutoMinorVersionUpgrade": False} | _WINDOWS,
        {"CacheClusterId": "one", "SecurityGroupIds": ["sg-12345678"], "SnapshotRetentionLimit": 3},
        {"CacheClusterId": "one", "CacheNodeType": "cache.m7g.large"},
        {"CacheClusterId": "lone", "AuthTokenUpdateStrategy": "SET", "ApplyImmediately": True} | _OTHER_TOKEN,
        {"CacheClusterId": "one", "Engine": "redis", "AutoMinorVersionUpgrade": False},
        {"CacheClusterId": "one", "AutoMinorVersionUpgrade": True},
    ],
    "elasticache:ModifyCacheParameterGroup": [
        {"CacheParameterGroupName": "mine", "ParameterNameValues": [{"ParameterName": "timeout", "ParameterValue": "60"}]}
    ],
    "elasticache:ModifyCacheSubnetGroup": [
        {"CacheSubnetGroupName": "x1", "CacheSubnetGroupDescription": "other", "SubnetIds": ["subnet-87654321"]}
    ],
    "elasticache:ModifyReplicationGroup": [
        {"ReplicationGroupId": "red", "AutomaticFailoverEnabled": False, "ReplicationGroupDescription": "other"},
        {"ReplicationGroupId": "red", "MultiAZEnabled": True},
        {"ReplicationGroupId": "demo", "PrimaryClusterId": "demo-002"},
        {"ReplicationGroupId": "red", "Engine": "valkey", "EngineVersion": "8.0", "ApplyImmediately": True},
        {"ReplicationGroupId": "red", "EngineVersion": "7.1"},
        {"ReplicationGroupId": "red", "CacheParameterGroupName": "x1", "AutoMinorVersionUpgrade": False} | _WINDOWS,
        {"ReplicationGroupId": "demo", "CacheNodeType": "cache.m7g.large", "ApplyImmediately": True},
        {"ReplicationGroupId": "demo", "SecurityGroupIds": ["sg-12345678"], "SnapshotRetentionLimit": 3},
        {"ReplicationGroupId": "demo", "SnapshottingClusterId": "demo-002"},
        {"ReplicationGroupId": "red", "ClusterMode": "compatible"},
        {"ReplicationGroupId": "demo", "UserGroupIdsToAdd": ["free"]},
        {"ReplicationGroupId": "red", "UserGroupIdsToRemove": ["team"]},
        {"ReplicationGroupId": "red", "RemoveUserGroups": True},
        {"ReplicationGroupId": "closed", "AuthTokenUpdateStrategy": "SET", "ApplyImmediately": True} | _OTHER_TOKEN,
        {"ReplicationGroupId": "closed", "AutoMinorVersionUpgrade": True, "TransitEncryptionEnabled": False},
        {"ReplicationGroupId": "closed", "AutoMinorVersionUpgrade": True, "TransitEncryptionMode": "preferred"},
        {"ReplicationGroupId": "demo", "AutoMinorVersionUpgrade": True},
    ],
    "elasticache:ModifyReplicationGroupShardConfiguration": [
        {"ReplicationGroupId": "many", "NodeGroupCount": 1, "NodeGroupsToRemove": ["0001"], "ApplyImmediately": True},
        {"ReplicationGroupId": "many", "NodeGroupCount": 1, "NodeGroupsToRetain": ["0001"], "ApplyImmediately": True},
        {
            "ReplicationGroupId": "many",
            "NodeGroupCount": 3,
            "ReshardingConfiguration": [{"NodeGroupId": "0009", "PreferredAvailabilityZones": ["us-east-1c"] * 3}],
            "ApplyImmediately": True,
        },
    ],
    "elasticache:ModifyUser": [
        {"UserId": "app", "AccessString": "on ~app +get"},
        {"UserId": "app", "AppendAccessString": "-@all"},
        {"UserId": "app", "Passwords": ["p" * 16, "q" * 16]},
        {"UserId": "app", "NoPasswordRequired": True},
        {"UserId": "app", "AuthenticationMode": {"Type": "password", "Passwords": ["p" * 16, "q" * 16]}},
        {"UserId": "app", "AuthenticationMode": {"Type": "no-password-required"}},
        {"UserId": "spare", "Engine": "valkey"},
    ],
    "elasticache:ModifyUserGroup": [
        {"UserGroupId": "team", "UserIdsToAdd": ["spare"]},
        {"UserGroupId": "team", "UserIdsToRemove": ["app"]},
        {"UserGroupId": "free", "Engine": "valkey"},
    ],
    "elasticache:RebootCacheCluster": [{"CacheClusterId": "one", "CacheNodeIdsToReboot": ["0001"]}],
    "elasticache:RemoveTagsFromResource": [{"ResourceName": f"{_ARN}cluster:one", "TagKeys": ["a"]}],
    "elasticache:ResetCacheParameterGroup": [
        {"CacheParameterGroupName": "mine", "ResetAllParameters": True},
        {"CacheParameterGroupName": "mine", "ParameterNameValues": [{"ParameterName": "timeout"}]},
    ],
    "elasticache:BatchApplyUpdateAction": [
        {"ServiceUpdateName": "first", "ReplicationGroupIds": ["demo"], "CacheClusterIds": ["one"]},
    ],
    "elasticache:BatchStopUpdateAction": [
        {"ServiceUpdateName": "first", "ReplicationGroupIds": ["demo"], "CacheClusterIds": ["one"]},
    ],
    "elasticache:DescribeServiceUpdates": [
        {"ServiceUpdateName": "first"},
        {"ServiceUpdateStatus": ["expired"]},
        {"MaxRecords": 1},
        {"MaxRecords": 1, "Marker": NEXT_PAGE},
        {},
    ],
    "elasticache:DescribeUpdateActions": [
        {"ServiceUpdateName": "second"},
        {"ReplicationGroupIds": ["demo"]},
        {"CacheClusterIds": ["one"]},
        {"Engine": "redis"},
        {"ServiceUpdateStatus": ["expired"]},
        {"ServiceUpdateTimeRange": {"StartTime": dt.datetime(2026, 1, 6, 12, tzinfo=dt.UTC)}},
        {"ServiceUpdateTimeRange": {"EndTime": dt.datetime(2026, 1, 6, 12, tzinfo=dt.UTC)}},
        {"UpdateActionStatus": ["stopped"]},
        {"ShowNodeLevelUpdateStatus": True},
        {"MaxRecords": 1},
        {"MaxRecords": 1, "Marker": NEXT_PAGE},
        {},
    ],
    "elasticache:TestFailover": [{"ReplicationGroupId": "red", "NodeGroupId": "0001"}],
    "application-autoscaling:DeleteScalingPolicy": [_SCALED | {"PolicyName": "one"}],
    "application-autoscaling:DeleteScheduledAction": [_SCALED | {"ScheduledActionName": "one"}],
    "application-autoscaling:DeregisterScalableTarget": [_SCALED],
    "application-autoscaling:DescribeScalableTargets": _scaled(ResourceIds=["replication-group/other"]),
    "application-autoscaling:DescribeScalingActivities": _scaled(IncludeNotScaledActivities=True),
    "application-autoscaling:DescribeScalingPolicies": _scaled(PolicyNames=["one"]),
    "application-autoscaling:DescribeScheduledActions": _scaled(ScheduledActionNames=["one"]),
    "application-autoscaling:ListTagsForResource": [{"ResourceARN": _TARGET_ARN}],
    "application-autoscaling:PutScalingPolicy": [
        _SCALED | _NEW_POLICY | {_TRACKING: {**_CPU, "ScaleOutCooldown": 5}},
        _SCALED | _NEW_POLICY | {_TRACKING: {**_CPU, "ScaleInCooldown": 5}},
        _SCALED | _NEW_POLICY | {_TRACKING: {**_CPU, "DisableScaleIn": True}},
        _SCALED
        | {
            **_NEW_POLICY,
            _TRACKING: _OWN
            | {"CustomizedMetricSpecification": _DEPTH | {"Unit": "Count", "Dimensions": [{"Name": "n", "Value": "v"}]}},
        },
        _SCALED | _NEW_POLICY | {_TRACKING: _CPU},
    ],
    "application-autoscaling:PutScheduledAction": [
        _SCALED
        | {
            "ScheduledActionName": "new",
            "Schedule": "cron(0 9 * * ? *)",
            "Timezone": "Europe/Berlin",
            "StartTime": dt.datetime(2026, 2, 1, tzinfo=dt.UTC),
            "EndTime": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
            "ScalableTargetAction": {"MinCapacity": 1, "MaxCapacity": 3},
        },
    ],
    "application-autoscaling:RegisterScalableTarget": [
        _SCALED | {"MinCapacity": 2, "MaxCapacity": 3},
        _SCALED | {"RoleARN": "arn:aws:iam::000000000000:role/other"},
        _SCALED
        | {
            "SuspendedState": {
                "DynamicScalingInSuspended": True,
                "DynamicScalingOutSuspended": True,
                "ScheduledScalingSuspended": True,
            }
        },
        _SCALED | {"ScalableDimension": "elasticache:replication-group:Replicas", "ResourceId": "replication-group/many"},
        _SCALED
        | {"ResourceId": "cache-cluster/mc", "ScalableDimension": "elasticache:cache-cluster:Nodes"}
        | {"MinCapacity": 1, "MaxCapacity": 3, "Tags": {"k": "v"}},
    ],
    "application-autoscaling:TagResource": [{"ResourceARN": _TARGET_ARN, "Tags": {"new": "v"}}],
    "application-autoscaling:UntagResource": [{"ResourceARN": _TARGET_ARN, "TagKeys": ["k"]}],
    "ec2:DescribeAccountAttributes": _neighbour({"AttributeNames": "default-vpc"}),
    "ec2:DescribeAvailabilityZones": _neighbour({"ZoneNames": "us-east-1a", "ZoneIds": "us-east-1-az1"}, ("zone-name", "*b")),
    "ec2:DescribeInstanceTypes": [
        {"MaxResults": 5},
        {"MaxResults": 5, "NextToken": NEXT_PAGE},
        *_neighbour({"InstanceTypes": "t3.micro"}, ("instance-type", "t3.*")),
    ],
    "ec2:DescribeRegions": _neighbour({"RegionNames": "mars"}, ("region-name", "us-*"), ("region-name", "mars")),
    "ec2:AuthorizeSecurityGroupEgress": _authorized(),
    "ec2:AuthorizeSecurityGroupIngress": [_SHORT, _by_name(_SHORT), *_authorized()],
    "ec2:CreateSecurityGroup": [
        {"GroupName": "new", "Description": "d"} | _tagged("security-group"),
        {"GroupName": "new", "Description": "d", "VpcId": "vpc-1"},
        {"GroupName": "new", "Description": "d", "DryRun": True},
    ],
    "ec2:CreateTags": [
        {"Resources": [WEB, WEB_IN], "Tags": _TAGS},
        {"Resources": [WEB], "Tags": _TAGS, "DryRun": True},
    ],
    "ec2:DeleteSecurityGroup": [{"GroupId": WEB}, {"GroupName": "web"}, {"GroupId": WEB, "DryRun": True}],
    "ec2:DeleteTags": [
        {"Resources": [WEB], "Tags": [{"Key": "team", "Value": "other"}, {"Key": "site"}]},
        {"Resources": [WEB], "DryRun": True},
    ],
    "ec2:DescribeNetworkInterfaces": [{}, {"NetworkInterfaceIds": ["eni-1"]}, {"DryRun": True}, {}],
    "ec2:DescribeSecurityGroupRules": _neighbour({"SecurityGroupRuleIds": WEB_IN}, ("group-id", WEB), ("tag:team", "web")),
    "ec2:DescribeTags": _neighbour({}, ("resource-id", WEB), ("value", "nobody")),
    "ec2:ModifySecurityGroupRules": [
        _changed(CidrIpv4="10.2.0.0/16", Description="d"),
        _changed(CidrIpv6="fd00::/8"),
        _changed(ReferencedGroupId=WEB),
        _changed(CidrIpv4="10.0.0.0/8") | {"DryRun": True},
    ],
    "ec2:RevokeSecurityGroupEgress": _revoked(WEB_OUT),
    "ec2:RevokeSecurityGroupIngress": [
        _by_name(_revoked(WEB_IN)[0]),
        _SHORT | {"FromPort": 6379, "ToPort": 6379},
        *_revoked(WEB_IN),
    ],
    "ec2:UpdateSecurityGroupRuleDescriptionsEgress": [_by_name(_described(WEB_OUT)[0]), *_described(WEB_OUT)],
    "ec2:UpdateSecurityGroupRuleDescriptionsIngress": [_by_name(_described(WEB_IN)[0]), *_described(WEB_IN)],
    "ec2:DescribeSecurityGroups": [
        *_neighbour({"GroupIds": WEB, "GroupNames": "other"}, ("group-name", "def*"), ("group-name", "other")),
    ],
    "ec2:DescribeSubnets": [*_neighbour({"SubnetIds": "subnet-1"}, ("availability-zone", "us-east-1a"))],
    "ec2:DescribeVpcs": [*_neighbour({"VpcIds": "vpc-1"}, ("is-default", "true"), ("is-default", "false"))],
    "iam:AttachUserPolicy": [{"UserName": "eve", "PolicyArn": f"{_MANAGED}AdministratorAccess"}],
    "iam:CreateAccessKey": [{"UserName": "eve"}],
    "iam:CreateUser": [
        {"UserName": "new", "Tags": _TAGS},
        {"UserName": "new", "PermissionsBoundary": f"{_MANAGED}IAMFullAccess"},
        {"UserName": "new"},
    ],
    "iam:DeleteAccessKey": [_KEY],
    "iam:DeleteUser": [{"UserName": "idle"}],
    "iam:DeleteUserPermissionsBoundary": [_BOB],
    "iam:DeleteUserPolicy": [_BOB | {"PolicyName": "one"}],
    "iam:DetachUserPolicy": [_BOB | {"PolicyArn": f"{_MANAGED}AmazonElastiCacheFullAccess"}],
    "iam:GetUser": [{"UserName": "bob"}],
    "iam:GetUserPolicy": [_BOB | {"PolicyName": "one"}],
    "iam:ListAccessKeys": [_BOB | each for each in _ITEMS],
    "iam:ListAttachedUserPolicies": [_BOB | each for each in _ITEMS],
    "iam:ListUserPolicies": [_BOB | each for each in _ITEMS],
    "iam:ListUsers": _ITEMS,
    "iam:PutUserPermissionsBoundary": [_BOB | {"PermissionsBoundary": f"{_MANAGED}IAMFullAccess"}],
    "iam:PutUserPolicy": [_BOB | {"PolicyName": "new", "PolicyDocument": _POLICY}],
    "iam:SimulatePrincipalPolicy": [
        _TRIED_BOB | {"PolicyInputList": [_POLICY.replace("Allow", "Deny").replace("eve", "bob")]},
        _TRIED_BOB | {"PermissionsBoundaryPolicyInputList": [_POLICY]},
        _TRIED_BOB | {"PermissionsBoundaryPolicyInputList": [_POLICY], "ResourcePolicy": _RESOURCE_POLICY.replace("eve", "bob")},
        _TRIED_BOB
        | {
            "PermissionsBoundaryPolicyInputList": [_POLICY],
            "ContextEntries": [{"ContextKeyName": "aws:username", "ContextKeyValues": ["eve"], "ContextKeyType": "string"}],
        },
        _TRIED_BOB
        | {
            "PermissionsBoundaryPolicyInputList": [_POLICY],
            "ContextEntries": [{"ContextKeyName": "aws:username", "ContextKeyValues": ["bob"]}],
        },
        _TRIED_BOB | {"ResourceArns": [f"{_ARN}cluster:one"]},
        _TRIED_BOB | {"MaxItems": 1},
        _TRIED_BOB | {"MaxItems": 1, "Marker": NEXT_PAGE},
        _TRIED_BOB | {"ContextEntries": [{"ContextKeyName": "aws:userid", "ContextKeyValues": ["x"], "ContextKeyType": "string"}]},
    ],
    "iam:UpdateAccessKey": [_KEY | {"Status": "Inactive"}],
    "iam:SimulateCustomPolicy": [
        _TRIED | {"PermissionsBoundaryPolicyInputList": [_POLICY.replace("Allow", "Deny")]},
        _TRIED | {"PolicyInputList": [], "CallerArn": f"arn:aws:iam::{_ACCOUNT}:user/bob", "ResourcePolicy": _RESOURCE_POLICY},
        _TRIED | {"ContextEntries": [{"ContextKeyName": "aws:username", "ContextKeyValues": ["bob"], "ContextKeyType": "string"}]},
        _TRIED | {"ResourceArns": [f"{_ARN}cluster:one"]},
        _TRIED | {"MaxItems": 1},
        _TRIED | {"MaxItems": 1, "Marker": NEXT_PAGE},
        _TRIED | {"ContextEntries": [{"ContextKeyName": "aws:userid", "ContextKeyValues": ["x"], "ContextKeyType": "string"}]},
    ],
    **{
        f"iam:{verb}{kind}{what}": [about | more]
        for kind, about in (("Group", _OPS), ("Role", _OPS_ROLE))
        for verb, what, more in (
            ("Attach", "Policy", {"PolicyArn": f"{_MANAGED}AdministratorAccess"}),
            ("Delete", "Policy", {"PolicyName": "one"}),
            ("Detach", "Policy", {"PolicyArn": f"{_MANAGED}AmazonElastiCacheFullAccess"}),
            ("Get", "Policy", {"PolicyName": "one"}),
            ("Put", "Policy", {"PolicyName": "new", "PolicyDocument": _POLICY}),
        )
    },
    **{
        f"iam:{verb}": [about | each for each in _ITEMS]
        for about, verbs in (
            (_BOB, "ListGroupsForUser ListUserTags"),
            (_OPS, "GetGroup ListAttachedGroupPolicies ListGroupPolicies"),
            (_OPS_ROLE, "ListAttachedRolePolicies ListRolePolicies ListRoleTags"),
            (_OPS_POLICY, "ListPolicyTags ListPolicyVersions"),
            ({}, "ListGroups ListRoles"),
        )
        for verb in verbs.split()
    },
    "iam:AddUserToGroup": [{"GroupName": "dev", "UserName": "eve"}],
    "iam:CreateGroup": [{"GroupName": "new"}],
    "iam:CreatePolicy": [
        {"PolicyName": "new", "PolicyDocument": _POLICY, "Tags": _TAGS},
        {"PolicyName": "new", "PolicyDocument": _POLICY, "Description": "d"},
        {"PolicyName": "new", "PolicyDocument": _POLICY},
    ],
    "iam:CreatePolicyVersion": [
        _OPS_POLICY | {"PolicyDocument": _POLICY, "SetAsDefault": True},
        _OPS_POLICY | {"PolicyDocument": _POLICY},
    ],
    "iam:CreateRole": [
        _NEW_ROLE | {"Tags": _TAGS, "Description": "d"},
        _NEW_ROLE | {"PermissionsBoundary": f"{_MANAGED}IAMFullAccess", "MaxSessionDuration": 7200},
        _NEW_ROLE,
    ],
    "iam:DeleteGroup": [{"GroupName": "idle"}],
    "iam:DeletePolicy": [{"PolicyArn": _OPS_POLICY["PolicyArn"].replace("ops", "dev")}],
    "iam:DeletePolicyVersion": [_OPS_POLICY | {"VersionId": "v2"}],
    "iam:DeleteRole": [{"RoleName": "dev-role"}],
    "iam:DeleteRolePermissionsBoundary": [_OPS_ROLE],
    "iam:GetAccessKeyLastUsed": [{"AccessKeyId": _KEY["AccessKeyId"]}],
    "iam:GetPolicy": [_OPS_POLICY],
    "iam:GetPolicyVersion": [_OPS_POLICY | {"VersionId": "v1"}],
    "iam:GetRole": [_OPS_ROLE],
    "iam:ListEntitiesForPolicy": [
        _OPS_POLICY | {"EntityFilter": "Group"},
        _OPS_POLICY | {"PolicyUsageFilter": "PermissionsBoundary"},
        *[_OPS_POLICY | each for each in _ITEMS],
    ],
    "iam:ListInstanceProfilesForRole": [_OPS_ROLE],
    "iam:ListPolicies": [{"Scope": "Local"}, {"OnlyAttached": True}, *_ITEMS],
    "iam:PutRolePermissionsBoundary": [_OPS_ROLE | {"PermissionsBoundary": f"{_MANAGED}IAMFullAccess"}],
    "iam:RemoveUserFromGroup": [{"GroupName": "ops", "UserName": "eve"}],
    "iam:SetDefaultPolicyVersion": [_OPS_POLICY | {"VersionId": "v2"}],
    "iam:TagPolicy": [_OPS_POLICY | {"Tags": _TAGS}],
    "iam:TagRole": [_OPS_ROLE | {"Tags": _TAGS}],
    "iam:TagUser": [_BOB | {"Tags": _TAGS}],
    "iam:UntagPolicy": [_OPS_POLICY | {"TagKeys": ["a"]}],
    "iam:UntagRole": [_OPS_ROLE | {"TagKeys": ["a"]}],
    "iam:UntagUser": [_BOB | {"TagKeys": ["a"]}],
    "iam:UpdateAssumeRolePolicy": [_OPS_ROLE | {"PolicyDocument": TRUST.replace("sts:*", "sts:AssumeRole")}],
    "iam:UpdateGroup": [_OPS | {"NewGroupName": "new"}],
    "iam:UpdateRole": [_OPS_ROLE | {"Description": "d", "MaxSessionDuration": 7200}],
    "iam:UpdateRoleDescription": [_OPS_ROLE | {"Description": "d"}],
    "iam:UpdateUser": [_BOB | {"NewUserName": "new"}],
    "sts:AssumeRole": [
        _ASSUMED | {"Policy": _POLICY},
        _ASSUMED | {"PolicyArns": [{"arn": f"{_MANAGED}IAMFullAccess"}]},
        _ASSUMED | {"DurationSeconds": 900},
        _ASSUMED | {"Tags": _TAGS},
        _ASSUMED | {"RoleArn": _ASSUMED["RoleArn"].replace("ops", "dev"), "ExternalId": "42"},
        _ASSUMED,
    ],
    "sts:GetSessionToken": [{"DurationSeconds": 900}, {}],
    **{
        f"kms:{name}": [{"KeyId": KMS_KEYS[0]}]
        for name in ["DescribeKey", "DisableKey", "GetKeyPolicy", "GetKeyRotationStatus", "RotateKeyOnDemand"]
    },
    "kms:CancelKeyDeletion": [{"KeyId": KMS_KEYS[2]}],
    "kms:CreateAlias": [{"AliasName": "alias/new", "TargetKeyId": KMS_KEYS[0]}],
    "kms:CreateKey": [
        {"Policy": KEY_POLICY, "Description": "d", "Tags": [{"TagKey": "k", "TagValue": "v"}]},
        {},
    ],
    "kms:Decrypt": [
        {"CiphertextBlob": ENCRYPTED, "EncryptionContext": {"k": "v"}},
        {"CiphertextBlob": ENCRYPTED, "EncryptionContext": {"k": "v"}, "KeyId": KMS_KEYS[1]},
        {"CiphertextBlob": ENCRYPTED, "EncryptionContext": {"k": "v"}},
    ],
    "kms:DeleteAlias": [{"AliasName": "alias/1"}],
    "kms:EnableKey": [{"KeyId": KMS_KEYS[1]}],
    "kms:Encrypt": [{"KeyId": KMS_KEYS[0], "Plaintext": b"x", "EncryptionContext": {"k": "v"}}],
    "kms:GenerateDataKey": [_DATA_KEY | {"NumberOfBytes": 5}, _DATA_KEY | {"KeySpec": "AES_128", "EncryptionContext": {"k": "v"}}],
    "kms:GenerateDataKeyWithoutPlaintext": [
        _DATA_KEY | {"NumberOfBytes": 5},
        _DATA_KEY | {"KeySpec": "AES_128", "EncryptionContext": {"k": "v"}},
    ],
    "kms:ListAliases": [{"KeyId": KMS_KEYS[1]}, *_LIMITED],
    "kms:ListKeys": [*_LIMITED, {}],
    "kms:ListResourceTags": [{"KeyId": KMS_KEYS[0]} | each for each in _LIMITED],
    "kms:PutKeyPolicy": [{"KeyId": KMS_KEYS[0], "Policy": KEY_POLICY.replace("kms:*", "kms:Encrypt")}],
    "kms:ScheduleKeyDeletion": [{"KeyId": KMS_KEYS[0], "PendingWindowInDays": 7}],
    "kms:TagResource": [{"KeyId": KMS_KEYS[0], "Tags": [{"TagKey": "k", "TagValue": "v"}]}],
    "kms:UntagResource": [{"KeyId": KMS_KEYS[0], "TagKeys": ["a"]}],
    "kms:UpdateAlias": [{"AliasName": "alias/1", "TargetKeyId": KMS_KEYS[1]}],
    "kms:UpdateKeyDescription": [{"KeyId": KMS_KEYS[0], "Description": "d"}],
    "sts:GetCallerIdentity": [{}],
    "cloudtrail:LookupEvents": [
        {"LookupAttributes": [{"AttributeKey": "Username", "AttributeValue": "bob"}]},
        {"StartTime": RECORDED_AT + dt.timedelta(minutes=3)},
        {"EndTime": RECORDED_AT + dt.timedelta(minutes=3)},
        {"EventCategory": "insight"},
        {"MaxResults": 2},
        {"MaxResults": 2, "NextToken": NEXT_PAGE},
    ],
}
for _name in ("DescribeSecurityGroups", "DescribeSecurityGroupRules", "DescribeSubnets", "DescribeTags", "DescribeVpcs"):
    EXAMPLES[f"ec2:{_name}"] = [EXAMPLES[f"ec2:{_name}"][0], {"MaxResults": 1}, {"NextToken": "x"}, *EXAMPLES[f"ec2:{_name}"][1:]]
