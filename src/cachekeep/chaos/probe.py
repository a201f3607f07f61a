"""A client that writes as fast as it can, in a thread of its own, and remembers what was acknowledged:
what a user would have felt."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable

from cachekeep.model.endpoint import parted

REPLY_SECONDS = 0.25
CONNECT_PAUSE_SECONDS = 0.001
KEPT_SECONDS = 300
"""Its keys expire by themselves, after so long unless told otherwise."""
_MOVES_MAX = 5
Where = tuple[str, int]


class Writer:
    """Writes ``PREFIX:1``, ``PREFIX:2``, … one at a time, and connects anew after every error. ``where`` is asked before each
    connection; a shard of a cluster is followed where it says that its slots are. ``pause_seconds`` between writes spares the
    cache. With ``replicas`` a write counts as acknowledged only when so many replicas have it (``WAIT``). Keys expire after
    ``kept_seconds``: what is asked for later than that is ``missing`` for that reason alone. ``trust``: it comes by TLS, to
    one that these authorities (PEM) call by the address. ``login``: as which user, and by which password; without a name by an
    AUTH token."""

    def __init__(
        self,
        where: Where | Callable[[], Where],
        *,
        prefix: str = "w",
        pause_seconds: float = 0.0,
        replicas: int = 0,
        kept_seconds: int = KEPT_SECONDS,
        trust: str = "",
        login: tuple[str, str] | None = None,
    ) -> None:
        self._login = tuple(word.encode() for word in login if word) if login else ()
        self._tls = ssl.create_default_context(cadata=trust) if trust else None
        self._kept_seconds = kept_seconds
        self._replicas = replicas
        self._where = where if callable(where) else lambda: where
        self._prefix = prefix.encode()
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._moved: Where | None = None
        self.acknowledged: list[int] = []
        self.longest_pause_seconds = 0.0
        self.connections = 0
        self.last_error = ""
        """The last reply or failure that was no acknowledgement."""
        self._last_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Acknowledged so far."""
        return len(self.acknowledged)

    @property
    def silent_seconds(self) -> float:
        """Since the last acknowledgement."""
        return time.monotonic() - self._last_at

    def mark(self) -> None:
        """Measure the longest pause from here on, and forget what was acknowledged before."""
        self.acknowledged = []
        self.longest_pause_seconds = 0.0

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                where, self._moved = self._moved or self._where(), None
                with self._connect(where, REPLY_SECONDS) as line:
                    self.connections += 1
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while not self._stop.is_set():
                        number += 1
                        line.sendall(_command(b"SET", b"%b:%d" % (self._prefix, number), b"x", b"EX", b"%d" % self._kept_seconds))
                        reply = line.recv(4096)
                        if reply == b"+OK\r\n" and self._replicas:
                            line.sendall(_command(b"WAIT", b"%d" % self._replicas, b"%d" % (REPLY_SECONDS * 1000)))
                            reached = line.recv(4096)
                            if not reached.startswith(b":"):
                                self._refused(reached)
                                break
                            if int(reached[1:]) < self._replicas:
                                continue  # written, but not acknowledged in our sense
                        if reply != b"+OK\r\n":
                            self._refused(reply)
                            break  # it does not lead, or is going: connect anew
                        self._acknowledged(number)
                        if self._pause_seconds:
                            time.sleep(self._pause_seconds)
            except OSError as error:
                self.last_error = str(error)
            time.sleep(CONNECT_PAUSE_SECONDS)

    def _connect(self, where: Where, seconds: float) -> socket.socket:
        line = socket.create_connection(where, timeout=seconds)
        try:
            if self._tls is not None:
                line = self._tls.wrap_socket(line, server_hostname=where[0])
            if self._login:
                line.sendall(_command(b"AUTH", *self._login))
                if (reply := line.recv(4096)) != b"+OK\r\n":
                    raise ConnectionRefusedError(reply.decode(errors="replace").strip() or "the connection was closed")
        except BaseException:
            line.close()
            raise
        return line

    def _refused(self, reply: bytes) -> None:
        self.last_error = reply.decode(errors="replace").strip() or "the connection was closed"
        self._moved = _moved_to(reply)

    def _acknowledged(self, number: int) -> None:
        now = time.monotonic()
        self.longest_pause_seconds = max(self.longest_pause_seconds, now - self._last_at)
        self._last_at = now
        self.acknowledged.append(number)

    def missing(self, address: str, port: int = 6379) -> list[int]:
        """Numbers that were acknowledged (since the mark) and are not there. A shard of a cluster is followed where its slots are.

        Raises ``OSError`` where the question is not answered: only an engine that leads can say that a key is gone.
        """
        where, asked = (address, port), list(self.acknowledged)
        for _ in range(_MOVES_MAX):
            gone = self._gone(where, asked)
            if isinstance(gone, list):
                return gone
            where = gone
        raise OSError(f"{where[0]}:{where[1]}: moved again and again")

    def _gone(self, where: Where, asked: list[int]) -> list[int] | Where:
        """Those of ``asked`` that are not there; or where to ask instead."""
        gone: list[int] = []
        with self._connect(where, 30) as line, line.makefile("rb") as replies:
            for start in range(0, len(asked), 500):
                part = asked[start : start + 500]
                line.sendall(b"".join(_command(b"EXISTS", b"%b:%d" % (self._prefix, n)) for n in part))
                for number in part:
                    reply = replies.readline()
                    if reply == b":0\r\n":
                        gone.append(number)
                    elif reply != b":1\r\n":
                        if (moved := _moved_to(reply)) is not None:
                            return moved
                        raise OSError(reply.decode(errors="replace").strip() or "the connection was closed")
        return gone


def _moved_to(reply: bytes) -> Where | None:
    """Where a node of a cluster sends its client: ``-MOVED 3999 127.0.0.1:6381`` [Valkey cluster
    specification, MOVED redirection]."""
    words = reply.decode(errors="replace").split()
    if len(words) < 3 or words[0] != "-MOVED":
        return None
    return parted(words[2])


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
