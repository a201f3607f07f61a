"""DescribeEvents: what has happened in the last 14 days, the newest first."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model import Event
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.operation import Operation, reads
from cachekeep.store.contract import Transaction
from cachekeep.store.families.events import EVENTS_KEPT_DAYS
from cachekeep.wire.gateway import Call

_DEFAULT_MINUTES: Final = 60
_BATCH: Final = 1000


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Events of one source, of one kind of source or of all; of the last hour when no time is named."""
    params = call.params
    if "SourceIdentifier" in params and "SourceType" not in params:
        raise combination_error("SourceIdentifier needs SourceType too.")
    after, size = paging.start(params)
    begin, end = span(params, context.clock.now(), EVENTS_KEPT_DAYS)
    source = params.get("SourceIdentifier")
    rows: list[tuple[str, Event]] = []
    cursor = None
    while batch := await tx.events(
        start=begin,
        end=end,
        source_type=params.get("SourceType"),
        source=source.lower() if source else None,
        after=cursor,
        limit=_BATCH,
    ):
        rows += batch
        cursor = batch[-1][0]
    rows.reverse()
    if after is not None:
        rows = rows[next((index for index, row in enumerate(rows, 1) if row[0] == after), len(rows)) :]
    shown, marker = paging.finish(rows, size, lambda row: row[0])
    return {"Events": [_shape(event) for _, event in shown], **marker}


def span(params: Params, now: dt.datetime, days: int) -> tuple[dt.datetime, dt.datetime]:
    """Begin (included) and end (excluded) [DescribeEvents: StartTime, EndTime, Duration in minutes].

    Raises ApiError InvalidParameterValue or InvalidParameterCombination.
    """
    begin, end, minutes = params.get("StartTime"), params.get("EndTime"), params.get("Duration")
    if minutes is not None:
        if begin and end:
            raise combination_error("Duration cannot be used together with both StartTime and EndTime.")
        if not 0 < minutes <= days * 24 * 60:
            raise value_error(f"Invalid value {minutes} for Duration: it must be between 1 and {days * 24 * 60} minutes.")
    if begin and end and begin > end:
        raise value_error("StartTime must not be later than EndTime.")
    # Nothing is kept from before that, nothing can be from after that; and a date of the year 1 has no hour before it.
    oldest, latest = now - dt.timedelta(days=days + 1), now + dt.timedelta(days=1)
    begin, end = (min(max(at, oldest), latest) if at else None for at in (begin, end))
    length = dt.timedelta(minutes=minutes or _DEFAULT_MINUTES)
    if begin is None:
        return min(end or now, now) - length, end or latest
    return begin, end or (begin + length if minutes else latest)


def _shape(event: Event) -> Mapping[str, Any]:
    return {
        "SourceIdentifier": event.source,
        "SourceType": event.source_type,
        "Message": event.message,
        "Date": event.at,
    }


OPERATIONS: Final[Mapping[str, Operation]] = {"DescribeEvents": reads(describe)}
