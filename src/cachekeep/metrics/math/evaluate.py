"""What expressions come to [CloudWatch, "Using metric math"].

A value is a scalar, a time series (``Track``), or a list of these. Operators between series work at the times that both have; one
between a list and a series, or a scalar, works on each of the list.
"""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from cachekeep.metrics.math.budget import Budget
from cachekeep.metrics.math.tree import Applied, Combined, Expression, Invalid, Name, Number, Operator, Several, Text


class Track(msgspec.Struct, frozen=True):
    """A time series: second since 1970 → value."""

    label: str
    period: int
    points: Mapping[int, float]

    def each(self, change: Callable[[float], float | None]) -> Track:
        """With every value changed; None leaves the point out."""
        return _track(self.label, self.period, {at: change(value) for at, value in self.points.items()})


def _track(label: str, period: int, points: Mapping[int, float | None]) -> Track:
    """Without the points at which there is no number."""
    return Track(label, period, {at: value for at, value in points.items() if value is not None and math.isfinite(value)})


Value = float | Track | list[Track]


class Asked(msgspec.Struct, frozen=True):
    """What an expression may refer to. ``results``: id → what it came to, in the order of the request; ``labels`` are theirs.
    ``searches``: what each ``SEARCH`` of it found. The range is from ``start`` up to before ``end``."""

    results: Mapping[str, Value]
    searches: Mapping[Applied, list[Track]]
    start: int
    end: int
    period: int
    metrics: frozenset[str] = frozenset()
    """Those of the results that are metrics, and no expressions: what ``METRICS`` means."""
    budget: Budget = msgspec.field(default_factory=Budget)


REFUSED: Final = {
    "ANOMALY_DETECTION_BAND": "anomalies are not detected here",
    "INSIGHT_RULE_METRIC": "there are no insight rules",
    "DB_PERF_INSIGHTS": "there are no databases",
    "SERVICE_QUOTA": "quotas are not told as metrics",
    "LAMBDA": "there are no functions to call",
}
"""Functions of CloudWatch that have nothing to work on."""


def evaluate(expression: Expression, asked: Asked) -> Value:
    """Raises Invalid."""
    try:
        return _value(expression, asked)
    except ArithmeticError:  # where a sum of many is beyond all bounds
        raise Invalid(_NO_NUMBER) from None


def _value(expression: Expression, asked: Asked) -> Value:
    match expression:
        case Number(value):
            return value
        case Name(value):
            if value not in asked.results:
                raise Invalid(f"{value} is no id of this request")
            return asked.results[value]
        case Combined(operator, left, right):
            return _paid(_combined(operator, _value(left, asked), _value(right, asked)), asked)
        case Several(items):
            return [track for item in items for track in _tracks(_paid(_value(item, asked), asked), asked)]
        case Applied(function, _) if function in REFUSED:
            raise Invalid(f"{function} cannot be used: {REFUSED[function]}")
        case Applied("SEARCH", _):
            return asked.searches[expression]
        case Applied("METRICS", arguments):
            return _paid(_metrics(arguments, asked), asked)
        case Applied("FILL", (what, how)):
            return _paid(_fill(_value(what, asked), how, asked), asked)
        case Applied("SORT", arguments):
            return _paid(_sort(arguments, asked), asked)
        case Applied(function, arguments) if function in _FUNCTIONS:
            least, most, work = _FUNCTIONS[function]
            if not least <= len(arguments) <= most:
                raise Invalid(f"{function} takes {least if least == most else f'{least} to {most}'} arguments")
            return _paid(work(asked, *(_value(argument, asked) for argument in arguments)), asked)
        case Applied(function, _):
            raise Invalid(f"there is no function {function} of such arguments")
    raise Invalid("text stands only in SEARCH, METRICS and SORT")


def _paid(value: Value, asked: Asked) -> Value:
    """Raises Invalid where there is no budget for it."""
    tracks = value if isinstance(value, list) else [value] if isinstance(value, Track) else []
    asked.budget.spend(1 + sum(1 + len(track.points) for track in tracks))
    return value


