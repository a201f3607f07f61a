"""What it costs a Memcached to answer ``config get cluster``: with the library and bare, in turn in one run.

    python -m benchmarks.discovery [--rounds 300] [--commands 1000]

One client on one connection: nine gets to a set, 100 bytes, one after the other and 50 at a time. Throughput as the client sees it,
and the processor time that the server itself takes, which other work on the machine moves less. Written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import report
from benchmarks.failover import percentile
from tests.addresses import free_port, new_address

from cachekeep.engines import discovery
from cachekeep.toolchain import preload

GET, SET = b"get key\r\n", b"set key 0 0 100\r\n" + b"x" * 100 + b"\r\n"
FOUND, STORED = b"VALUE key 0 100\r\n" + b"x" * 100 + b"\r\nEND\r\n", b"STORED\r\n"


@contextmanager
def memcached(place: Path, library: str) -> Iterator[tuple[int, socket.socket]]:
    """Its pid, and a connection to it."""
    place.mkdir()
    (place / discovery.BOARD).write_text(discovery.first_board("1\n127.0.0.1|127.0.0.1|11211\n"))
    where = (new_address(), free_port())
    argv = ["memcached", "-u", "nobody", "-l", where[0], "-p", str(where[1]), "-U", "0", "-t", "1"]
    env = {"PATH": os.environ["PATH"]} | ({"LD_PRELOAD": library} if library else {})
    process = subprocess.Popen(argv, cwd=place, env=env)
    try:
        while socket.socket().connect_ex(where):
            time.sleep(0.01)
        with socket.create_connection(where) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield process.pid, connection
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time so far, of all threads; in nanoseconds from the scheduler, not in ticks."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def round_of(pid: int, connection: socket.socket, commands: int, at_once: int) -> tuple[float, float]:
    """Commands per second; the server's seconds per command."""
    chance = random.Random(1)
    before, cpu = time.perf_counter(), cpu_seconds(pid)
    for _ in range(commands // at_once):
        sets = [chance.random() < 0.1 for _ in range(at_once)]
        connection.sendall(b"".join(SET if s else GET for s in sets))
        left = sum(len(STORED) if s else len(FOUND) for s in sets)
        while left:
            left -= len(connection.recv(left))
    return commands / (time.perf_counter() - before), (cpu_seconds(pid) - cpu) / commands


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--commands", type=int, default=1000)
    asked = parser.parse_args()
    if shutil.which("memcached") is None:
        raise SystemExit("needs memcached")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        library = str(preload.library(place))
        with memcached(place / "with", library) as ours, memcached(place / "bare", "") as bare:
            for one in (ours, bare):
                one[1].sendall(SET)
                one[1].recv(64)
            for at_once in (1, 50):
                speeds: dict[int, list[float]] = {ours[0]: [], bare[0]: []}
                costs: dict[int, list[float]] = {ours[0]: [], bare[0]: []}
                for number in range(asked.rounds):
                    for one in (ours, bare) if number % 2 else (bare, ours):
                        speed, cost = round_of(*one, asked.commands, at_once)
                        speeds[one[0]].append(speed)
                        costs[one[0]].append(cost)
                fast = [percentile(speeds[pid], 0.9) for pid in (ours[0], bare[0])]
                cheap = [percentile(costs[pid], 0.1) for pid in (ours[0], bare[0])]
                rows.append(
                    (
                        at_once,
                        f"{fast[0]:.0f}/s",
                        f"{fast[1]:.0f}/s bare",
                        f"{fast[0] / fast[1]:.3f}",
                        f"{cheap[0] * 1e6:.2f} µs",
                        f"{cheap[1] * 1e6:.2f} µs bare",
                        f"{cheap[1] / cheap[0]:.3f}",
                        "≥ 0.99",
                    )
                )
    heading = ("commands at once", "answers `config get`", "against", "ratio", "server's time each", "against", "ratio", "bar")
    text = (
        f"{asked.rounds} rounds of {asked.commands} commands each, in turn. Of each side the tenth of its rounds that other work "
        "on the machine disturbed least.\n\n"
    )
    body = text + report.table(heading, rows)
    print(body)
    report.write("Discovery at nodes", "make bench-discovery", body)


if __name__ == "__main__":
    main()
