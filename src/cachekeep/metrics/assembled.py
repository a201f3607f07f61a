"""All parts of measuring, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from cachekeep.clock import Clock
from cachekeep.metrics.collect import Asks, Collector, Folder, Hosts, Targets
from cachekeep.metrics.scrape import Scraper
from cachekeep.metrics.series import Archive
from cachekeep.store.contract import Store
from cachekeep.store.database import Database


class Works(Protocol):
    """As ``control/workers.py`` has them."""

    async def run(self) -> None: ...

    def hasten(self) -> None: ...


class Metrics:
    """All of an installation's: what asks, what keeps, and the workers, of which one of each works at a time."""

    def __init__(
        self, store: Store, asks: Asks, hosts: Hosts, target: Targets, kept_in: Callable[[], Database], clock: Clock
    ) -> None:
        self.archive, self._asks = Archive(kept_in), asks
        self.scraper = Scraper(store, asks, target, clock)
        collector = Collector(store, asks, hosts, target, self.archive, clock)
        self.workers: Mapping[str, Works] = {"collector": collector, "folder": Folder(self.archive, clock)}

    async def __aenter__(self) -> Metrics:
        """Ready to keep, and to tell."""
        await self.archive.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lets go of nodes and files."""
        await self._asks.aclose()
        await self.archive.aclose()