def flat(value: float, asked: Asked) -> Track:
    """A scalar as a time series. Raises Invalid."""
    return Track("", asked.period, dict.fromkeys(_times(asked, asked.period), value))


def _times(asked: Asked, period: int) -> range:
    """When each period of the range begins. Raises Invalid."""
    times = range(asked.start - asked.start % -period, asked.end, period)
    asked.budget.spend(len(times))
    return times


def _tracks(value: Value, asked: Asked) -> list[Track]:
    if isinstance(value, list):
        return value
    return [value if isinstance(value, Track) else flat(value, asked)]


# -- operators

_NO_NUMBER: Final = "a number is divided by zero, or grows beyond all bounds"


def _compute(operator: Operator, left: float, right: float) -> float | None:
    try:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / right if right else None
            case "^":
                found = left**right
                return found if isinstance(found, float) else None
    except ArithmeticError:
        return None
    truth = {
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        ">": left > right,
        "<=": left <= right,
        ">=": left >= right,
        "AND": bool(left and right),
        "OR": bool(left or right),
    }
    return float(truth[operator])


def _combined(operator: Operator, left: Value, right: Value) -> Value:
    if isinstance(left, list) and isinstance(right, list):
        raise Invalid(f"{operator} cannot stand between two lists of time series")
    if isinstance(left, list):
        return [track for item in left if isinstance(track := _combined(operator, item, right), Track)]
    if isinstance(right, list):
        return [track for item in right if isinstance(track := _combined(operator, left, item), Track)]
    if isinstance(left, Track) and isinstance(right, Track):
        both = {at: _compute(operator, value, right.points[at]) for at, value in left.points.items() if at in right.points}
        return _track(left.label, max(left.period, right.period), both)
    if isinstance(left, Track):
        scalar = _scalar(right)
        return left.each(lambda value: _compute(operator, value, scalar))
    if isinstance(right, Track):
        return right.each(lambda value: _compute(operator, left, value))
    found = _compute(operator, left, right)
    if found is None or not math.isfinite(found):
        raise Invalid(_NO_NUMBER)
    return found


def _scalar(value: Value) -> float:
    if isinstance(value, float):
        return value
    raise Invalid("a number was expected")


# -- functions

Function = Callable[..., Value]


def _each(change: Callable[[float], float | None]) -> Function:
    """Of a scalar, of a series, or of each of several."""

    def work(asked: Asked, value: Value) -> Value:
        if isinstance(value, list):
            return [track.each(change) for track in value]
        if isinstance(value, Track):
            return value.each(change)
        found = change(value)
        if found is None:
            raise Invalid("the logarithm of such a number is none")
        return found

    return work


def _aggregate(reckon: Callable[[Sequence[float]], float]) -> Function:
    """Of a series a scalar; of several a series, at each time of those that have a value then."""

    def work(asked: Asked, value: Value) -> Value:
        if isinstance(value, list):
            values: dict[int, list[float]] = {}
            for track in value:
                for at, point in track.points.items():
                    values.setdefault(at, []).append(point)
            period = max((track.period for track in value), default=asked.period)
            return Track("", period, {at: reckon(values[at]) for at in sorted(values)})
        if isinstance(value, Track):
            if not value.points:
                return Track(value.label, value.period, {})
            return reckon([*value.points.values()])
        return reckon([value])

    return work


def _of_series(change: Callable[[Track, Asked], Track]) -> Function:
    def work(asked: Asked, value: Value) -> Value:
        if isinstance(value, list):
            return [change(track, asked) for track in value]
        if isinstance(value, Track):
            return change(value, asked)
        raise Invalid("a time series was expected")

    return work


def _steps(reckon: Callable[[int, float, int, float], float]) -> Function:
    """Of each point and the one before it."""

    def change(track: Track, asked: Asked) -> Track:
        times = sorted(track.points)
        pairs = itertools.pairwise(times)
        return _track(
            track.label, track.period, {now: reckon(was, track.points[was], now, track.points[now]) for was, now in pairs}
        )

    return _of_series(change)


