"""Durations that were begun by another clock: by one of another boot, or of another host, or by the wall clock, as they were
once."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cachekeep.model import Decide, Moment, Step
from cachekeep.plan.situation import Situation

T = TypeVar("T", bound=msgspec.Struct)


def recount(s: Situation) -> Step | None:
    """How long ago they began nobody knows, so they begin now: to wait for too long is safe. Asked before all rules that measure
    them."""
    decided = _anew(
        s,
        msgspec.structs.replace(
            s.decided,
            nodes=tuple(_anew(s, n, "condemned_at") for n in s.decided.nodes),
            successors=tuple(_anew(s, n, "condemned_at") for n in s.decided.successors),
            shards=tuple(_anew(s, x, "ordered_at", "starved_since", "led_since") for x in s.decided.shards),
        ),
        "appointed_at",
        "resharded_at",
        "intruded_at",
    )
    if decided == s.decided:
        return None
    return Decide(decided, "the host was booted anew, or is another: what takes its time is counted anew, from now on")


def _anew(s: Situation, of: T, *fields: str) -> T:
    begun: dict[str, Moment | None] = {name: getattr(of, name) for name in fields}
    unknown = [name for name, since in begun.items() if since is not None and s.seconds_since(since) is None]
    return msgspec.structs.replace(of, **dict.fromkeys(unknown, s.moment)) if unknown else of
