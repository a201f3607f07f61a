"""Service updates: newer builds of a version that nodes run, and what was asked about them."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

Severity = Literal["critical", "important", "medium", "low"]


class UpdateAsked(msgspec.Struct, frozen=True, kw_only=True):
    """That a cache was to be updated: when, by which side, and what became of it."""

    at: dt.datetime
    by: Literal["customer", "system"]
    stopped: bool = False
    updated: int = 0
    """How many of its nodes had it when that was last seen."""
    done_at: dt.datetime | None = None


class ServiceUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A build that is newer than one that runs. ``line`` is the version that it serves; ``asked`` is by cache (its uid).

    ``program`` is the build, as processes are started by it; ``cures`` are the holes that older builds have and it has not.
    """

    name: str
    engine: str
    line: str
    build: str
    program: str
    severity: Severity
    cures: tuple[str, ...]
    released_at: dt.datetime
    asked: dict[str, UpdateAsked] = {}
    version: int = 0
