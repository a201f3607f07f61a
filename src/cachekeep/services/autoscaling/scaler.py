"""The worker that scales: it looks at metrics and schedules, and asks for what a user would ask for."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError
from cachekeep.model import Cache
from cachekeep.model.scaling import MetricAsked, ScalableTarget, ScalingActivity, ScalingPolicy, ScheduledAction
from cachekeep.rounds import rounds
from cachekeep.services.autoscaling import actions, find, targets, tracking
from cachekeep.services.autoscaling.activities import noun
from cachekeep.services.core.inside import Ask
from cachekeep.services.elasticache.status import group_status
from cachekeep.store.contract import Store, Transaction
from cachekeep.wire.faults import ApiError

log = logging.getLogger("cachekeep.scaler")

TICK_SECONDS: Final = 15.0
_LATE: Final = dt.timedelta(seconds=20)
"""A minute's values may come so long after its end."""
_KEPT: Final = dt.timedelta(weeks=6)
"""[DescribeScalingActivities: "in the previous six weeks"]"""


class _Found(NamedTuple):
    """What is stored of one target."""

    target: ScalableTarget
    policies: Sequence[ScalingPolicy]
    actions: Sequence[ScheduledAction]
    activities: Sequence[ScalingActivity]


class _Seen(NamedTuple):
    """The target's number, and whether its cache is at rest."""

    cache: Cache
    current: int
    settled: bool


