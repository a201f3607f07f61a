"""What processes print: taken from a pipe each, and kept in a log of bounded size, however much a client makes them print.

The pipe never stalls its writer: a write that finds it full is refused (``O_NONBLOCK``), and the line is lost. The process holds
both ends of it (``O_RDWR``), so it outlives us: while no control plane runs, what is printed waits in the pipe, 64 KiB of it, and
the next one opens it again by way of ``/proc/PID/fd/1``. One thread reads, and another writes: where it hangs with a disk, nobody
waits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import threading
import time
from pathlib import Path

from cachekeep.compute.contract import Key
from cachekeep.compute.local.ledger import LOG, Ledger
from cachekeep.compute.local.scribe import Scribe

LOG_KEPT_BYTES = 2 << 20
"""Of the file that is written; beside it is one more, with what was printed before."""
_TURN_BYTES, _TURN_SECONDS = 1 << 16, 0.02
"""So much is read of a process at a turn, and so long is rested after: what is printed faster than that is lost in part."""
_LAST_SECONDS = 1.0
_TAIL_BYTES = 8192
_UNWRITTEN_BYTES = 1 << 20
_OBEYED = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""Control characters, but for line ends and tabs: a terminal that shows the log would obey them."""


class _Output:
    """Of one process. Its fields are used under the lock of ``Outputs``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tail = b""
        self.unwritten = bytearray()

    def read(self) -> bool:
        """Take what is there, as much as is read at a turn. False: that was the last of it."""
        try:
            taken = os.read(self.fd, _TURN_BYTES)
        except BlockingIOError:
            return True
        shown = _OBEYED.sub(b"?", taken)
        self.tail = (self.tail + shown)[-_TAIL_BYTES:]
        self.unwritten += shown[: max(_UNWRITTEN_BYTES - len(self.unwritten), 0)]
        return bool(taken)


class Outputs:
    """The output of every process that this driver knows."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._outputs: dict[Key, _Output] = {}
        self._by_fd: dict[int, Key] = {}
        self._lock = threading.Lock()
        self._ready = select.epoll()
        self._news = os.eventfd(0, os.EFD_CLOEXEC)
        """Written to at the end, to wake the thread."""
        self._ready.register(self._news, select.EPOLLIN)
        self._closed = False
        self._thread: threading.Thread | None = None
        self._scribe = Scribe("log")

    def begin(self, key: Key) -> int:
        """The descriptor to which a new process of that name is to print; the caller closes it. Raises ``OSError``."""
        reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            both = os.open(f"/proc/self/fd/{writes}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        self._take(key, _Output(reads))
        return both

    def adopt(self, key: Key, pid: int) -> None:
        """Read on from a process that was started before us, which is there."""
        path = f"/proc/{pid}/fd/1"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("pipe:"):
                output = _Output(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                with contextlib.suppress(OSError), open(self._path(key), "rb") as log:
                    log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
                    output.tail = log.read()
                self._take(key, output)

    def said(self, key: Key) -> str:
        """The last that it printed, up to now. Touches no disk."""
        with self._lock:
            output = self._outputs.get(key)
            if output is None:
                return ""
            if output.fd >= 0:
                output.read()
            return output.tail.decode(errors="replace")

    def forget(self, key: Key) -> None:
        """It is of no interest any more."""
        with self._lock:
            if (output := self._outputs.pop(key, None)) is not None:
                self._drop(output)

    def close(self) -> None:
        """Have what was printed so far written, and read no more. Waits for a moment, not for a disk."""
        if self._thread is not None and not self._closed:
            os.eventfd_write(self._news, 1)  # first: the thread closes it as soon as it sees that this is the end
            self._closed = True
            self._thread.join(_LAST_SECONDS)
        self._scribe.close()

    def _take(self, key: Key, output: _Output) -> None:
        with self._lock:
            if (before := self._outputs.pop(key, None)) is not None:
                self._drop(before)
            self._outputs[key] = output
            self._by_fd[output.fd] = key
            self._ready.register(output.fd, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="output", daemon=True)
                self._thread.start()

    def _drop(self, output: _Output) -> None:
        if output.fd >= 0:
            del self._by_fd[output.fd]
            self._ready.unregister(output.fd)
            os.close(output.fd)
            output.fd = -1

    def _keep(self) -> None:
        while not self._closed:
            ready = self._ready.poll()
            with self._lock:
                printed = [self._taken(key) for fd, _ in ready if (key := self._by_fd.get(fd)) is not None]
            self._write(printed)
            time.sleep(_TURN_SECONDS)
        with self._lock:
            printed = [self._taken(key) for key in list(self._by_fd.values())]
            for output in self._outputs.values():
                self._drop(output)
            self._ready.close()
            os.close(self._news)
        self._write(printed)

    def _taken(self, key: Key) -> tuple[Key, bytes]:
        output = self._outputs[key]
        if not output.read():
            self._drop(output)
        text = bytes(output.unwritten)
        output.unwritten.clear()
        return key, text

    def _write(self, printed: list[tuple[Key, bytes]]) -> None:
        for key, text in printed:
            if text:
                self._scribe.put(key, functools.partial(_append, self._path(key), text))

    def _path(self, key: Key) -> Path:
        return self._ledger.directory(key) / LOG


def _append(path: Path, text: bytes) -> None:
    """A full disk costs the log."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size + len(text) > LOG_KEPT_BYTES:
            os.replace(path, path.with_name(f"{LOG}.1"))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "ab", buffering=0) as log:
        log.write(text)
