"""What processes have said that they hold: in memory, and a moment later on disk, so that a control plane that comes back soon
knows what the one before it heard.

One file for each process, beside its record, rewritten in place at each heartbeat: not synced, for it has to outlive only us. Where
a disk hangs, what is on it is old, and proves less, and nobody waits.
"""

from __future__ import annotations

import contextlib
import functools
import os

import msgspec

from cachekeep.compute.contract import Key
from cachekeep.compute.local.ledger import HEARD, SOON_SECONDS, Ledger
from cachekeep.compute.local.scribe import Scribe
from cachekeep.model import Heard, recalled


class _Kept(msgspec.Struct, frozen=True):
    started_ticks: int
    """Of the process that said it: an incarnation may be started twice."""
    heard: tuple[Heard, ...]


class Words:
    """The words of the last process of each node. Those of an earlier one say nothing of it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: dict[Key, _Kept] = {}
        self._scribe = Scribe("words", soon_seconds=SOON_SECONDS)

    def open(self) -> None:
        """Read what was left. Blocks: call it in a thread."""
        for key in self._ledger.known():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                line, _, _ = (self._ledger.directory(key) / HEARD).read_bytes().partition(b"\n")
                self._kept[key] = msgspec.json.decode(line, type=_Kept)

    def close(self) -> None:
        """Have what is left written. Blocks, for a moment."""
        self._scribe.close()

    def add(self, key: Key, heard: Heard) -> None:
        """Keep what the process has just said."""
        record = self._ledger.get(key)
        if record is None:
            return
        kept = self._kept[key] = _Kept(record.started_ticks, recalled(heard, self.of(key)))
        self._scribe.put(key, functools.partial(self._write, key, kept), replaces=True)

    def of(self, key: Key) -> tuple[Heard, ...]:
        """What it has said, newest first."""
        kept, record = self._kept.get(key), self._ledger.get(key)
        return kept.heard if kept is not None and record is not None and kept.started_ticks == record.started_ticks else ()

    def forget(self, key: Key) -> None:
        """The process and its directory are gone."""
        self._kept.pop(key, None)
        self._scribe.forget(key)

    def _write(self, key: Key, kept: _Kept) -> None:
        line = msgspec.json.encode(kept) + b"\n"
        fd = os.open(self._ledger.directory(key) / HEARD, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(fd, line, 0)  # in one piece, whenever we are killed; what is left of a longer one comes after the line
        finally:
            os.close(fd)
