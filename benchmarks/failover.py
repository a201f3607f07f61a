"""Failover, side by side in one run: ours and Sentinel over the same engine, with the same client loop, harmed in the same ways.

    python -m benchmarks.failover [--faults 100] [--rival-faults 20] [--default-faults 2] [--tls-faults 0]
                                  [--engine valkey] [--major 8] [--kinds crash,hang]

A client writes as fast as it can and connects anew after every error (250 ms patience, 1 ms pause). Its outage is the longest time
between two acknowledged writes. After each fault, every write that was acknowledged since the one before is looked for. ``cut``
needs root. Written to docs/benchmarks.md when everything was measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import valkey
from benchmarks import report
from benchmarks.failover_systems import PORT, Kind, Ours, Sentinel, System
from tests.live.writer import Writer

from cachekeep.chaos.cuts import unusable
from cachekeep.toolchain.installed import discover

KINDS: tuple[Kind, ...] = ("crash", "hang", "cut", "planned")
_FAILOVER_SECONDS = 60.0


class Fault(msgspec.Struct, frozen=True):
    """What one fault cost."""

    outage_seconds: float
    known_seconds: float | None
    led_seconds: float | None
    acknowledged: int
    lost: int


def fault(system: System, writer: Writer, kind: Kind) -> Fault:
    """Harm the primary while the client writes; wait until another leads and serves; count."""
    _clear(system)
    before = writer.count
    _wait(lambda: writer.count > before + 100, "writes before the fault")
    writer.mark()  # what was acknowledged before may have been cleared
    at = system.harm(kind)
    _wait(system.moved, "another primary")
    since = writer.count
    _wait(lambda: writer.count > since + 100, "writes after the fault")
    outage = writer.longest_pause_seconds
    known, led = system.told(at)
    system.settle()
    acknowledged = writer.count
    lost = len(writer.missing(*system.where()))
    return Fault(outage, known, led, acknowledged, lost)


def _clear(system: System) -> None:
    """Begin with an empty cache each time: what is measured does not depend on how much was written before."""
    by_tls = {"ssl": True, "ssl_ca_data": system.trust} if system.trust else {}
    with valkey.Valkey(*system.where(), socket_timeout=10, **by_tls) as client:
        client.flushall()


def _wait(met, what: str) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + _FAILOVER_SECONDS
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {_FAILOVER_SECONDS:g} s")
        time.sleep(0.01)


def run(system: System, plan: Sequence[tuple[Kind, int]]) -> dict[Kind, list[Fault]]:
    """All faults of a system, one kind after the other."""
    found: dict[Kind, list[Fault]] = {}
    writer = Writer(system.where, trust=system.trust)
    try:
        for kind, count in plan:
            found[kind] = []
            for _ in range(count):
                found[kind].append(fault(system, writer, kind))
            print(f"{system.name}: {kind}: {shown(found[kind])}", file=sys.stderr, flush=True)
    finally:
        writer.stop()
        system.close()
    return found


def percentile(values: Sequence[float], part: float) -> float:
    """Nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(part * len(ranked)) - 1)]


