"""The control plane: what it costs to create a group, to go through its endpoint, to describe, and to do nothing.

    python -m benchmarks.bench [create] [throughput] [describe] [footprint] [--pairs 10] [--groups 50]

Prints ratios measured in this run and writes them to docs/benchmarks.md. Needs Valkey and valkey-benchmark; the comparison of
Describe calls needs moto (``pip install 'moto[server]'``) and is left out without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import datetime as dt
import http.client
import importlib.util
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import valkey
from benchmarks import report
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.acceptance.installation import Installation, created, deleted
from tests.addresses import new_pool

STORED = 1000
_ms = 1000.0


# -- creation


def bench_create(place: Path, pairs: int) -> list[tuple[object, ...]]:
    """One primary and two replicas, by one request and by hand, in turn."""
    with running(place / "create") as one:
        client = one.client()
        where = created(client, "warm")["NodeGroups"][0]["PrimaryEndpoint"]
        program = _program(where)
        configurations = [path.read_text() for path in sorted(one.data_dir.glob("nodes/*/warm-*/server.conf"))]
        deleted(client, "warm")
        asked: list[float] = []
        by_hand: list[float] = []
        for number in range(pairs):
            name = f"g{number}"
            before = time.perf_counter()
            group = created(client, name)
            asked.append(time.perf_counter() - before)
            where = group["NodeGroups"][0]["PrimaryEndpoint"]
            assert _online(valkey.Valkey(where["Address"], where["Port"])) == 2
            deleted(client, name)
            by_hand.append(create_by_hand(place / f"hand{number}", program, configurations))
    ratio = statistics.median(a / b for a, b in zip(asked, by_hand, strict=True))
    return [
        (
            "group of 1 + 2: request to both replicas online",
            f"{statistics.median(asked) * _ms:.0f} ms",
            f"{statistics.median(by_hand) * _ms:.0f} ms by hand",
            f"{ratio:.2f}",
            "≤ 3, < 500 ms",
        )
    ]


def create_by_hand(place: Path, program: str, configurations: list[str]) -> float:
    """Start the same three servers and attach two to the first; seconds until it reports both online."""
    pool = new_pool().removesuffix("0/24")
    servers = [_Bare(place / str(n), program, text, f"{pool}{n + 1}") for n, text in enumerate(configurations)]
    try:
        before = time.perf_counter()
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        primary, *replicas = servers
        primary.admin.replicaof("no", "one")
        for replica in replicas:
            replica.admin.replicaof(primary.address, primary.port)
        while _online(primary.admin) < len(replicas):
            time.sleep(0.001)
        return time.perf_counter() - before
    finally:
        for server in servers:
            server.stop()


class _Bare:
    """A server started without us, with the configuration that one of ours has."""

    def __init__(self, place: Path, program: str, configuration: str, address: str) -> None:
        place.mkdir(parents=True)
        self.program = program
        old = re.search(r"^bind (\S+)", configuration, re.MULTILINE)
        directory = re.search(r"^dir (\S+)", configuration, re.MULTILINE)
        port = re.search(r"^port (\d+)", configuration, re.MULTILINE)
        assert old
        assert directory
        assert port
        self.address, self.port, self.place = address, int(port[1]), place
        text = configuration.replace(old[1], address).replace(directory[1].strip('"'), str(place))
        # It knows its admin by a hash alone.
        (place / "server.conf").write_text(f"{text}user bench on nopass ~* &* +@all\n")
        self.admin = valkey.Valkey(address, self.port, username="bench", password="any", decode_responses=True)  # noqa: S106
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([self.program, self.place / "server.conf"], stdout=subprocess.DEVNULL, cwd=self.place)

    def wait(self) -> None:
        while self.process is not None and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=1):
                return
            time.sleep(0.001)
        raise SystemExit(f"{self.program} ended at once with the configuration in {self.place}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _program(where: dict[str, Any]) -> str:
    """The build that serves there: a bare server of another version would compare versions."""
    return str(valkey.Valkey(where["Address"], where["Port"], decode_responses=True).info("server")["executable"])


def _online(primary: valkey.Valkey) -> int:
    return sum(v.get("state") == "online" for k, v in primary.info("replication").items() if k.startswith("slave"))


# -- throughput


def bench_throughput(place: Path, rounds: int = 12) -> list[tuple[object, ...]]:
    """SET and GET at the primary endpoint and at a bare server, in turn, first one first and then the other."""
    program = shutil.which("valkey-benchmark") or shutil.which("redis-benchmark") or sys.exit("valkey-benchmark is not installed")
    with running(place / "throughput") as one:
        where = created(one.client(), "busy", NumCacheClusters=1)["NodeGroups"][0]["PrimaryEndpoint"]
        (path,) = one.data_dir.glob("nodes/*/busy-001/server.conf")
        bare = _Bare(place / "bare", _program(where), path.read_text(), new_pool().removesuffix("0/24") + "1")
        bare.start()
        bare.wait()
        bare.admin.replicaof("no", "one")

        def run(address: str, port: int) -> dict[str, tuple[float, float]]:
            asked = [program, "-h", address, "-p", str(port), "-t", "set,get", "-n", "80000", "-c", "50", "-d", "100", "--csv"]
            shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            lines = shown[shown.index('"test"') :].splitlines()
            return {row["test"]: (float(row["rps"]), float(row["p99_latency_ms"])) for row in csv.DictReader(lines)}

        ours: list[dict[str, tuple[float, float]]] = []
        theirs: list[dict[str, tuple[float, float]]] = []
        try:
            for number in range(rounds):
                turns: list[Callable[[], None]] = [
                    lambda: ours.append(run(where["Address"], where["Port"])),
                    lambda: theirs.append(run(bare.address, bare.port)),
                ]
                for turn in turns if number % 2 else reversed(turns):
                    turn()
        finally:
            bare.stop()
    rows: list[tuple[object, ...]] = []
    for test in ours[0]:
        for index, (what, unit, better) in enumerate((("throughput", "/s", "≥ 0.99"), ("p99", " ms", "≤ 1.01"))):
            a, b = (statistics.median(run[test][index] for run in runs) for runs in (ours, theirs))
            ratio = statistics.median(x[test][index] / y[test][index] for x, y in zip(ours, theirs, strict=True))
            shape = ".0f" if index == 0 else ".3f"
            rows.append(
                (f"{test} {what} at the primary endpoint", f"{a:{shape}}{unit}", f"{b:{shape}}{unit} bare", f"{ratio:.3f}", better)
            )
    return rows


# -- describe


def bench_describe(place: Path, calls: int = 400) -> list[tuple[object, ...]]:
    """DescribeReplicationGroups by id, and pages of all, with a thousand groups stored; moto's server holds as many."""
    rows: list[tuple[object, ...]] = []
    with stored(place) as ours, moto() as theirs:
        mine: list[float] = []
        other: list[float] = []
        for number in range(calls):
            name = f"g{number * 37 % STORED:04}"
            mine.append(ours.describe(name))
            if theirs:
                other.append(theirs.describe(name))
        a = statistics.median(mine)
        if theirs:
            b = statistics.median(other)
            rows.append(
                (
                    f"Describe by id, {STORED} groups, p50",
                    f"{a * _ms:.2f} ms",
                    f"{b * _ms:.2f} ms moto_server",
                    f"{a / b:.2f}",
                    "< 1",
                )
            )
        else:
            rows.append((f"Describe by id, {STORED} groups, p50", f"{a * _ms:.2f} ms", "moto is not installed", "–", "< 1"))
        pages = [ours.pages() for _ in range(5)]
        first = statistics.median(page[0] for page in pages)
        last = statistics.median(page[-1] for page in pages)
        rows.append(
            (
                "page of 100: the last against the first",
                f"{last * _ms:.1f} ms",
                f"{first * _ms:.1f} ms",
                f"{last / first:.2f}",
                "linear: about 1",
            )
        )
    return rows


