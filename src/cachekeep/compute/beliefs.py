"""Cluster mode: what a node believes of itself and of the others, and what is kept of that between looks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.commands import Commands
from cachekeep.compute.contract import Key, Target
from cachekeep.compute.line import Line, ReplyError, resp
from cachekeep.engines.replies import cluster_seen, refused, told_in
from cachekeep.model import ClusterSeen
from cachekeep.plan.slots.ranges import Ranges, union

_BELIEF_SECONDS = 5.0
"""What a node believes of the others is asked again after this long even if nothing hints at a change."""
_UNTOLD_SECONDS = 0.25
"""After this where clients are not told of a replica."""


class Beliefs:
    """Asked for by orders, of each node anew; and by looks, which ask for the long answer only when the short one is new."""

    def __init__(self, commands: Commands, clock: Clock) -> None:
        self._commands, self._clock = commands, clock
        self._kept: dict[Key, tuple[bytes, float, ClusterSeen]] = {}

    async def look(self, line: Line, target: Target) -> ClusterSeen:
        """What the node believes, some of it perhaps as of before. Raises LineLost, ReplyError."""
        seen = await self._look(line, target)
        if not target.fed_from_outside:
            return seen
        (stats,) = await line.ask(resp(("INFO", "stats")), 1)
        return replace(seen, refused=refused(stats) if isinstance(stats, bytes) else 1)

    async def _look(self, line: Line, target: Target) -> ClusterSeen:
        (short,) = await line.ask(resp(("CLUSTER", "INFO")), 1)
        if not isinstance(short, bytes):
            raise short if isinstance(short, ReplyError) else ReplyError(f"CLUSTER INFO: {short!r}")
        hint = b"\n".join(row for row in short.splitlines() if not row.startswith((b"cluster_stats", b"total_cluster")))
        kept = self._kept.get(target.key)
        now = self._clock.monotonic()
        if kept and kept[0] == hint and not target.moving:
            lasts = _UNTOLD_SECONDS if kept[2].untold else _BELIEF_SECONDS
            if now - kept[1] < lasts:
                return kept[2]
        long, slots = await line.ask(resp(("CLUSTER", "NODES"), ("CLUSTER", "SLOTS")), 2)
        if not isinstance(long, bytes):
            raise long if isinstance(long, ReplyError) else ReplyError(f"CLUSTER NODES: {long!r}")
        seen = cluster_seen(short, long, slots)
        if b"handshake" in long:
            self._kept.pop(target.key, None)
        else:
            self._kept[target.key] = (hint, now, seen)
        return seen

    def forget(self, key: Key) -> None:
        """Drop what is kept of a node."""
        self._kept.pop(key, None)

    async def of(self, target: Target) -> ClusterSeen:
        """What the node believes now. Raises OrderFailed."""
        short, long = await self._commands.send(target, ("CLUSTER", "INFO"), ("CLUSTER", "NODES"))
        assert isinstance(short, bytes)
        assert isinstance(long, bytes)
        return cluster_seen(short, long)

    async def told_by(self, target: Target) -> frozenset[str]:
        """Ids of those that the node tells clients of now. Raises OrderFailed."""
        (slots,) = await self._commands.send(target, ("CLUSTER", "SLOTS"))
        return told_in(slots)

    async def owned_by(self, targets: Sequence[Target]) -> Ranges:
        """The slots that these nodes own, by their own word. Raises OrderFailed: all have to answer."""
        return union(*(seen.slots for seen in await asyncio.gather(*(self.of(t) for t in targets))))
