"""Application Auto Scaling, by boto3 through the gateway, and the worker behind it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import shlex
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.services.rig import ACCOUNT, ROOT_KEY, Rig, refused

from cachekeep.services.autoscaling.scaler import Scaler
from cachekeep.services.core.inside import asker
from cachekeep.wire.faults import ApiError

SHARDS = {
    "ServiceNamespace": "elasticache",
    "ResourceId": "replication-group/demo",
    "ScalableDimension": "elasticache:replication-group:NodeGroups",
}
REPLICAS = SHARDS | {"ScalableDimension": "elasticache:replication-group:Replicas"}
NODES = SHARDS | {"ResourceId": "cache-cluster/mc", "ScalableDimension": "elasticache:cache-cluster:Nodes"}
CPU = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ElastiCachePrimaryEngineCPUUtilization"}, "TargetValue": 60.0}
OWN = {"MetricName": "Depth", "Namespace": "Shop", "Statistic": "Maximum", "Dimensions": [{"Name": "Queue", "Value": "a"}]}


class Scaled:
    """A group of two shards with a replica each, a Memcached cluster, and a scaler that ticks by hand over a metric that is set."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.api = rig.client("application-autoscaling")
        self.value: float | None = None
        self.asked: list[Mapping[str, Any]] = []
        self.refusal = ""
        self._inside = asker(rig.services.dispatch, rig.settings, rig.clock)
        self.scaler = Scaler(rig.store, rig.clock, self._ask)
        rig.group("demo", NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
        rig.memcached("mc", 2)

    async def _ask(self, service: str, operation: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if service != "cloudwatch":
            if self.refusal:
                raise ApiError("InvalidReplicationGroupState", self.refusal)
            return await self._inside(service, operation, params)
        (query,) = params["MetricDataQueries"]
        self.asked.append(query["MetricStat"])
        start: dt.datetime = params["StartTime"]
        minutes = int((params["EndTime"] - start).total_seconds() // 60)
        times = [start + dt.timedelta(minutes=minute) for minute in range(minutes)] if self.value is not None else []
        return {"MetricDataResults": [{"Id": "m", "Timestamps": times, "Values": [self.value] * len(times)}]}

    def tick(self) -> None:
        self.rig.run(self.scaler.tick())

    def rest(self) -> None:
        """The keeper does what is wanted, and the scaler sees it."""
        self.rig.keep()
        self.tick()

    def shards(self) -> int:
        return len(self.rig.stored("demo").wanted.shards)

    def replicas(self) -> int:
        return len(self.rig.stored("demo").wanted.shards[0].members) - 1

    def nodes(self) -> int:
        return len(self.rig.stored("mc").wanted.shards[0].members)

    def activities(self, **more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.describe_scaling_activities(ServiceNamespace="elasticache", **more)[
            "ScalingActivities"
        ]
        return found


@pytest.fixture
def scaled(rig: Rig) -> Scaled:
    return Scaled(rig)


def _register(scaled: Scaled, scope: Mapping[str, str] = SHARDS, least: int = 1, most: int = 8, **more: Any) -> str:
    arn: str = scaled.api.register_scalable_target(**scope, MinCapacity=least, MaxCapacity=most, **more)["ScalableTargetARN"]
    return arn


def _track(scaled: Scaled, scope: Mapping[str, str] = SHARDS, **more: Any) -> None:
    asked = {"TargetTrackingScalingPolicyConfiguration": CPU | more}
    scaled.api.put_scaling_policy(**scope, PolicyName="cpu", PolicyType="TargetTrackingScaling", **asked)


# ------------------------------------------------------------------ what may be scaled


def test_a_target_is_registered_changed_shown_and_removed_with_what_belongs_to_it(scaled: Scaled) -> None:
    arn = _register(scaled, SuspendedState={"DynamicScalingInSuspended": True}, Tags={"team": "shop"})
    assert arn.startswith(f"arn:aws:application-autoscaling:us-east-1:{ACCOUNT}:scalable-target/")
    assert _register(scaled, most=6) == arn
    scaled.api.register_scalable_target(**SHARDS, SuspendedState={"ScheduledScalingSuspended": True})
    (shown,) = scaled.api.describe_scalable_targets(ServiceNamespace="elasticache")["ScalableTargets"]
    assert (shown["MinCapacity"], shown["MaxCapacity"], shown["ScalableTargetARN"]) == (1, 6, arn)
    assert shown["SuspendedState"] == {
        "DynamicScalingInSuspended": True,
        "DynamicScalingOutSuspended": False,
        "ScheduledScalingSuspended": True,
    }
    assert shown["RoleARN"].endswith("/AWSServiceRoleForApplicationAutoScaling_ElastiCacheRG")
    scaled.api.tag_resource(ResourceARN=arn, Tags={"stage": "live"})
    scaled.api.untag_resource(ResourceARN=arn, TagKeys=["team"])
    assert scaled.api.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"stage": "live"}
    _track(scaled)
    when = {"Schedule": "rate(1 day)", "ScalableTargetAction": {"MinCapacity": 2}}
    scaled.api.put_scheduled_action(**SHARDS, ScheduledActionName="daily", **when)
    scaled.api.deregister_scalable_target(**SHARDS)
    for listing in ("scalable_targets", "scaling_policies", "scheduled_actions"):
        answer = getattr(scaled.api, f"describe_{listing}")(ServiceNamespace="elasticache")
        assert next(value for value in answer.values() if isinstance(value, list)) == []
    gone = refused(scaled.api.deregister_scalable_target, **SHARDS)
    assert gone.code == "ObjectNotFoundException"
    assert "resource ID: replication-group/demo" in gone.message
    assert refused(scaled.api.list_tags_for_resource, ResourceARN=arn).code == "ResourceNotFoundException"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ServiceNamespace": "ecs"}, "Unsupported"),
        ({"ResourceId": "cache-cluster/mc"}, "Unsupported"),
        ({"ResourceId": "replication-group/nobody"}, "does not exist"),
        ({"ResourceId": "replication-group/plain"}, "cluster mode"),
        ({"MinCapacity": 5, "MaxCapacity": 4}, "less than"),
        ({"MinCapacity": 0}, "between 1 and 250"),
        ({"MaxCapacity": 251}, "between 1 and 250"),
        ({"RoleARN": "arn:aws:iam::000000000000:role/mine"}, "service-linked"),
    ],
)
def test_what_cannot_be_scaled_is_refused(scaled: Scaled, change: dict[str, Any], said: str) -> None:
    scaled.rig.group("plain")
    error = refused(scaled.api.register_scalable_target, **SHARDS | {"MinCapacity": 1, "MaxCapacity": 4} | change)
    assert error.code == "ValidationException"
    assert said in error.message
    assert scaled.api.describe_scalable_targets(ServiceNamespace="elasticache")["ScalableTargets"] == []


def test_both_bounds_are_needed_once(scaled: Scaled) -> None:
    assert refused(scaled.api.register_scalable_target, **SHARDS, MinCapacity=1).code == "ValidationException"


@pytest.mark.parametrize(
    "change",
    [
        {"PolicyType": "StepScaling"},
        {"PolicyType": "PredictiveScaling"},
        {"TargetTrackingScalingPolicyConfiguration": {"TargetValue": 60.0}},
        {"TargetTrackingScalingPolicyConfiguration": CPU | {"CustomizedMetricSpecification": OWN}},
        {"TargetTrackingScalingPolicyConfiguration": CPU | {"TargetValue": 34.9}},
        {"TargetTrackingScalingPolicyConfiguration": CPU | {"TargetValue": 70.1}},
        {"TargetTrackingScalingPolicyConfiguration": CPU | {"ScaleInCooldown": -1}},
        {"TargetTrackingScalingPolicyConfiguration": {"CustomizedMetricSpecification": OWN, "TargetValue": 0.0}},
        {
            "TargetTrackingScalingPolicyConfiguration": {
                "PredefinedMetricSpecification": {"PredefinedMetricType": "ElastiCacheReplicaEngineCPUUtilization"},
                "TargetValue": 60.0,
            }
        },
    ],
)
def test_policies_that_cannot_be_are_refused(scaled: Scaled, change: dict[str, Any]) -> None:
    _register(scaled)
    asked = {"PolicyName": "p", "PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": CPU}
    assert refused(scaled.api.put_scaling_policy, **SHARDS | asked | change).code == "ValidationException"
    assert scaled.api.describe_scaling_policies(ServiceNamespace="elasticache")["ScalingPolicies"] == []
    assert refused(scaled.api.put_scaling_policy, **REPLICAS | asked).code == "ObjectNotFoundException"


def test_one_metric_has_one_policy(scaled: Scaled) -> None:
    _register(scaled)
    _track(scaled)
    asked = {"PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": CPU | {"TargetValue": 50.0}}
    assert refused(scaled.api.put_scaling_policy, **SHARDS, PolicyName="again", **asked).code == "ValidationException"
    scaled.api.put_scaling_policy(**SHARDS, PolicyName="cpu", **asked)
    (shown,) = scaled.api.describe_scaling_policies(**SHARDS)["ScalingPolicies"]
    assert shown["TargetTrackingScalingPolicyConfiguration"] == CPU | {"TargetValue": 50.0, "DisableScaleIn": False}
    scaled.api.delete_scaling_policy(**SHARDS, PolicyName="cpu")
    assert refused(scaled.api.delete_scaling_policy, **SHARDS, PolicyName="cpu").code == "ObjectNotFoundException"


@pytest.mark.parametrize(
    "change",
    [
        {"Schedule": "at(2020-01-01T00:00:00)"},
        {"Schedule": "at(9999-12-31T23:59:59)", "Timezone": "America/New_York"},
        {"Schedule": "rate(1 day)", "StartTime": dt.datetime(9999, 12, 31, 12, tzinfo=dt.UTC)},
        {"Schedule": "cron(0 9 * * *)"},
        {"Timezone": "Mars/Olympus"},
        {"ScalableTargetAction": {}},
        {"ScalableTargetAction": {"MinCapacity": 9, "MaxCapacity": 3}},
        {"StartTime": dt.datetime(2031, 1, 2), "EndTime": dt.datetime(2031, 1, 1)},
        {"EndTime": dt.datetime(2020, 1, 1)},
    ],
)
def test_schedules_that_cannot_be_are_refused(scaled: Scaled, change: dict[str, Any]) -> None:
    _register(scaled)
    asked = {"ScheduledActionName": "a", "Schedule": "rate(1 hour)", "ScalableTargetAction": {"MinCapacity": 2}}
    assert refused(scaled.api.put_scheduled_action, **SHARDS | asked | change).code == "ValidationException"
    assert scaled.api.describe_scheduled_actions(ServiceNamespace="elasticache")["ScheduledActions"] == []


def test_lists_have_pages(scaled: Scaled) -> None:
    _register(scaled)
    _register(scaled, REPLICAS, most=5)
    first = scaled.api.describe_scalable_targets(ServiceNamespace="elasticache", MaxResults=1)
    rest = scaled.api.describe_scalable_targets(ServiceNamespace="elasticache", MaxResults=1, NextToken=first["NextToken"])
    names = [answer["ScalableTargets"][0]["ScalableDimension"] for answer in (first, rest)]
    assert sorted(names) == [SHARDS["ScalableDimension"], REPLICAS["ScalableDimension"]]
    assert "NextToken" not in rest
    describe = scaled.api.describe_scalable_targets
    assert refused(describe, ServiceNamespace="elasticache", NextToken="x").code == "InvalidNextTokenException"
    assert refused(describe, ServiceNamespace="elasticache", MaxResults=51).code == "ValidationException"
    alone = {"ServiceNamespace": "elasticache", "ScalableDimension": SHARDS["ScalableDimension"]}
    assert refused(describe, **alone).code == "ValidationException"


def test_who_may_not_is_refused() -> None:
    rig = Rig(auth="enforce")
    try:
        iam = rig.client("iam")
        iam.create_user(UserName="bob")
        key = iam.create_access_key(UserName="bob")["AccessKey"]
        allow = (
            '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "application-autoscaling:*", "Resource": "*",'
            ' "Condition": {"StringEquals": {"application-autoscaling:scalable-dimension":'
            ' "elasticache:replication-group:Replicas"}}}]}'
        )
        rig.group("demo", NumCacheClusters=None, NumNodeGroups=2, ReplicasPerNodeGroup=1)
        bob = rig.client_of("application-autoscaling", key["AccessKeyId"], key["SecretAccessKey"])
        iam.put_user_policy(UserName="bob", PolicyName="p", PolicyDocument=allow)
        bounds = {"MinCapacity": 1, "MaxCapacity": 2}
        assert refused(bob.register_scalable_target, **SHARDS, **bounds).code == "AccessDeniedException"
        bob.register_scalable_target(**REPLICAS, **bounds)
    finally:
        rig.close()


# ------------------------------------------------------------------ what becomes of it


def test_shards_follow_the_metric_out_and_in(scaled: Scaled) -> None:
    _register(scaled)
    _track(scaled)
    scaled.value = 90.0
    scaled.tick()
    assert scaled.shards() == 3
    assert scaled.asked[0] == {
        "Metric": {
            "Namespace": "AWS/ElastiCache",
            "MetricName": "EngineCPUUtilization",
            "Dimensions": [{"Name": "ReplicationGroupId", "Value": "demo"}, {"Name": "Role", "Value": "Primary"}],
        },
        "Period": 60,
        "Stat": "Average",
    }
    (begun,) = scaled.activities()
    assert (begun["StatusCode"], begun["Description"]) == ("InProgress", "Setting desired node groups to 3.")
    scaled.tick()
    assert scaled.shards() == 3, "one change at a time"
    scaled.rest()
    assert scaled.activities()[0]["StatusCode"] == "Successful"
    scaled.tick()
    assert scaled.shards() == 3, "it rests"
    scaled.rig.clock.passed += dt.timedelta(minutes=11)
    scaled.tick()
    assert scaled.shards() == 5
    scaled.rest()
    scaled.value = 5.0
    scaled.rig.clock.passed += dt.timedelta(minutes=16)
    scaled.tick()
    assert scaled.shards() == 4
    assert sorted(shard.id for shard in scaled.rig.stored("demo").wanted.shards) == ["0001", "0002", "0003", "0004"]
    scaled.rest()
    assert [each["Description"][-2] for each in scaled.activities()] == ["4", "5", "3"], "newest first"


def test_replicas_and_memcached_nodes_come_one_by_one(scaled: Scaled) -> None:
    _register(scaled, REPLICAS, most=2)
    kind = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ElastiCacheReplicaEngineCPUUtilization"}}
    _track(scaled, REPLICAS, **kind)
    _register(scaled, NODES, most=3)
    scaled.api.put_scaling_policy(
        **NODES,
        PolicyName="depth",
        TargetTrackingScalingPolicyConfiguration={"CustomizedMetricSpecification": OWN | {"Unit": "Count"}, "TargetValue": 10.0},
        PolicyType="TargetTrackingScaling",
    )
    scaled.value = 600.0
    scaled.tick()
    assert (scaled.replicas(), scaled.nodes()) == (2, 3)
    own = next(asked for asked in scaled.asked if asked["Metric"]["Namespace"] == "Shop")
    assert (own["Stat"], own["Unit"], own["Metric"]["Dimensions"]) == ("Maximum", "Count", OWN["Dimensions"])
    scaled.rest()
    scaled.rig.clock.passed += dt.timedelta(minutes=16)
    scaled.tick()
    assert (scaled.replicas(), scaled.nodes()) == (2, 3)
    assert len(scaled.activities()) == 2
    assert {each["NotScaledReasons"][0]["Code"] for each in scaled.activities(IncludeNotScaledActivities=True)[:2]} == {
        "AlreadyAtMaxCapacity"
    }
    scaled.tick()
    assert len(scaled.activities(IncludeNotScaledActivities=True)) == 4, "said once"
    scaled.value = 0.0
    scaled.tick()
    assert (scaled.replicas(), scaled.nodes()) == (1, 2)
    assert [m.name for m in scaled.rig.stored("mc").wanted.shards[0].members] == ["mc.0001", "mc.0002"]


def test_what_is_suspended_or_unknown_changes_nothing(scaled: Scaled) -> None:
    _register(scaled, SuspendedState={"DynamicScalingOutSuspended": True, "ScheduledScalingSuspended": True})
    _track(scaled)
    scaled.api.put_scheduled_action(
        **SHARDS, ScheduledActionName="soon", Schedule="rate(1 minute)", ScalableTargetAction={"MinCapacity": 4}
    )
    scaled.rig.clock.passed += dt.timedelta(minutes=2)
    scaled.value = 90.0
    scaled.tick()
    scaled.value = None
    scaled.api.register_scalable_target(
        **SHARDS, SuspendedState={"DynamicScalingOutSuspended": False, "DynamicScalingInSuspended": True}
    )
    scaled.tick()
    scaled.value = 1.0
    scaled.tick()
    assert scaled.shards() == 2
    assert scaled.activities() == []


def test_a_policy_brings_what_is_outside_of_the_bounds_within_them(scaled: Scaled) -> None:
    _register(scaled, least=3)
    scaled.tick()
    assert scaled.shards() == 2, "a target alone changes nothing"
    _track(scaled)
    scaled.tick()
    assert scaled.shards() == 3
    assert scaled.activities()[0]["Cause"] == "minimum capacity was set to 3"
    scaled.rest()
    _register(scaled, least=1, most=1)
    scaled.tick()
    assert scaled.shards() == 1


def test_schedules_set_bounds_and_what_was_missed_is_done_once(scaled: Scaled) -> None:
    _register(scaled, most=3)
    scaled.api.put_scheduled_action(
        **SHARDS, ScheduledActionName="up", Schedule="rate(10 minutes)", ScalableTargetAction={"MinCapacity": 3, "MaxCapacity": 6}
    )
    scaled.api.put_scheduled_action(
        **SHARDS, ScheduledActionName="later", Schedule="rate(3 hours)", ScalableTargetAction={"MinCapacity": 4}
    )
    scaled.tick()
    assert scaled.shards() == 2
    scaled.rig.clock.passed += dt.timedelta(minutes=65)
    scaled.tick()
    assert scaled.shards() == 3
    (shown,) = scaled.api.describe_scalable_targets(ServiceNamespace="elasticache")["ScalableTargets"]
    assert (shown["MinCapacity"], shown["MaxCapacity"]) == (3, 6)
    (activity,) = scaled.activities()
    assert activity["Cause"] == "scheduled action name up was triggered"
    scaled.rest()
    scaled.api.delete_scheduled_action(**SHARDS, ScheduledActionName="up")
    scaled.rig.clock.passed += dt.timedelta(hours=2)
    scaled.tick()
    assert scaled.shards() == 4
    (shown,) = scaled.api.describe_scheduled_actions(**SHARDS)["ScheduledActions"]
    assert shown["ScheduledActionName"] == "later"
    assert shown["ScheduledActionARN"].endswith(":resource/elasticache/replication-group/demo:scheduledActionName/later")


def test_what_is_refused_is_told_and_tried_again(scaled: Scaled) -> None:
    _register(scaled)
    _track(scaled)
    scaled.value, scaled.refusal = 90.0, "no room for another shard"
    scaled.tick()
    (activity,) = scaled.activities()
    assert activity["StatusCode"] == "Failed"
    assert "no room for another shard" in activity["StatusMessage"]
    scaled.refusal = ""
    scaled.tick()
    assert scaled.shards() == 3, "a change that was not made needs no rest"


def test_what_was_begun_and_never_asked_is_told_and_begun_again(scaled: Scaled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control plane ended between its note and its request."""
    _register(scaled)
    _track(scaled)
    scaled.value = 90.0

    async def killed(*_: Any) -> Mapping[str, Any]:
        raise asyncio.CancelledError

    inside = scaled._inside
    monkeypatch.setattr(scaled, "_inside", killed)
    with pytest.raises(asyncio.CancelledError):
        scaled.tick()
    monkeypatch.setattr(scaled, "_inside", inside)
    scaled.tick()
    assert scaled.activities()[0]["StatusCode"] == "Failed"
    scaled.tick()
    assert scaled.shards() == 3


def test_a_cache_that_is_gone_takes_its_targets_with_it(scaled: Scaled) -> None:
    _register(scaled)
    _track(scaled)
    scaled.rig.cache.delete_replication_group(ReplicationGroupId="demo")
    scaled.tick()
    assert scaled.api.describe_scalable_targets(ServiceNamespace="elasticache")["ScalableTargets"] == []
    assert scaled.api.describe_scaling_policies(ServiceNamespace="elasticache")["ScalingPolicies"] == []


def test_one_target_that_fails_holds_up_no_other(scaled: Scaled) -> None:
    _register(scaled)
    _track(scaled)
    _register(scaled, NODES, most=4, least=3)
    own = {"CustomizedMetricSpecification": OWN, "TargetValue": 10.0}
    scaled.api.put_scaling_policy(
        **NODES, PolicyName="depth", PolicyType="TargetTrackingScaling", TargetTrackingScalingPolicyConfiguration=own
    )
    real = scaled._ask

    async def away(service: str, operation: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if service == "cloudwatch":
            raise ApiError("InvalidAction", "no metrics here")
        return await real(service, operation, params)

    scaled.scaler = Scaler(scaled.rig.store, scaled.rig.clock, away)
    scaled.tick()
    assert scaled.nodes() == 3
    assert scaled.shards() == 2


def test_unsigned_requests_are_refused() -> None:
    rig = Rig(auth="enforce")
    try:
        client = rig.client_of("application-autoscaling", ROOT_KEY[0], "wrong")
        with pytest.raises(ClientError):
            client.describe_scalable_targets(ServiceNamespace="elasticache")
    finally:
        rig.close()


# ------------------------------------------------------------------ the guide


def _commands() -> list[list[str]]:
    text = (Path(__file__).parents[2] / "docs/guide/auto-scaling.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


def test_what_the_guide_says_is_done(scaled: Scaled) -> None:
    """Its commands, as aws-cli sends them."""
    for command in _commands():
        assert command[:2] == ["aws", "application-autoscaling"]
        operation, options = command[2].replace("-", "_"), command[3:]
        asked: dict[str, Any] = {}
        for option, value in zip_longest(options, options[1:], fillvalue="--"):
            if option.startswith("--"):
                name = "".join(part.capitalize() for part in option[2:].split("-"))
                asked[name] = True if value.startswith("--") else _value(value)
        getattr(scaled.api, operation)(**asked)
    (action,) = scaled.api.describe_scheduled_actions(ServiceNamespace="elasticache")["ScheduledActions"]
    assert action["ScalableTargetAction"] == {"MinCapacity": 3}
    (policy,) = scaled.api.describe_scaling_policies(ServiceNamespace="elasticache")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 60


def _value(text: str) -> Any:
    if text.startswith("{"):
        return json.loads(text)
    if text.isdigit():
        return int(text)
    name, found, count = text.partition("=")
    return {name: int(count)} if found else text
