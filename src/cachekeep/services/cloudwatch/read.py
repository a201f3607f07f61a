"""Which metrics there are, and what they were."""

from __future__ import annotations

import asyncio
import bisect
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachekeep.metrics.datum import SIMPLE, Datum, statistic
from cachekeep.metrics.math.evaluate import Track
from cachekeep.metrics.math.tree import Invalid
from cachekeep.metrics.points import Dimensions
from cachekeep.metrics.queries import Measured, Query, answer, dimensions_seen, finest, lookup, ordered, periods
from cachekeep.metrics.series import DAY, HOUR, MINUTE, Series
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.operation import reads
from cachekeep.services.core.paging import PageRule, wrap
from cachekeep.services.core.paging import start as page_start
from cachekeep.services.core.parameters import Declared, Effect, Moot, NotYet
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

LISTED_MAX: Final = 500
DATAPOINTS_MAX: Final = 1440
QUERIES_MAX: Final = 500
RESULTS_MAX: Final = 100_800
_RECENT_SECONDS: Final = 3 * HOUR
_ACTIVE_SECONDS: Final = 14 * DAY
_ID: Final = re.compile(r"[a-z][a-zA-Z0-9_]*")
_PAGE: Final = PageRule("NextToken", "MaxDatapoints", 1, RESULTS_MAX, RESULTS_MAX)
_LIST: Final = PageRule("NextToken", "", LISTED_MAX, LISTED_MAX, LISTED_MAX)


def seconds(at: dt.datetime) -> int:
    return int(at.timestamp())


def dimensions_of(params: Params) -> Dimensions:
    """By name. Raises ApiError InvalidParameterValue."""
    given = [(each["Name"], each["Value"]) for each in params.get("Dimensions", ())]
    if len({name for name, _ in given}) < len(given):
        raise value_error("The parameter Dimensions has a name more than once.")
    return tuple(sorted(given))


def shape(namespace: str, metric: str, dimensions: Dimensions) -> Mapping[str, Any]:
    """A ``Metric``."""
    return {
        "Namespace": namespace,
        "MetricName": metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions],
    }


