"""What was scaled, when and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model.scaling import ScalingActivity
from cachekeep.services.autoscaling import find
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call

_NOUNS: Final = {"NodeGroups": "node groups", "Replicas": "replicas", "Nodes": "nodes"}


def noun(target: str) -> str:
    """What a target counts, from its name."""
    return _NOUNS[target.rpartition(":")[2]]


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What was scaled in the last six weeks, newest first; on request also what was not, and why."""

    def shape(activity: ScalingActivity) -> Mapping[str, Any]:
        resource, _, dimension = activity.target.partition("|")
        what = f"Setting desired {noun(activity.target)} to {activity.desired}."
        ended = {"EndTime": activity.ended_at} if activity.ended_at else {}
        reason = {"Code": activity.not_scaled, "CurrentCapacity": activity.before}
        return {
            "ActivityId": find.uuid(activity.name.rpartition("|")[2]),
            "ServiceNamespace": find.NAMESPACE,
            "ResourceId": resource,
            "ScalableDimension": dimension,
            "Description": "Attempting to scale." if activity.not_scaled else what,
            "Cause": activity.cause,
            "StartTime": activity.started_at,
            "StatusCode": activity.status,
            "StatusMessage": activity.message,
            **ended,
            **({"NotScaledReasons": [reason]} if activity.not_scaled else {}),
        }

    rows = [row for row in await tx.list(ScalingActivity) if find.chosen(row.target, call.params)]
    if not call.params.get("IncludeNotScaledActivities"):
        rows = [row for row in rows if not row.not_scaled]
    order = {row.name: f"{2**62 - int(row.started_at.timestamp() * 1e6):020}{row.name}" for row in rows}
    return find.page(rows, call.params, lambda row: order[row.name], shape, "ScalingActivities")


OPERATIONS: Final[Mapping[str, Operation]] = {"DescribeScalingActivities": reads(describe)}

PARAMETERS: Final[Declared] = {"IncludeNotScaledActivities": Effect("also what was wished for and not done, with the reason")}