def shown(faults: Sequence[Fault]) -> str:
    outages = [f.outage_seconds for f in faults]
    return (
        f"{len(faults)} faults, outage p50 {_ms(percentile(outages, 0.5))} p99 {_ms(percentile(outages, 0.99))} "
        f"max {_ms(max(outages))}, "
        f"known {_median([f.known_seconds for f in faults])}, leads {_median([f.led_seconds for f in faults])}, "
        f"acknowledged {sum(f.acknowledged for f in faults)}, lost {sum(f.lost for f in faults)}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _median(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return _ms(statistics.median(known)) if known else "–"


def rows(name: str, found: dict[Kind, list[Fault]]) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []
    for kind, faults in found.items():
        outages = [f.outage_seconds for f in faults]
        made.append(
            (
                kind,
                name,
                len(faults),
                _ms(percentile(outages, 0.5)),
                _ms(percentile(outages, 0.99)),
                _ms(max(outages)),
                _median([f.known_seconds for f in faults]),
                _median([f.led_seconds for f in faults]),
                sum(f.acknowledged for f in faults),
                sum(f.lost for f in faults),
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100, help="of each kind, ours")
    parser.add_argument("--rival-faults", type=int, default=20, help="of each kind, Sentinel with down-after 1 s")
    parser.add_argument("--default-faults", type=int, default=2, help="crashes, Sentinel with its defaults")
    parser.add_argument("--tls-faults", type=int, default=0, help="of each kind, ours with encryption in transit")
    parser.add_argument("--engine", default="valkey")
    parser.add_argument("--major", type=int, default=8)
    parser.add_argument("--kinds", default="", help="some of crash,hang,cut,planned; nothing is written then")
    asked = parser.parse_args()
    build = [b for b in discover().builds if b.engine == asked.engine and b.numbers[0] == asked.major][-1]
    kinds: list[Kind] = [k for k in KINDS if not asked.kinds or k in asked.kinds.split(",")]
    if "cut" in kinds and (why := unusable()) is not None:
        print(f"cut is left out: {why}", file=sys.stderr)
        kinds.remove("cut")
    results: dict[str, dict[Kind, list[Fault]]] = {}
    with tempfile.TemporaryDirectory(prefix="cachekeep-bench-") as scratch:
        place = Path(scratch)
        if asked.faults:
            results["Cachekeep"] = run(Ours(place / "ours", build), [(k, asked.faults) for k in kinds])
        if asked.tls_faults:
            encrypted = Ours(place / "tls", build, tls=True)
            results[encrypted.name] = run(encrypted, [(k, asked.tls_faults) for k in kinds])
        if asked.rival_faults:
            tuned = Sentinel(place / "tuned", build, down_after_ms=1000, failover_timeout_ms=2000, name="Sentinel, 1 s")
            results[tuned.name] = run(tuned, [(k, asked.rival_faults) for k in kinds])
        if asked.default_faults and "crash" in kinds:
            default = Sentinel(
                place / "default", build, down_after_ms=30_000, failover_timeout_ms=180_000, name="Sentinel, default"
            )
            results[default.name] = run(default, [("crash", asked.default_faults)])
    body = _body(results, f"{build.engine} {build.version}")
    print(body)
    if not asked.kinds:
        command = " ".join(["make bench-failover", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])])
        report.write("Failover", command, body)
        print(f"written to {report.FILE.name}")


def _body(results: dict[str, dict[Kind, list[Fault]]], engine: str) -> str:
    heading = ("fault", "kept by", "faults", "outage p50", "p99", "max", "loss known", "next leads", "acknowledged", "lost")
    table = report.table(heading, [row for name, found in results.items() for row in rows(name, found)])
    ours, tuned, by_tls = (results.get(name, {}) for name in ("Cachekeep", "Sentinel, 1 s", "Cachekeep, TLS"))
    ratios = [f"{kind} {_ratio(tuned[kind], faults):.0f} ×" for kind, faults in ours.items() if kind in tuned]
    dearer = [f"{kind} {_ratio(by_tls[kind], faults):.2f} ×" for kind, faults in ours.items() if kind in by_tls]
    bars = (
        "Bars: crash p50 ≤ 20 ms and p99 ≤ 100 ms, 100 × against tuned Sentinel; hang and cut p50 ≤ 1.0 s and p99 ≤ 2 s; "
        "planned p99 ≤ 100 ms, lost 0."
    )
    return (
        f"One primary and two replicas, {engine}, port {PORT}. Outage: the longest time between two acknowledged writes of one "
        "client that writes one key after the other. Loss known, next leads: medians, from the logs; of a planned move, when it "
        "was decided. Lost: acknowledged writes that were not there after the fault; in a crash or a cut, what had not left the "
        "primary's host yet. Sentinel's own failover on request (planned) does not hold writes back: the old primary takes them "
        "until it is told to follow, which is done here as soon as another leads.\n\n"
        f"{table}\n\n"
        + (f"Median outage of tuned Sentinel against ours: {', '.join(ratios)}.\n\n" if ratios else "")
        + (f"Median outage by TLS against without: {', '.join(dearer)} (bar: ≤ 1.5 ×).\n\n" if dearer else "")
        + bars
    )


def _ratio(one: Sequence[Fault], other: Sequence[Fault]) -> float:
    """Of the median outages."""
    return percentile([f.outage_seconds for f in one], 0.5) / percentile([f.outage_seconds for f in other], 0.5)


if __name__ == "__main__":
    main()
