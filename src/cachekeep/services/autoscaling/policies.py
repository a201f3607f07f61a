"""Scaling policies: the metric that is kept near a value. ElastiCache has target tracking, and no other kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model.scaling import MetricAsked, ScalableTarget, ScalingPolicy
from cachekeep.services.autoscaling import find
from cachekeep.services.core.context import Context, Params, ServiceSettings
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

POLICIES_MAX: Final = 50
"""Of one target [Application Auto Scaling quotas]."""
PREDEFINED: Final[Mapping[str, tuple[str, str, str]]] = {
    "ElastiCachePrimaryEngineCPUUtilization": ("NodeGroups", "EngineCPUUtilization", "Primary"),
    "ElastiCacheReplicaEngineCPUUtilization": ("Replicas", "EngineCPUUtilization", "Replica"),
    "ElastiCacheDatabaseMemoryUsageCountedForEvictPercentage": (
        "NodeGroups",
        "DatabaseMemoryUsageCountedForEvictPercentage",
        "",
    ),
    "ElastiCacheDatabaseCapacityUsageCountedForEvictPercentage": (
        "NodeGroups",
        "DatabaseCapacityUsageCountedForEvictPercentage",
        "",
    ),
}
"""Type → dimension that it is for, metric in CloudWatch, role of the nodes [ElastiCache User Guide, "Predefined metrics"]."""
_TARGET_LEAST, _TARGET_MOST = 35.0, 70.0


async def put(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A policy for a target, or other rules for it. It counts from the next minute on."""
    params = call.params
    target = await find.target(tx, params)
    name = _named(params)
    before = await tx.get(ScalingPolicy, name)
    if before is None and "PolicyType" not in params:
        raise find.invalid("PolicyType must be given when a scaling policy is made.")
    kind = params.get("PolicyType", "TargetTrackingScaling")
    if kind != "TargetTrackingScaling":
        raise find.invalid(f"{kind} is not supported for service namespace elasticache: use TargetTrackingScaling.")
    asked: Params | None = params.get("TargetTrackingScalingPolicyConfiguration")
    if asked is None:
        raise find.invalid("TargetTrackingScalingPolicyConfiguration must be given for a policy of type TargetTrackingScaling.")
    of_target = [policy for policy in await tx.list(ScalingPolicy) if policy.target == target.name]
    if before is None and len(of_target) >= POLICIES_MAX:
        raise ApiError("LimitExceededException", f"A scalable target has at most {POLICIES_MAX} scaling policies.")
    now = context.clock.now()
    policy = ScalingPolicy(
        name=name,
        policy_name=params["PolicyName"],
        id=before.id if before else find.fresh_id(name, now.isoformat()),
        target=target.name,
        followed=_followed(asked, target),
        value=_value(asked),
        out_cooldown_seconds=_cooldown(asked, "ScaleOutCooldown"),
        in_cooldown_seconds=_cooldown(asked, "ScaleInCooldown"),
        never_in=asked.get("DisableScaleIn", False),
        created_at=before.created_at if before else now.replace(microsecond=0),
        version=before.version if before else 0,
    )
    if any(other.name != name and other.followed == policy.followed for other in of_target):
        raise find.invalid("Only one TargetTrackingScaling policy for a given metric specification is allowed.")
    if policy != before:
        await tx.put(policy)
    return {"PolicyARN": _arn(context.settings, policy), "Alarms": []}


def _named(params: Params) -> str:
    return f"{find.named(params)}|{params['PolicyName']}"


def _arn(settings: ServiceSettings, policy: ScalingPolicy) -> str:
    return find.arn_of(settings, "scalingPolicy", policy.id, policy.target.partition("|")[0], policy.policy_name)


def _followed(asked: Params, target: ScalableTarget) -> MetricAsked:
    """Raises ApiError ValidationException."""
    ready, own = asked.get("PredefinedMetricSpecification"), asked.get("CustomizedMetricSpecification")
    if (ready is None) == (own is None):
        raise find.invalid("Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification must be given.")
    if own is not None:
        if not (own.get("MetricName") and own.get("Namespace") and own.get("Statistic")):
            raise find.invalid("A customized metric needs MetricName, Namespace and Statistic.")
        return MetricAsked(
            namespace=own["Namespace"],
            metric=own["MetricName"],
            dimensions={each["Name"]: each["Value"] for each in own.get("Dimensions", ())},
            statistic=own["Statistic"],
            unit=own.get("Unit", ""),
        )
    assert ready is not None
    kind = ready["PredefinedMetricType"]
    if kind not in PREDEFINED or not target.dimension.endswith(f":{PREDEFINED[kind][0]}"):
        raise find.invalid(f"The predefined metric {kind} is not valid for the scalable dimension {target.dimension}.")
    _, metric, role = PREDEFINED[kind]
    dimensions = {"ReplicationGroupId": target.cache} | ({"Role": role} if role else {})
    return MetricAsked(predefined=kind, namespace="AWS/ElastiCache", metric=metric, dimensions=dimensions)


