"""Cluster mode, side by side in one run with the same engine kept by its own means: creation, resharding, failover.

    python -m benchmarks.cluster [create] [reshard] [failover] [--engines valkey:9,valkey:8,redis:7] [--keys 200000,2000000]
                                 [--quick]

Creation: from the request (by hand: from the first process start) until every node serves and every replica follows. Resharding:
one shard has all slots but one, and gives half of them to the other; while a client writes and reads. Failover: SIGKILL to the
primary to which a client writes as fast as it can; its outage is the longest time between two acknowledged writes. Creation and
failover are those of the first engine named. All parts together, without ``--quick``, are written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import valkey
from benchmarks import report
from benchmarks.cluster_systems import (
    DEFAULT_NODE_TIMEOUT_MS,
    PORT,
    Alone,
    Busy,
    Cluster,
    Ours,
    ask,
    evenly,
    fill,
    owned,
    owner,
    slot_of,
    tag_of,
    until,
    version_words,
)

from cachekeep.chaos.probe import Where, Writer
from cachekeep.engines.catalogue import Build
from cachekeep.plan.slots.ranges import SLOTS
from cachekeep.toolchain.installed import discover

_VALUE = b"v" * 100
_CALM_COMMANDS = 3000
_ELECTION_SECONDS = 120.0
_numbers = iter(range(1_000_000))
Row = tuple[object, ...]


class Sizes(msgspec.Struct, frozen=True):
    """How much of everything."""

    shards: tuple[int, ...]
    pairs: int
    keys: tuple[int, ...]
    replicas: tuple[int, ...]
    faults: int
    tuned_faults: int
    default_faults: int


QUICK = Sizes(shards=(3,), pairs=1, keys=(5_000,), replicas=(0,), faults=2, tuned_faults=1, default_faults=0)


def _place(scratch: Path) -> Path:
    return scratch / str(next(_numbers))


# -- creation


def create(scratch: Path, build: Build, sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    for shards in sizes.shards:
        slots = evenly(shards)
        times: dict[str, list[float]] = {"ours": [], "cli": [], "files": []}
        ours = Ours(_place(scratch), build)
        try:
            for _ in range(sizes.pairs):
                times["ours"].append(ours.create(slots, 1))
                ours.delete()
                for name in ("cli", "files"):
                    alone = Alone(_place(scratch), build, name=name)
                    try:
                        by_hand = alone.create if name == "cli" else alone.create_prepared
                        times[name].append(by_hand(slots, 1))
                    finally:
                        alone.close()
        finally:
            ours.close()
        found = {name: statistics.median(seconds) for name, seconds in times.items()}
        rows.append(
            (
                f"{shards} × (1 + 1)",
                _s(found["ours"]),
                _s(found["cli"]),
                _s(found["files"]),
                f"{found['cli'] / found['ours']:.1f} × as fast",
                f"{(found['ours'] / found['files'] - 1) * 100:+.0f} %",
            )
        )
        _tell(rows[-1])
    return rows


# -- resharding


class Move(msgspec.Struct, frozen=True):
    """One resharding."""

    keys: int
    seconds: float
    calm: list[float]
    felt: list[float]
    errors: list[str]
    lost: int

    @property
    def rate(self) -> float:
        return self.keys / self.seconds


_ASTRAY = (((0, SLOTS - 2),), ((SLOTS - 1, SLOTS - 1),))
"""Both primaries are known to clients before anything moves."""


def move(cluster: Cluster, keys: int) -> Move:
    """Half of the slots, with ``keys`` keys or so, from the primary that has nearly all to the other."""
    nodes = cluster.nodes()
    giver, taker = ((owner(slot, nodes), PORT) for slot in (0, SLOTS - 1))
    names = fill(giver, 2 * keys, _VALUE)
    busy = Busy(giver, names[:: max(len(names) // 5000, 1)], _VALUE)
    try:
        until(lambda: busy.count > _CALM_COMMANDS, "commands before the move")
        calm = busy.lap()
        before = time.perf_counter()
        cluster.reshard(SLOTS // 2 - 1)
        until(lambda: owned(giver) == owned(taker) == SLOTS // 2, "half of the slots are with either", 1800)
        seconds = time.perf_counter() - before
        felt = busy.lap()
        until(lambda: busy.count > 100, "commands after the move")
    finally:
        busy.stop()
    after = busy.lap()
    moved, left = int(ask(taker, "DBSIZE")), int(ask(giver, "DBSIZE"))
    errors = calm.errors + felt.errors + after.errors
    return Move(moved, seconds, calm.latencies_seconds, felt.latencies_seconds, errors, abs(len(names) - moved - left))


def reshard(scratch: Path, build: Build, sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    rivals: list[tuple[str, int | None]] = [("its CLI", None), ("its CLI, --cluster-pipeline 100", 100)]
    for keys, replicas in itertools.product(sizes.keys, sizes.replicas):
        found: dict[str, Move] = {}
        for name, pipeline in rivals:
            alone = Alone(_place(scratch), build, name=name, pipeline=pipeline)
            try:
                alone.create_prepared(_ASTRAY, replicas)
                found[name] = move(alone, keys)
            finally:
                alone.close()
        ours = Ours(_place(scratch), build)
        try:
            ours.create(_ASTRAY, replicas)
            found[ours.name] = move(ours, keys)
        finally:
            ours.close()
        as_it_comes = found[rivals[0][0]].rate
        for name, m in found.items():
            what = f"{build.engine} {build.version}", f"2 × (1 + {replicas})", name
            pace = f"{_ms(percentile(m.calm, 0.99))} → {_ms(percentile(m.felt, 0.99))}", _ms(max(m.felt))
            numbers = f"{m.keys:,}", _s(m.seconds), f"{m.rate:,.0f}", f"{m.rate / as_it_comes:.2f} ×"
            rows.append((*what, *numbers, *pace, len(m.errors), m.lost))
            _tell((*rows[-1], *m.errors[:3]))
    return rows


# -- failover


class Faults(msgspec.Struct):
    """What crashes cost one system's clients."""

    outages_seconds: list[float] = msgspec.field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0


