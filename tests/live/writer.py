"""A client that writes as fast as it can, in a thread of its own, and remembers what was acknowledged."""

from __future__ import annotations

import socket
import threading
import time

REPLY_SECONDS = 0.5


class Writer:
    """Writes ``w:0``, ``w:1``, … at an endpoint, one at a time; connects anew after every error. Read its fields after ``stop``."""

    def __init__(self, address: str, port: int = 6379) -> None:
        self._where = (address, port)
        self._stop = threading.Event()
        self.acknowledged: list[int] = []
        self.longest_pause_seconds = 0.0
        self._last_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Acknowledged so far."""
        return len(self.acknowledged)

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                with socket.create_connection(self._where, timeout=REPLY_SECONDS) as line:
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while not self._stop.is_set():
                        number += 1
                        key = b"w:%d" % number
                        line.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$1\r\nx\r\n" % (len(key), key))
                        if line.recv(4096) != b"+OK\r\n":
                            break  # readonly, or whatever: connect anew
                        now = time.monotonic()
                        self.longest_pause_seconds = max(self.longest_pause_seconds, now - self._last_at)
                        self._last_at = now
                        self.acknowledged.append(number)
            except OSError:
                pass
            time.sleep(0.001)

    def missing(self, address: str) -> list[int]:
        """Numbers that were acknowledged and are not there."""
        gone: list[int] = []
        with socket.create_connection((address, self._where[1]), timeout=10) as line:
            file = line.makefile("rb")
            for start in range(0, len(self.acknowledged), 500):
                part = self.acknowledged[start : start + 500]
                line.sendall(b"".join(b"*2\r\n$6\r\nEXISTS\r\n$%d\r\nw:%d\r\n" % (2 + len(str(n)), n) for n in part))
                gone += [n for n in part if file.readline() != b":1\r\n"]
        return gone
