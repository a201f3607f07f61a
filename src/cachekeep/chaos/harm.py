"""What can be done to a node on this machine, and how it is undone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import signal
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec

from cachekeep.chaos.cuts import Cuts, unusable
from cachekeep.compute.local import proc
from cachekeep.compute.local.ledger import Record
from cachekeep.errors import CachekeepError, OrderFailed, Unusable

LARGEST_DISK_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 20
_FILLING = ".cachekeep-chaos-filling"


def tag_of(data_dir: Path) -> str:
    """Tells the cuts of one data directory from those of others."""
    return hashlib.sha256(str(data_dir.absolute()).encode()).hexdigest()[:12]


def clear_left_over(data_dir: Path) -> None:
    """Remove cuts that a chaos which was killed has left. Does nothing where there can be none."""
    if unusable() is None:
        with contextlib.suppress(CachekeepError, OSError):
            Cuts(tag_of(data_dir)).clear()


class Victim:
    """A node's process, as the driver of ``data_dir`` has it on record. Raises ``Unusable`` if it does not run here."""

    def __init__(self, data_dir: Path, name: str, address: str) -> None:
        for path in data_dir.glob(f"nodes/*/{name}/process.json"):
            record = msgspec.json.decode(path.read_bytes(), type=Record)
            if record.address == address and record.pid:
                self.name, self.address, self.directory = name, address, path.parent
                found = proc.open_pidfd(record.pid, record.started_ticks)
                if found is not None:
                    self.pid, self._pidfd = record.pid, found
                    return
        raise Unusable(f"{name} has no process on this machine that runs from {data_dir}.")

    def signal(self, number: signal.Signals) -> None:
        """Send it to this very process; nothing if that has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def gone(self, seconds: float) -> bool:
        """Wait until it has ended, for so long."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])


class Cut:
    """A cut of ``addresses``, and of ``endpoints`` for as long as the process of the one node that serves them is there."""

    def __init__(self, data_dir: Path, holders: Collection[Victim], endpoints: Collection[str], addresses: Collection[str]) -> None:
        self._cuts = Cuts(tag_of(data_dir))
        self._holders, self._endpoints, self._addresses = list(holders), list(endpoints), list(addresses)
        self._over = threading.Event()
        self._lifting = threading.Thread(target=self._lift, daemon=True)

    def begin(self) -> None:
        """Raises ``Unusable`` without root, ``OrderFailed``."""
        self._cuts.open()
        self._cuts.cut([*self._addresses, *self._endpoints])
        if self._endpoints:
            self._lifting.start()

    def _lift(self) -> None:
        """An endpoint is at the primary's host until that process is gone; then it is wherever it is served next."""
        while not self._over.is_set():
            if any(v.gone(0.02) for v in self._holders):
                with contextlib.suppress(OrderFailed):
                    self._cuts.heal(self._endpoints)
                return

    def end(self) -> None:
        """Heal all of it."""
        self._over.set()
        if self._lifting.is_alive():
            self._lifting.join()
        self._cuts.clear()


class Filling:
    """A file that leaves a node's filesystem no byte. Only where that holds nothing but caches: never the machine's own disk."""

    def __init__(self, victim: Victim, data_dir: Path) -> None:
        self._path = victim.directory / _FILLING
        seen = os.statvfs(victim.directory)
        if os.stat(victim.directory).st_dev in (os.stat(data_dir).st_dev, os.stat("/").st_dev):
            raise Unusable(
                f"{victim.directory} shares its filesystem with {data_dir} or the machine, which would be filled as well. "
                f"Give nodes a small one of their own first, such as: mount -t tmpfs -o size=256m tmpfs {data_dir / 'nodes'}"
            )
        if seen.f_blocks * seen.f_frsize > LARGEST_DISK_BYTES:
            raise Unusable(
                f"The filesystem of {victim.directory} is larger than {LARGEST_DISK_BYTES >> 30} GiB: filling it is refused."
            )

    def begin(self) -> None:
        """Write until nothing more fits. Raises ``OrderFailed``."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for size in (_CHUNK_BYTES, 4096, 1):  # what is left of a block, too
                self._fill(fd, bytes(size))
        finally:
            os.close(fd)

    def _fill(self, fd: int, piece: bytes) -> None:
        try:
            while True:
                os.write(fd, piece)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OrderFailed(f"{self._path}: {error.strerror}") from error

    def end(self) -> None:
        """Give the space back."""
        self._path.unlink(missing_ok=True)

    @staticmethod
    def undo(victim: Victim) -> None:
        """Remove what one that was killed has left."""
        (victim.directory / _FILLING).unlink(missing_ok=True)
