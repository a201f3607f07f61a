"""Conditions: how caches are, as their keepers told."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from cachekeep.model import Condition


class ConditionRecords(Protocol):
    """Of a transaction. Its writing methods raise ``RuntimeError`` in ``Store.reading``."""

    async def condition(self, uid: str) -> Condition | None:
        """What its keeper last told, if that keeper's lease is live and it told it of the row's present version; else None."""

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        """``condition`` of many; those without one are left out."""
