"""Addresses: whose each is, and which were given up not long ago. Only stores ask for them."""

from __future__ import annotations

import sqlalchemy as sa

from cachekeep.store import tables as t
from cachekeep.store.contract import AddressTaken
from cachekeep.store.families.sql.part import SqlPart

_ADDRESSES_OF = sa.select(t.addresses.c.address).where(t.addresses.c.uid == sa.bindparam("uid"))
"""Built once: building a statement costs as much as running it."""


class SqlAddresses(SqlPart):
    """What stores ask of addresses."""

    async def own_addresses(self, uid: str, own: set[str]) -> None:
        """Make the address index say what the cache uses. Raises ``AddressTaken``."""
        had = set((await self.execute(_ADDRESSES_OF, {"uid": uid})).scalars().all())
        if gone := had - own:
            await self.execute(sa.delete(t.addresses).where(t.addresses.c.address.in_(sorted(gone))))
            await self._release(uid, gone)
        # In order, so that two keepers that want the same addresses wait for one another one way only.
        if new := sorted(own - had):
            rows = [{"address": address, "uid": uid} for address in new]
            added = await self.execute(
                self._store.insert(t.addresses).values(rows).on_conflict_do_nothing().returning(t.addresses.c.address)
            )
            others = sa.and_(t.released.c.uid != uid, ~self._rested())
            held = await self.execute(sa.select(t.released.c.address).where(t.released.c.address.in_(new), others))
            if taken := set(held.scalars().all()) | (set(new) - set(added.scalars().all())):
                raise AddressTaken(min(taken))

    async def _release(self, uid: str, addresses: set[str]) -> None:
        """A cache gives up these; those that were given up long enough ago are forgotten."""
        now = self._store.clock.moment()
        over = sa.select(t.released.c.address).where(self._rested()).with_for_update(skip_locked=True)
        await self.execute(sa.delete(t.released).where(t.released.c.address.in_(over)))
        rows = [{"address": address, "uid": uid, "boot": now.boot, "seconds": now.seconds} for address in sorted(addresses)]
        insert = self._store.insert(t.released).values(rows)
        again = {name: insert.excluded[name] for name in ("uid", "boot", "seconds")}
        await self.execute(insert.on_conflict_do_update(index_elements=["address"], set_=again))

    def _rested(self) -> sa.ColumnElement[bool]:
        """Of ``released``: nobody looks for what was there any more."""
        now = self._store.clock.moment()
        return sa.and_(t.released.c.boot == now.boot, t.released.c.seconds <= now.seconds - self._store.linger_seconds)

    async def recount_released(self) -> None:
        """What another boot began is counted from now on."""
        now = self._store.clock.moment()
        anew = sa.update(t.released).where(t.released.c.boot != now.boot)
        await self.execute(anew.values(boot=now.boot, seconds=now.seconds))

    async def addresses(self) -> set[str]:
        """``Store.addresses``."""
        used, resting = sa.select(t.addresses.c.address), sa.select(t.released.c.address).where(~self._rested())
        return set((await self.execute(used.union(resting))).scalars().all())
