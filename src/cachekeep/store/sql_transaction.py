"""A transaction over SQL: its families."""

from __future__ import annotations

from cachekeep.store.families.sql.addresses import SqlAddresses
from cachekeep.store.families.sql.caches import SqlCaches
from cachekeep.store.families.sql.conditions import SqlConditions
from cachekeep.store.families.sql.events import SqlEvents
from cachekeep.store.families.sql.resources import SqlResources


class SqlTransaction(SqlCaches, SqlAddresses, SqlConditions, SqlResources, SqlEvents):
    """``Transaction``."""

    def wake(self, uid: str) -> None:
        self._write().add(uid)

    def has_told(self, uid: str) -> None:
        """Nothing but the condition of the cache is new."""
        self._write().add(uid, told=True)
