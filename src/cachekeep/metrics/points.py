"""From what a node said a minute ago and what it says now to its data points. Pure.

A counter's growth is told only where it is known: of one process, over one minute, and not beyond a reset. Else there is no
point: a gap is a gap, never zero and never less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from cachekeep.metrics.catalogue import FAMILIES, LATENCIES, OF_GROUPS, families, metrics_of
from cachekeep.metrics.datum import Datum, merge, of_values, single
from cachekeep.model import elapsed
from cachekeep.model.sample import Sample

MINUTE_SECONDS: Final = 60
_STRAY_SECONDS: Final = 20.0
"""A minute that is measured may be so much shorter or longer."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided of the node."""

    engine: str
    vcpus: int = 1
    baseline_bits_per_second: float | None = None
    behind_seconds: float | None = None
    """Of a replica, by its primary's word."""


class Span(msgspec.Struct, frozen=True):
    """Two samples of one process, a minute apart."""

    before: Sample
    after: Sample
    seconds: float

    def growth(self, field: str) -> float | None:
        """None where either does not say, or where it fell."""
        was, now = self.before.number(field), self.after.number(field)
        return now - was if was is not None and now is not None and now >= was else None

    def rate(self, *fields: str) -> float | None:
        """Of the sum of several, per second."""
        grown = [self.growth(field) for field in fields]
        return sum(g for g in grown if g is not None) / self.seconds if None not in grown else None


def span(before: Sample | None, after: Sample, engine: str) -> Span | None:
    """What lies between two samples; None where that is not one minute of one process that went on counting."""
    if before is None:
        return None
    seconds = elapsed(before.at, after.at)
    if seconds is None or abs(seconds - MINUTE_SECONDS) > _STRAY_SECONDS:
        return None
    same = ("pid",) if engine == "memcached" else ("run_id",)
    never_less = ("uptime", "total_connections", "cmd_get") if engine == "memcached" else _NEVER_LESS
    if any(before.fields.get(name) != after.fields.get(name) for name in same):
        return None
    found = Span(before, after, seconds)
    if any(name in before.fields and found.growth(name) is None for name in never_less):
        return None
    return found


_NEVER_LESS: Final = (
    "uptime_in_seconds",
    "total_connections_received",
    "total_commands_processed",
    "keyspace_hits",
    "keyspace_misses",
)
"""Where one of these fell, all counters were reset."""


def points(before: Sample | None, after: Sample, about: About) -> dict[str, Datum]:
    """Metric → datum, of the minute between the two."""
    between = span(before, after, about.engine)
    found: dict[str, float | None] = {}
    for name, metric in metrics_of(about.engine).items():
        if metric.rule == "gauge":
            found[name] = after.number(metric.source)
        elif metric.rule == "growth" and between is not None:
            found[name] = between.growth(metric.source)
    found |= _of_host(between, after, about)
    if about.engine == "memcached":
        limit, used = after.number("limit_maxbytes"), after.number("bytes")
        found["UnusedMemory"] = limit - used if limit is not None and used is not None else None
        return {name: single(value) for name, value in found.items() if value is not None}
    found |= _levels(after, about)
    if between is not None:
        found |= _of_minute(between) | _of_families(between)
    told = {name: single(value) for name, value in found.items() if value is not None}
    return told | (_durations(between) if between is not None else {})


def _of_host(between: Span | None, after: Sample, about: About) -> dict[str, float | None]:
    host = after.host
    found: dict[str, float | None] = {"FreeableMemory": host.freeable_bytes, "SwapUsage": host.swap_bytes}
    if between is None:
        return found
    memcached = about.engine == "memcached"
    used = between.rate(*(("rusage_user", "rusage_system") if memcached else ("used_cpu_user", "used_cpu_sys")))
    found["CPUUtilization"] = None if used is None else round(used / about.vcpus * 100, 4)
    faults = (between.before.host.major_faults, host.major_faults)
    found["MajorPageFaults"] = faults[1] - faults[0] if faults[0] is not None and faults[1] is not None else None
    for way, names in _NETWORK.items():
        field, of_replication = names[memcached]
        grown = between.growth(field)
        if grown is not None:
            grown += (between.growth(of_replication) if of_replication else None) or 0.0
            found[f"NetworkBytes{way}"] = grown
            if about.baseline_bits_per_second:
                share = grown * 8 / between.seconds / about.baseline_bits_per_second
                found[f"NetworkBaselineUsage{way}Percentage"] = round(share * 100, 4)
    return found


