"""A control plane's hands, to be killed: starts processes, and shoots itself at the Nth call it makes.

Each line of input is a case: data directory, names with addresses (``a=127.0.0.2,b=…``), N (0: none), and ``stalled`` if its
children are to stand still. Each runs in a fork of this process, says ``started NAME`` for each, ``child PID`` for each that stands
still, and ``done``, and dies by SIGKILL in any case; then this process says ``over``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.contract.driver_fixtures import redis_spec

import cachekeep.compute.local
from cachekeep.clock import SystemClock
from cachekeep.compute.local import LocalDriver

_OURS = os.path.dirname(cachekeep.compute.local.__file__)


def prepare_to_die(number: int) -> Callable[[], None]:
    """Returns what begins the count: then, die before the driver's Nth call into the interpreter or the system (``os.write``,
    ``os.replace``, ``os.posix_spawn`` …)."""
    made = -(10**9)

    def count(frame: FrameType, event: str, function: Any) -> None:
        nonlocal made
        if event == "c_call" and frame.f_code.co_filename.startswith(_OURS):
            made += 1
            if made == number:
                os.write(1, f"dead before {function.__name__}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def begin() -> None:
        nonlocal made
        made = 0

    threading.setprofile(count)  # for the threads to come, so before there are any
    sys.setprofile(count)
    return begin


def stall_children() -> None:
    """A machine too busy to run them: each child is stopped as soon as it is there."""
    spawn = os.posix_spawn

    def spawn_and_stop(*arguments: Any, **options: Any) -> int:
        pid = spawn(*arguments, **options)
        os.kill(pid, signal.SIGSTOP)
        os.write(1, f"child {pid}\n".encode())
        return pid

    os.posix_spawn = spawn_and_stop


async def main(directory: str, targets: str, call: int) -> None:
    begin = prepare_to_die(call) if call else lambda: None
    driver = LocalDriver(Path(directory), SystemClock())
    await driver.open()
    os.write(1, b"open\n")
    begin()

    async def start(name: str, address: str) -> None:
        await driver.start(redis_spec(name, address=address))
        os.write(1, f"started {name}\n".encode())

    await asyncio.gather(*(start(*target.split("=")) for target in targets.split(",")))
    os.write(1, b"done\n")
    if not call:
        await asyncio.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    for case in iter(sys.stdin.readline, ""):
        directory, targets, call, stalled = case.split()
        child = os.fork()
        if not child:
            os.write(1, f"pid {os.getpid()}\n".encode())
            if stalled == "stalled":
                stall_children()
            asyncio.run(main(directory, targets, int(call)))
        os.waitpid(child, 0)
        os.write(1, b"over\n")
