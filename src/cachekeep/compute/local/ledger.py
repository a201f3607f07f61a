"""What the driver remembers on disk: one directory for each process, with one record in it.

``nodes/<uid>/<name>/process.json`` is replaced atomically at every change. It is not synced: it has to survive the death of the
control plane, and after a power cut there are no processes left to be known by it. The orders that a process has seen stand in a
file beside it too, which is written in place: clients wait for an order to lead, and to replace a file may have to wait for the
disk (ext4: for the commit of what was decided just before).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cachekeep.clock import Clock
from cachekeep.compute.contract import File, Kept, Key
from cachekeep.compute.local import proc
from cachekeep.compute.local.scribe import Scribe
from cachekeep.errors import OrderFailed, Unusable, printable
from cachekeep.model import Digests, Moment

_RECORD = "process.json"
_ORDERS = "orders"
_ORDERS_BYTES = 128
"""In one page, so that who is killed while writing leaves one line or the other."""
LOG = "log"
HEARD = "heard"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_GONE = ".gone-"
_COPIED_AT_ONCE_BYTES = 1 << 20
_DRAFT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_RECORD_BYTES = 8 << 10
"""More than a record has. The next one, an order to lead among them, finds that much room on a disk that is full."""
KEPT_DIR = "kept"
"""In the data directory: what processes may start from."""
HANGS_SECONDS = 5.0
"""A write that takes so long hangs with its disk: nobody else waits behind it."""
SOON_SECONDS = 0.05
"""So long what is not waited for is left before it is written."""
_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A process as it was started. ``pid`` 0: none was, or it is confirmed gone."""

    incarnation: int = 0
    decision: int = 0
    """That had it started."""
    pid: int = 0
    started_ticks: int = 0
    boot_id: str = ""
    argv: tuple[str, ...] = ()
    program: str = ""
    """As its spec named it; empty: a release started it that did not write it down."""
    address: str = ""
    port: int = 0
    files: tuple[str, ...] = ()
    """Those of text: what stands in them is not told with the last words of its log."""
    digests: Digests = {}
    """Of what it runs with, part by part, as far as it was told."""
    last_order: int = 0
    lead_order: int = 0
    ended_at: Moment | None = None
    cgroups: tuple[str, ...] = ()
    memory_kills: int = 0
    """Counted by the control groups before this process: what is above is its own."""
    problem: str | None = None


class _Orders(msgspec.Struct, frozen=True):
    """What a process has seen of orders."""

    started_ticks: int
    """Whose they are: an earlier one's right to lead is nobody's."""
    last_order: int
    lead_order: int


class _Before(msgspec.Struct, frozen=True):
    """How a release that knew two digests wrote them."""

    live_digest: str | None = None
    boot_digest: str | None = None


def _record_of(content: bytes) -> Record:
    record, before = msgspec.json.decode(content, type=Record), msgspec.json.decode(content, type=_Before)
    if record.digests or before.boot_digest is None:
        return record
    return msgspec.structs.replace(record, digests={"settings": before.live_digest or "", "boot": before.boot_digest})


def record_in(directory: Path) -> Record:
    """The record of the process whose directory this is. Raises ``OSError``, ``msgspec.DecodeError``."""
    record = _record_of((directory / _RECORD).read_bytes())
    with contextlib.suppress(FileNotFoundError):  # of an earlier release
        if content := (directory / _ORDERS).read_bytes():
            orders = msgspec.json.decode(content, type=_Orders)
            lead_order = orders.lead_order if orders.started_ticks == record.started_ticks else record.lead_order
            last_order = max(record.last_order, orders.last_order)
            return msgspec.structs.replace(record, last_order=last_order, lead_order=lead_order)
    return record


def place(text: str, directory: Path, address: str) -> str:
    """Put the process's own directory where ``{dir}`` stands, and its address where ``{listen}`` does."""
    return text.replace("{dir}", str(directory)).replace("{listen}", address)