def crash(cluster: Cluster, shards: int, count: int, node_timeout_ms: int) -> Faults:
    """Kill one primary after the other, in one shard after the other, each when the cluster is whole again.

    The same node is killed again only when its voters may vote about it again: after twice the node timeout.
    """
    found, killed = Faults(), dict[str, float]()
    tags = [tag_of(ranges) for ranges in evenly(shards)]
    for number in range(count):
        tag = tags[number % shards]
        slot = slot_of(tag.encode())
        nodes = cluster.nodes()

        where = partial(_owner, slot, nodes)  # asked anew after every error, as cluster clients ask
        was = where()[0]
        rest_seconds = killed.get(was, 0) + 2 * node_timeout_ms / 1000 + 1 - time.monotonic()
        if was in killed and rest_seconds > 0:
            time.sleep(rest_seconds)
        with valkey.Valkey(was, PORT, socket_timeout=10) as client:
            client.flushall()
        writer = Writer(where, prefix=f"{{{tag}}}")
        try:
            _more(writer, 200)
            writer.mark()
            killed[was] = time.monotonic()
            cluster.kill(was)
            until(partial(_elsewhere, where, was), "another leads", _ELECTION_SECONDS)
            _more(writer, 100)
        finally:
            writer.stop()
        found.outages_seconds.append(writer.longest_pause_seconds)
        found.acknowledged += writer.count
        found.lost += len(writer.missing(*where()))
        cluster.heal()
    return found


def _owner(slot: int, nodes: Sequence[Where]) -> Where:
    return owner(slot, nodes), PORT


def _elsewhere(where: Callable[[], Where], was: str) -> bool:
    try:
        return where()[0] != was
    except OSError:
        return False


def _more(writer: Writer, number: int) -> None:
    goal = writer.count + number
    until(lambda: writer.count > goal, f"acknowledged writes (last: {writer.last_error})", _ELECTION_SECONDS)