async def list_metrics(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Metrics that have told something in the last two weeks, by namespace, name and dimensions."""
    params = call.params
    after, _ = page_start(params, _LIST)
    since = seconds(context.clock.now()) - (_RECENT_SECONDS if "RecentlyActive" in params else _ACTIVE_SECONDS)
    wanted = [(each["Name"], each.get("Value")) for each in params.get("Dimensions", ())]
    found = await context.archive.find(params.get("Namespace"), params.get("MetricName"))
    rows = {repr(row): row for series in found if series.seen_at + HOUR > since for row in _rows(series, wanted)}
    keys = sorted(rows)
    first = 0 if after is None else bisect.bisect(keys, after)
    shown = [rows[key] for key in keys[first : first + LISTED_MAX]]
    more = {"NextToken": wrap(keys[first + LISTED_MAX - 1])} if first + LISTED_MAX < len(rows) else {}
    return {"Metrics": [shape(*row) for row in shown], **more}


def _rows(series: Series, wanted: Sequence[tuple[str, str | None]]) -> list[tuple[str, str, Dimensions]]:
    rows = []
    for dimensions in dimensions_seen(series):
        has = dict(dimensions)
        if all(name in has and value in (None, has[name]) for name, value in wanted):
            rows.append((series.source.namespace, series.metric, dimensions))
    return rows


def checked_period(period: int) -> int:
    """Raises ApiError InvalidParameterValue."""
    if period % MINUTE:
        raise value_error("The parameter Period must be a multiple of 60: metrics are kept by the minute.")
    return period


def _range(params: Params) -> tuple[int, int]:
    start, end = seconds(params["StartTime"]), seconds(params["EndTime"])
    if start >= end:
        raise value_error("The parameter StartTime must be less than the parameter EndTime.")
    return start, end


async def get_metric_statistics(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Statistics of one metric, over periods counted from the start time."""
    params, now = call.params, seconds(context.clock.now())
    simple, extended = params.get("Statistics", ()), params.get("ExtendedStatistics", ())
    if bool(simple) == bool(extended):
        raise combination_error("Exactly one of the parameters Statistics and ExtendedStatistics must be given.")
    for name in (*simple, *extended):
        if statistic(name) is None or (name in SIMPLE) != (name in simple):
            raise value_error(
                f"The value {name} for parameter {'Statistics' if name in simple else 'ExtendedStatistics'} is invalid."
            )
    period = checked_period(params["Period"])
    start, end = _range(params)
    base = finest(start, now)
    start -= start % base  # as CloudWatch rounds it
    if period % base:
        raise value_error(f"The parameter Period must be a multiple of {base} for a StartTime so long ago.")
    if (asked := -((start - end) // period)) > DATAPOINTS_MAX:
        raise combination_error(
            f"You have requested up to {asked:,} datapoints, which exceeds the limit of {DATAPOINTS_MAX:,}. You may reduce the "
            "datapoints requested by increasing Period, or decreasing the time range."
        )
    metric = Measured(
        namespace=params["Namespace"],
        metric=params["MetricName"],
        dimensions=dimensions_of(params),
        period=period,
        stat="",
        unit=params.get("Unit"),
    )
    series = await lookup(context.archive, metric)
    points = []
    for unit in sorted({each.unit for each in series}):
        same = [each for each in series if each.unit == unit]
        for at, datum in (await periods(context.archive, same, start, end, period, origin=start, now=now)).items():
            points.append(_datapoint(at, datum, unit, simple, extended))
    return {"Label": metric.metric, "Datapoints": points}


def _datapoint(at: int, datum: Datum, unit: str, simple: Sequence[str], extended: Sequence[str]) -> Mapping[str, Any]:
    told = {name: stat.of(datum) for name in (*simple, *extended) if (stat := statistic(name)) is not None}
    known = {name: value for name, value in told.items() if value is not None}
    point: dict[str, Any] = {"Timestamp": dt.datetime.fromtimestamp(at, dt.UTC), "Unit": unit}
    point |= {name: known[name] for name in simple if name in known}
    if extended:
        point["ExtendedStatistics"] = {name: known[name] for name in extended if name in known}
    return point


def _invalid(message: str) -> ApiError:
    return ApiError("ValidationError", message)


def query_of(given: Params) -> Query:
    """A ``MetricDataQuery``. Raises ApiError."""
    id = given["Id"]
    if not _ID.fullmatch(id):
        raise ApiError(
            "ValidationError",
            f"The value {id} for parameter MetricDataQueries.Id does not match the pattern ^{_ID.pattern}$.",
        )
    if ("MetricStat" in given) == ("Expression" in given):
        raise _invalid(f"Either MetricStat or Expression, and not both, must be given for {id}.")
    measured = None
    if (stat := given.get("MetricStat")) is not None:
        metric = stat["Metric"]
        if "Namespace" not in metric or "MetricName" not in metric:
            raise _invalid(f"The metric of {id} needs a Namespace and a MetricName.")
        if statistic(stat["Stat"]) is None:
            raise ApiError(
                "ValidationError",
                f"The value {stat['Stat']} for parameter MetricDataQueries.{id}.MetricStat.Stat is no statistic.",
            )
        measured = Measured(
            namespace=metric["Namespace"],
            metric=metric["MetricName"],
            dimensions=dimensions_of(metric),
            period=checked_period(stat["Period"]),
            stat=stat["Stat"],
            unit=stat.get("Unit"),
        )
    return Query(
        id=id,
        measured=measured,
        expression=given.get("Expression", ""),
        label=given.get("Label"),
        returned=given.get("ReturnData", True),
        period=checked_period(given["Period"]) if "Period" in given else None,
    )


def queries_of(given: Sequence[Params], most: int) -> list[Query]:
    """Several, with ids of their own. Raises ApiError."""
    queries = [query_of(each) for each in given]
    if not queries or len(queries) > most:
        raise _invalid(f"There must be 1 to {most} MetricDataQueries; there are {len(queries)}.")
    if len({query.id for query in queries}) < len(queries):
        raise _invalid("The values for parameter Id in MetricDataQueries are not unique.")
    try:
        ordered(queries)
    except Invalid as error:
        raise _invalid(f"{error}.") from None
    return queries


async def get_metric_data(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Metrics and expressions over them, newest first unless asked otherwise."""
    params = call.params
    queries = queries_of(params["MetricDataQueries"], QUERIES_MAX)
    start, end = _range(params)
    after, most = page_start(params, _PAGE)
    if after is not None and not (after.isascii() and after.isdecimal()):
        raise value_error("The NextToken is not one that this endpoint has given.")
    try:
        found = await answer(context.archive, queries, start, end, now=seconds(context.clock.now()))
    except Invalid as error:
        raise _invalid(f"{error}.") from None
    down = params.get("ScanBy", "TimestampDescending") == "TimestampDescending"
    return await asyncio.to_thread(_page, queries, found, int(after or 0), most, down=down)


def _page(
    queries: Sequence[Query], found: Mapping[str, Sequence[Track]], after: int, most: int, *, down: bool
) -> Mapping[str, Any]:
    """The values after so many, and at most so many."""
    results: list[dict[str, Any]] = []
    skip, left = after, most
    for query in queries:
        for track in found[query.id] if query.returned else ():
            points = sorted(track.points.items(), reverse=down)
            points, skip = points[skip:], max(0, skip - len(points))
            if left == 0 and points:
                return {"MetricDataResults": results, "NextToken": wrap(str(after + most)), "Messages": []}
            shown = points[:left]
            left -= len(shown)
            if shown or not after:
                results.append(_result(query, track, shown, whole=len(shown) == len(points)))
    more = any(result["StatusCode"] == "PartialData" for result in results)
    return {"MetricDataResults": results, "Messages": [], **({"NextToken": wrap(str(after + most))} if more else {})}


def _result(query: Query, track: Track, shown: Sequence[tuple[int, float]], *, whole: bool) -> dict[str, Any]:
    return {
        "Id": query.id,
        "Label": _label(query, track),
        "Timestamps": [dt.datetime.fromtimestamp(at, dt.UTC) for at, _ in shown],
        "Values": [value for _, value in shown],
        "StatusCode": "Complete" if whole else "PartialData",
    }


def _label(query: Query, track: Track) -> str:
    """As it was asked for; else the metric's name, or of an expression its id, and of what a search found its dimensions."""
    own = track.label if query.measured is not None or "SEARCH" in query.expression.upper() else query.id
    if query.label is None:
        return own
    values = [track.points[at] for at in sorted(track.points)]
    known = {"LABEL": own, "PROP('Stat')": query.measured.stat if query.measured else ""}
    if query.measured is not None:
        known |= {"PROP('MetricName')": query.measured.metric, "PROP('Namespace')": query.measured.namespace}
        known |= {"PROP('Period')": str(query.measured.period)}
        known |= {f"PROP('Dim.{name}')": value for name, value in query.measured.dimensions}
    if values:
        figures = {"AVG": sum(values) / len(values), "MAX": max(values), "MIN": min(values), "SUM": sum(values)}
        figures |= {"FIRST": values[0], "LAST": values[-1], "DATAPOINT_COUNT": len(values)}
        known |= {name: f"{value:g}" for name, value in figures.items()}
    return re.sub(r"\$\{([^}]*)\}", lambda found: known.get(found[1], found[0]), query.label)


OPERATIONS: Final = {
    "ListMetrics": reads(list_metrics),
    "GetMetricStatistics": reads(get_metric_statistics),
    "GetMetricData": reads(get_metric_data),
}
_SELF = Moot("there is one account, and it is the one that asks")
_WHICH = Effect("which metric")
PARAMETERS: Final[Declared] = {
    "Namespace": _WHICH,
    "MetricName": _WHICH,
    "Dimensions": _WHICH,
    "Dimensions.Name": _WHICH,
    "Dimensions.Value": _WHICH,
    "Unit": Effect("only what was told in this unit"),
    "StartTime": Effect("from when on"),
    "EndTime": Effect("until when, this moment not included"),
    "NextToken": Effect("the next page"),
    "ListMetrics:RecentlyActive": Effect("only what has told something in the last three hours"),
    "ListMetrics:IncludeLinkedAccounts": _SELF,
    "ListMetrics:OwningAccount": _SELF,
    "GetMetricStatistics:Period": Effect("how much time one data point is about, in multiples of 60 seconds"),
    "GetMetricStatistics:Statistics": Effect("which statistics"),
    "GetMetricStatistics:ExtendedStatistics": Effect("which percentiles, and trimmed statistics"),
    "MetricDataQueries": Effect("metrics, and expressions over them"),
    "MetricDataQueries.Id": Effect("what expressions call it"),
    "MetricDataQueries.MetricStat": Effect("a statistic of a metric"),
    "MetricDataQueries.MetricStat.Metric": _WHICH,
    "MetricDataQueries.MetricStat.Metric.Namespace": _WHICH,
    "MetricDataQueries.MetricStat.Metric.MetricName": _WHICH,
    "MetricDataQueries.MetricStat.Metric.Dimensions": _WHICH,
    "MetricDataQueries.MetricStat.Metric.Dimensions.Name": _WHICH,
    "MetricDataQueries.MetricStat.Metric.Dimensions.Value": _WHICH,
    "MetricDataQueries.MetricStat.Period": Effect("how much time one data point is about, in multiples of 60 seconds"),
    "MetricDataQueries.MetricStat.Stat": Effect("which statistic"),
    "MetricDataQueries.MetricStat.Unit": Effect("only what was told in this unit"),
    "MetricDataQueries.Expression": Effect("metric math"),
    "MetricDataQueries.Label": Effect("what the result is called"),
    "MetricDataQueries.ReturnData": Effect("whether the result is in the answer"),
    "MetricDataQueries.Period": Effect("by which an expression without metrics counts"),
    "MetricDataQueries.AccountId": _SELF,
    "ScanBy": Effect("newest or oldest first"),
    "MaxDatapoints": Effect("how many values one page has"),
    "LabelOptions": NotYet("Time zones in labels"),
}
