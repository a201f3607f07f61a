"""Events: what was told, in the order in which it was."""

from __future__ import annotations

import builtins
import datetime as dt
from typing import Protocol

from cachekeep.model import Event

EVENTS_KEPT_DAYS = 14
"""DescribeEvents answers for the last 14 days (API reference, DescribeEvents)."""
Cursor = str
"""Where a page of events ended. Opaque."""


class EventRecords(Protocol):
    """Of a transaction. Its writing methods raise ``RuntimeError`` in ``Store.reading``."""

    async def tell(self, *events: Event) -> None:
        """Add events; those without ``at`` get the present time."""

    async def events(
        self,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        source_type: str | None = None,
        source: str | None = None,
        after: Cursor | None = None,
        limit: int,
    ) -> builtins.list[tuple[Cursor, Event]]:
        """Events with ``start <= at < end``, those behind ``after``, in the order in which they were told: the wall clock, by
        which they are dated, may have been set back in between."""
