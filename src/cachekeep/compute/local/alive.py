"""A living process that the driver holds, and how its end goes."""

from __future__ import annotations

import asyncio

from cachekeep.compute.contract import Key
from cachekeep.compute.local import proc


class Alive:
    """A living process, held by its pidfd."""

    def __init__(self, key: Key, pid: int, started_ticks: int, pidfd: int, *, adopted: bool) -> None:
        self.key = key
        self.pid = pid
        self.started_ticks = started_ticks
        self.pidfd = pidfd
        self.adopted = adopted
        self.accepting = False
        self.ended = False
        """It is dead and its pidfd closed; what it forked may still be on its way out."""
        self.unwanted = False
        """Its end has been ordered: no failure, whatever its exit code says."""
        self.stuck: str | None = None
        """It was killed and hangs in the kernel, without sockets: it does nothing any more,
        but its directory and number are taken."""
        self.hurried = asyncio.Event()
        """Set when it gets no (more) grace, or needs none: it is gone."""
        self.gone = asyncio.Event()
        """Set when it and what it forked are gone, and reaped where they were ours to reap."""

    @property
    def expected(self) -> bool:
        """Somebody relies on it: it was accepting connections, or had been adopted."""
        return self.accepting or self.adopted

    def is_in(self, seen: proc.Stat | None) -> bool:
        """Whether what /proc shows under its number is this process, alive."""
        return seen is not None and seen.started_ticks == self.started_ticks and proc.process_of(seen.state) != "exited"
