"""The control plane is killed while it starts processes; its successor has each exactly once, and drops no connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.addresses import new_address
from tests.contract.driver_fixtures import (
    PORT,
    LocalWorld,
    alive,
    anyio_backend,  # noqa: F401  (fixture)
    eventually,
    local_fixture,  # noqa: F401  (fixture)
    ping,
    read_record,
    redis_spec,
)

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Key
from cachekeep.compute.local import LocalDriver
from cachekeep.compute.local.proc import sessions_in
from cachekeep.errors import Unusable

ROOT = Path(__file__).parents[2]


class Victims:
    """Control planes that die on order, one after the other."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "tests.live.driver_victim"]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, directory: Path, targets: dict[str, str], call: int, *, stalled: bool = False) -> Iterator[str]:
        """What one says, line by line, until it is dead. ``stalled``: its children get no processor time until SIGCONT."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        listed = ",".join(f"{name}={address}" for name, address in targets.items())
        self._process.stdin.write(f"{directory} {listed} {call} {'stalled' if stalled else '-'}\n")
        while (line := self._process.stdout.readline().strip()) != "over":
            assert line
            yield line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    made = Victims()
    yield made
    made.close()


SHELL = Path("/bin/sh").resolve()


def there(directory: Path, key: Key) -> list[int]:
    """Every living session leader in the process's directory."""
    return [pid for pid in sessions_in(directory / "nodes" / key[0] / key[1]) if alive(pid)]


def servers(directory: Path, key: Key) -> list[int]:
    """Those that have become the program. A child whose control plane died before the gate was opened is a shell until it gets the
    processor time to see that, and then it is gone."""
    found = []
    for pid in there(directory, key):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").resolve() != SHELL:
                found.append(pid)
    return found


async def converge(world: LocalWorld, targets: dict[str, str]) -> None:
    """A new driver starts what is wanted: then each is there once, is the one on record, and answers."""
    driver = await world.driver()
    await asyncio.gather(*(driver.start(redis_spec(name, address=address)) for name, address in targets.items()))
    for name, address in targets.items():
        key = ("uid-1", name)
        assert servers(world.directory, key) == [world.record(key).pid]
        assert ping(address)
    for name in targets:
        await eventually(lambda key=("uid-1", name): there(world.directory, key) == [world.record(key).pid])


async def test_killed_before_every_single_call(local: LocalWorld, victims: Victims) -> None:
    """One start, the driver killed before its first call, its second …, until it survives its start."""
    fatal: list[str] = []
    for call in range(1, 400):
        targets = {f"a-{call:03}": new_address()}
        said = [line for line in victims.run(local.directory, targets, call) if line.startswith("d")]
        await converge(local, targets)
        driver = await local.driver()
        await driver.erase(("uid-1", f"a-{call:03}"))
        await driver.aclose()
        if said == ["done"]:
            break
        fatal += said
    else:
        pytest.fail("the start never came to its end")
    calls = {line.removeprefix("dead before ") for line in fatal}
    assert {"open", "posix_spawn", "write", "replace", "pidfd_open"} <= calls


async def test_a_child_whose_control_plane_is_dead_never_becomes_a_server(local: LocalWorld, victims: Victims) -> None:
    """Killed before every call between a child's birth and its gate's opening, the child without processor time meanwhile: whoever
    comes next starts its own; the child, when it runs again, ends."""
    beside = 0
    for call in range(28, 70):
        key, targets = ("uid-1", f"a-{call:03}"), {f"a-{call:03}": new_address()}
        said = [line.split() for line in victims.run(local.directory, targets, call, stalled=True)]
        waiting = [int(words[1]) for words in said if words[0] == "child"]
        driver = await local.driver()
        if [(await driver.look([key]))[key].pid] != waiting:
            await driver.start(redis_spec(key[1], address=targets[key[1]]))
            assert servers(local.directory, key) == [local.record(key).pid]
            beside += len(waiting)
        for pid in waiting:
            os.kill(pid, signal.SIGCONT)
        await converge(local, targets)
        driver = await local.driver()
        await driver.erase(key)
        await driver.aclose()
    assert beside > 5, "no child was left alone behind its gate"


@pytest.mark.parametrize("seed", range(6))
async def test_killed_while_it_starts_ten(local: LocalWorld, victims: Victims, seed: int) -> None:
    """Ten at once, killed after a chance number of calls: those that were served go on being served by the same process."""
    targets = {f"n-{number}": new_address() for number in range(10)}
    call = random.Random(seed).randrange(300, 900)
    connections: dict[str, socket.socket] = {}
    pids: dict[str, int] = {}
    for line in victims.run(local.directory, targets, call):
        word, _, name = line.partition(" ")
        if word == "started":
            connections[name] = socket.create_connection((targets[name], PORT), timeout=30)
            pids[name] = read_record(local.directory, ("uid-1", name)).pid
    try:
        await converge(local, targets)
        for name, connection in connections.items():
            assert local.record(("uid-1", name)).pid == pids[name]
            connection.sendall(b"PING\r\n")
            assert connection.recv(16) == b"+PONG\r\n"
    finally:
        for connection in connections.values():
            connection.close()


async def test_a_second_driver_on_the_same_directory_is_refused(local: LocalWorld, victims: Victims) -> None:
    targets = {"a-001": new_address()}
    holder = 0
    for line in victims.run(local.directory, targets, 0):
        word, _, pid = line.partition(" ")
        if word == "pid":
            holder = int(pid)
        elif word == "done":
            with pytest.raises(Unusable, match="in use by another control plane"):
                await LocalDriver(local.directory, SystemClock()).open()
            os.kill(holder, signal.SIGKILL)
    before = local.record(("uid-1", "a-001")).pid
    await converge(local, targets)
    assert local.record(("uid-1", "a-001")).pid == before
    assert os.getsid(before) == before
