"""What a process may use of the machine: what is decided, what is in force, and what there is to do about the difference.

Every resource is treated alike; a limit of ``None`` is none: nothing is decided, or nothing is to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of each resource."""

    memory_bytes: int | None = None
    """Of everything that the process and its children hold, the pages that a fork copies included."""
    cpus: float | None = None
    open_files: int | None = None
    """Descriptors (RLIMIT_NOFILE): each client costs one."""


RESOURCES: Final = Limits.__struct_fields__


class LimitsSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a running process is held to."""

    held: Limits
    """In force, and never more than the machine has; None: not known."""
    most: Limits
    """The most that a process can be given here; None: this machine holds no process to such a limit."""
    resident_bytes: int | None = None
    """What the process itself keeps in memory: a limit below that would end it."""


def raised(decided: Limits, seen: LimitsSeen) -> Limits | None:
    """The limits that have to be raised before the process has all that is decided for it, each with its right amount;
    None: it has."""
    return _some(_each(decided, seen, lambda wanted, held, most: min(wanted, most) if held < min(wanted, most) else None))


def lowered(decided: Limits, seen: LimitsSeen) -> Limits | None:
    """The limits that are above what is decided, each with its right amount; None: there is none."""
    return _some(_each(decided, seen, lambda wanted, held, most: wanted if held > wanted else None))


def _each(decided: Limits, seen: LimitsSeen, choose: Callable[[Any, Any, Any], Any]) -> Limits:
    """Of each resource of which all is known, what ``choose(wanted, held, most)`` says."""
    found: dict[str, Any] = {}
    for name in RESOURCES:
        wanted, held, most = (getattr(limits, name) for limits in (decided, seen.held, seen.most))
        found[name] = None if None in (wanted, held, most) else choose(wanted, held, most)
    return Limits(**found)


def _some(limits: Limits) -> Limits | None:
    return limits if limits != Limits() else None