def write_atomically(path: Path, content: bytes | Iterable[bytes], *, room_bytes: int = 0) -> None:
    """Have ``path`` hold ``content`` in full, mode 0600, or as it was. Raises ``OSError``. ``room_bytes`` are kept for the next
    time, if there are so many, so that a disk that is full then takes as much."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        fd = os.open(draft, _DRAFT_FLAGS, 0o600)
        try:
            written = 0
            for part in (content,) if isinstance(content, bytes) else content:
                view = memoryview(part)
                while view:
                    taken = os.write(fd, view)
                    written, view = written + taken, view[taken:]
            os.ftruncate(fd, written)
        finally:
            os.close(fd)
        os.replace(draft, path)
    except OSError:
        if not room_bytes:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        raise
    if room_bytes:
        with contextlib.suppress(OSError), open(os.open(draft, _DRAFT_FLAGS, 0o600), "wb") as room:
            os.posix_fallocate(room.fileno(), 0, room_bytes)


async def lock_directory(directory: Path, clock: Clock) -> int:
    """The descriptor that holds the lock on a directory. Raises ``Unusable`` if another driver has it, and ``OSError``."""
    fd = os.open(directory / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # A child between fork and exec holds our descriptors for an instant after we are killed: hence more than one try.
    deadline = clock.monotonic() + 1.0
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if clock.monotonic() > deadline:
                    raise Unusable(f"{directory} is in use by another control plane.") from None
            await asyncio.sleep(0.02)
    except BaseException:
        os.close(fd)
        raise


class Ledger:
    """The records of all processes, in memory and on disk; safe to use from several threads.

    A disk may hang, and whoever writes there with it. So writing is for a thread, holds up no other process's record, and only the
    first at each waits for as long as that takes.
    """

    def __init__(self, root: Path, kept: Path) -> None:
        self.root, self._kept = root, kept
        self._records: dict[Key, Record] = {}
        self._unreadable: dict[Key, Path] = {}
        self._lock = threading.Lock()
        self._writing: dict[Key, threading.Lock] = {}
        self._scribe = Scribe("record", soon_seconds=SOON_SECONDS)

    def load(self) -> None:
        """Read every record, finish erasures that were cut short."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self.root.glob(f"*/{_GONE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in self.root.glob(f"*/*/{_RECORD}"):
            key = (path.parent.parent.name, path.parent.name)
            try:
                self._records[key] = record_in(path.parent)
            except msgspec.DecodeError:
                self._unreadable[key] = path.parent

    def unsure(self, key: Key) -> str | None:
        """Why it is not known whether a process lives. Only a damaged disk
        or a foreign hand leaves a record that cannot be read."""
        directory = self._unreadable.get(key)
        if directory is None:
            return None
        if pids := proc.sessions_in(directory):
            return f"The record in {directory} cannot be read, and process {pids[0]} works there: end it by hand."
        del self._unreadable[key]
        return None

    def get(self, key: Key) -> Record | None:
        """The record of a process, if it was ever started."""
        return self._records.get(key)

    def known(self) -> list[Key]:
        """All processes on record."""
        return list(self._records)

    def change(self, key: Key, **changes: Any) -> Record:
        """Change fields of a record (made if there is none), on disk first. Blocks. Raises ``OSError`` and changes nothing."""
        with self._alone(key):
            self._write(key, self._changed(key, changes))
            with self._lock:
                record = self._records[key] = self._changed(key, changes)
            return record

    def note(self, key: Key, **changes: Any) -> None:
        """Change fields of a record in memory, and on disk when that is to be had. Waits for nothing."""
        with self._lock:
            self._records[key] = self._changed(key, changes)
        self._scribe.put(key, functools.partial(self._write_noted, key), replaces=True)

    def close(self) -> None:
        """Wait for what was noted to be written, for a moment, not for a disk. Blocks."""
        self._scribe.close()

    def _write_noted(self, key: Key) -> None:
        with self._lock_of(key):  # for as long as it takes
            record = self._records.get(key)
            if record is not None:
                try:
                    self._write(key, record)
                except OSError as error:
                    _log.warning("The record of %s could not be brought up to date: %s.", key[1], error.strerror)

    def _changed(self, key: Key, changes: Mapping[str, Any]) -> Record:
        return msgspec.structs.replace(self._records.get(key) or Record(), **changes)

    def _write(self, key: Key, record: Record) -> None:
        write_atomically(self.directory(key) / _RECORD, msgspec.json.encode(record), room_bytes=_RECORD_BYTES)
        self._write_orders(key, record)

    def _write_orders(self, key: Key, record: Record) -> None:
        orders = msgspec.json.encode(_Orders(record.started_ticks, record.last_order, record.lead_order))
        fd = os.open(self.directory(key) / _ORDERS, _DRAFT_FLAGS, 0o600)
        try:
            os.pwrite(fd, orders.ljust(_ORDERS_BYTES), 0)
        finally:
            os.close(fd)

    def _lock_of(self, key: Key) -> threading.Lock:
        with self._lock:
            return self._writing.setdefault(key, threading.Lock())

    @contextlib.contextmanager
    def _alone(self, key: Key) -> Iterator[None]:
        """The only one who writes a process's record. Raises ``OSError`` if somebody hangs there."""
        writing = self._lock_of(key)
        if not writing.acquire(timeout=HANGS_SECONDS):
            raise OSError(errno.ETIMEDOUT, "the disk does not answer", str(self.directory(key)))
        try:
            yield
        finally:
            writing.release()

    def admit(self, key: Key, order: int, *, leading: bool) -> bool:
        """See ``Memory.admit``. Raises ``OrderFailed`` where there is no record, or the disk does not take it."""
        if (known := self._is_admitted(key, order, leading)) is not None:
            return known  # waits for no disk
        try:
            with self._alone(key):
                if (known := self._is_admitted(key, order, leading)) is not None:
                    return known
                changes = {"last_order": order} | ({"lead_order": order} if leading else {})
                self._write_orders(key, self._changed(key, changes))
                with self._lock:
                    self._records[key] = self._changed(key, changes)
        except OSError as error:
            raise OrderFailed(f"{key[1]}: order {order} cannot be remembered: {error.strerror}.") from error
        return True

    def _is_admitted(self, key: Key, order: int, leading: bool) -> bool | None:
        """Whether the order is admitted already; False: it comes too late; None: neither. Raises ``OrderFailed``: no record."""
        if (record := self.get(key)) is None:
            raise OrderFailed(f"{key[1]}: was never started, so it takes no orders.")
        if order < record.last_order:
            return False
        return True if order == record.last_order and (not leading or order == record.lead_order) else None

    def directory(self, key: Key) -> Path:
        """The directory of a process. Raises ``OrderFailed`` for a name that could lead anywhere else."""
        uid, name = key
        if not _SAFE_NAME.fullmatch(uid) or not _SAFE_NAME.fullmatch(name):
            raise OrderFailed(f"{uid}/{name}: not a name that a directory can have.")
        return self.root / uid / name

    def make_directory(self, key: Key) -> Path:
        """Have the directory of a process, for nobody else's eyes. Raises ``OSError``."""
        directory = self.directory(key)
        for attempt in range(3):
            try:
                for path in (directory.parent, directory):
                    path.mkdir(mode=0o700, exist_ok=True)
                break
            except FileNotFoundError:  # a sibling's erasure took the parent away in between
                if attempt == 2:
                    raise
        return directory

    def write_files(self, key: Key, files: Mapping[str, File], address: str) -> tuple[str, ...]:
        """Write files into the directory of a process, each atomically. Returns the names of all its files of text.
        Raises ``OSError``."""
        directory = self.directory(key)
        for name, file in files.items():
            if not _SAFE_NAME.fullmatch(name) or name in (_RECORD, _ORDERS, LOG, f"{LOG}.1", HEARD):
                raise OrderFailed(f"{name}: not a name that a process's own file can have.")
            match file.content:
                case str(text):
                    write_atomically(directory / name, place(text, directory, address).encode())
                case bytes(content):
                    write_atomically(directory / name, content)
                case Kept(kept):
                    self._copy_kept(kept, directory / name)
        texts = [name for name, file in files.items() if isinstance(file.content, str)]
        return tuple(dict.fromkeys([*(self.get(key) or Record()).files, *texts]))

    def _copy_kept(self, name: str, path: Path) -> None:
        """A copy, not a link: the process may write into it."""
        if not _SAFE_NAME.fullmatch(name):
            raise OrderFailed(f"{name}: not a name that a kept file can have.")
        with open(self._kept / name, "rb") as kept:
            write_atomically(path, iter(lambda: kept.read(_COPIED_AT_ONCE_BYTES), b""))

    def last_words(self, key: Key, output: str, *, lines: int = 3) -> str:
        """The last lines of a process's output, on one line, without what stands in its secret files.

        Servers quote the line of their configuration that they refuse, and that line may hold a password.
        """
        directory = self.directory(key)
        said = [line for line in map(str.strip, output.split("\n")) if line][-lines:]
        for name in (self.get(key) or Record()).files:
            try:
                secrets = (directory / name).read_text(errors="replace").splitlines()
            except FileNotFoundError:
                continue
            for secret in (text.strip() for text in secrets):
                if len(secret) >= 8:
                    said = [line.replace(secret, f"{secret.split()[0][:16]} …") for line in said]
        return printable(" | ".join(said))

    def forget(self, key: Key) -> None:
        """Remove the directory of a process and its record. Raises ``OSError``."""
        directory = self.directory(key)
        gone = directory.with_name(_GONE + directory.name)
        with self._alone(key):
            # Renamed first: whatever happens from here on, nobody takes half a directory for a process's own.
            try:
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(directory, gone)
            except FileNotFoundError:
                pass
            self._records.pop(key, None)
        _remove_tree(gone)
        try:
            directory.parent.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def _remove_tree(path: Path) -> None:
    """Remove a tree, even while the last of its writers is being killed."""
    for _ in range(5):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    shutil.rmtree(path)
