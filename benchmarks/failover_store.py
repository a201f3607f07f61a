"""What the death of a primary costs while the store cannot be written: another process holds SQLite's write lock, or PostgreSQL is
stopped (SIGSTOP). A client writes at the primary endpoint all the while; its outage is the longest time between two
acknowledged writes.

    python -m benchmarks.failover_store [--seconds 20]

Needs PostgreSQL's programs for the second half. Printed; decision 9 quotes a run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.acceptance.installation import Installation, created, eventually, kill
from tests.contract.conftest import postgres
from tests.live.writer import Writer

from cachekeep.compute.local.proc import stat

Away = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process's write transaction that does not come to an end."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextlib.contextmanager
def stopped(server: int) -> Iterator[None]:
    """A database server that takes connections, and answers nothing."""
    pids = [server, *(int(p) for p in Path(f"/proc/{server}/task/{server}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if stat(pid) is not None:
                os.kill(pid, signal.SIGCONT)


def outage_seconds(one: Installation, away: Away, seconds: float) -> tuple[float, int]:
    """Of a client whose primary dies a second after the store went away; and how many of its acknowledged writes were lost."""
    group = created(one.client(), "bench", AutomaticFailoverEnabled=True)
    endpoint = group["NodeGroups"][0]["PrimaryEndpoint"]["Address"]

    def in_sync() -> bool:
        return sum(bool(n.get("in_sync")) for n in one.status("bench")["nodes"]) == 2

    eventually(in_sync, what="replicas in sync")
    writer = Writer((endpoint, 6379), replicas=1)
    try:
        eventually(lambda: writer.count > 100, what="writes")
        writer.mark()
        with away():
            until = time.monotonic() + seconds
            time.sleep(1.0)
            kill(one.pids()["bench-001"])
            time.sleep(max(0.0, until - time.monotonic()))
        since = writer.count
        eventually(lambda: writer.count > since + 100, what="writes when the store is back", seconds=60)
    finally:
        writer.stop()
    return writer.longest_pause_seconds, len(writer.missing(endpoint))


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover_store", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long the store is away")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as place:
        _run(
            "SQLite's write lock is held",
            Path(place) / "sqlite",
            (),
            lambda one: locked(one.data_dir / "cachekeep.db"),
            asked.seconds,
        )
        with postgres() as (url, pid):
            _run("PostgreSQL is stopped", Path(place) / "postgres", ("--database", url), lambda one: stopped(pid), asked.seconds)


def _run(
    what: str,
    place: Path,
    options: tuple[str, ...],
    away: Callable[[Installation], contextlib.AbstractContextManager[None]],
    seconds: float,
) -> None:
    one = Installation(place, *options).up()
    try:
        pause_seconds, lost = outage_seconds(one, lambda: away(one), seconds)
        print(f"{what} for {seconds:g} s: outage {pause_seconds * 1000:.0f} ms, {lost} acknowledged writes lost", flush=True)
    finally:
        one.close()


if __name__ == "__main__":
    main()
