"""Conditions: how caches are, as their keepers told."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from cachekeep.model import Condition
from cachekeep.store import tables as t
from cachekeep.store.families.sql.part import SqlPart
from cachekeep.store.rows import condition_of

_CHUNK = 1000
"""Most values in one IN list; SQLite allows 32,766 and PostgreSQL 32,767 parameters."""


class SqlConditions(SqlPart):
    """``ConditionRecords``."""

    async def condition(self, uid: str) -> Condition | None:
        return (await self.conditions((uid,))).get(uid)

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        live = (
            sa.select(t.conditions.c.uid, t.conditions.c.body, t.holders.c.holder, t.holders.c.beat, t.holders.c.ttl)
            .join(t.caches, sa.and_(t.caches.c.uid == t.conditions.c.uid, t.caches.c.version == t.conditions.c.version))
            .join(t.leases, sa.and_(t.leases.c.uid == t.conditions.c.uid, t.leases.c.epoch == t.conditions.c.epoch))
            .join(t.holders, t.holders.c.holder == t.leases.c.holder)
        )
        silent_seconds = self._store.beats.silent_seconds
        found: dict[str, Condition] = {}
        asked = list(uids)
        for start in range(0, len(asked), _CHUNK):
            rows = await self.execute(live.where(t.conditions.c.uid.in_(asked[start : start + _CHUNK])))
            alive = (row for row in rows.all() if silent_seconds(row.holder, row.beat) * 1_000_000 < row.ttl)
            found.update((row.uid, condition_of(row.body)) for row in alive)
        return found
