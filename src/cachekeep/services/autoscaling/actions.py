"""Scheduled actions: other bounds for a target, at set times."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model.scaling import ScheduledAction
from cachekeep.services.autoscaling import find, schedule, targets
from cachekeep.services.core.context import Context, Params, ServiceSettings
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

ACTIONS_MAX: Final = 200
"""Of one target [Application Auto Scaling quotas]."""


async def put(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Other bounds for a target, at a time or again and again; or another schedule for that."""
    params, now = call.params, context.clock.now()
    target = await find.target(tx, params)
    name = f"{target.name}|{params['ScheduledActionName']}"
    before = await tx.get(ScheduledAction, name)
    of_target = [row for row in await tx.list(ScheduledAction) if row.target == target.name]
    if before is None and len(of_target) >= ACTIONS_MAX:
        raise ApiError("LimitExceededException", f"A scalable target has at most {ACTIONS_MAX} scheduled actions.")
    asked: Params = params.get("ScalableTargetAction", {})
    least = asked.get("MinCapacity", before.least if before else None)
    most = asked.get("MaxCapacity", before.most if before else None)
    if least is None and most is None:
        raise find.invalid("ScalableTargetAction must give MinCapacity, MaxCapacity or both.")
    first, last = (
        bound for bound in (least if least is not None else most, most if most is not None else least) if bound is not None
    )
    targets.check_bounds(target.dimension, first, last)
    text = params.get("Schedule", before.schedule if before else "")
    if not text:
        raise find.invalid("Schedule must be given when a scheduled action is made.")
    action = ScheduledAction(
        name=name,
        action_name=params["ScheduledActionName"],
        id=before.id if before else find.fresh_id(name, now.isoformat()),
        target=target.name,
        schedule=text,
        timezone=params.get("Timezone", before.timezone if before else ""),
        starts_at=params.get("StartTime", before.starts_at if before else None),
        ends_at=params.get("EndTime", before.ends_at if before else None),
        least=least,
        most=most,
        created_at=before.created_at if before else now.replace(microsecond=0),
        considered_until=now,
        version=before.version if before else 0,
    )
    _check(action, now)
    await tx.put(action)
    return {}


def _check(action: ScheduledAction, now: dt.datetime) -> None:
    """Raises ApiError ValidationException."""
    if action.starts_at and action.ends_at and action.ends_at <= action.starts_at:
        raise find.invalid("EndTime must be later than StartTime.")
    try:
        due = _next_due(action, now)
    except schedule.BadSchedule as error:
        raise find.invalid(f"The schedule is not valid: {error}.") from None
    if due is None:
        raise find.invalid("The schedule is never due: what it names is in the past, or after its EndTime.")


def _next_due(action: ScheduledAction, after: dt.datetime) -> dt.datetime | None:
    """When it is due next, within its start and its end. Raises BadSchedule."""
    found, tz = schedule.parse(action.schedule), schedule.zone(action.timezone)
    try:
        due = schedule.next_after(found, _begin(action, after), since=action.starts_at or action.created_at, tz=tz)
    except OverflowError:
        raise schedule.BadSchedule("there are no such years") from None
    return due if due is not None and (action.ends_at is None or due <= action.ends_at) else None


def last_due(action: ScheduledAction, now: dt.datetime) -> dt.datetime | None:
    """When it was due last since it was considered, within its start and its end."""
    found, tz = schedule.parse(action.schedule), schedule.zone(action.timezone)
    after, until = _begin(action, action.considered_until), min(now, action.ends_at or now)
    if after >= until:
        return None
    return schedule.last_within(found, after, until, since=action.starts_at or action.created_at, tz=tz)


def _begin(action: ScheduledAction, after: dt.datetime) -> dt.datetime:
    """It may be due from its start on."""
    return max(after, action.starts_at - dt.timedelta(microseconds=1)) if action.starts_at else after


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Scheduled actions, all or those of one target."""

    def shape(action: ScheduledAction) -> Mapping[str, Any]:
        resource, _, dimension = action.target.partition("|")
        bounds = {"MinCapacity": action.least, "MaxCapacity": action.most}
        limits = {"Timezone": action.timezone or None, "StartTime": action.starts_at, "EndTime": action.ends_at}
        return {
            "ScheduledActionName": action.action_name,
            "ScheduledActionARN": _arn(context.settings, action),
            "ServiceNamespace": find.NAMESPACE,
            "Schedule": action.schedule,
            "ResourceId": resource,
            "ScalableDimension": dimension,
            "ScalableTargetAction": {name: count for name, count in bounds.items() if count is not None},
            "CreationTime": action.created_at,
            **{name: value for name, value in limits.items() if value is not None},
        }

    names = call.params.get("ScheduledActionNames") or None
    rows = [row for row in await tx.list(ScheduledAction) if find.chosen(row.target, call.params)]
    rows = [row for row in rows if names is None or row.action_name in names]
    return find.page(rows, call.params, lambda row: row.name, shape, "ScheduledActions")


def _arn(settings: ServiceSettings, action: ScheduledAction) -> str:
    return find.arn_of(settings, "scheduledAction", action.id, action.target.partition("|")[0], action.action_name)


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A scheduled action goes. The target's bounds stay as they are."""
    await find.target(tx, call.params)
    if not await tx.get(ScheduledAction, name := f"{find.named(call.params)}|{call.params['ScheduledActionName']}"):
        raise find.missing("scheduled action", call.params)
    await tx.delete(ScheduledAction, name)
    return {}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "PutScheduledAction": writes(put),
    "DescribeScheduledActions": reads(describe),
    "DeleteScheduledAction": writes(delete),
}

PARAMETERS: Final[Declared] = {
    "ScheduledActionName": Effect("the scheduled action"),
    "ScheduledActionNames": Effect("the scheduled actions"),
    "Schedule": Effect("when: `at(…)`, `rate(…)` or `cron(…)`"),
    "Timezone": Effect("whose time the schedule is in; UTC if left out"),
    "StartTime": Effect("it is not due before"),
    "EndTime": Effect("it is not due after"),
    "ScalableTargetAction": Effect("the bounds that it sets"),
    "ScalableTargetAction.MinCapacity": Effect("the least there may be from then on"),
    "ScalableTargetAction.MaxCapacity": Effect("the most there may be from then on"),
}
