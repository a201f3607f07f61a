"""Spare lines: connections of ours that outlive the control plane, so that the next one is let in where nobody else is.

When a control plane dies its lines are closed, and at an engine with as many clients as it may, others take their places at once.
So a small process of its own holds one spare line to each engine, and gives it to the next control plane over a unix socket
(SCM_RIGHTS). It knows no password: what it holds has been let in already. It ends by itself when all that it held is closed.

This file is also that process's program. It imports nothing of ours, so that it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_SOCKET, _LOCK = "spares.sock", "spares.lock"
_IDLE_SECONDS = 1.0
"""With nothing to hold, it ends after this."""
_START_SECONDS, _ANSWER_SECONDS = 3.0, 1.0
_YES, _NO = b"yes", b"no"
_MESSAGE_BYTES = 1024


class Spares:
    """The spare lines of a directory that only its owner may enter. Its calls block for a moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: subprocess.Popen[bytes] | None = None

    def put(self, name: str, line: socket.socket) -> None:
        """Have a connection held, in place of one of that name. Starts the holder if there is none. Raises ``OSError``."""
        try:
            told, _ = self._ask("put", name, line)
        except (FileNotFoundError, ConnectionRefusedError):
            self._start()
            told, _ = self._ask("put", name, line)
        if told != _YES:
            raise OSError("the spare line was not taken")

    def take(self, name: str) -> socket.socket | None:
        """The connection of that name, held no longer; None: there is none."""
        with contextlib.suppress(OSError):
            return self._ask("take", name)[1]
        return None

    def has(self, name: str) -> bool:
        """Whether one of that name is held, and open."""
        with contextlib.suppress(OSError):
            return self._ask("has", name)[0] == _YES
        return False

    def _ask(self, verb: str, name: str, line: socket.socket | None = None) -> tuple[bytes, socket.socket | None]:
        with _within(self._directory) as path, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.settimeout(_ANSWER_SECONDS)
            door.connect(path)
            socket.send_fds(door, [f"{verb} {name}".encode()], [line.fileno()] if line is not None else [])
            told, fds, _, _ = socket.recv_fds(door, 16, 1)
        return told, socket.socket(fileno=fds[0]) if fds else None

    def _start(self) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self._started is None or self._started.poll() is not None:  # one that finds another on its way out ends at once
                self._started = self._launched()
            with contextlib.suppress(OSError):
                self._ask("has", "-")
                return
            time.sleep(0.005)
        raise TimeoutError("the holder of spare lines did not start")

    def _launched(self) -> subprocess.Popen[bytes]:
        nothing = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, "-E", "-S", __file__, str(self._directory)],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env={},
            cwd="/",
            start_new_session=True,
        )


@contextlib.contextmanager
def _within(directory: Path) -> Iterator[str]:
    """The path of the socket in a directory, short enough for one however deep the directory lies (unix(7): 107 bytes)."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET}"
    finally:
        os.close(fd)


class _Holder:
    """What the process does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, socket.socket] = {}
        self._seen = selectors.DefaultSelector()

    def run(self) -> None:
        """Hold until there is nothing to hold. Ends at once if another process of this directory does so."""
        lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._directory / _SOCKET)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            with _within(self._directory) as path:
                door.bind(path)
            door.listen(64)
            self._seen.register(door, selectors.EVENT_READ)
            while (ready := self._seen.select(_IDLE_SECONDS)) or self._held:
                for key, _ in ready:
                    if key.fileobj is door:
                        self._serve(door)
                    else:  # it is closed, or says what nobody is there to hear
                        self._drop(key.data)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._directory / _SOCKET)

    def _serve(self, door: socket.socket) -> None:
        with contextlib.suppress(OSError), door.accept()[0] as asker:
            asker.settimeout(_ANSWER_SECONDS)
            if _user_of(asker) != os.geteuid():
                return
            asked, fds, _, _ = socket.recv_fds(asker, _MESSAGE_BYTES, 1)
            verb, _, name = asked.decode().partition(" ")
            lines = [socket.socket(fileno=fd) for fd in fds]
            if verb == "put" and lines:
                self._drop(name)
                self._held[name] = lines.pop()
                self._seen.register(self._held[name], selectors.EVENT_READ, name)
            held = self._held.get(name)
            for line in lines:
                line.close()
            socket.send_fds(asker, [_NO if held is None else _YES], [held.fileno()] if held is not None and verb == "take" else [])
            if verb == "take":
                self._drop(name)

    def _drop(self, name: str) -> None:
        line = self._held.pop(name, None)
        if line is not None:
            self._seen.unregister(line)
            line.close()


def _user_of(asker: socket.socket) -> int:
    """Who is at the other end (SO_PEERCRED, unix(7))."""
    _, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(user)


if __name__ == "__main__":
    _Holder(Path(sys.argv[1])).run()
