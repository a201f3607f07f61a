"""How close a node's process comes to its memory limit at the worst: full at ``maxmemory``, turned over by writes, one
replica stalled so that its output buffer fills, another joining by a full synchronisation (so a fork has a copy), and
clients that send half of large values.

    python -m benchmarks.memory [--engines redis:7,valkey:8,valkey:9] [--cases cache.t3.micro:1000:5000,…]

A case is node type:value size of the fill:value size of the turnover[:reserved-memory-percent]. What is measured is the
memory that the kernel cannot reclaim (``total_rss`` of the control group v1, ``anon`` of v2), every 5 ms, and whether it
ended anybody. Needs root and writable control groups; at most 6 GiB of memory. Written to docs/benchmarks.md when
everything was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import valkey
from benchmarks import report

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import LinkEffect
from cachekeep.compute.link import EngineLink
from cachekeep.compute.local import LocalDriver
from cachekeep.control.execute import specs
from cachekeep.control.observe import target
from cachekeep.engines.catalogue import Build
from cachekeep.engines.users import ADMIN, credential_of
from cachekeep.model import Cache, Decided, Follow, Node, Promote, Secret, Shard, Wanted
from cachekeep.network.fronts import programs
from cachekeep.toolchain.installed import discover

MIB = 1 << 20
PORT, PASSWORD, UID = 6379, "only-for-a-benchmark", "memory"
CASES = (
    "cache.t3.micro:1000:1000,cache.t3.micro:1000:5000,cache.t3.micro:100000:150000,"
    "cache.t3.small:10000:10000,cache.t3.medium:10000:10000:60"
)
TURNED_OVER = 0.8
"""So much of the data is written anew before the fork: with another size of values, that is when most pages have holes."""
SYNCHRONISATION_SECONDS, IDLE_CLIENTS = 25.0, 9_000
HALF_SENT = b"*3\r\n$3\r\nSET\r\n$3\r\nhog\r\n$60000000\r\n" + b"x" * (32 * MIB)


class Case(msgspec.Struct, frozen=True):
    """What is done to a node."""

    node_type: str
    fill_bytes: int
    turnover_bytes: int
    reserved_percent: int = 25


class Found(msgspec.Struct, frozen=True):
    """What it came to, bytes."""

    data: int
    resident: int
    turned_over: int
    peak: int
    joiner_peak: int
    limit: int
    kills: int
    joined: bool


class Sampler(threading.Thread):
    """The most that a control group held of what cannot be reclaimed."""

    def __init__(self, group: Path) -> None:
        super().__init__(daemon=True)
        self._group, self.peak, self.on = group, 0, True

    def now(self) -> int:
        fields = dict(line.split() for line in (self._group / "memory.stat").read_text().splitlines())
        return int(fields["total_rss"] if "total_rss" in fields else fields["anon"])

    def run(self) -> None:
        while self.on:
            try:
                self.peak = max(self.peak, self.now())
            except OSError:
                return
            time.sleep(0.005)


class Node3:
    """A primary, a replica of it, and one that joins later."""

    def __init__(self, place: Path, build: Build, case: Case) -> None:
        self.clock = SystemClock()
        self.driver = LocalDriver(place, self.clock, programs=programs(discover))
        self.link = EngineLink(self.driver, self.clock)
        version = ".".join(build.version.split(".")[:2])
        own = f"127.102.{os.getpid() % 250}"
        common: dict[str, Any] = {"engine": build.engine, "version": version, "node_type": case.node_type, "port": PORT}
        nodes = tuple(Node(name=f"n-{i}", shard="0001", zone="a", address=f"{own}.{i + 1}", **common) for i in range(3))
        parameters = {"maxmemory-policy": "allkeys-lru", "reserved-memory-percent": str(case.reserved_percent)}
        self.cache = Cache(
            uid=UID,
            name="n",
            kind="group",
            region="us-east-1",
            created_at=self.clock.now(),
            wanted=Wanted(shards=(), parameters=parameters, credentials=(credential_of(1, Secret(PASSWORD), ""),), **common),
            decided=Decided(nodes=nodes, shards=(Shard(id="0001", primary="n-0", order=1),)),
        )
        self.nodes, self.address = nodes, nodes[0].address
        self.samplers: list[Sampler] = []

    async def carry(self, effect: LinkEffect) -> None:
        await self.link.carry(effect, {node.name: target(self.cache, node, lambda cache: Secret(PASSWORD)) for node in self.nodes})

    async def start(self, number: int) -> Sampler:
        """As the product starts it, but for CPU: the machine is shared."""
        spec = specs(discover(), lambda cache: Secret(PASSWORD), open_files=self.driver.capacity().open_files)(
            self.cache, self.nodes[number]
        )
        self.limit = spec.limits.memory_bytes or 0
        await self.driver.start(msgspec.structs.replace(spec, limits=msgspec.structs.replace(spec.limits, cpus=None)))
        record = self.driver._ledger.get(spec.key)
        assert record is not None
        group = next(g for g in map(Path, record.cgroups) if (g / "memory.stat").exists())
        sampler = Sampler(group)
        sampler.start()
        self.samplers.append(sampler)
        return sampler

    async def pid(self, number: int) -> int:
        key = (UID, self.nodes[number].name)
        pid = (await self.driver.look([key]))[key].pid
        assert pid is not None
        return pid

    async def aclose(self) -> None:
        for sampler in self.samplers:
            sampler.on = False
        await self.link.aclose()
        for key in self.driver.known():
            await _patiently(self.driver, key)
        await self.driver.aclose()


async def _patiently(driver: LocalDriver, key: tuple[str, str]) -> None:
    """A process that frees gigabytes on a busy machine takes a while to vanish."""
    for _ in range(30):
        try:
            await driver.erase(key)
            return
        except Exception:
            await asyncio.sleep(1)


def writer(address: str, size: int, data: int, requests: int) -> subprocess.Popen[bytes]:
    """The engine's own load generator over so many keys that all of them would be a third more than fits."""
    keys = max(200, int(data / (size + 60) * 1.3))
    pipeline = 32 if size < 5000 else 2
    argv = ["valkey-benchmark", "-h", address, "-t", "set", "-r", str(keys), "-d", str(size), "-P", str(pipeline), "-c", "20", "-q"]
    return subprocess.Popen([*argv, "-n", str(requests)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def measure(build: Build, case: Case) -> Found:
    """One case, from the first start to the last end."""
    place = Path(tempfile.mkdtemp(prefix="memory-"))
    three = Node3(place, build, case)
    await three.driver.open()
    load: subprocess.Popen[bytes] | None = None
    held: list[socket.socket] = []
    try:
        primary = await three.start(0)
        await three.start(1)
        await three.carry(Promote("n-0", 1, (three.address,)))
        await three.carry(Follow("n-1", "n-0", 1))
        client = valkey.Valkey(three.address, PORT, username=ADMIN, password=PASSWORD)
        data = int(client.config_get("maxmemory")["maxmemory"])
        while client.info("stats")["evicted_keys"] == 0:
            load = writer(three.address, case.fill_bytes, data, max(200, data // (case.fill_bytes + 60) // 2))
            await asyncio.to_thread(load.wait)
        resident = primary.now()
        load = writer(three.address, case.turnover_bytes, data, 10**9)
        written = client.info("stats")["total_commands_processed"] + TURNED_OVER * data / (case.turnover_bytes + 60)
        while client.info("stats")["total_commands_processed"] < written:
            await asyncio.sleep(0.2)
        turned_over = primary.now()
        os.kill(await three.pid(1), signal.SIGSTOP)  # what it is not sent fills its buffer
        threading.Thread(target=_half_send, args=(three.address, held), daemon=True).start()
        joiner = await three.start(2)
        await three.carry(Follow("n-2", "n-0", 1))
        joined = await _joined(client, three.nodes[2].address)
        kills = sum(
            int(line.split()[1])
            for sampler in three.samplers
            for name in ("memory.oom_control", "memory.events")
            if (sampler._group / name).exists()
            for line in (sampler._group / name).read_text().splitlines()
            if line.startswith("oom_kill ")
        )
        return Found(data, resident, turned_over, primary.peak, joiner.peak, three.limit, kills, joined)
    finally:
        if load is not None:
            load.kill()
            load.wait()
        for line in held:
            line.close()
        await three.aclose()
        shutil.rmtree(place, ignore_errors=True)


async def _joined(client: valkey.Valkey, address: str) -> bool:
    """Watch for a while. A joiner whose buffer is full is dropped and begins anew: writes are that fast here."""
    until, joined = time.monotonic() + SYNCHRONISATION_SECONDS, False
    while time.monotonic() < until:
        await asyncio.sleep(0.2)
        replicas = (await asyncio.to_thread(client.info, "replication")).values()
        joined = joined or any(isinstance(r, dict) and r["ip"] == address and r["state"] == "online" for r in replicas)
    return joined


def _half_send(address: str, held: list[socket.socket]) -> None:
    for _ in range(16):
        try:
            line = socket.create_connection((address, PORT), timeout=5)
            held.append(line)
            line.sendall(HALF_SENT)
        except OSError:
            continue


async def idle_client_bytes(build: Build) -> int:
    """What a connected client costs that waits."""
    place = Path(tempfile.mkdtemp(prefix="memory-"))
    three = Node3(place, build, Case("cache.t3.micro", 0, 0))
    await three.driver.open()
    lines: list[socket.socket] = []
    try:
        primary = await three.start(0)
        before = primary.now()
        for _ in range(IDLE_CLIENTS):
            lines.append(socket.create_connection((three.address, PORT)))
        return (primary.now() - before) // IDLE_CLIENTS
    finally:
        for line in lines:
            line.close()
        await three.aclose()
        shutil.rmtree(place, ignore_errors=True)


def row(build: Build, case: Case, found: Found) -> tuple[object, ...]:
    """Of the table."""
    reserved = f", {case.reserved_percent} % reserved" if case.reserved_percent != 25 else ""
    values = f"{case.fill_bytes}" if case.fill_bytes == case.turnover_bytes else f"{case.fill_bytes} → {case.turnover_bytes}"
    return (
        f"{build.engine} {build.version}",
        case.node_type + reserved,
        values,
        found.data // MIB,
        f"{found.turned_over // MIB} ({found.turned_over / found.data:.2f})",
        f"{found.peak // MIB} ({found.peak / found.data:.2f})",
        f"{found.joiner_peak // MIB}",
        found.limit // MIB,
        f"{found.peak / found.limit:.2f}",
        found.kills,
    )


def main() -> int:
    """Measure all, then write the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--engines", default="redis:7,valkey:8,valkey:9")
    parser.add_argument("--cases", default=CASES)
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    idle: list[str] = []
    for engine in asked.engines.split(","):
        name, _, major = engine.partition(":")
        build = [b for b in discover().builds if b.engine == name and b.numbers[0] == int(major)][-1]
        idle.append(f"{build.engine} {build.version} {asyncio.run(idle_client_bytes(build))} bytes")
        for text in asked.cases.split(","):
            case = Case(text.split(":")[0], *map(int, text.split(":")[1:]))
            rows.append(row(build, case, asyncio.run(measure(build, case))))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    heading = ["engine", "node type", "values, bytes", "maxmemory", "turned over", "peak", "peak of the joiner", "limit"]
    heading += ["peak / limit", "ended"]
    body = (
        "A primary full at `maxmemory` while keys are overwritten as fast as possible, one replica stalled, one joining by a "
        "full synchronisation, 16 clients with half of a value of 60 MB. In MiB of what cannot be reclaimed, in parentheses "
        "times `maxmemory`; turned over: when 80 % of the data were overwritten, before the fork. Ended: processes that the "
        f"kernel killed for want of memory. Each of {IDLE_CLIENTS} clients that only wait costs: {', '.join(idle)}.\n\n"
        f"{report.table(heading, rows)}"
    )
    command = "python -m benchmarks.memory" + (f" --engines {asked.engines} --cases {asked.cases}" if sys.argv[1:] else "")
    report.write("Memory limits", command, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
