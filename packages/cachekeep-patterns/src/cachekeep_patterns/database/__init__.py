"""The cache beside a database: outbox invalidation and a query-result cache for SQLAlchemy 2, and write-behind for anything."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachekeep_patterns.database.behind import AsyncWriteBehind as AsyncWriteBehind
    from cachekeep_patterns.database.behind import WriteBehind as WriteBehind
    from cachekeep_patterns.database.outbox import Outbox as Outbox
    from cachekeep_patterns.database.queries import AsyncQueryCache as AsyncQueryCache
    from cachekeep_patterns.database.queries import QueryCache as QueryCache

_HOMES = {
    "AsyncQueryCache": "queries",
    "AsyncWriteBehind": "behind",
    "Outbox": "outbox",
    "QueryCache": "queries",
    "WriteBehind": "behind",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