class Raw:
    """Signed requests over a kept connection, so that the server is measured and not a client library."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._host = urlsplit(url).netloc
        self._credentials = credentials
        self._connection = http.client.HTTPConnection(self._host, timeout=60)

    def send(self, **parameters: object) -> tuple[float, str]:
        form = {"Action": "DescribeReplicationGroups", "Version": "2015-02-02", **{k: str(v) for k, v in parameters.items()}}
        body = urlencode(form).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Host": self._host}
        request = AWSRequest("POST", f"http://{self._host}/", data=body, headers=headers)
        SigV4Auth(self._credentials, "elasticache", "us-east-1").add_auth(request)
        signed = dict(request.headers.items())
        before = time.perf_counter()
        self._connection.request("POST", "/", body, signed)
        response = self._connection.getresponse()
        text = response.read().decode()
        took = time.perf_counter() - before
        assert response.status == 200, text
        return took, text

    def describe(self, name: str) -> float:
        took, text = self.send(ReplicationGroupId=name)
        assert f"<ReplicationGroupId>{name}</ReplicationGroupId>" in text
        return took

    def pages(self) -> list[float]:
        """Seconds for each page of all groups."""
        times: list[float] = []
        marker: Mapping[str, str] = {}
        count = 0
        while True:
            took, text = self.send(MaxRecords=100, **marker)
            times.append(took)
            count += text.count("<ReplicationGroup>")
            found = re.search("<Marker>(.*?)</Marker>", text)
            if not found:
                assert count == STORED, count
                return times
            marker = {"Marker": found[1]}


@contextlib.contextmanager
def stored(place: Path) -> Iterator[Raw]:
    """The API over a store with a thousand groups that no keeper keeps: another process, as in real life."""
    key = Credentials("AKIABENCHMARKBENCHMA", "benchmark")
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bench", "--serve", str(place / "stored.db"), str(port)]
    with subprocess.Popen(command) as process:
        try:
            wait_for(port)
            yield Raw(f"http://127.0.0.1:{port}", key)
        finally:
            process.terminate()


@contextlib.contextmanager
def moto() -> Iterator[Raw | None]:
    """moto's server with as many groups."""
    if importlib.util.find_spec("moto") is None:
        yield None
        return
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for(port)
            url = f"http://127.0.0.1:{port}"
            options = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
            client = boto3.client("elasticache", endpoint_url=url, **options)
            for number in range(STORED):
                client.create_replication_group(
                    ReplicationGroupId=f"g{number:04}",
                    ReplicationGroupDescription="d",
                    Engine="redis",
                    CacheNodeType="cache.t3.micro",
                    NumCacheClusters=3,
                )
            yield Raw(url, Credentials("x", "x"))
        finally:
            process.terminate()


