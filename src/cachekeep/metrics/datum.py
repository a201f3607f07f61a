"""One data point, as CloudWatch keeps it: a statistic set, with the distribution of its values where that is known. Pure.

[CloudWatch, "Statistics definitions"]: percentiles and trimmed statistics need the values themselves; of a statistic set without
them they are known only where all values are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

_DISTINCT_MAX: Final = 64
"""So many different values are kept as they are; of more, those within 2 % of each other are taken together."""
_GROWTH: Final = math.log(1.02)


class Datum(msgspec.Struct, frozen=True, array_like=True):
    """``values``: (value, how often), ascending; empty where all are the same, or where nobody knows them."""

    count: float
    total: float
    low: float
    high: float
    values: tuple[tuple[float, float], ...] = ()

    @property
    def average(self) -> float:
        return self.total / self.count

    @property
    def distribution(self) -> tuple[tuple[float, float], ...] | None:
        """(value, how often), ascending; None where it is not known."""
        return self.values or (((self.low, self.count),) if self.low == self.high else None)


def single(value: float) -> Datum:
    """One sample."""
    return Datum(1.0, value, value, value)


def of_values(pairs: Iterable[tuple[float, float]]) -> Datum:
    """Of values and how often each was seen; at least one was."""
    seen: dict[float, float] = {}
    for value, count in pairs:
        seen[value] = seen.get(value, 0.0) + count
    values = sorted(seen.items())
    total = sum(value * count for value, count in values)
    return Datum(sum(seen.values()), total, values[0][0], values[-1][0], _few(values) if len(values) > 1 else ())


def merge(data: Sequence[Datum]) -> Datum:
    """Several as one."""
    if len(data) == 1:
        return data[0]
    low, high = min(d.low for d in data), max(d.high for d in data)
    values: tuple[tuple[float, float], ...] = ()
    if low != high and all(d.distribution is not None for d in data):
        seen: dict[float, float] = {}
        for d in data:
            for value, count in d.distribution or ():
                seen[value] = seen.get(value, 0.0) + count
        values = _few(sorted(seen.items()))
    return Datum(sum(d.count for d in data), math.fsum(d.total for d in data), low, high, values)


def _few(values: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    if len(values) <= _DISTINCT_MAX:
        return tuple(values)
    groups: dict[tuple[bool, int], tuple[float, float]] = {}
    for value, count in values:
        key = (value < 0, 0 if value == 0 else math.ceil(math.log(abs(value)) / _GROWTH) if abs(value) > 1e-300 else 0)
        held, times = groups.get(key, (0.0, 0.0))
        groups[key] = held + value * count, times + count
    return tuple(sorted((held / times, times) for held, times in groups.values()))


# -- statistics by name

SIMPLE: Final = ("SampleCount", "Average", "Sum", "Minimum", "Maximum")
_NUMBER: Final = r"(\d{1,3}(?:\.\d{1,10})?)"
_ONE_SIDED: Final = re.compile(rf"(p|tm|wm|tc|ts){_NUMBER}", re.IGNORECASE)
_BETWEEN: Final = re.compile(r"(TM|WM|TC|TS|PR)\(([^:()]*):([^:()]*)\)", re.IGNORECASE)
_PERCENT: Final = re.compile(rf"{_NUMBER}%")
_PLAIN: Final = re.compile(r"-?\d+(?:\.\d+)?")


class Statistic(msgspec.Struct, frozen=True):
    """What is asked of a datum. ``low`` and ``high``: between which percents, or values, it is taken; None: to the end."""

    kind: str
    low: float | None = None
    high: float | None = None
    percents: bool = True

    def of(self, datum: Datum) -> float | None:
        """None where it cannot be known."""
        match self.kind:
            case "samplecount":
                return datum.count
            case "average":
                return datum.average
            case "sum":
                return datum.total
            case "minimum":
                return datum.low
            case "maximum":
                return datum.high
        known = datum.distribution
        if known is None:
            return None
        if self.kind == "p":
            return _at_rank(known, (self.high or 0.0) / 100 * datum.count)
        return self._of_part(known, datum)

    def _of_part(self, known: Sequence[tuple[float, float]], datum: Datum) -> float | None:
        if self.percents:
            first, last = (self.low or 0.0) / 100 * datum.count, (100.0 if self.high is None else self.high) / 100 * datum.count
            part = _between_ranks(known, first, last)
        else:
            bounds = (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)
            part = [(value, count) for value, count in known if bounds[0] < value <= bounds[1]]
        counted = sum(count for _, count in part)
        match self.kind:
            case "tc":
                return counted
            case "ts":
                return sum(value * count for value, count in part)
            case "pr":
                return counted / datum.count * 100
        if not part:
            return None
        if self.kind == "wm":  # what is outside counts as what is at the edge
            before = sum(count for value, count in known if value < part[0][0])
            after = datum.count - before - counted
            whole = sum(value * count for value, count in part) + part[0][0] * before + part[-1][0] * after
            return whole / datum.count
        return sum(value * count for value, count in part) / counted


def statistic(name: str) -> Statistic | None:
    """The statistic of that name, such as ``Average``, ``p99.9``, ``tm90``, ``TM(10%:90%)``, ``PR(:300)``, ``IQM``; None: there
    is no such [CloudWatch, "Statistics definitions"]."""
    if name in SIMPLE:
        return Statistic(name.lower())
    if name.upper() == "IQM":
        return Statistic("tm", 25.0, 75.0)
    if found := _ONE_SIDED.fullmatch(name):
        kind, high = found[1].lower(), float(found[2])
        return Statistic(kind, None, high) if 0 <= high <= 100 else None
    if found := _BETWEEN.fullmatch(name):
        return _between(found[1].lower(), found[2], found[3])
    return None


def _between(kind: str, low: str, high: str) -> Statistic | None:
    texts = [text for text in (low, high) if text]
    for percents, pattern in ((True, _PERCENT), (False, _PLAIN)):
        if texts and all(pattern.fullmatch(text) for text in texts) and not (percents and kind == "pr"):
            first, last = (float(text.rstrip("%")) if text else None for text in (low, high))
            if first is not None and last is not None and first >= last:
                return None
            return Statistic(kind, first, last, percents)
    return None


def _at_rank(known: Sequence[tuple[float, float]], rank: float) -> float:
    """The smallest value that so many are not above."""
    passed = 0.0
    for value, count in known:
        passed += count
        if passed >= rank - 1e-9:
            return value
    return known[-1][0]


def _between_ranks(known: Sequence[tuple[float, float]], first: float, last: float) -> list[tuple[float, float]]:
    part, passed = [], 0.0
    for value, count in known:
        inside = min(passed + count, last) - max(passed, first)
        if inside > 1e-9:
            part.append((value, inside))
        passed += count
    return part
