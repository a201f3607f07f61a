"""Engines on addresses of their own, for the tests of sessions."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import valkey

ENGINES = [name for name in ("valkey-server", "redis-server") if shutil.which(name)]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(valkey.exceptions.ValkeyError, OSError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen in {seconds} s")
        time.sleep(0.01)


@dataclass
class Engine:
    process: subprocess.Popen[bytes]
    address: str
    port: int

    def client(self, **options: Any) -> valkey.Valkey:
        return valkey.Valkey(self.address, self.port, socket_timeout=5, **options)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
