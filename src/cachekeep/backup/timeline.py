"""Which moments a recording can bring back, and by what. Pure.

A moment can be had where the primary's host was heard before it and after it, not far apart, and where an RDB and the bytes that
follow it, without a hole, lead up to what had been received by then. Everywhere else is a gap.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

APART_NS: Final = 3_000_000_000
"""Who was not heard for longer may have written what came later. A recorder that listens hears twice a second."""


class Base(NamedTuple):
    """An RDB: the first ``offset`` bytes of a history."""

    number: int
    history: str
    offset: int


class Segment(NamedTuple):
    """Bytes of a history from ``offset`` on, and when they came."""

    number: int
    history: str
    offset: int
    end: int
    before: str
    """The history that it goes on from, at ``offset``; empty: its own."""
    why: str
    """What happened before it; empty: it goes on where the one before ended, and nothing was missed."""
    times: Sequence[int]
    """When somebody was heard, nanoseconds, never going back."""
    offsets: Sequence[int]
    """Up to where everything had been received then."""

    def follows(self, other: Segment) -> bool:
        return other.end == self.offset and other.history == (self.before or self.history)


class Restorable(NamedTuple):
    """Every moment in it can be had, both ends included; nanoseconds."""

    begin: int
    end: int
    why: str
    """What happened before it."""


class Way(NamedTuple):
    """How a moment is brought back: load the base, then go through the segments, the first of them from the base's offset on, up to
    ``offset``, or the last whole command and transaction before that."""

    base: Base
    segments: tuple[Segment, ...]
    offset: int


class Timeline(NamedTuple):
    """All of a recording of one shard, each in the order of their numbers."""

    bases: tuple[Base, ...]
    segments: tuple[Segment, ...]

    def spans(self) -> list[Restorable]:
        """What can be had, in order."""
        found: list[Restorable] = []
        for at, segment in enumerate(self.segments):
            ways = self._ways(at)
            for begin, end, first in _heard(segment.times):
                usable = bisect.bisect_left(segment.offsets, ways, first, end + 1) if ways is not None else end + 1
                if usable > end:
                    continue
                goes_on = usable == 0 and at and self._unbroken(self.segments[at - 1], segment) and found
                if goes_on and found[-1].end == self.segments[at - 1].times[-1]:
                    found[-1] = found[-1]._replace(end=segment.times[end])
                else:
                    why = segment.why if begin == 0 else "nothing was heard of the primary's host"
                    found.append(Restorable(segment.times[usable], segment.times[end], why))
        return found

    def way(self, at_ns: int) -> Way | None:
        """The way to a moment; None: it is in a gap."""
        if not any(span.begin <= at_ns <= span.end for span in self.spans()):
            return None
        for at in range(len(self.segments) - 1, -1, -1):
            segment = self.segments[at]
            last = bisect.bisect_right(segment.times, at_ns) - 1
            if last >= 0:
                return self._way(at, segment.offsets[last])
        return None

    def unneeded(self, since_ns: int) -> tuple[list[int], list[int]]:
        """Numbers of bases and of segments that no moment since then needs that can be had now."""
        moments = [max(span.begin, since_ns) for span in self.spans() if span.end >= since_ns]
        ways = [way for moment in moments if (way := self.way(moment)) is not None]
        if not ways:
            return [], []
        # What is later than the earliest that is needed is needed by later moments, or will be.
        base = min(way.base.number for way in ways)
        first = min(way.segments[0].number for way in ways)
        needed = {way.base.number for way in ways}
        return (
            [b.number for b in self.bases if b.number < base and b.number not in needed],
            [s.number for s in self.segments if s.number < first],
        )

    def _unbroken(self, one: Segment, two: Segment) -> bool:
        """Whether every moment between them can be had, too."""
        return not two.why and two.follows(one) and bool(one.times and two.times) and two.times[0] - one.times[-1] <= APART_NS

    def _ways(self, at: int) -> int | None:
        """The least offset in a segment to which a way leads; None: to none of it."""
        segment = self.segments[at]
        if self._way(at, segment.offset) is not None:
            return segment.offset
        return min(
            (b.offset for b in self.bases if b.history == segment.history and segment.offset <= b.offset <= segment.end),
            default=None,
        )

    def _way(self, at: int, offset: int) -> Way | None:
        """To an offset in the segment at that place."""
        behind: list[Segment] = []
        until = offset
        while True:
            segment = self.segments[at]
            behind.insert(0, segment)
            bases = [b for b in self.bases if b.history == segment.history and segment.offset <= b.offset <= until]
            if bases:
                return Way(max(bases, key=lambda base: base.offset), tuple(behind), offset)
            before = next((p for p in range(at - 1, -1, -1) if segment.follows(self.segments[p])), None)
            if before is None:
                return None
            at, until = before, segment.offset


def _heard(times: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of places whose times are not far apart: (number of the run, its last place, its first place)."""
    runs: list[tuple[int, int, int]] = []
    first = 0
    for place in range(1, len(times) + 1):
        if place == len(times) or times[place] - times[place - 1] > APART_NS:
            runs.append((len(runs), place - 1, first))
            first = place
    return runs
