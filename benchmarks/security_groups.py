"""How long a change of a security group takes until it holds, and what a closed cache's crash costs beside an open one's.

    python -m benchmarks.security_groups [--changes 50] [--faults 20]

Another user of this machine dials the endpoint again and again; counted is from the request for the change to the first dial that
meets it. Crashes as in ``benchmarks.failover``, five of each cache in turn. Needs root and nft.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.failover import fault, percentile
from benchmarks.failover_systems import PORT, Ours
from tests.acceptance.installation import Installation, created
from tests.live.writer import Writer

from cachekeep.toolchain.installed import discover

_STRANGER = 65534
_PATIENCE_SECONDS = 60.0


class Dialler:
    """A process of another user."""

    def __init__(self, address: str, port: int) -> None:
        asked, self._ask = os.pipe()
        self._answers, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.setgroups([])
            os.setgid(_STRANGER)
            os.setuid(_STRANGER)
            while wanted := os.read(asked, 1):
                while _accepts(address, port) != (wanted == b"1"):
                    time.sleep(0.0005)
                os.write(answer, f"{time.monotonic():020.6f}".encode())
            os._exit(0)

    def until(self, accepted: bool) -> Callable[[], float]:
        """From now on it dials until it is accepted, or refused; then the result says when that was."""
        os.write(self._ask, b"1" if accepted else b"0")
        return lambda: float(os.read(self._answers, 20))

    def close(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)


def _accepts(address: str, port: int) -> bool:
    with socket.socket() as dialled:
        dialled.settimeout(_PATIENCE_SECONDS)
        return dialled.connect_ex((address, port)) == 0


def changes(place: Path, count: int) -> list[float]:
    """Seconds of each, letting in and shutting out in turn."""
    one = Installation(place).up()
    dialler = None
    try:
        ec2 = one.client("ec2")
        group = ec2.create_security_group(GroupName="bench", Description="d")["GroupId"]
        made = created(one.client(), "bench", NumCacheClusters=2, SecurityGroupIds=[group])
        dialler = Dialler(made["NodeGroups"][0]["PrimaryEndpoint"]["Address"], PORT)
        dialler.until(False)()
        rule = {"GroupId": group, "IpProtocol": "tcp", "FromPort": PORT, "ToPort": PORT, "CidrIp": "127.0.0.0/8"}
        took = []
        for number in range(count):
            opening = number % 2 == 0
            met, began = dialler.until(opening), time.monotonic()
            (ec2.authorize_security_group_ingress if opening else ec2.revoke_security_group_ingress)(**rule)
            took.append(met() - began)
            time.sleep(0.3)
        return took
    finally:
        if dialler is not None:
            dialler.close()
        one.close()


def crashes(place: Path, count: int) -> dict[str, list[float]]:
    """Outages in seconds, of an open cache and a closed one."""
    build = next(b for b in discover().builds if b.engine == "valkey")
    systems = {"open": Ours(place / "open", build), "closed": Ours(place / "closed", build, closed=True)}
    found: dict[str, list[float]] = {name: [] for name in systems}
    try:
        while len(found["closed"]) < count:
            for name, system in systems.items():
                writer = Writer(system.where)
                try:
                    found[name] += [fault(system, writer, "crash").outage_seconds for _ in range(5)]
                finally:
                    writer.stop()
        return found
    finally:
        for system in systems.values():
            system.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--faults", type=int, default=20, help="crashes of each cache, by fives")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ck-sg-") as place:
        took = changes(Path(place) / "changes", options.changes)
        load = os.getloadavg()[0]
        outages = crashes(Path(place), options.faults)
    rows = [("a change until it holds", len(took), *_figures(took))]
    rows += [(f"crash of a cache that is {name}", len(found), *_figures(found)) for name, found in outages.items()]
    body = report.table(("", "times", "p50", "p99", "max"), rows)
    ratio = percentile(outages["closed"], 0.5) / percentile(outages["open"], 0.5)
    body += f"\n\nThe machine was busy with other work (load average {load:.0f}). Bar: p99 of a change 1 s. p50 of a crash, "
    body += f"closed against open: {ratio:.2f} ×."
    command = f"python -m benchmarks.security_groups --changes {options.changes} --faults {options.faults}"
    report.write("Security groups", command, body)
    print(body)


def _figures(seconds: list[float]) -> tuple[str, ...]:
    return tuple(f"{value * 1000:.0f} ms" for value in (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds)))


if __name__ == "__main__":
    main()
