"""What a failover costs while strangers flood the API, against a calm one, in turn in one run.

    python -m benchmarks.flood [--faults 30] [--engine valkey] [--major 8]

The flood is one process without credentials: it sends, over and over and one right after the other, a form of 1 MiB, 32 KB of
repeated SignedHeaders, a signature by an unknown key over 60 KB of headers, and keeps 150 connections with half of a body. Crashes
as in ``benchmarks.failover``. Written to docs/benchmarks.md when everything was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import socket
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from benchmarks import report
from benchmarks.failover import Fault, fault, percentile
from benchmarks.failover_systems import Ours
from tests.live.writer import Writer

from cachekeep.cli.client import read_endpoint
from cachekeep.toolchain.installed import discover

HALF_SENT = 150
_DATE = "X-Amz-Date: 20260101T000000Z\r\n"
_CLAIM = "Authorization: AWS4-HMAC-SHA256 Credential=AKIDNOBODY/20260101/us-east-1/elasticache/aws4_request, SignedHeaders="


def _request(head: str, body: bytes = b"") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


STRANGERS = (
    _request("", b"Action=DescribeCacheClusters&Version=2015-02-02&" + b"a.b.1=c&" * (1 << 17)),
    _request(_DATE + _CLAIM + "host;" * 6400 + "x-amz-date, Signature=0\r\n"),
    _request(_DATE + _CLAIM + "host;x-amz-date, Signature=0\r\n" + "".join(f"X-{n}: {'y' * 580}\r\n" for n in range(100))),
)
HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000


def flood(host: str, port: int, answered: Synchronized[int]) -> None:
    """Send until ended."""
    half: list[socket.socket] = []
    for request in itertools.cycle(STRANGERS):
        with contextlib.suppress(OSError):
            if len(half) < HALF_SENT:
                half.append(socket.create_connection((host, port), timeout=30))
                half[-1].sendall(HALF)
            with socket.create_connection((host, port), timeout=30) as connection:
                connection.sendall(request)
                while connection.recv(65536):
                    answered.value += 1
                    break


@contextlib.contextmanager
def flooded(host: str, port: int) -> Iterator[Synchronized[int]]:
    spawn = multiprocessing.get_context("spawn")
    answered: Synchronized[int] = spawn.Value("q", 0)  # type: ignore[assignment]
    process = spawn.Process(target=flood, args=(host, port, answered), daemon=True)
    process.start()
    try:
        yield answered
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30, help="of each, calm and flooded, in turns of ten")
    parser.add_argument("--engine", default="valkey")
    parser.add_argument("--major", type=int, default=8)
    asked = parser.parse_args()
    build = [b for b in discover().builds if b.engine == asked.engine and b.numbers[0] == asked.major][-1]
    found: dict[str, list[Fault]] = {"calm": [], "flooded": []}
    answered = 0
    with tempfile.TemporaryDirectory(prefix="cachekeep-bench-") as scratch:
        ours = Ours(Path(scratch), build)
        writer = Writer(ours.where)
        served = read_endpoint(ours.data_dir)
        assert served is not None
        host, _, port = served.url.removeprefix("http://").rpartition(":")
        try:
            while len(found["flooded"]) < asked.faults:
                for _ in range(min(10, asked.faults)):
                    found["calm"].append(fault(ours, writer, "crash"))
                with flooded(host, int(port)) as count:
                    for _ in range(min(10, asked.faults)):
                        found["flooded"].append(fault(ours, writer, "crash"))
                    answered += count.value
                print(
                    {k: [round(f.outage_seconds * 1000) for f in v] for k, v in found.items()},
                    answered,
                    file=sys.stderr,
                    flush=True,
                )
        finally:
            writer.stop()
            ours.close()
    body = _body(found, f"{build.engine} {build.version}", answered)
    print(body)
    report.write("Failover under a flood", "python -m benchmarks.flood " + " ".join(sys.argv[1:]), body)


def _body(found: dict[str, list[Fault]], engine: str, answered: int) -> str:
    def row(name: str) -> tuple[object, ...]:
        outages = [f.outage_seconds * 1000 for f in found[name]]
        lost = sum(f.lost for f in found[name])
        return (
            name,
            len(outages),
            *(f"{percentile(outages, part):.0f} ms" for part in (0.5, 0.99)),
            f"{max(outages):.0f} ms",
            lost,
        )

    table = report.table(("API", "crashes", "outage p50", "p99", "max", "lost"), [row(name) for name in found])
    ratio = percentile([f.outage_seconds for f in found["flooded"]], 0.99) / percentile(
        [f.outage_seconds for f in found["calm"]], 0.99
    )
    return (
        f"One primary and two replicas, {engine}. The flood's process had {answered} requests answered (refused) meanwhile, "
        f"with {HALF_SENT} half-sent bodies beside them. Client, flood, engines and control plane share two cores.\n\n{table}\n\n"
        f"p99 flooded against calm: {ratio:.2f} ×. Bar: 1.5 ×."
    )


if __name__ == "__main__":
    main()
