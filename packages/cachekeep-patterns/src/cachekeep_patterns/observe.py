"""Counting what the cache does. Always on (a count costs some 30 ns); exporters are optional."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

NAMES = {
    "hits": "served from the cache, fresh",
    "near_hits": "served from this process's memory",
    "misses": "not in the cache, or not usable",
    "stale": "served past freshness while somebody reloads",
    "loads": "times the loader ran",
    "load_errors": "times the loader raised",
    "waits": "callers that waited for another caller's load instead of loading",
    "refreshes": "reloads in the background (early or stale)",
    "refused_fills": "loads not stored, because an invalidation or a write came in between",
    "unstored": "values served but not stored: too large or not encodable",
    "undecodable": "stored bytes that could not be decoded and were loaded anew",
    "cache_errors": "times the cache could not be asked",
    "bypassed": "loads without the cache: it was down, its breaker open, or a write under way",
    "overloaded": "loads refused because too many were running",
    "invalidations": "keys and tags invalidated",
}


class Counters:
    """Exact under threads: `itertools.count` steps in C under the interpreter's lock, `+=` on an attribute would lose some."""

    def __init__(self) -> None:
        self._counts: dict[str, Iterator[int]] = {name: itertools.count(1) for name in NAMES}
        self.add: dict[str, Callable[[], int]] = {name: count.__next__ for name, count in self._counts.items()}
        self.load_seconds_total = 0.0

    def __getattr__(self, name: str) -> int:
        if name.startswith("_") or name not in NAMES:
            raise AttributeError(name)
        state: Any = self._counts[name].__reduce__()
        following: int = state[1][0]
        return following - 1

    def snapshot(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in NAMES}

    @property
    def hit_ratio(self) -> float | None:
        good = self.hits + self.near_hits + self.stale
        asked = good + self.misses
        return good / asked if asked else None


def export_prometheus(counters: Counters, cache: str, registry: Any = None) -> None:
    """Register ``counters`` with prometheus_client as `cachekeep_patterns_<name>_total{cache="…"}`."""
    from prometheus_client import REGISTRY
    from prometheus_client.core import CounterMetricFamily

    class Collector:
        def collect(self) -> Iterator[Any]:
            for name, count in counters.snapshot().items():
                family = CounterMetricFamily(f"cachekeep_patterns_{name}", NAMES[name], labels=["cache"])
                family.add_metric([cache], count)
                yield family
            seconds = CounterMetricFamily("cachekeep_patterns_load_seconds", "time spent in loaders", labels=["cache"])
            seconds.add_metric([cache], counters.load_seconds_total)
            yield seconds

    (registry or REGISTRY).register(Collector())


def export_opentelemetry(counters: Counters, cache: str, meter: Any = None) -> None:
    """Observable counters `cachekeep_patterns.<name>` with attribute `cache`, on ``meter`` or the global one."""
    from opentelemetry import metrics

    meter = meter or metrics.get_meter("cachekeep_patterns")
    for name, meaning in NAMES.items():

        def observe(_options: Any, name: str = name) -> list[Any]:
            return [metrics.Observation(getattr(counters, name), {"cache": cache})]

        meter.create_observable_counter(f"cachekeep_patterns.{name}", callbacks=[observe], description=meaning)
