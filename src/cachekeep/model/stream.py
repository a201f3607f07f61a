"""Where nodes are in a replication stream, by their own word, and what follows from that about one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cachekeep.model.moment import Moment, elapsed

Branches = Mapping[str, Mapping[str, int]]
"""History → one that it goes on from → how many of its first bytes are that one's."""
NOTHING: Branches = {}


class Stream(msgspec.Struct, frozen=True):
    """What a node holds: the first ``offset`` bytes of a history.

    Each lead writes a history of its own, with an id that no other has. It goes on from the one ``before``: their first ``shared``
    bytes are the same. Engines rely on just this when they resume a stream that broke (``master_replid``, ``master_replid2``,
    ``second_repl_offset``: https://valkey.io/topics/replication/, "Replication ID explained").
    """

    history: str
    offset: int
    before: str = ""
    shared: int = -1

    def parts(self, known: Branches = NOTHING) -> dict[str, int]:
        """How much of which histories that is: its own, and those that it goes on from, by its own word or by what is ``known``.
        A node that has taken all of its data from another tells the history, and no more of where that comes from."""
        found, ahead = {self.history: self.offset}, [self.history]
        while ahead:
            history = ahead.pop()
            own = [(self.before, self.shared)] if history == self.history and self.before else []
            for before, shared in (*own, *known.get(history, {}).items()):
                if (part := min(shared, found[history])) > found.get(before, -1):
                    found[before] = part
                    ahead.append(before)
        return found

    def within(self, known: Branches = NOTHING) -> set[str]:
        """Histories of which it is a beginning, whole."""
        return {history for history, part in self.parts(known).items() if part == self.offset}

    def includes(self, other: Stream, known: Branches = NOTHING) -> bool:
        """Whether who holds this holds all that ``other`` is. False where that does not follow, however far the offsets are."""
        parts = self.parts(known)
        return any(parts.get(history, -1) >= other.offset for history in other.within(known))


def branches(streams: Iterable[Stream]) -> Branches:
    """Where histories come from, by what some nodes say. They may say it of different moments: the most that is shared is so."""
    found: dict[str, dict[str, int]] = {}
    for stream in streams:
        if stream.before:
            of = found.setdefault(stream.history, {})
            of[stream.before] = max(stream.shared, of.get(stream.before, -1))
    return found


class Heard(msgspec.Struct, frozen=True):
    """A node's own word of what it holds. It was true at some moment since it was asked."""

    asked_at: Moment
    stream: Stream


HEARD_KEPT, HEARD_APART_SECONDS = 16, 0.25
"""So many words of a node are kept, all but the newest so far apart: whoever is some seconds behind is found in them."""


def recalled(heard: Heard, before: tuple[Heard, ...]) -> tuple[Heard, ...]:
    """What is kept of a node's words, newest first, when it has said something more."""
    if len(before) > 1 and (elapsed(before[1].asked_at, before[0].asked_at) or 0.0) < HEARD_APART_SECONDS:
        before = before[1:]
    if before and before[0].stream == heard.stream:
        before = before[1:]
    return (heard, *before)[:HEARD_KEPT]
