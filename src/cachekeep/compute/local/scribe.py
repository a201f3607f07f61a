"""Writing to the disks of many processes in a thread, so that nobody waits who need not.

A disk may hang, and whoever writes there with it, for ever. Then another thread goes on with all the others, and what is for that
disk waits until the first is back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from cachekeep.compute.contract import Key

HANGS_SECONDS = 1.0
"""A write that takes so long hangs with its disk."""
_LAST_SECONDS = 1.0
_MOST_WAITING = 16
"""Of one process: what was to be written before that is lost."""


class Scribe:
    """Writes what it is given, one thing after another. What is for one process is written in order."""

    def __init__(self, name: str, *, soon_seconds: float = 0.0) -> None:
        """``soon_seconds``: so long it waits with whatever comes first, so that a failover that has just begun does not share its
        processor with that, and later words take the place of earlier ones."""
        self._name, self._soon_seconds = name, soon_seconds
        self._waiting: dict[Key, deque[Callable[[], None]]] = {}
        self._hanging: set[Key] = set()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None
        self._writing: tuple[Key, float] | None = None
        """What the writer is at, and since when, by the monotonic clock."""
        self._watch: threading.Timer | None = None

    def put(self, key: Key, write: Callable[[], None], *, replaces: bool = False) -> None:
        """Have it written, soon. ``replaces``: in place of whatever waits for this process. Waits for nothing."""
        with self._changed:
            waiting = self._waiting.setdefault(key, deque(maxlen=_MOST_WAITING))
            if replaces:
                waiting.clear()
            waiting.append(write)
            self._see_to_a_writer(HANGS_SECONDS)
            self._watch_over()
            self._changed.notify_all()

    def forget(self, key: Key) -> None:
        """Write nothing more for this process of what waits."""
        with self._changed:
            self._waiting.pop(key, None)

    def close(self) -> None:
        """Have what waits written, for a moment, and not for a disk. Blocks."""
        self._closing.set()
        until = time.monotonic() + _LAST_SECONDS
        with self._changed:
            self._changed.notify_all()
            while (self._writing or self._next()) and (left := until - time.monotonic()) > 0:
                self._see_to_a_writer(_LAST_SECONDS / 4)
                self._changed.wait(min(left, _LAST_SECONDS / 4))

    def _watch_over(self) -> None:
        """Look after what waits behind a write, in a while."""
        if self._watch is None and self._writing is not None and self._next() is not None:
            self._watch = threading.Timer(HANGS_SECONDS, self._look_after)
            self._watch.daemon = True
            self._watch.start()

    def _look_after(self) -> None:
        with self._changed:
            self._watch = None
            self._see_to_a_writer(HANGS_SECONDS)
            self._watch_over()

    def _see_to_a_writer(self, hangs_seconds: float) -> None:
        """There is one, and it does not hang."""
        if self._writing is not None and time.monotonic() - self._writing[1] > hangs_seconds:
            self._hanging.add(self._writing[0])
            self._writer = self._writing = None
        if self._writer is None and self._next() is not None:
            self._writer = threading.Thread(target=self._write_all, name=self._name, daemon=True)
            self._writer.start()

    def _next(self) -> Key | None:
        """Whose turn it is."""
        return next((key for key, waiting in self._waiting.items() if waiting and key not in self._hanging), None)

    def _write_all(self) -> None:
        """Until nothing is left, or somebody else does it because this one hung."""
        self._closing.wait(self._soon_seconds)
        me = threading.current_thread()
        while True:
            with self._changed:
                key = self._next() if self._writer is me else None
                if key is None:
                    if self._writer is me:
                        self._writer = None
                    self._changed.notify_all()
                    return
                waiting = self._waiting.pop(key)
                write = waiting.popleft()
                if waiting:
                    self._waiting[key] = waiting  # behind the others
                self._writing = key, time.monotonic()
            try:
                with contextlib.suppress(OSError):
                    write()
            finally:
                with self._changed:
                    if self._writer is me:
                        self._writing = None
                    else:
                        self._hanging.discard(key)
                        self._see_to_a_writer(HANGS_SECONDS)