def _running_sum(track: Track, asked: Asked) -> Track:
    times = sorted(track.points)
    sums = itertools.accumulate(track.points[at] for at in times)
    return _track(track.label, track.period, dict(zip(times, sums, strict=True)))


def _of_time(reckon: Callable[[dt.datetime], float]) -> Function:
    def change(track: Track, asked: Asked) -> Track:
        made = {at: reckon(dt.datetime.fromtimestamp(at, dt.UTC)) for at in track.points}
        return Track(track.label, track.period, made)

    return _of_series(change)


def _listed(value: Value) -> list[Track]:
    if isinstance(value, list):
        return value
    if isinstance(value, Track):
        return [value]
    raise Invalid("a list of time series was expected")


def _pick(which: int) -> Function:
    def work(asked: Asked, value: Value) -> Value:
        if isinstance(value, Track):
            times = sorted(value.points)
            return value.points[times[which]] if times else Track(value.label, value.period, {})
        found = _listed(value)
        return found[which] if found else []

    return work


def _if(asked: Asked, condition: Value, then: Value, otherwise: Value | None = None) -> Value:
    if isinstance(condition, list) or isinstance(then, list) or isinstance(otherwise, list):
        raise Invalid("IF takes numbers and single time series")
    if isinstance(condition, float):
        if condition:
            return then
        return Track("", asked.period, {}) if otherwise is None else otherwise
    made: dict[int, float] = {}
    for at, truth in condition.points.items():
        chosen = then if truth else otherwise
        if isinstance(chosen, Track) and at in chosen.points:
            made[at] = chosen.points[at]
        elif isinstance(chosen, float):
            made[at] = chosen
    label = next((each.label for each in (then, otherwise) if isinstance(each, Track)), condition.label)
    return Track(label, condition.period, made)


def _slice(asked: Asked, value: Value, first: Value, last: Value | None = None) -> Value:
    start, end = int(_scalar(first)), None if last is None else int(_scalar(last))
    return _listed(value)[start : start + 1] if end is None else _listed(value)[start:end]


def _deviation(values: Sequence[float]) -> float:
    return statistics.pstdev(values)


_FUNCTIONS: Final[Mapping[str, tuple[int, int, Function]]] = {
    "ABS": (1, 1, _each(abs)),
    "CEIL": (1, 1, _each(lambda value: float(math.ceil(value)))),
    "FLOOR": (1, 1, _each(lambda value: float(math.floor(value)))),
    "LOG": (1, 1, _each(lambda value: math.log(value) if value > 0 else None)),
    "LOG10": (1, 1, _each(lambda value: math.log10(value) if value > 0 else None)),
    "AVG": (1, 1, _aggregate(statistics.fmean)),
    "MAX": (1, 1, _aggregate(max)),
    "MIN": (1, 1, _aggregate(min)),
    "SUM": (1, 1, _aggregate(math.fsum)),
    "STDDEV": (1, 1, _aggregate(_deviation)),
    "METRIC_COUNT": (1, 1, lambda asked, value: float(len(_listed(value)))),
    "DATAPOINT_COUNT": (1, 1, lambda asked, value: float(sum(len(track.points) for track in _listed(value)))),
    "FIRST": (1, 1, _pick(0)),
    "LAST": (1, 1, _pick(-1)),
    "DIFF": (1, 1, _steps(lambda was, before, now, value: value - before)),
    "DIFF_TIME": (1, 1, _steps(lambda was, before, now, value: float(now - was))),
    "RATE": (1, 1, _steps(lambda was, before, now, value: (value - before) / (now - was))),
    "RUNNING_SUM": (1, 1, _of_series(_running_sum)),
    "PERIOD": (1, 1, lambda asked, value: float(_listed(value)[0].period if _listed(value) else asked.period)),
    "TIME_SERIES": (1, 1, lambda asked, value: flat(_scalar(value), asked)),
    "REMOVE_EMPTY": (1, 1, lambda asked, value: [track for track in _listed(value) if track.points]),
    "SLICE": (2, 3, _slice),
    "IF": (2, 3, _if),
    "EPOCH": (1, 1, _of_time(lambda at: at.timestamp())),
    "MINUTE": (1, 1, _of_time(lambda at: float(at.minute))),
    "HOUR": (1, 1, _of_time(lambda at: float(at.hour))),
    "DAY": (1, 1, _of_time(lambda at: float(at.isoweekday()))),
    "DATE": (1, 1, _of_time(lambda at: float(at.day))),
    "MONTH": (1, 1, _of_time(lambda at: float(at.month))),
    "YEAR": (1, 1, _of_time(lambda at: float(at.year))),
}
"""Name → how many arguments it takes at least and at most, and what it does."""