_NETWORK: Final = {
    "In": (("total_net_input_bytes", "total_net_repl_input_bytes"), ("bytes_read", "")),
    "Out": (("total_net_output_bytes", "total_net_repl_output_bytes"), ("bytes_written", "")),
}
"""Fields of a Valkey or Redis server, and of Memcached. A node has no interface of its own: these are what it read and wrote."""


def _percent(part: float | None, whole: float | None) -> float | None:
    return round(part / whole * 100, 4) if part is not None and whole else None


def _levels(after: Sample, about: About) -> dict[str, float | None]:
    """What is so at this moment."""
    fields = after.fields
    used, limit = after.number("used_memory"), after.number("maxmemory")
    not_counted = after.number("mem_not_counted_for_evict")
    counted = used - not_counted if used is not None and not_counted is not None else None
    databases = [_pairs(text) for name, text in fields.items() if name.startswith("db") and name[2:].isdigit()]
    first = _pairs(fields.get("db0", ""))
    primary = fields.get("role") == "master"
    found: dict[str, float | None] = {
        "CurrItems": sum(d.get("keys", 0) for d in databases),
        "CurrVolatileItems": sum(d.get("expires", 0) for d in databases),
        "DatabaseMemoryUsagePercentage": _percent(used, limit),
        "DatabaseCapacityUsagePercentage": _percent(used, limit),
        "DatabaseMemoryUsageCountedForEvictPercentage": _percent(counted, limit),
        "DatabaseCapacityUsageCountedForEvictPercentage": _percent(counted, limit),
        "IsMaster": 1.0 if primary else 0.0,
    }
    if "expired_fields" in fields:
        found["CurrItemsWithVolatileFields"] = sum(d.get("keys_with_volatile_items", 0) for d in databases)
    if primary:
        found["DB0AverageTTL"] = first.get("avg_ttl", 0)
        return found
    up = fields.get("master_link_status") == "up"
    found["MasterLinkHealthStatus"] = 1.0 if up else 0.0
    found["ReplicationLag"] = about.behind_seconds if up else _known(after.number("master_link_down_since_seconds"))
    return found


def _known(seconds: float | None) -> float | None:
    """-1 is for what has not been."""
    return seconds if seconds is not None and seconds >= 0 else None


def behind_seconds(primary: Sample | None, address: str, port: int) -> float | None:
    """For how long a replica has not acknowledged anything, by its primary's word; None where that knows no such replica."""
    for name, text in primary.fields.items() if primary is not None else ():
        if name.startswith("slave") and name[5:].isdigit():
            parts = dict(part.partition("=")[::2] for part in text.split(","))
            if (parts.get("ip"), parts.get("port"), parts.get("state")) == (address, str(port), "online"):
                return _known(_pairs(text).get("lag"))
    return None


def _pairs(text: str) -> dict[str, float]:
    """``keys=1,expires=0,avg_ttl=0``"""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name: float(value) for name, _, value in pairs if value.replace(".", "", 1).isdigit()}


