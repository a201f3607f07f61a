"""Resources: whatever is kept by kind and name."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

import sqlalchemy as sa

from cachekeep.errors import Conflict
from cachekeep.model import Record
from cachekeep.store import tables as t
from cachekeep.store.families.resources import R
from cachekeep.store.families.sql.part import SqlPart
from cachekeep.store.rows import resource_of, text_of, versioned


class SqlResources(SqlPart):
    """``ResourceRecords``."""

    async def get(self, kind: type[R], name: str) -> R | None:
        query = sa.select(t.resources.c.version, t.resources.c.body).where(
            t.resources.c.kind == kind.__name__, t.resources.c.name == name
        )
        row = (await self.execute(self._held(query, t.resources))).first()
        return resource_of(kind, row.version, row.body) if row else None

    async def put(self, resource: R) -> R:
        self._write()
        values = {"version": resource.version + 1, "body": text_of(resource)}
        kind = type(resource).__name__
        if resource.version == 0:
            statement = self._store.insert(t.resources).values(kind=kind, name=resource.name, **values).on_conflict_do_nothing()
        else:
            statement = (
                sa.update(t.resources)
                .where(t.resources.c.kind == kind, t.resources.c.name == resource.name, t.resources.c.version == resource.version)
                .values(**values)
            )
        if (await self.execute(statement)).rowcount != 1:
            raise Conflict(f"{kind} {resource.name} was changed by somebody else since version {resource.version}")
        return versioned(resource, resource.version + 1)

    async def leave(self, records: Sequence[Record]) -> None:
        """Put them in the place of whatever of their kinds and names is there."""
        for record in records:
            key = {"kind": type(record).__name__, "name": record.name}
            insert = self._store.insert(t.resources).values(version=1, body=text_of(record), **key)
            again = {"version": t.resources.c.version + 1, "body": insert.excluded.body}
            await self.execute(insert.on_conflict_do_update(index_elements=["kind", "name"], set_=again))

    async def delete(self, kind: type[R], name: str) -> bool:
        self._write()
        gone = await self.execute(sa.delete(t.resources).where(t.resources.c.kind == kind.__name__, t.resources.c.name == name))
        return gone.rowcount == 1

    async def list(self, kind: type[R], *, after: str = "", limit: int | None = None) -> builtins.list[R]:
        query = (
            sa.select(t.resources.c.version, t.resources.c.body)
            .where(t.resources.c.kind == kind.__name__, t.resources.c.name > after)
            .order_by(t.resources.c.name)
            .limit(limit)
        )
        return [resource_of(kind, row.version, row.body) for row in (await self.execute(query)).all()]
