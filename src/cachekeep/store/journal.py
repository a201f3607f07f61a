"""The journal: what keepers have decided while the store could not take it, on this machine's own disk, until the store has it.

One file of constant size, two halves. A half begins with everything that is kept and goes on with changes of that; when it is full,
the other half begins anew. Its blocks are taken when it is made, so a disk that is full later does not matter. Each record has a
checksum and is synced before it counts; behind the last one there are zeros, so a record that was cut short is known for what it
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from cachekeep.errors import Unusable
from cachekeep.model import RECORDS, Decided, Event, Record
from cachekeep.store.contract import Lease, StoreFailed
from cachekeep.store.earlier import a_job_for_each_errand, a_mode_and_a_switch, one_change_at_a_time

HALF_BYTES = 2 << 20
"""A decided group of three nodes takes some 2 KB, a cluster of 500 nodes some 200 KB."""
EVENTS_KEPT_MAX = 500
"""Of one cache; the oldest go first."""
_MAGIC = b"CKJ1"
_HEADER = struct.Struct(">4sQII")
"""Magic, generation of the half, length of the payload, CRC-32 of generation and payload."""
_END = bytes(_HEADER.size)


class Carried(msgspec.Struct, frozen=True):
    """A record that a decision carries, and its kind."""

    kind: str
    body: dict[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in RECORDS:
            raise ValueError(f"{self.kind} is no kind of record")

    @classmethod
    def of(cls, record: Record) -> Carried:
        return cls(type(record).__name__, msgspec.to_builtins(record))

    def record(self) -> Record:
        """As it was given."""
        return msgspec.convert(self.body, RECORDS[self.kind])


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What has been decided for one cache under one lease and is not in the store yet."""

    lease: Lease
    decided: Decided
    addresses: tuple[str, ...]
    """All that ``decided`` uses."""
    events: tuple[Event, ...] = ()
    records: tuple[Carried, ...] = ()

    def carried(self) -> tuple[Record, ...]:
        """What goes to the store with it."""
        return tuple(carried.record() for carried in self.records)


class _All(msgspec.Struct, frozen=True, tag="all"):
    entries: tuple[Entry, ...]


class _Kept(msgspec.Struct, frozen=True, tag="kept"):
    entry: Entry


class _Over(msgspec.Struct, frozen=True, tag="over"):
    uid: str
    serial: int


_Change = _Kept | _Over
_Asked = tuple[_Change, asyncio.Future[None]]


def _decode(payload: bytes) -> _All | _Change:
    """Raises ``msgspec.DecodeError``."""
    record = msgspec.json.decode(payload, type=dict[str, Any])
    for entry in (*record.get("entries", ()), *filter(None, (record.get("entry"),))):
        one_change_at_a_time(entry["decided"])
        a_job_for_each_errand(entry["decided"], None)
        a_mode_and_a_switch(entry["decided"])
    return msgspec.convert(record, _All | _Kept | _Over)


class _Half(NamedTuple):
    generation: int
    """0: it does not begin with a record."""
    entries: dict[str, Entry]
    end: int
    whole: bool
    """Nothing but zeros comes after the last record."""
    stray: int
    """The highest generation of records that can be read behind something that cannot."""


class Disk(Protocol):
    """Where a journal is kept: ``FileDisk``, or a simulated one."""

    shown: str

    def open(self, size_bytes: int) -> bytes:
        """Have so many bytes, zeros at first, and read them. Raises ``OSError``."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write; it is there to stay on return. Raises ``OSError``,
        and then the first bytes of it are zeros if that can still be had."""

    def set_aside(self) -> str:
        """Keep a copy of what is there, for people to look at; where it is, empty if that cannot be had."""

    def close(self) -> None:
        """Let go of it when what is being written is written."""