def _of_minute(between: Span) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    hits, misses = between.growth("keyspace_hits"), between.growth("keyspace_misses")
    if hits is not None and misses is not None and hits + misses:
        found["CacheHitRate"] = round(hits / (hits + misses) * 100, 4)
    busy = between.rate("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    found["EngineCPUUtilization"] = None if busy is None else round(busy * 100, 4)
    before, after = between.before.fields, between.after.fields
    one_stream = all(before.get(name) == after.get(name) for name in ("role", "master_replid"))
    if one_stream and after.get("role") == "master":
        found["ReplicationBytes"] = between.growth("master_repl_offset")
    return found


def _of_families(between: Span) -> dict[str, float | None]:
    calls, spent = dict.fromkeys(FAMILIES, 0.0), dict.fromkeys(FAMILIES, 0.0)
    for field, text in between.after.fields.items():
        if not field.startswith("cmdstat_"):
            continue
        now, was = _pairs(text), _pairs(between.before.fields.get(field, ""))
        grown, usec = now.get("calls", 0) - was.get("calls", 0), now.get("usec", 0) - was.get("usec", 0)
        if grown < 0 or usec < 0:
            return {}  # they were reset
        for family in families().get(_command(field.removeprefix("cmdstat_")), ()):
            calls[family] += grown
            spent[family] += usec
    found: dict[str, float | None] = {f"{family}Cmds": count for family, count in calls.items()}
    found |= {f"{f}CmdsLatency": round(spent[f] / count, 3) for f, count in calls.items() if count}
    return found


def _command(name: str) -> str:
    return name.partition("|")[0].lower()


def _durations(between: Span) -> dict[str, Datum]:
    """Of the calls of this minute, each as long as the engine's own histogram says at most; where it keeps none
    (``latency-tracking`` is off by default), as long as a call of the same command took on average."""
    rows = _by_histogram(between) if between.after.durations else _by_average(between)
    found = {}
    for name, family in LATENCIES.items():
        seen = [row for command, of in rows.items() if family in families().get(_command(command), ()) for row in of]
        if seen:
            found[name] = of_values(seen)
    return found


def _by_histogram(between: Span) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for command, rows in between.after.durations.items():
        was = between.before.durations.get(command, ())
        passed = 0
        for limit, total in rows:
            grown = total - _at_most(was, limit)
            if grown < passed:
                return {}  # they were reset
            if grown > passed:
                found.setdefault(command, []).append((float(limit), float(grown - passed)))
            passed = grown
    return found


def _by_average(between: Span) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for field, text in between.after.fields.items():
        if field.startswith("cmdstat_"):
            now, was = _pairs(text), _pairs(between.before.fields.get(field, ""))
            calls, usec = now.get("calls", 0) - was.get("calls", 0), now.get("usec", 0) - was.get("usec", 0)
            if calls < 0 or usec < 0:
                return {}  # they were reset
            if calls:
                found[field.removeprefix("cmdstat_")] = [(round(usec / calls, 3), calls)]
    return found


def _at_most(rows: Sequence[tuple[int, int]], limit: int) -> int:
    """How many had taken no longer; the engine leaves out rows that add nothing."""
    return max((total for bound, total in rows if bound <= limit), default=0)


Dimensions = tuple[tuple[str, str], ...]
"""Name and value, by name."""


class Placed(msgspec.Struct, frozen=True):
    """Points of a node of a group, and where in the group it is."""

    shard: str
    role: str
    """``Primary`` or ``Replica``."""
    points: Mapping[str, Datum]


def of_group(group: str, nodes: Sequence[Placed]) -> dict[Dimensions, dict[str, Datum]]:
    """What is told of a group, of its shards and of its roles: over all nodes that had something to tell."""
    told: dict[Dimensions, dict[str, list[Datum]]] = {}
    values: Mapping[str, Callable[[Placed], str]] = {
        "ReplicationGroupId": lambda node: group,
        "NodeGroupId": lambda node: node.shard,
        "Role": lambda node: node.role,
    }
    for node in nodes:
        for metric, levels in OF_GROUPS.items():
            if metric in node.points:
                for level in levels:
                    dimensions = tuple((name, values[name](node)) for name in sorted(level))
                    told.setdefault(dimensions, {}).setdefault(metric, []).append(node.points[metric])
    return {dimensions: {metric: merge(data) for metric, data in found.items()} for dimensions, found in told.items()}