class Scaler:
    """Considers every scalable target, one change of each at a time. One in an installation works (``control.workers.Single``)."""

    def __init__(self, store: Store, clock: Clock, ask: Ask) -> None:
        self._store, self._clock, self._ask = store, clock, ask

    async def run(self) -> None:
        """Consider all of them every ``TICK_SECONDS``, until cancelled."""
        await rounds(self._clock, TICK_SECONDS, self.tick, log, "nothing was scaled for now")

    def hasten(self) -> None:
        """It lacks nothing."""

    async def tick(self) -> None:
        """Consider each target once. What goes wrong with one holds up no other."""
        async with self._store.reading() as tx:
            targets_now = await tx.list(ScalableTarget)
            if not targets_now:
                return
            policies, schedules = await tx.list(ScalingPolicy), await tx.list(ScheduledAction)
            activities = await tx.list(ScalingActivity)
        found = [
            _Found(
                target,
                [row for row in policies if row.target == target.name],
                [row for row in schedules if row.target == target.name],
                [row for row in activities if row.target == target.name],
            )
            for target in targets_now
        ]
        await asyncio.gather(*map(self._considered, found))

    async def _considered(self, found: _Found) -> None:
        try:
            await self._consider(found)
        except CachekeepError as error:
            log.warning("%s is not scaled for now: %s", found.target.name, error)

    async def _consider(self, found: _Found) -> None:
        target, now = found.target, self._clock.now()
        seen = await self._look(target)
        if seen is None:
            async with self._store.transaction() as tx:
                await targets.remove(tx, target)
            return
        scheduled = await self._keep_schedules(found, now)
        if scheduled is not None:
            target = scheduled[0]
        open_ones = [activity for activity in found.activities if activity.status == "InProgress"]
        if open_ones:
            await self._follow(open_ones, seen, now)
            return
        if not seen.settled:
            return
        bounded = max(target.least, min(seen.current, target.most))
        if bounded != seen.current and (scheduled or found.policies):
            bound = "minimum" if bounded > seen.current else "maximum"
            cause = scheduled[1] if scheduled else f"{bound} capacity was set to {bounded}"
            await self._scale(found, target, seen, bounded, cause, by_policy=scheduled is None)
            return
        if found.policies:
            await self._track(found, target, seen, now)

    async def _look(self, target: ScalableTarget) -> _Seen | None:
        async with self._store.reading() as tx:
            cache = await tx.cache(target.cache, "group" if target.resource.startswith("replication-group/") else "cluster")
            if cache is None or cache.wanted.deleted:
                return None
            return _Seen(cache, count(cache, target), group_status(cache, await tx.condition(cache.uid)) == "available")

    async def _keep_schedules(self, found: _Found, now: dt.datetime) -> tuple[ScalableTarget, str] | None:
        """Set the bounds that are due. What was due while nobody looked is done once, the latest last."""
        due: list[tuple[dt.datetime, ScheduledAction]] = []
        for action in found.actions:
            if (at := actions.last_due(action, now)) is not None:
                due.append((at, action))
        if not due:
            return None
        done = None
        async with self._store.transaction() as tx:
            target = await tx.get(ScalableTarget, found.target.name)
            for _, action in sorted(due, key=lambda each: each[0]):
                current = await tx.get(ScheduledAction, action.name)
                if target is None or current is None or current.version != action.version:
                    continue  # it was changed meanwhile, and is considered anew
                await tx.put(replace(current, considered_until=now))
                if target.suspended.scheduled:
                    continue
                least = target.least if action.least is None else action.least
                most = target.most if action.most is None else action.most
                # One bound alone may pass the other [PutScheduledAction: the target keeps the one that is not given].
                most = max(least, most) if action.most is None else most
                least = min(least, most)
                done = replace(target, least=least, most=most), f"scheduled action name {action.action_name} was triggered"
                target = done[0]
            if done is not None:
                await tx.put(done[0])
        return done

    async def _follow(self, open_ones: Iterable[ScalingActivity], seen: _Seen, now: dt.datetime) -> None:
        """Say what came of a change once the cache is at rest again."""
        if not seen.settled:
            return
        async with self._store.transaction() as tx:
            for each in open_ones:
                what = noun(each.target)
                if seen.current == each.desired:
                    text = f"Successfully set desired {what} to {each.desired}. Change successfully fulfilled by elasticache."
                    await tx.put(replace(each, status="Successful", ended_at=now, message=text))
                else:
                    text = f"Failed to set desired {what} to {each.desired}: there are {seen.current}."
                    await tx.put(replace(each, status="Failed", ended_at=now, message=text))

    async def _track(self, found: _Found, target: ScalableTarget, seen: _Seen, now: dt.datetime) -> None:
        step = tracking.STEP if target.dimension.endswith(":NodeGroups") else 0.0
        rules = [(_rule(policy, step), await self._points(policy.followed, now)) for policy in found.policies]
        named = {id(rule): policy for (rule, _), policy in zip(rules, found.policies, strict=True)}
        wished, rule = tracking.together(
            rules, seen.current, least=target.least, most=target.most, last=_last(found.activities, now), now=now
        )
        if rule is None:
            return
        policy = named[id(rule)]
        value = next(points for each, points in rules if each is rule)[-1]
        cause = (
            f"{policy.followed.metric} was {value:.1f}, the target is {policy.value:g}: policy {policy.policy_name} was triggered"
        )
        if wished == seen.current:
            more = tracking.way(rule, next(points for each, points in rules if each is rule)) == "out"
            await self._not_scaled(found, seen, cause, "AlreadyAtMaxCapacity" if more else "AlreadyAtMinCapacity")
            return
        await self._scale(found, target, seen, wished, cause, by_policy=True)

    async def _points(self, followed: MetricAsked, now: dt.datetime) -> tracking.Points:
        """A value for each of the last minutes. Raises ApiError."""
        end = (now - _LATE).replace(second=0, microsecond=0)
        start = end - dt.timedelta(minutes=tracking.IN_POINTS)
        dimensions = [{"Name": name, "Value": value} for name, value in followed.dimensions.items()]
        metric = {"Namespace": followed.namespace, "MetricName": followed.metric, "Dimensions": dimensions}
        stat: dict[str, Any] = {"Metric": metric, "Period": 60, "Stat": followed.statistic}
        if followed.unit:
            stat["Unit"] = followed.unit
        answer = await self._ask(
            "cloudwatch",
            "GetMetricData",
            {"MetricDataQueries": [{"Id": "m", "MetricStat": stat}], "StartTime": start, "EndTime": end},
        )
        results: Sequence[Mapping[str, Any]] = answer["MetricDataResults"]
        known = dict(zip(results[0]["Timestamps"], results[0]["Values"], strict=True)) if results else {}
        return [known.get(start + dt.timedelta(minutes=minute)) for minute in range(tracking.IN_POINTS)]

    async def _scale(
        self, found: _Found, target: ScalableTarget, seen: _Seen, desired: int, cause: str, *, by_policy: bool
    ) -> None:
        suspended = target.suspended.scale_out if desired > seen.current else target.suspended.scale_in
        if by_policy and suspended:
            return
        activity = await self._begin(found, seen, cause, desired=desired)
        try:
            await self._ask("elasticache", *request(seen.cache, target, desired))
        except ApiError as error:
            text = f"Failed to set desired {noun(target.name)} to {desired}. {error.message}"
            async with self._store.transaction() as tx:
                await tx.put(replace(activity, status="Failed", ended_at=self._clock.now(), message=text))

    async def _begin(self, found: _Found, seen: _Seen, cause: str, *, desired: int) -> ScalingActivity:
        now = self._clock.now()
        name = f"{found.target.id}|{find.fresh_id(found.target.name, now.isoformat())}"
        activity = ScalingActivity(
            name=name,
            target=found.target.name,
            cause=cause,
            before=seen.current,
            desired=desired,
            started_at=now,
        )
        async with self._store.transaction() as tx:
            await _forget_old(tx, found.activities, now)
            await tx.put(activity)
            return await tx.get(ScalingActivity, name) or activity

    async def _not_scaled(self, found: _Found, seen: _Seen, cause: str, code: str) -> None:
        """Say once that nothing was done, and why."""
        newest = max(found.activities, key=lambda each: each.started_at, default=None)
        if newest is not None and newest.not_scaled == code:
            return
        begun = await self._begin(found, seen, cause, desired=seen.current)
        text = f"{noun(found.target.name)} stay at {seen.current}."
        async with self._store.transaction() as tx:
            await tx.put(replace(begun, status="Failed", ended_at=begun.started_at, message=text, not_scaled=code))