class FileDisk:
    """A file, mode 0600. Writes are done in a thread: a disk may take its time."""

    def __init__(self, path: Path) -> None:
        self.shown = str(path)
        self._path = path
        self._fd = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cachekeep-journal")

    def open(self, size_bytes: int) -> bytes:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(self._fd, 0o600)
        if (missing := size_bytes - os.fstat(self._fd).st_size) > 0:
            self._write_all(size_bytes - missing, bytes(missing))
            os.fsync(self._fd)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return os.pread(self._fd, size_bytes, 0)

    async def write(self, offset: int, data: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self._write_all(offset, data)
            os.fdatasync(self._fd)
        except OSError:
            # Whoever waits is told that it is not there; whoever reads this file next must not find it all the same.
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, _END, offset)
            raise

    def _write_all(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            offset, view = offset + written, view[written:]

    def set_aside(self) -> str:
        copy = self._path.with_name(self._path.name + ".damaged")
        try:
            fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(self._path.read_bytes())
        except OSError:
            return ""
        return str(copy)

    def close(self) -> None:
        self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Journal:
    """Entries by cache, on a disk. What ``keep`` or ``drop`` has returned from survives whatever comes."""

    def __init__(self, disk: Disk, *, half_bytes: int = HALF_BYTES) -> None:
        self._disk, self._half_bytes = disk, half_bytes
        self.shown = disk.shown
        self.damage = ""
        """What was found damaged when it was opened, in words."""
        self._entries: dict[str, Entry] = {}
        self._generation, self._end = 0, self._half_bytes
        self._queue: list[_Asked] = []
        self._batch: list[_Asked] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is kept now, by cache."""
        return self._entries

    @property
    def empty(self) -> bool:
        """Nothing is kept, nor about to be."""
        return not (self._entries or self._queue or self._batch)

    async def open(self) -> None:
        """Read it. A write that was cut short counts as never done; where more than that is damaged, nothing of it counts, as what
        could still be read may be older than what was carried out. Either is named in ``damage``, and a copy is set aside.

        Raises ``Unusable`` if there is no place for it, or if a newer program wrote it.
        """
        try:
            content = self._disk.open(2 * self._half_bytes)
        except OSError as error:
            raise Unusable(f"journal {self.shown} cannot be used: {error.strerror}.") from error
        halves = [self._read(content[start : start + self._half_bytes]) for start in (0, self._half_bytes)]
        newest = max(halves, key=lambda half: half.generation)
        self._generation, self._entries = newest.generation, newest.entries
        self._end = newest.end if newest.generation else self._half_bytes  # at its end, the next write begins the other half
        unreadable = [number for number, half in enumerate(halves) if not half.generation and not half.whole]
        if newest.whole and not unreadable:
            return
        stray = max(half.stray for half in halves)
        what = "its last write was cut short, and counts as never done"
        if stray and stray >= newest.generation:
            what = "what was decided last cannot be read, so nothing of it counts: caches are looked at anew"
            self._generation, self._entries = stray, {}
        copy = self._disk.set_aside()
        self.damage = f"journal {self.shown} is damaged: {what}{f'; a copy of it is {copy}' if copy else ''}"
        self._end = self._half_bytes
        with contextlib.suppress(StoreFailed, OSError):
            await self.drop("", 0)  # begins a half that is whole, with what counts
            for number in unreadable:
                if number != self._generation % 2:
                    await self._disk.write(number * self._half_bytes, _END)

    def _read(self, half: bytes) -> _Half:
        entries: dict[str, Entry] = {}
        generation, at = 0, 0
        while (found := _record(half, at)) is not None and generation in (0, found[0]):
            try:
                change = _decode(found[1])
            except msgspec.DecodeError as error:
                raise Unusable(
                    f"journal {self.shown} was written by a newer Cachekeep ({error}). It was left as it is: upgrade Cachekeep."
                ) from error
            generation, at = found[0], at + _HEADER.size + len(found[1])
            if isinstance(change, _All):
                entries = {e.lease.uid: e for e in change.entries}
            else:
                _apply(entries, change)
        whole = half[at : at + _HEADER.size] == _END
        return _Half(generation, entries, at, whole, 0 if whole else _stray(half, at))

    async def keep(self, entry: Entry) -> None:
        """Keep it in place of the cache's former entry. Raises ``StoreFailed``, and then the former one is kept."""
        events = entry.events[-EVENTS_KEPT_MAX:]
        await self._change(_Kept(msgspec.structs.replace(entry, events=events)))

    async def drop(self, uid: str, serial: int) -> None:
        """Forget a cache's entry up to this decision: the store has it. A later one, which may be on its way here just now, stays.

        Raises ``StoreFailed``.
        """
        await self._change(_Over(uid, serial))

    async def _change(self, change: _Change) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((change, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await done

    async def _write(self) -> None:
        """Write what waits, all of it at once, until nothing does: many caches may lose their primaries together."""
        while self._queue:
            self._batch, self._queue = self._queue, []
            entries, generation, end, data = dict(self._entries), self._generation, self._end, b""
            for change, _ in self._batch:
                _apply(entries, change)
                data += _framed(generation, change)
            if end + len(data) + len(_END) > self._half_bytes:
                generation, end, data = generation + 1, 0, _framed(generation + 1, _All(tuple(entries.values())))
            try:
                if len(data) + len(_END) > self._half_bytes:
                    raise OSError(errno.EFBIG, f"more than its {self._half_bytes} bytes would be in it")
                await self._disk.write(generation % 2 * self._half_bytes + end, data + _END)
            except OSError as error:
                self._answer(StoreFailed(f"journal {self.shown}: {error.strerror}. Nothing of this decision was kept."))
            else:
                self._entries, self._generation, self._end = entries, generation, end + len(data)
                self._answer(None)

    def _answer(self, error: StoreFailed | None) -> None:
        batch, self._batch = self._batch, []
        for _, done in batch:
            if done.done():
                continue  # whoever asked has gone
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    async def aclose(self) -> None:
        """Let go of the disk when everything that waits is written."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._disk.close()


def _apply(entries: dict[str, Entry], change: _Change) -> None:
    if isinstance(change, _Kept):
        entries[change.entry.lease.uid] = change.entry
    elif (entry := entries.get(change.uid)) is not None and entry.decided.serial <= change.serial:
        del entries[change.uid]


def _framed(generation: int, change: _All | _Change) -> bytes:
    payload = msgspec.json.encode(change)
    return _HEADER.pack(_MAGIC, generation, len(payload), _checksum(generation, payload)) + payload


def _record(half: bytes, at: int) -> tuple[int, bytes] | None:
    """Generation and payload of the record there; None if there is no whole one."""
    if at + _HEADER.size > len(half):
        return None
    magic, generation, length, checksum = _HEADER.unpack_from(half, at)
    payload = half[at + _HEADER.size : at + _HEADER.size + length]
    if magic != _MAGIC or len(payload) != length or checksum != _checksum(generation, payload):
        return None
    return generation, payload


def _stray(half: bytes, at: int) -> int:
    found = 0
    while (at := half.find(_MAGIC, at)) >= 0:
        if (record := _record(half, at)) is not None:
            found = max(found, record[0])
        at += 1
    return found


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(generation.to_bytes(8, "big")))
