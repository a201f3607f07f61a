"""What each family has of a transaction over SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy as sa

from cachekeep.clock import Clock
from cachekeep.store.beats import Beats
from cachekeep.store.database import Session
from cachekeep.store.wakes import Touched


class Means(Protocol):
    """What the store has for all its transactions."""

    clock: Clock
    beats: Beats
    linger_seconds: float
    """Addresses that are given up stay unused for so long."""
    insert: Callable[[sa.Table], Any]
    """An INSERT that knows what to do where a row is there already."""


class SqlPart:
    """``touched`` None: read only."""

    def __init__(self, store: Means, session: Session, touched: Touched | None) -> None:
        self._store = store
        self._session = session
        self._touched = touched
        self.execute = session.execute

    def _write(self) -> Touched:
        if self._touched is None:
            raise RuntimeError("a reading transaction cannot write")
        return self._touched

    def _held(self, statement: sa.Select[Any], of: sa.Table) -> sa.Select[Any]:
        """Lock what is read by name, so that a keeper's save waits for the commit and not the other way round."""
        return statement if self._touched is None else statement.with_for_update(of=of)
