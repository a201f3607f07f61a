"""Lines on their way to the disk, in a thread of its own: a disk that is full or frozen holds up only who has to wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cachekeep.audit.segments import Appender
from cachekeep.errors import CachekeepError, Unusable

log = logging.getLogger(__name__)

_STALLED_SECONDS: Final = 2.0
"""A disk that takes no line for so long counts as frozen."""
_AGAIN_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 5.0
_WAITING_BYTES_MAX: Final = 8 << 20
_BATCH_LINES: Final = 256
_LAST_WORDS_SECONDS: Final = 2.0


class NotRecorded(CachekeepError):
    """A line is not on the disk. ``kept``: it is in memory, and is written as soon as the disk takes it."""

    def __init__(self, message: str, *, kept: bool = False) -> None:
        super().__init__(message)
        self.kept = kept


class _Line(NamedTuple):
    text: bytes
    durable: bool
    done: Callable[[], object] | None


class Trail:
    """The lines of one directory, ``bytes_max`` of them at the most.

    What has to be written is kept in memory until the disk takes it. Of the rest so much is kept as there is room for; how many
    were lost is told by a line of its own. ``name`` is for people.
    """

    def __init__(self, name: str, directory: Path, bytes_max: int, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self.directory = directory
        self._name, self._patience_seconds = name, patience_seconds
        self._appender = Appender(directory, bytes_max)
        self._lock = threading.Condition()
        self._waiting: deque[_Line] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._failed = ""
        self._busy_since: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"audit {name}", daemon=True)

    def open(self) -> None:
        """Raises ``Unusable``."""
        try:
            self.directory.parent.mkdir(mode=0o700, exist_ok=True)
            self._appender.open()
            self._appender.make_room()
        except OSError as error:
            text = f"{self.directory}, where calls of the API are recorded, cannot be used: {error.strerror}. Nothing was started."
            raise Unusable(text) from error
        self._thread.start()

    def close(self) -> None:
        """Write what waits, if the disk takes it soon."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_SECONDS)
        if not self._thread.is_alive():
            self._appender.close()

    # -- the side that asks

    def check(self) -> None:
        """Whether a line would be written now. Raises ``NotRecorded``."""
        with self._lock:
            busy = time.monotonic() - self._busy_since if self._busy_since is not None else 0.0
            failed = self._failed
        if failed or busy > _STALLED_SECONDS:
            raise NotRecorded(failed or f"{self.directory} has taken nothing for {busy:.0f} s")

    def put(self, text: bytes) -> None:
        """A line that is written when it can be, and nobody waits for. Where too much waits already it is lost, and counted."""
        with self._lock:
            if self._waiting_bytes + len(text) > _WAITING_BYTES_MAX:
                self._lost += 1
                return
            self._push(_Line(text, False, None))

    async def write(self, text: bytes) -> None:
        """A line that outlives a power cut once this returns. Raises ``NotRecorded``: not yet."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        with self._lock:
            self._push(_Line(text, True, lambda: loop.call_soon_threadsafe(done.set)))
        try:
            await asyncio.wait_for(done.wait(), self._patience_seconds)
        except TimeoutError:
            raise NotRecorded(self._failed or f"{self.directory} takes nothing", kept=True) from None

    def settle(self, seconds: float = 1.0) -> None:
        """Wait until what was put before is written, but no longer than that. Not for an event loop."""
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting, seconds)

    def _push(self, line: _Line) -> None:
        self._waiting.append(line)
        self._waiting_bytes += len(line.text)
        self._lock.notify_all()

    # -- the thread

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._failed and not self._closed:
                    self._lock.wait()
                if self._closed and (self._failed or not self._waiting):
                    return
                batch = [self._waiting[n] for n in range(min(_BATCH_LINES, len(self._waiting)))]
                lost, self._busy_since = self._lost, time.monotonic()
            failed = self._write(batch, lost)
            with self._lock:
                self._busy_since = None
                if failed and not self._failed:
                    log.error(
                        "calls of the API cannot be recorded (%s): %s. Changes are refused until they can be", self._name, failed
                    )
                elif self._failed and not failed:
                    log.warning("calls of %s are recorded again", self._name)
                self._failed = failed
                if failed:
                    self._lock.wait(0 if self._closed else _AGAIN_SECONDS)
                    continue
                self._lost -= lost
                for _ in batch:
                    self._waiting_bytes -= len(self._waiting.popleft().text)
                self._lock.notify_all()
            for line in batch:
                if line.done is not None:
                    with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                        line.done()

    def _write(self, batch: list[_Line], lost: int) -> str:
        """Why it failed; empty: it did not."""
        texts = [line.text for line in batch]
        if lost:
            texts.insert(0, msgspec.json.encode({"lost": lost}) + b"\n")
        try:
            self._appender.make_room()
            if texts:
                self._appender.append(b"".join(texts), durable=any(line.durable for line in batch))
            self._appender.make_room()
        except OSError as error:
            return f"{self.directory}: {error.strerror}"
        return ""
