"""Worlds in which a driver is tried: each makes drivers over one lasting state and can hurt processes from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.addresses import new_address
from tests.contract.elsewhere import ElsewhereDriver, Platform, new_name

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Driver, File, Key, ProcessSpec
from cachekeep.compute.local import LocalDriver
from cachekeep.compute.local.ledger import Record, record_in
from cachekeep.compute.local.proc import process_of, stat
from cachekeep.model import Moment
from cachekeep.sim import world
from cachekeep.sim.doors import SimDriver

PORT = 6379


def redis_spec(
    name: str = "a-001", *, incarnation: int = 1, address: str | None = None, lines: str = "", **changes: Any
) -> ProcessSpec:
    """A real redis-server in its plainest form."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    address = address or new_address()
    config = f"bind {address}\nport {PORT}\ndir {{dir}}\nsave ''\nappendonly no\n{lines}\n"
    given: dict[str, Any] = {
        "key": ("uid-1", name),
        "incarnation": incarnation,
        "argv": ("redis-server", "{dir}/redis.conf"),
        "files": {"redis.conf": File(config)},
        "address": address,
        "port": PORT,
        "probe": "resp",
    }
    return ProcessSpec(**given | changes)


def memcached_spec(name: str = "m.0001", **changes: Any) -> ProcessSpec:
    """A real memcached."""
    if shutil.which("memcached") is None:
        pytest.skip("needs memcached")
    address = new_address()
    argv = ("memcached", "-l", address, "-p", str(PORT), "-u", "root", "-m", "16")
    return ProcessSpec(
        **{"key": ("uid-1", name), "incarnation": 1, "argv": argv, "address": address, "port": PORT, "probe": "memcached"} | changes
    )


@contextlib.contextmanager
def disk_of(size: str, place: Path) -> Iterator[Path]:
    """A filesystem of its own at ``place``, of so many bytes (tmpfs(5): ``256k``, ``8m``). Needs root."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


async def eventually(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait for a condition; fails when it has not come true."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.002)


class World(Protocol):
    """What the contract tests need beside the driver itself."""

    async def driver(self, *, start_deadline_seconds: float = 60.0) -> Driver:
        """A driver over the lasting state; the one before it is closed first."""

    def moment(self) -> Moment:
        """Now, by the clock of the machine that the processes are on."""

    def spec(self, name: str = "a-001", *, incarnation: int = 1, address: str | None = None, broken: bool = False) -> ProcessSpec:
        """A process that works, or one that ends at once."""

    async def keep(self, name: str) -> None:
        """Have the driver's side keep a file by this name that holds one key."""

    async def keys(self, spec: ProcessSpec) -> int:
        """How many keys the process holds."""

    async def kill(self, key: Key) -> None:
        """SIGKILL from outside; dead on return."""

    async def freeze(self, key: Key) -> None:
        """SIGSTOP from outside, in effect on return."""

    async def thaw(self, key: Key) -> None:
        """SIGCONT from outside."""

    async def accepts(self, spec: ProcessSpec) -> bool:
        """Whether a client gets an answer."""

    async def aclose(self) -> None:
        """End everything."""