def count(cache: Cache, target: ScalableTarget) -> int:
    """The number that the target is about, as it is wanted."""
    match target.dimension:
        case "elasticache:replication-group:NodeGroups":
            return len(cache.wanted.shards)
        case "elasticache:replication-group:Replicas":
            return min(len(shard.members) for shard in cache.wanted.shards) - 1
        case "elasticache:cache-cluster:Nodes":
            return sum(len(shard.members) for shard in cache.wanted.shards)


def request(cache: Cache, target: ScalableTarget, desired: int) -> tuple[str, Mapping[str, Any]]:
    """The operation that makes it so many. The shards and nodes that came last go first."""
    current = count(cache, target)
    match target.dimension:
        case "elasticache:replication-group:NodeGroups":
            last = sorted((shard.id for shard in cache.wanted.shards), reverse=True)[: max(0, current - desired)]
            asked: dict[str, Any] = {"ReplicationGroupId": cache.name, "NodeGroupCount": desired, "ApplyImmediately": True}
            return "ModifyReplicationGroupShardConfiguration", asked | ({"NodeGroupsToRemove": last} if last else {})
        case "elasticache:replication-group:Replicas":
            operation = "IncreaseReplicaCount" if desired > current else "DecreaseReplicaCount"
            return operation, {"ReplicationGroupId": cache.name, "NewReplicaCount": desired, "ApplyImmediately": True}
        case "elasticache:cache-cluster:Nodes":
            names = sorted((m.name for shard in cache.wanted.shards for m in shard.members), reverse=True)
            last = [name.rpartition(".")[2] for name in names[: max(0, current - desired)]]
            asked = {"CacheClusterId": cache.name, "NumCacheNodes": desired, "ApplyImmediately": True}
            return "ModifyCacheCluster", asked | ({"CacheNodeIdsToRemove": last} if last else {})


def _rule(policy: ScalingPolicy, step: float) -> tracking.Rule:
    out, inward = policy.out_cooldown_seconds, policy.in_cooldown_seconds
    return tracking.Rule(
        value=policy.value,
        share=step,
        out_cooldown_seconds=tracking.OUT_COOLDOWN_SECONDS if out is None else out,
        in_cooldown_seconds=tracking.IN_COOLDOWN_SECONDS if inward is None else inward,
        never_in=policy.never_in,
    )


def _last(activities: Iterable[ScalingActivity], now: dt.datetime) -> tracking.Last:
    done = [
        tracking.Changed(each.ended_at, each.desired - each.before)
        for each in activities
        if each.status == "Successful" and each.ended_at
    ]
    return tracking.last_of(done, now)


async def _forget_old(tx: Transaction, activities: Iterable[ScalingActivity], now: dt.datetime) -> None:
    for each in activities:
        if now - each.started_at > _KEPT:
            await tx.delete(ScalingActivity, each.name)
