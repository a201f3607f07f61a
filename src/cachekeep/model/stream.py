"""Where nodes are in a replication stream, by their own word, and what follows from that about one another."""

from __future__ import annotations

import msgspec

from cachekeep.model.moment import Moment, elapsed


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

    def includes(self, other: Stream) -> bool:
        """Whether who holds this holds all that ``other`` is. False where that does not follow, however far the offsets are."""
        if other.history == self.history:
            return self.offset >= other.offset
        if other.history == self.before:
            return self.shared >= other.offset
        if not other.before or other.offset > other.shared:
            return False  # it has written something that is in its own history only
        if other.before == self.history:
            return self.offset >= other.offset
        return other.before == self.before and self.shared >= other.offset


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
