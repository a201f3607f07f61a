"""Numbered files of lines in a directory of their own: appended to at one end, removed at the other, read backwards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

SEGMENTS: Final = 16
"""What is kept is so many files at the most, so a sixteenth of it goes at a time."""
_SLACK_BYTES: Final = 1 << 20
"""Beyond its size each file has room for what was admitted before the next one could not be made."""
_BLOCK_BYTES: Final = 256 << 10
_KEEP_SIZE: Final = 1
"""``FALLOC_FL_KEEP_SIZE`` of fallocate(2): room is set aside, and the file looks no longer for it."""


class Place(NamedTuple):
    """Where a line begins: the number of its file, and the bytes before it."""

    segment: int
    offset: int


def numbers(directory: Path) -> list[int]:
    """The files that there are, oldest first. Raises ``OSError``."""
    names = (entry.name.removesuffix(".jsonl") for entry in os.scandir(directory) if entry.name.endswith(".jsonl"))
    return sorted(int(name) for name in names if name.isdecimal())


def path_of(directory: Path, number: int) -> Path:
    return directory / f"{number:08}.jsonl"


class Appender:
    """Writes at the end. Not for several threads at once. Every method raises ``OSError``."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory = directory
        self._segment_bytes = bytes_max // SEGMENTS
        self._fd = -1
        self._size = 0

    def open(self) -> None:
        """Go on where the last process ended."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = numbers(self._directory)
        self._take(there[-1] if there else 1)
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self.append(b"\n", durable=False)  # a crash cut the last line short

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def make_room(self) -> None:
        """See to it that what comes next fits, also on a disk that others fill: the oldest goes first where there is enough."""
        if self._fd < 0:
            self.open()
        if self._size < self._segment_bytes:
            return
        there = numbers(self._directory)
        for number in there[: max(0, len(there) - SEGMENTS + 1)]:
            path_of(self._directory, number).unlink()
        self._take(there[-1] + 1)

    def append(self, lines: bytes, *, durable: bool) -> None:
        """Whole or not at all; ``durable``: it outlives a power cut, too."""
        try:
            if os.write(self._fd, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)

    def _take(self, number: int) -> None:
        path = path_of(self._directory, number)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o600)
            size = os.fstat(fd).st_size
            _set_aside(fd, max(self._segment_bytes, size) + _SLACK_BYTES)
        except OSError:
            os.close(fd)
            if not path.stat().st_size:
                path.unlink()
            raise
        self.close()
        self._fd, self._size = fd, size


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _set_aside(fd: int, size: int) -> None:
    """Room on the disk, where its file system can do that."""
    if _libc.fallocate(fd, _KEEP_SIZE, 0, size) != 0 and (number := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))


def backwards(directory: Path, before: Place | None = None) -> Iterator[tuple[Place, bytes]]:
    """Lines, the newest first, of those that begin before a place. A file that is removed meanwhile ends it. Raises ``OSError``."""
    for number in reversed(numbers(directory)):
        if before is not None and number > before.segment:
            continue
        try:
            with open(path_of(directory, number), "rb", buffering=0) as file:
                end = before.offset if before is not None and number == before.segment else os.fstat(file.fileno()).st_size
                for offset, text in _lines(file.fileno(), end):
                    yield Place(number, offset), text
        except FileNotFoundError:
            return


def _lines(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    at, rest = end, b""
    while at > 0:
        size = min(_BLOCK_BYTES, at)
        at -= size
        first, *whole = (os.pread(fd, size, at) + rest).split(b"\n")
        offset = at + len(first) + 1
        rows = []
        for text in whole:
            rows.append((offset, text))
            offset += len(text) + 1
        yield from ((where, text) for where, text in reversed(rows) if text)
        rest = first
    if rest:
        yield 0, rest
