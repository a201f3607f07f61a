"""Resources: whatever is kept by kind and name."""

from __future__ import annotations

import builtins
from typing import Protocol, TypeVar


class Resource(Protocol):
    """Any frozen struct with a name and a version: parameter group, subnet group, tags, … Its type's name is its kind."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...


R = TypeVar("R", bound=Resource)


class ResourceRecords(Protocol):
    """Of a transaction. Its writing methods raise ``RuntimeError`` in ``Store.reading``."""

    async def get(self, kind: type[R], name: str) -> R | None:
        """The resource of that kind and name."""

    async def put(self, resource: R) -> R:
        """Insert (version 0) or replace the same version; returns it with its new version. Raises ``Conflict``."""

    async def delete(self, kind: type[R], name: str) -> bool:
        """Remove it; False if there was none."""

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        """Resources of that kind by name, those greater than ``after``."""