async def serve(path: Path, port: int) -> None:
    """Fill a store and answer requests from it, without a keeper."""
    import uvicorn

    from cachekeep.clock import SystemClock
    from cachekeep.model import Cache, Condition, Decided, Member, Node, Shard, Wanted, WantedShard
    from cachekeep.security import sigv4
    from cachekeep.security.access_keys import Issuer
    from cachekeep.security.sealing import Sealing
    from cachekeep.services import SERVICES, Services, ServiceSettings
    from cachekeep.store import SqlStore
    from cachekeep.toolchain.installed import discover
    from cachekeep.web.protocol import DeadlineProtocol
    from cachekeep.web.server import Web
    from cachekeep.wire.gateway import Gateway

    clock = SystemClock()
    store = SqlStore(path, clock)
    await store.open()
    born = dt.datetime.now(dt.UTC)
    async with store.transaction() as tx:
        for number in range(STORED):
            name = f"g{number:04}"
            members = tuple(Member(name=f"{name}-{i:03}", zone=f"us-east-1{'abc'[i - 1]}") for i in (1, 2, 3))
            address = f"10.{number // 250}.{number % 250}."
            node: dict[str, Any] = {
                "shard": "0001",
                "port": 6379,
                "engine": "valkey",
                "version": "8.0",
                "node_type": "cache.t3.micro",
            }
            nodes = tuple(
                Node(name=m.name, zone=m.zone, address=f"{address}{i}", announced=True, **node) for i, m in enumerate(members)
            )
            shard = Shard(id="0001", primary=members[0].name, order=1, primary_address=f"{address}8", reader_address=f"{address}9")
            wanted = Wanted(
                engine="valkey",
                version="8.0",
                node_type="cache.t3.micro",
                port=6379,
                shards=(WantedShard(id="0001", members=members),),
                parameter_group="default.valkey8",
            )
            await tx.insert(
                Cache(
                    uid=f"uid-{name}",
                    name=name,
                    kind="group",
                    region="us-east-1",
                    created_at=born,
                    wanted=wanted,
                    decided=Decided(nodes=nodes, shards=(shard,), available_at=born),
                )
            )
    while leases := await store.claim("benchmark", ttl_seconds=86400):
        for lease in leases:
            await store.publish(lease.uid, Condition(status="available", because="", settled=True, version=1), lease)
    settings = ServiceSettings(
        region="us-east-1",
        account="000000000000",
        zones=("us-east-1a", "us-east-1b", "us-east-1c"),
        address_pool="10.0.0.0/8",
        capacity_memory_bytes=1 << 40,
        issuer=Issuer(b"benchmark", "000000000000"),
    )
    services = Services(SERVICES, store, discover(), settings, clock, Sealing(bytes(32)))
    known = {"AKIABENCHMARKBENCHMA": sigv4.AccessKey("benchmark", "arn:aws:iam::000000000000:root", "000000000000")}.get
    gateway = Gateway(
        served=services.served(),
        credentials=known,
        clock=clock,
        auth="enforce",
        region="us-east-1",
        account="000000000000",
        dispatch=services.dispatch,
    )
    nobody: Any = None
    web = Web(gateway, nobody, ask=services.dispatch, credentials=known, clock=clock)
    await uvicorn.Server(
        uvicorn.Config(web, port=port, http=DeadlineProtocol, ws="none", lifespan="off", log_config=None, access_log=False)
    ).serve()


