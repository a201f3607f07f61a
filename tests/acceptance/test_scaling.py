"""A cache follows a metric: from PutMetricData to a shard more, and back."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tests.acceptance.installation import Installation, available, deleted, eventually


def _tell(cloudwatch: Any, value: float, minutes: int) -> None:
    now = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)
    points = [{"MetricName": "Depth", "Timestamp": now - dt.timedelta(minutes=minute), "Value": value} for minute in range(minutes)]
    cloudwatch.put_metric_data(Namespace="Shop", MetricData=points)


def test_shards_follow_a_metric(installation: Installation, client: Any) -> None:
    scaling, cloudwatch = installation.client("application-autoscaling"), installation.client("cloudwatch")
    node = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro", "ClusterMode": "enabled"}
    client.create_replication_group(
        ReplicationGroupId="scaled", ReplicationGroupDescription="d", NumNodeGroups=1, ReplicasPerNodeGroup=0, **node
    )
    available(client, "scaled")
    scope = {
        "ServiceNamespace": "elasticache",
        "ResourceId": "replication-group/scaled",
        "ScalableDimension": "elasticache:replication-group:NodeGroups",
    }
    scaling.register_scalable_target(**scope, MinCapacity=1, MaxCapacity=2)
    metric = {"MetricName": "Depth", "Namespace": "Shop", "Statistic": "Maximum"}
    scaling.put_scaling_policy(
        **scope,
        PolicyName="depth",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 50.0, "CustomizedMetricSpecification": metric},
    )
    _tell(cloudwatch, 90.0, minutes=5)

    def activity() -> Any:
        # Its own minute may pass meanwhile: what is told of each stays true.
        _tell(cloudwatch, 90.0, minutes=2)
        found = scaling.describe_scaling_activities(**scope)["ScalingActivities"]
        return found[0] if found and found[0]["StatusCode"] != "InProgress" else None

    done = eventually(activity, seconds=180, what="a shard more")
    assert (done["StatusCode"], done["Description"]) == ("Successful", "Setting desired node groups to 2.")
    assert len(available(client, "scaled")["NodeGroups"]) == 2
    scaling.deregister_scalable_target(**scope)
    deleted(client, "scaled")
