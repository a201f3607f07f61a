"""What metrics were over a stretch of time: statistics of them, and expressions over these. For those who ask, and for alarms."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cachekeep.metrics.catalogue import NAMESPACE, told_by_cluster
from cachekeep.metrics.datum import Datum, Statistic, merge, statistic
from cachekeep.metrics.math.budget import Budget
from cachekeep.metrics.math.evaluate import Asked, Track, Value, evaluate, flat, searches
from cachekeep.metrics.math.search import Candidate, Chosen, search
from cachekeep.metrics.math.tree import Applied, Expression, Invalid, Number, Text, names, parse
from cachekeep.metrics.points import Dimensions
from cachekeep.metrics.series import DAY, HOUR, KEPT_SECONDS, MINUTE, Archive, Series

_FINEST: Final = ((15 * DAY, MINUTE), (63 * DAY, 300))
"""How old it may be at most, and what is kept until then."""
_FOUND_MAX: Final = 100
"""So many time series a search finds at most [CloudWatch, "Search expression limits"]."""
_ACTIVE_SECONDS: Final = 14 * DAY
"""A search finds what has told something in this time."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A statistic of a metric."""

    namespace: str
    metric: str
    dimensions: Dimensions
    period: int
    stat: str
    unit: str | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One of several that may refer to each other by id: a metric, or an expression."""

    id: str
    measured: Measured | None = None
    expression: str = ""
    label: str | None = None
    returned: bool = True
    period: int | None = None


def dimensions_seen(series: Series) -> Iterable[Dimensions]:
    """By which dimensions it is known: AWS tells most metrics of a node by its cluster alone, too."""
    yield series.source.dimensions
    if series.source.namespace == NAMESPACE and told_by_cluster(series.metric):
        names = [name for name, _ in series.source.dimensions]
        if names == ["CacheClusterId", "CacheNodeId"]:
            yield series.source.dimensions[:1]


async def lookup(archive: Archive, metric: Measured) -> Sequence[Series]:
    """The series that are that metric: several where it is told over nodes, or in several units."""
    found = await archive.find(metric.namespace, metric.metric, metric.dimensions)
    return [each for each in found if metric.dimensions in dimensions_seen(each) and metric.unit in (None, each.unit)]


def finest(start: int, now: int) -> int:
    """The period that is still kept of that time, in seconds."""
    return next((period for age, period in _FINEST if now - start <= age), HOUR)


async def periods(
    archive: Archive, series: Sequence[Series], start: int, end: int, period: int, *, origin: int, now: int
) -> Mapping[int, Datum]:
    """Begin of each period that has data → all series together. Periods are counted from ``origin``."""
    base = finest(start, now)
    read = await archive.read([each.id for each in series], start, end, base if period % base == 0 else MINUTE)
    groups: dict[int, list[Datum]] = {}
    for points in read.values():
        for at, datum in points.items():
            groups.setdefault(at - (at - origin) % period, []).append(datum)
    return {at: merge(data) for at, data in sorted(groups.items())}


def _track(label: str, period: int, data: Mapping[int, Datum], stat: Statistic) -> Track:
    told = {at: stat.of(datum) for at, datum in data.items()}
    return Track(label, period, {at: value for at, value in told.items() if value is not None})


def ordered(queries: Sequence[Query]) -> list[tuple[Query, Expression]]:
    """The expressions, each behind those that it refers to. Raises Invalid."""
    ids = [query.id for query in queries]
    waiting = {}
    for query in queries:
        if query.measured is None:
            try:
                tree = parse(query.expression)
                searches(tree)
            except Invalid as error:
                raise Invalid(f"Error in expression '{query.id}': {error}") from None
            waiting[query.id] = (query, tree, names(tree))
    done: list[tuple[Query, Expression]] = []
    while waiting:
        ready = [id for id, (_, _, uses) in waiting.items() if uses.isdisjoint(waiting)]
        if not ready:
            raise Invalid(f"Error in expression '{next(iter(waiting))}': it refers to itself")
        for id in ready:
            query, tree, uses = waiting.pop(id)
            unknown = uses - {*ids, "REPEAT", "LINEAR", "AVG", "MIN", "MAX", "SUM", "ASC", "DESC"}
            if unknown:
                raise Invalid(f"Error in expression '{id}': {min(unknown)} is no id of this request")
            done.append((query, tree))
    return done


async def answer(archive: Archive, queries: Sequence[Query], start: int, end: int, *, now: int) -> dict[str, list[Track]]:
    """Id → what it came to. Raises Invalid, StoreFailed."""
    order = ordered(queries)
    results: dict[str, Value] = {}
    budget = Budget()
    for query in queries:
        if query.measured is not None:
            track = results[query.id] = await _measure(archive, query.measured, start, end, now=now)
            budget.spend(len(track.points))
    periods_used = [query.measured.period for query in queries if query.measured is not None]
    period = max(periods_used, default=0)
    found = {}
    for query, tree in order:
        for call in searches(tree):
            found[call] = await _search(archive, call, query.period or period or 300, start, end, now=now, budget=budget)
    return await asyncio.to_thread(_evaluate, queries, order, results, found, (start, end, period), budget)


async def _measure(archive: Archive, metric: Measured, start: int, end: int, *, now: int) -> Track:
    series = await lookup(archive, metric)
    first, last = start - start % metric.period, end - end % -metric.period
    data = await periods(archive, series, first, last, metric.period, origin=0, now=now) if series else {}
    stat = statistic(metric.stat)
    assert stat is not None
    return _track(metric.metric, metric.period, data, stat)


async def _search(archive: Archive, call: Applied, period: int, start: int, end: int, *, now: int, budget: Budget) -> list[Track]:
    text, stat_name, *rest = call.arguments
    assert isinstance(text, Text)
    assert isinstance(stat_name, Text)
    chosen, stat = search(text.value), statistic(stat_name.value)
    if stat is None:
        raise Invalid(f"SEARCH: there is no statistic {stat_name.value}")
    if rest and isinstance(rest[0], Number):
        period = int(rest[0].value)
    if not MINUTE <= period <= KEPT_SECONDS[HOUR] or period % MINUTE:
        raise Invalid("SEARCH: the period must be a multiple of 60, and no longer than metrics are kept")
    tracks: list[Track] = []
    there = await archive.find()
    budget.spend(len(there))
    for (_, metric, dimensions), same in (await asyncio.to_thread(_chosen, there, chosen, now))[:_FOUND_MAX]:
        first, last = start - start % period, end - end % -period
        data = await periods(archive, same, first, last, period, origin=0, now=now)
        label = " ".join((metric, *(value for _, value in dimensions)))
        tracks.append(track := _track(label, period, data, stat))
        budget.spend(len(track.points))
    return tracks


def _chosen(there: Iterable[Series], chosen: Chosen, now: int) -> list[tuple[tuple[str, str, Dimensions], list[Series]]]:
    """Namespace, metric and dimensions, in their order, with the series that are so called."""
    groups: dict[tuple[str, str, Dimensions], list[Series]] = {}
    for series in there:
        if now - series.seen_at > _ACTIVE_SECONDS:
            continue
        for dimensions in dimensions_seen(series):
            if chosen(Candidate(series.source.namespace, series.metric, dict(dimensions))):
                groups.setdefault((series.source.namespace, series.metric, dimensions), []).append(series)
    return sorted(groups.items())


def _evaluate(
    queries: Sequence[Query],
    order: Sequence[tuple[Query, Expression]],
    results: Mapping[str, Value],
    found: Mapping[Applied, list[Track]],
    over: tuple[int, int, int],
    budget: Budget,
) -> dict[str, list[Track]]:
    start, end, period = over
    metrics, known = frozenset(results), dict(results)
    for query, tree in order:
        known = {each.id: known[each.id] for each in queries if each.id in known}
        asked = Asked(known, found, start, end, query.period or period or MINUTE, metrics, budget)
        try:
            value = evaluate(tree, asked)
        except Invalid as error:
            raise Invalid(f"Error in expression '{query.id}': {error}") from None
        known[query.id] = value
    told: dict[str, list[Track]] = {}
    for query in queries:
        value = known[query.id]
        if isinstance(value, float):
            asked = Asked({}, {}, start, end, query.period or period or MINUTE, budget=budget)
            try:
                value = flat(value, asked)
            except Invalid as error:
                raise Invalid(f"Error in expression '{query.id}': {error}") from None
        told[query.id] = value if isinstance(value, list) else [value]
    return told
