"""Auto scaling: what may be scaled, by what rules, and what came of it."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

Dimension = Literal[
    "elasticache:replication-group:NodeGroups", "elasticache:replication-group:Replicas", "elasticache:cache-cluster:Nodes"
]
"""What of a cache is a number that grows and shrinks: shards, replicas of each shard, nodes of a Memcached cluster."""


class Suspended(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to the target by nobody for the time being."""

    scale_in: bool = False
    scale_out: bool = False
    scheduled: bool = False


class ScalableTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One number of one cache that may be changed between two bounds. ``resource`` is ``replication-group/demo``."""

    name: str
    id: str
    resource: str
    dimension: Dimension
    least: int
    most: int
    created_at: dt.datetime
    suspended: Suspended = Suspended()
    tags: dict[str, str] = {}
    version: int = 0

    @staticmethod
    def named(resource: str, dimension: str) -> str:
        """The ``name`` that a target has: there is one of each dimension."""
        return f"{resource}|{dimension}"

    @property
    def cache(self) -> str:
        """The name of the group or the cluster."""
        return self.resource.partition("/")[2]


class MetricAsked(msgspec.Struct, frozen=True, kw_only=True):
    """The metric that a policy follows. ``predefined`` is its type where it is one of ElastiCache's own, else empty."""

    predefined: str = ""
    namespace: str = ""
    metric: str = ""
    dimensions: dict[str, str] = {}
    statistic: str = "Average"
    unit: str = ""


class ScalingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Keeps a metric near a value by scaling its target, whose ``name`` is ``target``."""

    name: str
    policy_name: str
    id: str
    target: str
    followed: MetricAsked
    value: float
    out_cooldown_seconds: int | None = None
    in_cooldown_seconds: int | None = None
    never_in: bool = False
    created_at: dt.datetime
    version: int = 0


class ScheduledAction(msgspec.Struct, frozen=True, kw_only=True):
    """Sets the bounds of its target at set times. ``considered_until``: what was due by then was done."""

    name: str
    action_name: str
    id: str
    target: str
    schedule: str
    timezone: str = ""
    starts_at: dt.datetime | None = None
    ends_at: dt.datetime | None = None
    least: int | None = None
    most: int | None = None
    created_at: dt.datetime
    considered_until: dt.datetime
    version: int = 0


ActivityStatus = Literal["InProgress", "Successful", "Failed", "Overridden"]


class ScalingActivity(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a target's number, and what came of it. ``before`` and ``desired`` are that number.

    ``not_scaled`` is the code of the reason for which nothing was changed, or empty.
    """

    name: str
    target: str
    cause: str
    before: int
    desired: int
    started_at: dt.datetime
    ended_at: dt.datetime | None = None
    status: ActivityStatus = "InProgress"
    message: str = ""
    not_scaled: str = ""
    version: int = 0