# -- footprint


def bench_footprint(place: Path, groups: int, idle_seconds: float = 20.0) -> list[tuple[object, ...]]:
    """Memory with so many live groups of two nodes, each watched for failover,
    and processor time while nobody asks for anything."""
    with running(place / "footprint") as one:
        client = one.client()
        for number in range(groups):
            client.create_replication_group(
                ReplicationGroupId=f"g{number:02}",
                ReplicationGroupDescription="d",
                Engine="valkey",
                CacheNodeType="cache.t3.micro",
                NumCacheClusters=2,
                AutomaticFailoverEnabled=True,
            )
        for number in range(groups):
            client.get_waiter("replication_group_available").wait(ReplicationGroupId=f"g{number:02}")
        assert one.process is not None
        time.sleep(2)  # what creation left to do
        before = _cpu_seconds(one.process.pid)
        time.sleep(idle_seconds)
        cpu = (_cpu_seconds(one.process.pid) - before) / idle_seconds
        resident = _resident_mib(one.process.pid)
    return [
        (f"resident memory of the control plane, {groups} live groups of 1 + 1", f"{resident:.0f} MiB", "–", "–", "–"),
        (f"idle CPU of the control plane, {groups} live groups", f"{cpu * 100:.1f} % of a core", "–", "–", "< 2 %"),
    ]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


# -- all of it


@contextlib.contextmanager
def running(place: Path) -> Iterator[Installation]:
    one = Installation(place)
    try:
        yield one.up()
    finally:
        one.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > until:
            sys.exit(f"nothing answers on port {port}")
        time.sleep(0.02)


def main() -> None:
    parts: dict[str, Callable[[Path, argparse.Namespace], list[tuple[object, ...]]]] = {
        "create": lambda place, asked: bench_create(place, asked.pairs),
        "throughput": lambda place, asked: bench_throughput(place),
        "describe": lambda place, asked: bench_describe(place),
        "footprint": lambda place, asked: bench_footprint(place, asked.groups),
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(parts)}; all when none is named")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--serve", nargs=2, metavar=("FILE", "PORT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(Path(asked.serve[0]), int(asked.serve[1])))
        return
    if unknown := set(asked.parts) - parts.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(prefix="cachekeep-bench-") as scratch:
        for name in asked.parts or parts:
            print(f"{name} …", file=sys.stderr, flush=True)
            for row in parts[name](Path(scratch), asked):
                rows.append(row)
                print("  " + "  ".join(map(str, row)), flush=True)
    heading = ("what", "Cachekeep", "against", "ratio", "bar")
    if not asked.parts:
        report.write("Control plane", "make bench", report.table(heading, rows))
        print(f"written to {report.FILE.name}")


if __name__ == "__main__":
    main()
