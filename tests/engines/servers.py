"""Real servers for tests: started from ``launch``, on loopback addresses of their own, ended by pid."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.addresses import new_address

from cachekeep.compute.contract import Key, Link, LinkEffect, Target
from cachekeep.engines.catalogue import Build, Catalogue
from cachekeep.engines.launch import launch
from cachekeep.engines.users import credential_of
from cachekeep.model import Cache, Decided, Heard, Node, Secret, Shard, Wanted
from cachekeep.toolchain.installed import discover

_catalogue: list[Catalogue] = []
PASSWORD = Secret("a-password-for-tests-only-0123456789")
CREDENTIALS = (credential_of(1, PASSWORD, "sealed"),)


def build_of(engine: str, major: int) -> Build:
    """An installed build of that major version; skips the test if there is none."""
    if not _catalogue:
        _catalogue.append(discover())
    fit = [b for b in _catalogue[0].builds if b.engine == engine and b.numbers[0] == major]
    if not fit:
        pytest.skip(f"needs {engine} {major}")
    return fit[-1]


async def carry(link: Link, effect: LinkEffect, *targets: Target) -> None:
    """Have a link carry out an effect that names these nodes."""
    await link.carry(effect, {target.name: target for target in targets})


def node_of(build: Build, name: str, *, address: str | None = None, port: int = 6379, node_type: str = "cache.t3.micro") -> Node:
    version = ".".join(build.version.split(".")[:2]) if build.engine != "memcached" else build.version
    return Node(
        name=name,
        shard="0001",
        zone="us-east-1a",
        address=address or new_address(),
        port=port,
        engine=build.engine,
        version=version,
        node_type=node_type,
    )


def cache_of(*nodes: Node, shards: tuple[Shard, ...] = (), uid: str = "uid-1", **wanted: object) -> Cache:
    first = nodes[0]
    given = {
        "engine": first.engine,
        "version": first.version,
        "node_type": first.node_type,
        "port": first.port,
        "shards": (),
        "credentials": CREDENTIALS,
    }
    return Cache(
        uid=uid,
        name="demo",
        kind="group",
        region="us-east-1",
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        wanted=msgspec.convert(given | wanted, Wanted),
        decided=Decided(nodes=nodes, shards=shards),
    )


class Orders:
    """``compute.contract.Memory``, in memory."""

    def __init__(self) -> None:
        self.last: defaultdict[Key, int] = defaultdict(int)
        self.lead: defaultdict[Key, int] = defaultdict(int)
        self.heard: defaultdict[Key, list[Heard]] = defaultdict(list)

    async def admit(self, key: Key, order: int, *, leading: bool = False) -> bool:
        if order < self.last[key]:
            return False
        self.last[key] = order
        self.lead[key] = order if leading else self.lead[key]
        return True

    def remember(self, key: Key, heard: Heard) -> None:
        self.heard[key].insert(0, heard)


class Server:
    """One running engine process."""

    def __init__(self, build: Build, cache: Cache, node: Node, directory: Path) -> None:
        self.build, self.cache, self.node, self.directory = build, cache, node, directory
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> Target:
        n = self.node
        return Target(
            key=(self.cache.uid, n.name), address=n.address, port=n.port, engine=n.engine, version=n.version, password=PASSWORD
        )

    def start(self) -> Server:
        """Start and wait until it listens."""
        self.directory.mkdir(parents=True, exist_ok=True)
        spec = launch(self.build, self.cache, self.node, PASSWORD, run_as="nobody" if os.geteuid() == 0 else None)
        place = str(self.directory)

        def placed(text: str) -> str:
            return text.replace("{dir}", place).replace("{listen}", self.node.address)

        for name, (text, _secret) in spec.files.items():
            path = self.directory / name
            if name != "nodes.conf" or not path.exists():
                path.touch(mode=0o600)
                path.write_text(placed(text))
        with (self.directory / "log").open("ab") as log:
            argv = [self.build.server, *map(placed, spec.argv[1:])]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=place)
        deadline = time.monotonic() + 60
        while not listens(self.node.address, self.node.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.node.name} did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it is stopped."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)


def listens(address: str, port: int) -> bool:
    with contextlib.closing(socket.socket()) as s:
        s.settimeout(1)
        return s.connect_ex((address, port)) == 0


@contextlib.contextmanager
def servers(build: Build, tmp_path: Path, count: int, **wanted: object) -> Iterator[list[Server]]:
    """``count`` running nodes of one cache."""
    nodes = [node_of(build, f"demo-{i:03}", port=11211 if build.engine == "memcached" else 6379) for i in range(1, count + 1)]
    cache = cache_of(*nodes, **wanted)
    running = [Server(build, cache, node, tmp_path / node.name) for node in nodes]
    try:
        yield [server.start() for server in running]
    finally:
        for server in running:
            server.kill()


async def until(condition: object, *, seconds: float = 60.0) -> None:
    """Wait until ``condition()`` (plain or async) is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.005)


REDIS_LIKE = [("redis", 7), ("valkey", 8), ("valkey", 9)]
has_memcached = pytest.mark.skipif(shutil.which("memcached") is None, reason="needs memcached")
