"""CloudTrail, as far as there is history without a trail: LookupEvents, of every call that was made here."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cachekeep.audit import lookup
from cachekeep.audit.record import Recorded
from cachekeep.audit.trail import Trail
from cachekeep.services.core.context import Context, Params
from cachekeep.services.core.operation import Service, reads
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.services.core.rights import Rights
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_RESULTS_MAX: Final = 50

_ATTRIBUTES: Final[Mapping[str, Callable[[Recorded], Sequence[str]]]] = {
    "AccessKeyId": lambda record: [record.user_identity.access_key_id],
    "EventId": lambda record: [record.event_id],
    "EventName": lambda record: [record.event_name],
    "EventSource": lambda record: [record.event_source],
    "ReadOnly": lambda record: [_truth(record.read_only)],
    "ResourceName": lambda record: [name for _, name in record.things] + [each.arn for each in record.resources],
    "ResourceType": lambda record: [kind for kind, _ in record.things],
    "Username": lambda record: [record.user],
}


async def lookup_events(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Who has asked for what in the last 90 days, refused calls too, the newest first."""
    params, trails = call.params, context.settings.trails
    oldest = call.received_at - dt.timedelta(days=lookup.KEPT_DAYS)
    start, end = params.get("StartTime", oldest), params.get("EndTime", call.received_at)
    if start > end:
        raise ApiError("InvalidTimeRangeException", "The start time must not be after the end time.")
    most = params.get("MaxResults", _RESULTS_MAX)
    places: lookup.Places = (None,) * len(trails)
    if given := params.get("NextToken"):
        try:
            places = lookup.places_of(given, len(trails))
        except ValueError:
            raise ApiError("InvalidNextTokenException", "The NextToken is not one that this endpoint has given.") from None
    wanted = _wanted(params)
    if params.get("EventCategory") == "insight":
        return {"Events": []}  # no trail has Insights
    for trail in trails if not given else ():
        await asyncio.to_thread(trail.settle)
    page = await asyncio.to_thread(_look, trails, places, max(start, oldest), end, wanted, most)
    more = {"NextToken": lookup.token(page.more)} if page.more is not None else {}
    return {"Events": [_shape(record, text) for record, text in page.found], **more}


def _look(
    trails: Sequence[Trail],
    places: lookup.Places,
    start: dt.datetime,
    end: dt.datetime,
    wanted: Callable[[Recorded], bool],
    most: int,
) -> lookup.Page:
    directories: list[Path] = [trail.directory for trail in trails]
    try:
        return lookup.look(directories, places, start, end, wanted, most)
    except OSError as error:
        text = f"What is on record cannot be read at the moment: {error.strerror}. Try again."
        raise ApiError("ServiceUnavailable", text, status=503) from None


def _wanted(params: Params) -> Callable[[Recorded], bool]:
    """Raises ApiError InvalidLookupAttributesException."""
    given = params.get("LookupAttributes", ())
    if not given:
        return lambda record: True
    if len(given) > 1:
        raise ApiError("InvalidLookupAttributesException", "You can use only one lookup attribute at a time.")
    values, value = _ATTRIBUTES[given[0]["AttributeKey"]], given[0]["AttributeValue"]
    return lambda record: value in values(record)


def _truth(value: bool) -> str:
    return str(value).lower()


def _shape(record: Recorded, text: bytes) -> Mapping[str, Any]:
    known = {"AccessKeyId": record.user_identity.access_key_id, "Username": record.user}
    return {
        "EventId": record.event_id,
        "EventName": record.event_name,
        "ReadOnly": _truth(record.read_only),
        "EventTime": record.event_time,
        "EventSource": record.event_source,
        **{name: value for name, value in known.items() if value},
        "Resources": [{"ResourceType": kind, "ResourceName": name} for kind, name in record.things],
        "CloudTrailEvent": text.decode(),
    }


_PARAMETERS: Final[Declared] = {
    "LookupAttributes": Effect("what the events have; one attribute"),
    "LookupAttributes.AttributeKey": Effect("which attribute"),
    "LookupAttributes.AttributeValue": Effect("its value"),
    "StartTime": Effect("events from then on"),
    "EndTime": Effect("events until then"),
    "EventCategory": Effect("`insight` finds none: no trail has Insights"),
    "MaxResults": Effect("how many a page has at the most; one for which much had to be read may have fewer, and a next one"),
    "NextToken": Effect("the page after this one"),
}

SERVICE: Final = Service(
    name="cloudtrail",
    title="CloudTrail",
    operations={"LookupEvents": reads(lookup_events)},
    parameters=_PARAMETERS,
    rights=Rights(denied="AccessDeniedException"),
)