def _metrics(arguments: tuple[Expression, ...], asked: Asked) -> list[Track]:
    """Those of the request, or those whose id has this text in it."""
    wanted = arguments[0].value if arguments and isinstance(arguments[0], Text) else ""
    if len(arguments) > 1 or (arguments and not isinstance(arguments[0], Text)):
        raise Invalid("METRICS takes nothing, or a part of ids in quotes")
    return [track for id in asked.results if id in asked.metrics and wanted in id for track in _tracks(asked.results[id], asked)]


def _fill(value: Value, how: Expression, asked: Asked) -> Value:
    if isinstance(value, float):
        raise Invalid("FILL takes a time series")
    if isinstance(value, list):
        return [track for item in value if isinstance(track := _fill(item, how, asked), Track)]
    times = _times(asked, value.period)
    match how:
        case Name("REPEAT"):
            return Track(value.label, value.period, _repeated(value.points, times))
        case Name("LINEAR"):
            return _track(value.label, value.period, _linear(value.points, times))
    filler = _value(how, asked)
    if isinstance(filler, list):
        raise Invalid("FILL fills with a number, a time series, REPEAT or LINEAR")
    source = filler.points if isinstance(filler, Track) else dict.fromkeys(times, filler)
    return Track(value.label, value.period, {**{at: source[at] for at in times if at in source}, **value.points})


def _repeated(points: Mapping[int, float], times: Sequence[int]) -> dict[int, float]:
    made, last = dict(points), None
    for at in times:
        last = points.get(at, last)
        if last is not None:
            made[at] = last
    return made


def _linear(points: Mapping[int, float], times: Sequence[int]) -> dict[int, float]:
    """Straight lines between known points; beyond the first and the last, there is nothing to draw one to."""
    made, known = dict(points), sorted(points)
    for at in times:
        after = bisect.bisect(known, at)
        if 0 < after < len(known) and known[after - 1] < at:
            was, now = known[after - 1], known[after]
            made[at] = points[was] + (points[now] - points[was]) * (at - was) / (now - was)
    return made


_SORTS: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "AVG": statistics.fmean,
    "MIN": min,
    "MAX": max,
    "SUM": math.fsum,
}


def _sort(arguments: tuple[Expression, ...], asked: Asked) -> list[Track]:
    """``SORT(series, AVG | MIN | MAX | SUM, ASC | DESC, how many)``"""
    match arguments:
        case (what, Name(by), Name(way), *rest) if by in _SORTS and way in ("ASC", "DESC") and len(rest) <= 1:
            tracks = [track for track in _listed(_value(what, asked)) if track.points]
            tracks.sort(key=lambda track: _SORTS[by]([*track.points.values()]), reverse=way == "DESC")
            return tracks[: int(_scalar(_value(rest[0], asked)))] if rest else tracks
    raise Invalid("SORT takes time series, one of AVG, MIN, MAX, SUM, then ASC or DESC, and how many")


def searches(expression: Expression) -> frozenset[Applied]:
    """The ``SEARCH`` calls within. Raises Invalid where one has other arguments than a search expression, a statistic and a
    period."""
    match expression:
        case Applied("SEARCH", arguments):
            kinds = [type(argument) for argument in arguments]
            if kinds not in ([Text, Text], [Text, Text, Number]):
                raise Invalid("SEARCH takes a search expression and a statistic in quotes, and a period in seconds")
            return frozenset({expression})
        case Combined(_, left, right):
            return searches(left) | searches(right)
        case Applied(_, items) | Several(items):
            return frozenset[Applied]().union(*map(searches, items))
    return frozenset()