def failover(scratch: Path, build: Build, sizes: Sizes) -> list[Row]:
    shards = 3
    rows: list[Row] = []

    def measured(cluster: Ours | Alone, count: int, node_timeout_ms: int) -> None:
        try:
            if isinstance(cluster, Alone):
                cluster.create_prepared(evenly(shards), 1)
            else:
                cluster.create(evenly(shards), 1)
            f = crash(cluster, shards, count, node_timeout_ms)
        finally:
            cluster.close()
        spread = [_ms(percentile(f.outages_seconds, part)) for part in (0.5, 0.99, 1)]
        rows.append((cluster.name, count, *spread, f.acknowledged, f.lost))
        _tell(rows[-1])

    if sizes.faults:
        measured(Ours(_place(scratch), build), sizes.faults, DEFAULT_NODE_TIMEOUT_MS)
    for seconds, count in ((2, sizes.tuned_faults), (DEFAULT_NODE_TIMEOUT_MS // 1000, sizes.default_faults)):
        if count:
            name = f"the engine, node timeout {seconds} s"
            measured(Alone(_place(scratch), build, name=name, node_timeout_ms=seconds * 1000), count, seconds * 1000)
    return rows


# -- all of it


def percentile(values: Sequence[float], part: float) -> float:
    """Nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(part * len(ranked)) - 1)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _tell(row: Row) -> None:
    print("  " + "  ".join(map(str, row)), file=sys.stderr, flush=True)


_HEADINGS = {
    "create": ("cluster", "Cachekeep", "`--cluster create`", "`nodes.conf` by hand", "against the CLI", "on top of the bare start"),
    "reshard": (
        "engine",
        "cluster",
        "by",
        "keys",
        "time",
        "keys/s",
        "against its CLI",
        "client p99 before → during",
        "max",
        "errors",
        "keys lost",
    ),
    "failover": ("elected by", "crashes", "outage p50", "p99", "max", "acknowledged", "lost"),
}
_BARS = {
    "create": "Bar: at most 15 % on top of the bare start, whose 2 s are the engine's own delay.",
    "reshard": "Bars: 15 × the engine's own CLI as it comes on Valkey 9, 1 × elsewhere; no errors, no keys lost. Told to move 100 "
    "keys at a time instead of 10, the CLI is faster, too. The CLI's time is that until it ends, ours "
    "that from the request until all slots are where they belong.",
    "failover": "Bars: p50 ≤ 120 ms, p99 ≤ 400 ms. Lost: acknowledged writes that were not there afterwards; replication is "
    "asynchronous. "
    "A node is killed again only after twice the node timeout: before that, voters refuse to vote about it, and ours takes over "
    "after 1.5 s.",
}


def main() -> None:
    parts = {"create": create, "reshard": reshard, "failover": failover}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(parts)}; nothing is written then")
    parser.add_argument("--engines", default="valkey:9,valkey:8,redis:7", help="engine:major; those not installed are left out")
    parser.add_argument("--shards", default="3,20", help="of the clusters that are created")
    parser.add_argument("--pairs", type=int, default=3, help="creations of each kind")
    parser.add_argument("--keys", default="200000", help="that are moved, as 200000,2000000")
    parser.add_argument("--replicas", default="0,1", help="of each shard when slots move")
    parser.add_argument("--faults", type=int, default=20, help="crashes, ours")
    parser.add_argument("--tuned-faults", type=int, default=10, help="crashes, the engine with a node timeout of 2 s")
    parser.add_argument("--default-faults", type=int, default=2, help="crashes, the engine with its defaults")
    parser.add_argument("--quick", action="store_true", help="a minute's worth of each; nothing is written")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - parts.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    sizes = QUICK if asked.quick else _sizes(asked)
    builds = [b for b in map(_build, asked.engines.split(",")) if b is not None]
    if not builds:
        parser.error(f"none of {asked.engines} is installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # by way of every close()
    sections = []
    with tempfile.TemporaryDirectory(prefix="cachekeep-bench-") as scratch:
        for part in asked.parts or parts:
            rows: list[Row] = []
            used = builds if part == "reshard" else builds[:1]
            for build in used:
                print(f"{part}, {version_words(build)} …", file=sys.stderr, flush=True)
                rows += parts[part](Path(scratch), build, sizes)
            engines = ", ".join(map(version_words, used))
            sections.append(f"### {part.capitalize()}\n\n{engines}.\n\n{report.table(_HEADINGS[part], rows)}\n\n{_BARS[part]}")
    body = "\n\n".join(sections)
    print(body)
    if not asked.parts and not asked.quick:
        command = " ".join(["make bench-cluster", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])])
        report.write("Cluster mode", command, body)
        print(f"written to {report.FILE.name}")


def _build(text: str) -> Build | None:
    engine, _, major = text.partition(":")
    fit = [b for b in discover().builds if b.engine == engine and b.numbers[0] == int(major) and b.cli]
    return fit[-1] if fit else None


def _sizes(asked: argparse.Namespace) -> Sizes:
    return Sizes(
        shards=tuple(map(int, asked.shards.split(","))),
        pairs=asked.pairs,
        keys=tuple(map(int, asked.keys.split(","))),
        replicas=tuple(map(int, asked.replicas.split(","))),
        faults=asked.faults,
        tuned_faults=asked.tuned_faults,
        default_faults=asked.default_faults,
    )


if __name__ == "__main__":
    main()
