"""Events: what was told, in the order in which it was."""

from __future__ import annotations

import builtins
import datetime as dt
from typing import cast

import sqlalchemy as sa

from cachekeep.model import Event
from cachekeep.model.resources import SourceType
from cachekeep.store import tables as t
from cachekeep.store.families.events import EVENTS_KEPT_DAYS, Cursor
from cachekeep.store.families.sql.part import SqlPart
from cachekeep.store.rows import micros_of, time_of

_INSERT_EVENTS = sa.insert(t.events)


class SqlEvents(SqlPart):
    """``EventRecords``."""

    async def told(self, event: Event) -> bool:
        """Whether the very same event, with its time, is there already."""
        c = t.events.c
        same = (c.at == micros_of(event.at)) if event.at else sa.false()
        query = sa.select(c.id).where(
            same, c.source_type == event.source_type, c.source == event.source, c.message == event.message
        )
        return (await self.execute(query.limit(1))).first() is not None

    async def tell(self, *events: Event) -> None:
        self._write()
        if not events:
            return
        now = self._store.clock.now()
        await self.execute(
            _INSERT_EVENTS,
            [
                {"at": micros_of(e.at or now), "source_type": e.source_type, "source": e.source, "message": e.message}
                for e in events
            ],
        )

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
        oldest = self._store.clock.now() - dt.timedelta(days=EVENTS_KEPT_DAYS)
        c = t.events.c
        query = sa.select(c.at, c.id, c.source_type, c.source, c.message).where(c.at >= micros_of(max(start or oldest, oldest)))
        if end is not None:
            query = query.where(c.at < micros_of(end))
        if source_type is not None:
            query = query.where(c.source_type == source_type)
        if source is not None:
            query = query.where(c.source == source)
        if after is not None:
            query = query.where(c.id > int(after))
        rows = (await self.execute(query.order_by(c.id).limit(limit))).all()
        return [
            (
                str(row.id),
                Event(source_type=cast(SourceType, row.source_type), source=row.source, message=row.message, at=time_of(row.at)),
            )
            for row in rows
        ]
