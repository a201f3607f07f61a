"""A client that writes as fast as it can, in a thread of its own, and remembers what was acknowledged."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

REPLY_SECONDS = 0.25
CONNECT_PAUSE_SECONDS = 0.001
Where = tuple[str, int]


class Writer:
    """Writes ``w:1``, ``w:2``, … one at a time, and connects anew after every error. ``where`` is asked before each connection."""

    def __init__(self, where: Where | Callable[[], Where], *, prefix: str = "w") -> None:
        self._where = where if callable(where) else lambda: where
        self._prefix = prefix.encode()
        self._stop = threading.Event()
        self.acknowledged: list[int] = []
        self.longest_pause_seconds = 0.0
        self.connections = 0
        self._last_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Acknowledged so far."""
        return len(self.acknowledged)

    def mark(self) -> None:
        """Measure the longest pause from here on, and forget what was acknowledged before."""
        self.acknowledged = self.acknowledged[-1:]
        self.longest_pause_seconds = 0.0

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                with socket.create_connection(self._where(), timeout=REPLY_SECONDS) as line:
                    self.connections += 1
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while not self._stop.is_set():
                        number += 1
                        key = b"%b:%d" % (self._prefix, number)
                        line.sendall(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$1\r\nx\r\n$2\r\nEX\r\n$3\r\n300\r\n" % (len(key), key))
                        if line.recv(4096) != b"+OK\r\n":
                            break  # it does not lead, or is going: connect anew
                        self._acknowledged(number)
            except OSError:
                pass
            time.sleep(CONNECT_PAUSE_SECONDS)

    def _acknowledged(self, number: int) -> None:
        now = time.monotonic()
        self.longest_pause_seconds = max(self.longest_pause_seconds, now - self._last_at)
        self._last_at = now
        self.acknowledged.append(number)

    def missing(self, address: str, port: int = 6379) -> list[int]:
        """Numbers that were acknowledged (since the mark) and are not there."""
        asked, gone = list(self.acknowledged), []
        with socket.create_connection((address, port), timeout=30) as line, line.makefile("rb") as replies:
            for start in range(0, len(asked), 500):
                part = asked[start : start + 500]
                keys = [b"%b:%d" % (self._prefix, n) for n in part]
                line.sendall(b"".join(b"*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys))
                gone += [n for n in part if replies.readline() != b":1\r\n"]
        return gone
