"""Resources: whatever is kept by kind and name."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import cast

import msgspec

from cachekeep.errors import Conflict
from cachekeep.model import Record
from cachekeep.store.families.memory.part import MemoryPart
from cachekeep.store.families.resources import R


class MemoryResources(MemoryPart):
    """``ResourceRecords``."""

    async def get(self, kind: type[R], name: str) -> R | None:
        return cast("R | None", self.state.resources.get((kind.__name__, name)))

    async def put(self, resource: R) -> R:
        self._write()
        key = (type(resource).__name__, resource.name)
        row = self.state.resources.get(key)
        if (row.version if row is not None else 0) != resource.version:
            raise Conflict(f"{key[0]} {resource.name} was changed by somebody else since version {resource.version}")
        saved = cast(R, msgspec.structs.replace(cast(msgspec.Struct, resource), version=resource.version + 1))
        self.state.resources[key] = saved
        return saved

    def leave(self, records: Sequence[Record]) -> None:
        """Put them in the place of whatever of their kinds and names is there."""
        for record in records:
            key = (type(record).__name__, record.name)
            there = self.state.resources.get(key)
            version = there.version + 1 if there is not None else 1
            self.state.resources[key] = msgspec.structs.replace(record, version=version)

    async def delete(self, kind: type[R], name: str) -> bool:
        self._write()
        return self.state.resources.pop((kind.__name__, name), None) is not None

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        found = [(name, r) for (of, name), r in self.state.resources.items() if of == kind.__name__ and name > after]
        return [r for _, r in sorted(found, key=lambda item: item[0])][:limit]
