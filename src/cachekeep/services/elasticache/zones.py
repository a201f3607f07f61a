"""Which zone each node goes to: the zones that were asked for, or an even spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from zlib import crc32

from cachekeep.services.core.context import value_error


def check(zones: Iterable[str], allowed: Sequence[str]) -> None:
    """Raises ApiError InvalidParameterValue for a zone that is none, or that the subnet group does not reach."""
    for zone in zones:
        if zone not in allowed:
            raise value_error(f"{zone} is not a valid availability zone here. Valid zones: {', '.join(allowed)}.")


def rotated(zones: Sequence[str], name: str) -> list[str]:
    """The zones, beginning with one that depends on the name: first nodes of many caches spread too, and always the same way."""
    start = crc32(name.encode()) % len(zones)
    return [*zones[start:], *zones[:start]]


def spread(count: int, zones: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """``count`` zones, each time the one that is used least, in the order given among equals."""
    used = Counter(taken)
    chosen: list[str] = []
    for _ in range(count):
        zone = min(zones, key=lambda z: used[z])
        used[zone] += 1
        chosen.append(zone)
    return chosen


def filled(asked: Sequence[str | None], allowed: Sequence[str], name: str) -> tuple[str, ...]:
    """``asked`` with a zone for each None: evenly spread, beginning with one that depends on the name.

    Raises ApiError InvalidParameterValue.
    """
    named = [zone for zone in asked if zone is not None]
    check(named, allowed)
    free = iter(spread(len(asked) - len(named), rotated(allowed, name), named))
    return tuple(zone if zone is not None else next(free) for zone in asked)


def missing(wanted: Sequence[str], present: Iterable[str]) -> list[str]:
    """What is left of the wanted zones when the present ones are taken away, each as often as it occurs."""
    return list((Counter(wanted) - Counter(present)).elements())
