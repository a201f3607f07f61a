"""Conditions: how caches are, as their keepers told."""

from __future__ import annotations

from collections.abc import Collection

from cachekeep.model import Condition
from cachekeep.store.families.memory.part import MemoryPart


class MemoryConditions(MemoryPart):
    """``ConditionRecords``."""

    async def condition(self, uid: str) -> Condition | None:
        cache, (told_in, condition) = self.state.caches.get(uid), self.state.conditions.get(uid, (0, None))
        epoch, holder = self.state.leases.get(uid, (0, None))
        until = self.state.holders.get(holder) if holder is not None else None
        if cache is None or condition is None or until is None or until <= self._clock.monotonic():
            return None
        return condition if told_in == epoch and condition.version == cache.version else None

    async def conditions(self, uids: Collection[str]) -> dict[str, Condition]:
        found = {uid: await self.condition(uid) for uid in uids}
        return {uid: condition for uid, condition in found.items() if condition is not None}