class LocalWorld:
    """The local driver over real redis-servers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._driver: LocalDriver | None = None

    async def driver(self, *, start_deadline_seconds: float = 60.0) -> LocalDriver:
        if self._driver is not None:
            await self._driver.aclose()
        self._driver = LocalDriver(self.directory, SystemClock(), start_deadline_seconds=start_deadline_seconds)
        await self._driver.open()
        return self._driver

    def moment(self) -> Moment:
        return SystemClock().moment()

    def spec(self, name: str = "a-001", *, incarnation: int = 1, address: str | None = None, broken: bool = False) -> ProcessSpec:
        return redis_spec(name, incarnation=incarnation, address=address, lines="no-such-directive 1" if broken else "")

    def record(self, key: Key) -> Record:
        return read_record(self.directory, key)

    async def keep(self, name: str) -> None:
        first, driver = redis_spec("first"), self._driver or await self.driver()
        await driver.start(first)
        for command in (("SET", "k", "v"), ("SAVE",)):
            await asyncio.to_thread(ask, first.address, *command)
        (self.directory / "kept").mkdir(exist_ok=True)
        shutil.copyfile(self.directory / "nodes" / first.key[0] / "first" / "dump.rdb", self.directory / "kept" / name)
        await driver.erase(first.key)

    async def keys(self, spec: ProcessSpec) -> int:
        return int((await asyncio.to_thread(ask, spec.address, "DBSIZE")).removeprefix(b":"))

    async def kill(self, key: Key) -> None:
        pid = self.record(key).pid
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(pid))

    async def freeze(self, key: Key) -> None:
        pid = self.record(key).pid
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: (seen := stat(pid)) is not None and seen.state == "T")

    async def thaw(self, key: Key) -> None:
        os.kill(self.record(key).pid, signal.SIGCONT)

    async def accepts(self, spec: ProcessSpec) -> bool:
        return await asyncio.to_thread(ping, spec.address)

    async def aclose(self) -> None:
        driver = await self.driver()
        for path in (self.directory / "nodes").glob("*/*/"):
            await driver.erase((path.parent.name, path.name))
        await driver.aclose()


class SimWorld:
    """The simulated driver over simulated processes, in real time."""

    def __init__(self, directory: Path) -> None:
        self.world = world.World(seed=0)
        self.world.unfit = lambda spec: "broken" in spec.files
        self._driver: SimDriver | None = None

    async def driver(self, *, start_deadline_seconds: float = 60.0) -> SimDriver:
        if self._driver is not None:
            await self._driver.aclose()
        self._driver = self._made(start_deadline_seconds)
        await self._driver.open()
        return self._driver

    def _made(self, start_deadline_seconds: float) -> SimDriver:
        return SimDriver(self.world, start_deadline_seconds=start_deadline_seconds)

    def moment(self) -> Moment:
        return self.world.moment()

    def spec(self, name: str = "a-001", *, incarnation: int = 1, address: str | None = None, broken: bool = False) -> ProcessSpec:
        files = {"broken": File("")} if broken else {}
        address = address or new_address()
        return ProcessSpec(key=("uid-1", name), incarnation=incarnation, argv=("valkey",), files=files, address=address, port=PORT)

    async def keep(self, name: str) -> None:
        self.world.kept[name] = [1]

    async def keys(self, spec: ProcessSpec) -> int:
        return len(self.world.processes[spec.key].writes)

    async def kill(self, key: Key) -> None:
        self.world.kill(key)

    async def freeze(self, key: Key) -> None:
        self.world.freeze(key)

    async def thaw(self, key: Key) -> None:
        self.world.thaw(key)

    async def accepts(self, spec: ProcessSpec) -> bool:
        engine = self.world.at(spec.address)
        return engine is not None and engine.works

    async def aclose(self) -> None:
        for task in self.world.tasks:
            task.cancel()


def read_record(directory: Path, key: Key) -> Record:
    """The record of a process, as it is on disk."""
    return record_in(directory / "nodes" / key[0] / key[1])


def ask(address: str, *words: str, port: int = PORT) -> bytes:
    """What a RESP server says to a command, if it is one line."""
    with socket.create_connection((address, port), timeout=30) as connection:
        connection.sendall(f"{' '.join(words)}\r\n".encode())
        return connection.recv(64).strip()


def ping(address: str) -> bool:
    """Whether a RESP server answers there."""
    try:
        return ask(address, "PING") == b"+PONG"
    except OSError:
        return False


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    seen = stat(pid)
    return seen is not None and process_of(seen.state) != "exited"


class ElsewhereWorld(SimWorld):
    """The second driver, over simulated processes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.world = self._platform = Platform(seed=0)
        self.world.unfit = lambda spec: "broken" in spec.files

    def _made(self, start_deadline_seconds: float) -> SimDriver:
        return ElsewhereDriver(self._platform, start_deadline_seconds=start_deadline_seconds)

    def spec(self, name: str = "a-001", *, incarnation: int = 1, address: str | None = None, broken: bool = False) -> ProcessSpec:
        return super().spec(name, incarnation=incarnation, address=address or new_name(), broken=broken)


WORLDS = [pytest.param(LocalWorld, id="local"), pytest.param(SimWorld, id="sim"), pytest.param(ElsewhereWorld, id="elsewhere")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(name="world", params=WORLDS)
async def world_fixture(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    made = request.param(tmp_path)
    yield made
    await made.aclose()


@pytest.fixture(name="local")
async def local_fixture(tmp_path: Path, anyio_backend: str) -> AsyncIterator[LocalWorld]:
    made = LocalWorld(tmp_path)
    yield made
    await made.aclose()
