"""Metrics of one's own."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachekeep.metrics.datum import Datum, merge, of_values, single
from cachekeep.metrics.series import DAY, HOUR, MINUTE, Teller, Written
from cachekeep.services.cloudwatch.read import dimensions_of, seconds
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.operation import apart
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

DATA_MAX: Final = 1000
VALUES_MAX: Final = 150
_MOST: Final = 2.0**360
"""[PutMetricData, Value]: what is beyond it, or not a number, is rejected."""
_OLD_SECONDS, _EARLY_SECONDS = 14 * DAY, 2 * HOUR


async def put_metric_data(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Keeps values of metrics in a namespace of one's own. They can be read at once."""
    params, now = call.params, context.clock.now()
    namespace, given = params["Namespace"], params.get("MetricData", ())
    if namespace.startswith("AWS/"):
        raise value_error("The value AWS/ for parameter Namespace is invalid: namespaces that begin so are for services.")
    if not given:
        raise ApiError("MissingParameter", "The parameter MetricData is required.")
    if len(given) > DATA_MAX:
        raise value_error(f"The collection MetricData must not have a size greater than {DATA_MAX}.")
    # 150,000 values take half a second: keepers are not to wait for them.
    await context.archive.write(await asyncio.to_thread(_rows, namespace, given, now))
    return {}


def _rows(namespace: str, given: Sequence[Params], now: dt.datetime) -> Written:
    """Raises ApiError."""
    told: dict[tuple[Teller, int], dict[tuple[str, str], list[Datum]]] = {}
    for number, each in enumerate(given, 1):
        place = f"MetricData.member.{number}"
        source = Teller(namespace, dimensions_of(each))
        at = _minute(each.get("Timestamp", now), now, place)
        what = (each["MetricName"], each.get("Unit", "None"))
        told.setdefault((source, at), {}).setdefault(what, []).append(_datum(each, place))
    return [(source, at, {what: merge(data) for what, data in row.items()}) for (source, at), row in told.items()]


def _minute(at: dt.datetime, now: dt.datetime, place: str) -> int:
    age = (now - at).total_seconds()
    if age > _OLD_SECONDS or age < -_EARLY_SECONDS:
        raise value_error(f"The parameter {place}.Timestamp is more than two weeks in the past or two hours ahead.")
    whole = seconds(at)
    return whole - whole % MINUTE


def _datum(given: Params, place: str) -> Datum:
    """Raises ApiError."""
    forms = [name for name in ("Value", "Values", "StatisticValues") if name in given]
    if not forms:
        raise ApiError("MissingParameter", f"At least one of the parameters must be specified: {place}.Value.")
    if len(forms) > 1:
        raise combination_error(f"The parameters {' and '.join(f'{place}.{name}' for name in forms)} are mutually exclusive.")
    if "Counts" in given and "Values" not in given:
        raise combination_error(f"{place}.Counts goes with {place}.Values only.")
    if "Value" in given:
        return single(_number(given["Value"], f"{place}.Value"))
    if "Values" in given:
        return _of_values(given, place)
    return _of_set(given["StatisticValues"], f"{place}.StatisticValues")


def _of_values(given: Params, place: str) -> Datum:
    values = [_number(value, f"{place}.Values") for value in given["Values"]]
    counts = [_number(count, f"{place}.Counts") for count in given.get("Counts", [1.0] * len(values))]
    if not values or len(values) > VALUES_MAX:
        raise value_error(f"The parameter {place}.Values must have 1 to {VALUES_MAX} values.")
    if len(counts) != len(values):
        raise value_error(f"The parameters {place}.Values and {place}.Counts must be of the same size.")
    if any(count < 0 for count in counts) or not any(counts):
        raise value_error(f"The parameter {place}.Counts must not be negative, nor 0 for all.")
    return of_values([(value, count) for value, count in zip(values, counts, strict=True) if count])


def _of_set(given: Params, place: str) -> Datum:
    count, total, low, high = (_number(given[name], f"{place}.{name}") for name in ("SampleCount", "Sum", "Minimum", "Maximum"))
    if count <= 0:
        raise value_error(f"The parameter {place}.SampleCount must be greater than 0.")
    if low > high:
        raise value_error(f"The parameter {place}.Maximum must be greater than or equal to {place}.Minimum.")
    return Datum(count, total, low, high)


def _number(value: float, place: str) -> float:
    if not math.isfinite(value) or abs(value) > _MOST:
        raise value_error(f"The value {value} for parameter {place} is invalid.")
    return float(value)


OPERATIONS: Final = {"PutMetricData": apart(put_metric_data)}
_TOLD: Final = Effect("what is kept")
_OF: Final = ("MetricName", "Dimensions", "Dimensions.Name", "Dimensions.Value", "Timestamp", "Value", "Values", "Counts", "Unit")
_SET: Final = ("StatisticValues", *(f"StatisticValues.{name}" for name in ("SampleCount", "Sum", "Minimum", "Maximum")))
PARAMETERS: Final[Declared] = {
    "MetricData": _TOLD,
    **{f"MetricData.{name}": _TOLD for name in (*_OF, *_SET)},
    "MetricData.StorageResolution": NotYet("Values by the second", off=(60,)),
    "EntityMetricData": NotYet("Entities"),
    "StrictEntityValidation": NotYet("Entities", off=(False,)),
}
