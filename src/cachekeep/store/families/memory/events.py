"""Events: what was told, in the order in which it was."""

from __future__ import annotations

import builtins
import datetime as dt

import msgspec

from cachekeep.model import Event
from cachekeep.store.families.events import EVENTS_KEPT_DAYS, Cursor
from cachekeep.store.families.memory.part import MemoryPart


class MemoryEvents(MemoryPart):
    """``EventRecords``."""

    async def tell(self, *events: Event) -> None:
        self._write()
        now = self._clock.now()
        for event in events:
            self.state.events_told += 1
            at = event.at or now
            self.state.events.append((at, self.state.events_told, msgspec.structs.replace(event, at=at)))

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
        oldest = self._clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        behind = int(after or 0)
        return [
            (str(number), event)
            for at, number, event in self.state.events
            if at >= max(start or oldest, oldest)
            and (end is None or at < end)
            and source_type in (None, event.source_type)
            and source in (None, event.source)
            and number > behind
        ][:limit]
