"""What has been decided, one after the other: the rules that every store keeps to."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.errors import Conflict
from cachekeep.model import Cache, Decided


def following(decided: Decided) -> Decided:
    """It follows from what had its serial."""
    return replace(decided, serial=decided.serial + 1)


def overlaid(row: Cache, decided: Decided) -> Cache:
    """A row as it is once this is in it, too. Its version is greater than that of the row with anything earlier."""
    ahead = decided.serial - row.decided.serial
    return replace(row, decided=decided, version=row.version + ahead) if ahead > 0 else row


def merge(row: Cache, decided: Decided) -> Cache:
    """The row with this in it; its version is greater than any shown before. Raises ``Conflict`` if it holds something later."""
    if decided.serial < row.decided.serial:
        raise Conflict(f"cache {row.name} ({row.uid}): decision {row.decided.serial} is there, later than {decided.serial}")
    merged = overlaid(row, decided)
    return merged if merged is row else replace(merged, version=merged.version + 1)