def _value(asked: Params) -> float:
    value = float(asked["TargetValue"])
    if "PredefinedMetricSpecification" in asked and not _TARGET_LEAST <= value <= _TARGET_MOST:
        raise find.invalid(f"TargetValue must be between {_TARGET_LEAST:g} and {_TARGET_MOST:g} for this metric.")
    if not (math.isfinite(value) and value > 0):
        raise find.invalid("TargetValue must be greater than 0.")
    return value


def _cooldown(asked: Params, name: str) -> int | None:
    seconds: int | None = asked.get(name)
    if seconds is not None and seconds < 0:
        raise find.invalid(f"{name} must not be negative.")
    return seconds


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Scaling policies, all or those of one target."""

    def shape(policy: ScalingPolicy) -> Mapping[str, Any]:
        resource, _, dimension = policy.target.partition("|")
        return {
            "PolicyARN": _arn(context.settings, policy),
            "PolicyName": policy.policy_name,
            "ServiceNamespace": find.NAMESPACE,
            "ResourceId": resource,
            "ScalableDimension": dimension,
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": _configuration(policy),
            "Alarms": [],
            "CreationTime": policy.created_at,
        }

    names = call.params.get("PolicyNames") or None
    rows = [row for row in await tx.list(ScalingPolicy) if find.chosen(row.target, call.params)]
    rows = [row for row in rows if names is None or row.policy_name in names]
    return find.page(rows, call.params, lambda row: row.name, shape, "ScalingPolicies")


def _configuration(policy: ScalingPolicy) -> Mapping[str, Any]:
    followed = policy.followed
    shape: dict[str, Any] = {"TargetValue": policy.value, "DisableScaleIn": policy.never_in}
    if followed.predefined:
        shape["PredefinedMetricSpecification"] = {"PredefinedMetricType": followed.predefined}
    else:
        own: dict[str, Any] = {"MetricName": followed.metric, "Namespace": followed.namespace, "Statistic": followed.statistic}
        if followed.dimensions:
            own["Dimensions"] = [{"Name": name, "Value": value} for name, value in followed.dimensions.items()]
        shape["CustomizedMetricSpecification"] = own | ({"Unit": followed.unit} if followed.unit else {})
    cooldowns = {"ScaleOutCooldown": policy.out_cooldown_seconds, "ScaleInCooldown": policy.in_cooldown_seconds}
    return shape | {name: seconds for name, seconds in cooldowns.items() if seconds is not None}


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A policy goes. The cache stays as it is."""
    await find.target(tx, call.params)
    if not await tx.get(ScalingPolicy, name := _named(call.params)):
        raise find.missing("scaling policy", call.params)
    await tx.delete(ScalingPolicy, name)
    return {}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "PutScalingPolicy": writes(put),
    "DescribeScalingPolicies": reads(describe),
    "DeleteScalingPolicy": writes(delete),
}

_TRACKING: Final = "TargetTrackingScalingPolicyConfiguration"
_OWN: Final = f"{_TRACKING}.CustomizedMetricSpecification"
PARAMETERS: Final[Declared] = {
    "PolicyName": Effect("the policy"),
    "PolicyNames": Effect("the policies"),
    "PolicyType": Effect("must be `TargetTrackingScaling`; it is needed for a new policy"),
    "StepScalingPolicyConfiguration": NotYet("Step scaling"),
    "PredictiveScalingPolicyConfiguration": NotYet("Predictive scaling"),
    _TRACKING: Effect("the metric and its value"),
    f"{_TRACKING}.TargetValue": Effect("what the metric is kept at"),
    f"{_TRACKING}.ScaleOutCooldown": Effect("how long after a change out no other one is made, in seconds"),
    f"{_TRACKING}.ScaleInCooldown": Effect("how long after a change none is made in, in seconds"),
    f"{_TRACKING}.DisableScaleIn": Effect("it never makes the number less"),
    f"{_TRACKING}.PredefinedMetricSpecification": Effect("one of ElastiCache's own metrics"),
    f"{_TRACKING}.PredefinedMetricSpecification.PredefinedMetricType": Effect("which"),
    f"{_TRACKING}.PredefinedMetricSpecification.ResourceLabel": NotYet("Labels of resources"),
    _OWN: Effect("a metric of CloudWatch's"),
    f"{_OWN}.MetricName": Effect("its name"),
    f"{_OWN}.Namespace": Effect("its namespace"),
    f"{_OWN}.Statistic": Effect("which statistic of each minute"),
    f"{_OWN}.Unit": Effect("its unit"),
    f"{_OWN}.Dimensions": Effect("its dimensions"),
    f"{_OWN}.Dimensions.Name": Effect("the name of one"),
    f"{_OWN}.Dimensions.Value": Effect("the value of one"),
    f"{_OWN}.Metrics": NotYet("Metric math in policies"),
}
