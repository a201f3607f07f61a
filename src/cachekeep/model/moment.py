"""Moments: what durations are measured by where something rests on them.
The wall clock is set, forward and back; this one only runs."""

from __future__ import annotations

import msgspec


class Moment(msgspec.Struct, frozen=True):
    """A reading of a clock that runs from one boot of a host to the next, suspended or not, and that nobody sets.

    ``boot`` says which clock it is; ``seconds`` mean something only beside others of the same.
    """

    boot: str
    seconds: float


UNKNOWN = Moment("", 0.0)
"""It was, but nobody knows when: by the wall clock, as decisions were dated once."""


def elapsed(since: Moment | None, now: Moment) -> float | None:
    """Seconds from one moment to another; None if that cannot be known: another boot, another host, or ``since`` is not known.

    Whoever needs to know then begins to count anew, by a decision that is saved.
    """
    if since is None or not since.boot or since.boot != now.boot:
        return None
    return max(0.0, now.seconds - since.seconds)
