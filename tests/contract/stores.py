"""A database, the stores opened on it, and time that passes when told to."""

from __future__ import annotations

import asyncio
import datetime as dt
import random

from cachekeep.model import Moment
from cachekeep.sim.store import SimDisk
from cachekeep.store import Journal, JournaledStore, MemoryStore, SqlStore, Store

LINGER_SECONDS = 35.0
"""What stores do by default."""


class HandClock:
    """Stands still unless told to go on; ``at`` alone may be set, forward and back."""

    def __init__(self) -> None:
        self.at = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
        self.host = "boot"
        self.ran = 1000.0
        """Seconds: what ``at`` would say, were the wall clock never set."""
        self._ids = 0

    def now(self) -> dt.datetime:
        return self.at

    def moment(self) -> Moment:
        return Moment(self.host, self.monotonic())

    def monotonic(self) -> float:
        return self.ran

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids}"

    def new_secret(self) -> str:
        return "secret"

    def chance(self) -> float:
        return random.random()


class World:
    """A database and the stores opened on it."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.clock = HandClock()
        self._stores: list[Store] = []

    async def store(self) -> Store:
        """Another store on the same database, as another process would open it."""
        if self.kind == "memory":
            self._stores = self._stores or [MemoryStore(self.clock)]
            await self._stores[0].open()
            return self._stores[0]
        store: Store = SqlStore(self.url, self.clock)
        await store.open()
        self._stores.insert(0, store)
        if self.kind == "journaled":
            disk = SimDisk(random.Random(len(self._stores)))
            store = JournaledStore(store, Journal(disk), self.clock, alone=lambda: True, patience_seconds=60.0)
            await store.open()
            self._stores.insert(0, store)
        return store

    def boot(self, host: str) -> None:
        """The host of all that use it is booted anew; moments begin again."""
        self.clock.host, self.clock.ran = host, 5.0

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass. No database has one of its own that matters."""
        self.clock.at += dt.timedelta(seconds=seconds)
        self.clock.ran += seconds

    async def aclose(self) -> None:
        for store in self._stores:
            await store.aclose()
