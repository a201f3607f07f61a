"""Records what an engine's primary sends to its replicas. A program of its own: ``python -I -S recorder.py DIRECTORY``.

It is a replica that applies nothing: it keeps the RDB and every byte of the stream as they come, with an index of when they came,
and acknowledges twice a second. It outlives the control plane, hence the standard library alone. ``DIRECTORY/target.json`` says
which node to follow, as which user, and how often an RDB is taken anew; it may be replaced at any time, and without it the recorder
ends. The lock on ``DIRECTORY/lock`` is held while it lives.

What is kept (numbers grow; each ``.json`` is there before what it tells of is used):

- ``b<number>.rdb`` and ``.json``: an RDB, and of which history it is the first ``offset`` bytes.
- ``s<number>.stream``, ``.index`` and ``.json``: bytes of a history from ``offset`` on; pairs of 64 bits, when (nanoseconds,
  UTC) and up to where everything was received; why it begins, and which history it goes on from. A pair that says no more than
  the one before says that the primary's host was heard then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import sys
import termios
import threading
import time

PAIR = struct.Struct("<qq")
CHUNK_BYTES = 1 << 18
TICK_SECONDS = 0.5
TOGETHER_SECONDS = 0.001  # What comes within a millisecond is one moment: a busy primary costs a thousand turns a second.
CONNECT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # A primary says something every ten seconds (repl-ping-replica-period).
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 0.1, 5.0
SEGMENT_BYTES, SEGMENT_SECONDS = 32 << 20, 600.0
REBASE_STREAM_BYTES = 4 << 30
ASKED = b"\r\nGETACK\r\n"
ANY_VERSION = "99.0.0"  # Valkey 9.1 leaves out of an RDB what a replica of that version does not know.


class _Broken(Exception):
    """The connection cannot be used; why."""


class _Connection:
    """To an engine, as its replica."""

    def __init__(self, target: dict[str, object]) -> None:
        self.where = (str(target["address"]), int(str(target["port"])))
        try:
            self.socket = socket.create_connection(self.where, CONNECT_SECONDS)
        except OSError as error:
            raise _Broken(f"{self.where[0]}:{self.where[1]} cannot be reached: {error.strerror or error}") from error
        self.socket.settimeout(SILENT_SECONDS)
        self.held = b""
        if target.get("user"):
            self.ask("AUTH", str(target["user"]), str(target["password"]))
        self.ask("PING")
        self.ask("REPLCONF", "capa", "eof", "capa", "psync2")
        with contextlib.suppress(_Broken):
            self.ask("REPLCONF", "version", ANY_VERSION)

    def send(self, *words: str) -> None:
        coded = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(coded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in coded))

    def ask(self, *words: str) -> str:
        self.send(*words)
        said = self.line().decode(errors="replace")
        if not said.startswith("+"):
            raise _Broken(f"{self.where[0]}:{self.where[1]} refuses: {said.lstrip('-')}")
        return said[1:]

    def some(self, most: int = CHUNK_BYTES) -> bytes:
        """At least one byte."""
        if self.held:
            got, self.held = self.held[:most], self.held[most:]
            return got
        try:
            got = self.socket.recv(most)
        except TimeoutError:
            raise _Broken(f"{self.where[0]}:{self.where[1]} was silent for {SILENT_SECONDS:g} s") from None
        if not got:
            raise _Broken(f"{self.where[0]}:{self.where[1]} closed the connection")
        return got

    def line(self) -> bytes:
        """The next line that is not empty: empty ones keep the connection while a fork is at work."""
        while True:
            while b"\n" not in self.held:
                held, self.held = self.held, b""
                self.held = held + self.some()
            line, _, self.held = self.held.partition(b"\n")
            if line.strip():
                return line.strip()

    def ready(self, seconds: float = 0.0) -> bool:
        return bool(self.held) or bool(select.select([self.socket], [], [], max(seconds, 0.0))[0])

    def heard(self) -> bool:
        """Whether all that was said so far has arrived at the other host."""
        return fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)) == bytes(4)

    def rdb(self, path: str) -> int:
        """Store the RDB that comes; its size. It is there as a whole or not at all."""
        head = self.line()
        if not head.startswith(b"$"):
            raise _Broken(f"{self.where[0]}:{self.where[1]} refuses: {head.decode(errors='replace').lstrip('-')}")
        with open(path + ".part", "wb") as file:
            if head.startswith(b"$EOF:"):
                mark, tail = head[5:], b""
                while not tail.endswith(mark):
                    tail += self.some()
                    file.write(tail[: -len(mark)])
                    tail = tail[-len(mark) :]
            else:
                left = int(head[1:])
                while left:
                    left -= file.write(self.some(min(left, CHUNK_BYTES)))
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".part", path)
        return size


class Recorder:
    """Follows whoever ``target.json`` names, for as long as it is there."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        numbers = [int(name[1:].partition(".")[0]) for name in os.listdir(directory) if name[:1] in "bs" and name[1:2].isdigit()]
        self.number = max(numbers, default=0)
        self.history, self.offset, self.since_base, self.based_at = "", 0, 0, 0.0
        self.last_ns = 0
        self.why, self.rebasing = "recording was switched on", threading.Event()
        self.stream = self.index = -1
        self._take_up()

    def _take_up(self) -> None:
        """Go on where the recorder before this one stopped."""
        for number in range(self.number, 0, -1):
            told = self._read(f"s{number:08}.json")
            if told is not None:
                size = os.path.getsize(self._path(f"s{number:08}.stream"))
                self.history, self.offset = str(told["history"]), int(str(told["offset"])) + size
                self.why = "the recorder was started anew"
                break
        bases = [told for number in range(1, self.number + 1) if (told := self._read(f"b{number:08}.json")) is not None]
        if bases:
            self.based_at = int(str(bases[-1]["at_ns"])) / 1e9
            self.since_base = max(self.offset - int(str(bases[-1]["offset"])), 0)

    def run(self) -> None:
        wait = AGAIN_SECONDS
        while (target := self._read("target.json")) is not None:
            began = time.monotonic()
            try:
                self._follow(target)
            except (_Broken, OSError, ValueError) as error:
                self.why = str(error)
                print(f"{time.strftime('%H:%M:%S')} {error}", file=sys.stderr, flush=True)
            if self.stream >= 0:  # what a full disk has cut off is asked for again
                self.offset = self.begun_at + os.fstat(self.stream).st_size
            wait = AGAIN_SECONDS if time.monotonic() - began > AGAIN_SECONDS_MAX else min(2 * wait, AGAIN_SECONDS_MAX)
            time.sleep(wait)

    def _follow(self, target: dict[str, object]) -> None:
        at = _Connection(target)
        with contextlib.closing(at.socket):
            said = at.ask("PSYNC", self.history or "?", str(self.offset + 1 if self.history else -1)).split()
            before = ""
            if said[0] == "FULLRESYNC":
                self.number += 1
                name = f"b{self.number:08}"
                size = at.rdb(self._path(f"{name}.rdb"))
                anew = bool(self.history)
                self.history, self.offset = said[1], int(said[2])
                self._based(name, self.history, self.offset, size)
                if anew:
                    self.why += "; what followed could not be had, so all of it was taken anew"
            elif said[0] != "CONTINUE":
                raise _Broken(f"it answers '{' '.join(said)}'")
            elif len(said) > 1 and said[1] != self.history:
                before, self.history = self.history, said[1]
            self._segment(before, self.why)
            self.why = "the connection was lost"
            self._record(at, target)

    def _record(self, at: _Connection, target: dict[str, object]) -> None:
        caught_up, tick, received = False, 0.0, 0.0
        asked_at = self._asked_at()
        while True:
            now = time.monotonic()
            if now >= tick:
                tick = now + TICK_SECONDS
                if caught_up and at.heard() and not at.ready():
                    self._pair()
                at.send("REPLCONF", "ACK", str(self.offset))
                if (seen := self._asked_at()) != asked_at:
                    if seen is None or self._read("target.json") != target:
                        self.why = "another node leads" if seen is not None else "recording was switched off"
                        return
                    asked_at = seen
                if self.offset - self.begun_at >= SEGMENT_BYTES or now - self.begun_seconds >= SEGMENT_SECONDS:
                    self._segment("", "")
                    if caught_up:
                        self._pair()
                self._rebase(target)
            if not at.ready(tick - now):
                if not caught_up:
                    caught_up = True
                    self._pair()
                continue
            if (early := TOGETHER_SECONDS - (time.monotonic() - received)) > 0:
                time.sleep(early)
            data = at.some()
            received = time.monotonic()
            self._write(self.stream, data)
            self.offset += len(data)
            self.since_base += len(data)
            if caught_up:
                self._pair()
            if (
                ASKED in data
            ):  # somebody waits at the primary (WAIT, or Valkey's CLUSTER SETSLOT); elsewhere in the data it does no harm
                at.send("REPLCONF", "ACK", str(self.offset))

    def _rebase(self, target: dict[str, object]) -> None:
        """Take an RDB anew beside the stream when the last one is old, or the stream since then long: so old ones can go, and
        what has to be gone through again stays bounded."""
        due = time.time() - self.based_at >= float(str(target["rebase_seconds"])) or self.since_base >= REBASE_STREAM_BYTES
        if not due or self.rebasing.is_set() or not self.based_at:
            return
        self.rebasing.set()
        self.number += 1
        threading.Thread(target=self._base_beside, args=(target, f"b{self.number:08}"), daemon=True).start()

    def _base_beside(self, target: dict[str, object], name: str) -> None:
        try:
            at = _Connection(target)
            with contextlib.closing(at.socket):
                at.ask("REPLCONF", "rdb-only", "1")
                said = at.ask("PSYNC", "?", "-1").split()
                size = at.rdb(self._path(f"{name}.rdb"))
                self._based(name, said[1], int(said[2]), size)
        except (_Broken, OSError, ValueError, IndexError) as error:
            print(f"{time.strftime('%H:%M:%S')} no RDB could be taken anew: {error}", file=sys.stderr, flush=True)
            self.based_at = time.time()  # the old one does; again in a while
        finally:
            self.rebasing.clear()

    def _based(self, name: str, history: str, offset: int, size: int) -> None:
        self._tell(f"{name}.json", {"history": history, "offset": offset, "bytes": size, "at_ns": time.time_ns()})
        self.since_base, self.based_at = 0, time.time()

    def _segment(self, before: str, why: str) -> None:
        """Begin another. ``why``: what happened between the last one and it; empty: nothing."""
        self._close()
        self.number += 1
        name = f"s{self.number:08}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.stream, self.index = (
            os.open(self._path(f"{name}.stream"), flags, 0o600),
            os.open(self._path(f"{name}.index"), flags, 0o600),
        )
        self.begun_at, self.begun_seconds = self.offset, time.monotonic()
        about = {"history": self.history, "offset": self.offset, "before": before, "why": why}
        self._tell(f"{name}.json", {**about, "began_ns": time.time_ns()})

    def _close(self) -> None:
        for fd in (self.stream, self.index):
            if fd >= 0:
                os.fsync(fd)
                os.close(fd)
        self.stream = self.index = -1

    def _pair(self) -> None:
        self.last_ns = max(self.last_ns, time.time_ns())  # whatever clocks are set to
        self._write(self.index, PAIR.pack(self.last_ns, self.offset))

    def _write(self, fd: int, data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    def _asked_at(self) -> float | None:
        try:
            return os.stat(self._path("target.json")).st_mtime_ns
        except OSError:
            return None

    def _read(self, name: str) -> dict[str, object] | None:
        try:
            with open(self._path(name)) as file:
                told: dict[str, object] = json.load(file)
                return told
        except (OSError, ValueError):
            return None

    def _tell(self, name: str, about: dict[str, object]) -> None:
        path = self._path(name)
        with open(path + ".part", "w") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".part", path)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)


def main(directory: str) -> int:
    os.umask(0o077)
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # one is there
    Recorder(directory).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
