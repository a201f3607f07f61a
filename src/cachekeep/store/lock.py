"""One control plane per data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cachekeep.errors import Unusable


class DataDirLock:
    """Holds the data directory until closed or until the process ends, however it ends.

    ``flock`` on ``lock`` in the directory; the file keeps the holder's pid for the message only. Engines that outlive the control
    plane do not inherit it: descriptors opened by Python close on exec.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take it, making the directory (0700) if need be. Raises ``Unusable`` with the holder's pid if another process has it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Unusable(
                f"data directory {self.path.parent} cannot be used: {error.strerror}. Choose another with --data-dir."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise Unusable(
                f"data directory {self.path.parent} is in use by {f'process {holder}' if holder else 'another process'}. "
                "Stop that one first, or choose another with --data-dir."
            ) from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # A full disk costs the pid in the message, not the lock.
        self._fd = fd

    def held(self) -> bool:
        """Whether it is held, and still keeps everybody else out: the file that is locked is the one that others would lock."""
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Let it go. Does nothing if it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
