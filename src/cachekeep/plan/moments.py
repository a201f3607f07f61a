"""Durations that were begun by another clock: by one of another boot, or of another host, or by the wall clock, as they were
once."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from cachekeep.model import (
    Decide,
    Moment,
    Preparing,
    Step,
)
from cachekeep.plan.situation import Situation

T = TypeVar("T", bound=msgspec.Struct)


def recount(s: Situation) -> Step | None:
    """How long ago they began nobody knows, so they begin now: to wait for too long is safe. Asked before all rules that measure
    them."""
    was = s.decided
    decided = _anew(
        s,
        replace(
            was,
            nodes=tuple(n if n.fate is None else _anew(s, n) for n in was.nodes),
            switch=replace(was.switch, successors=tuple(n if n.fate is None else _anew(s, n) for n in was.successors))
            if isinstance(was.switch, Preparing)
            else was.switch,
            shards=tuple(_anew(s, x) for x in was.shards),
            jobs=tuple(j if j.ended else _anew(s, j) for j in was.jobs),
        ),
    )
    if decided == was:
        return None
    return Decide(decided, "the host was booted anew, or is another: what takes its time is counted anew, from now on")


def _anew(s: Situation, of: T) -> T:
    """Every moment in it and in the values that it has; what is known of leads that are over stays as it is."""
    changed: dict[str, object] = {}
    for name in of.__struct_fields__:
        match getattr(of, name):
            case Moment() as since if s.seconds_since(since) is None:
                changed[name] = s.moment
            case Moment():
                pass
            case msgspec.Struct() as value if (new := _anew(s, value)) is not value:
                changed[name] = new
    return replace(of, **changed) if changed else of
