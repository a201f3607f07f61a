"""What it costs to keep metrics: bytes per point, a day of 100 series read, a minute of 1,000 nodes written.

    python benchmarks/bench_metrics.py

Values are made up as an idle node's and a busy one's are: of 150 series 90 stand still at 0, 30 count events, 15 are bytes that
wander, 15 are percents with four digits.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from cachekeep.clock import SystemClock
from cachekeep.metrics.datum import Datum, single
from cachekeep.metrics.series import DAY, FILE, Archive, Teller, database_for

MIDNIGHT = 1_795_910_400 - 1_795_910_400 % DAY
NODES, METRICS = 1000, 150


def minute(chance: random.Random) -> dict[tuple[str, str], Datum]:
    values = [0.0] * 90 + [float(chance.randrange(5000)) for _ in range(30)]
    values += [4e8 + chance.randrange(10_000) * 64.0 for _ in range(15)] + [round(chance.random() * 100, 4) for _ in range(15)]
    return {(f"M{number:03}", "Count"): single(value) for number, value in enumerate(values)}


def node(number: int) -> Teller:
    return Teller("AWS/ElastiCache", (("CacheClusterId", f"node-{number:04}"), ("CacheNodeId", "0001")))


def in_use(path: Path) -> int:
    """Bytes of the file that hold something."""
    with closing(sqlite3.connect(path)) as file:
        pages, free, size = (file.execute(f"pragma {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size


async def main() -> None:
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as place:
        archive = Archive(database_for("", Path(place), SystemClock()))
        await archive.open()
        for at in range(MIDNIGHT, MIDNIGHT + DAY, 60):
            await archive.write([(node(0), at, minute(chance))])
        began = time.process_time()
        while await archive.fold(MIDNIGHT + DAY + 2000):
            pass
        folding = time.process_time() - began
        ids = [series.id for series in await archive.find()][:100]
        began, cpu = time.perf_counter(), time.process_time()
        found = await archive.read(ids, MIDNIGHT, MIDNIGHT + DAY, 60)
        reading, used = time.perf_counter() - began, time.process_time() - cpu
        assert sum(map(len, found.values())) == 100 * 1440
        await archive.aclose()
        points = METRICS * 1440
        size = in_use(Path(place) / FILE)
        print(f"a node's day: {points} points folded in {folding:.2f} s of CPU; {size / points:.2f} bytes a point")
        print(f"100 series of 24 hours read in {reading * 1000:.0f} ms ({used * 1000:.0f} ms of CPU)")
    with tempfile.TemporaryDirectory() as place:
        archive = Archive(database_for("", Path(place), SystemClock()))
        await archive.open()
        for at, what in ((MIDNIGHT, "and all are new"), (MIDNIGHT + 60, "")):
            rows = [(node(number), at, minute(chance)) for number in range(NODES)]
            began, cpu = time.perf_counter(), time.process_time()
            await archive.write(rows)
            spent, used = time.perf_counter() - began, time.process_time() - cpu
            print(f"{NODES * METRICS} points {what} written in {spent:.2f} s ({used:.2f} s of CPU)")
        await archive.aclose()


asyncio.run(main())
