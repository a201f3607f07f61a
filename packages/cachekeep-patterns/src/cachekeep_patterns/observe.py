"""Counting what the cache does, and telling what it does not. Counts are always on (one costs some 30 ns); exporters are optional.

Whatever is not stored, not decoded or not reached is said on one logger, `cachekeep_patterns`, each cause once a minute with what
to do, and to a hook each time.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    "refreshes_put_off": "reloads not begun because too many were waiting; the old value was served",
    "refresh_errors": "reloads in the background that failed",
    "refused_fills": "loads not stored, because an invalidation or a write came in between",
    "unstored": "values served but not stored: too large, not encodable, or not the same when they come back",
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
        return int(repr(self._counts[name])[len("count(") : -1]) - 1  # the only way to look at one without stepping it

    def snapshot(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in NAMES}

    @property
    def hit_ratio(self) -> float | None:
        good = self.hits + self.near_hits + self.stale
        asked = good + self.misses
        return good / asked if asked else None


# --------------------------------------------------------------------------- troubles

_log = logging.getLogger("cachekeep_patterns")
_SAID_EVERY_SECONDS = 60.0
_MOST_CAUSES = 1000


@dataclass(frozen=True)
class Trouble:
    """Something that a cache could not do. ``what`` is the counter that counted it."""

    what: str
    key: str  # as it stands on the server; empty where it is about no single key
    cause: str
    advice: str
    error: BaseException | None = None


class Reports:
    """``hook`` is called with every `Trouble`, by whoever met it: it must be quick. What it raises is only logged."""

    def __init__(self, hook: Callable[[Trouble], object] | None = None) -> None:
        self.hook = hook
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def tell(self, what: str, key: str, cause: BaseException | str, advice: str) -> None:
        error = cause if isinstance(cause, BaseException) else None
        text = str(cause) if error is None else f"{type(error).__name__}: {error}"
        self._say(what, f"{type(error).__name__} {advice}", f"{text} ({key or 'no key'}): {advice}")
        if self.hook is not None:
            try:
                self.hook(Trouble(what, key, text, advice, error))
            except Exception:
                _log.exception("the hook for troubles failed")

    def _say(self, what: str, cause: str, text: str) -> None:
        now = time.monotonic()
        said, more = self._said.get((what, cause), (-_SAID_EVERY_SECONDS, 0))
        if now - said < _SAID_EVERY_SECONDS:
            self._said[what, cause] = said, more + 1
            return
        if len(self._said) >= _MOST_CAUSES:
            self._said.clear()
        self._said[what, cause] = now, 0
        _log.warning("%s: %s%s", what, text, f" (and {more} times more since it was last said)" if more else "")


_ADVICE = (
    (
        ("WRONGPASS", "NOAUTH", "AuthenticationError", "invalid username-password", "AuthenticationWrong"),
        "user name or password are wrong, or have changed: give the right ones, or token= where they rotate",
    ),
    (
        ("NOPERM", "NoPermission"),
        "the user may not do that: its access string must allow the keys of this namespace and these commands",
    ),
    (
        ("OOM", "OutOfMemory", "out of memory"),
        "the engine is full: a larger node, or maxmemory-policy=allkeys-lru so that it makes room",
    ),
    (("READONLY", "ReadOnly"), "this is a replica: connect to the primary endpoint"),
    (("MOVED", "CROSSSLOT", "Moved"), "the engine is in cluster mode: connect(…, cluster=True)"),
    (("WRONGTYPE",), "something else is stored there: give this cache a namespace of its own"),
    (("IllegalInput", "too long"), "a key that the server does not take: a shorter namespace, of ASCII letters"),
    (("too large", "SERVER_ERROR object"), "the value is larger than the server takes: lower max_bytes, or compress"),
    (("Timeout", "timed out"), "it does not answer in time: is the engine overloaded or frozen, is the network cut?"),
    (
        ("Connection", "refused", "OSError", "gaierror", "NoAvailableNodes"),
        "is the engine running at that address, and may we reach it?",
    ),
)


def advice_for(error: BaseException) -> str:
    """What to do about a server's refusal or silence."""
    text = f"{type(error).__name__} {error}"
    return next(
        (advice for signs, advice in _ADVICE if any(sign in text for sign in signs)), "loads go on without the cache meanwhile"
    )


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
