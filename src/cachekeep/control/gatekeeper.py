"""Security groups in force: a worker that has the machine keep the doors which they, and what is decided for caches, come to.

Doors belong to addresses, and an endpoint has its address before anybody leads there: a failover changes none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError, Unusable
from cachekeep.model import Cache
from cachekeep.model.security_group import SecurityGroup
from cachekeep.plan.reach.admission import Door, doors
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.gatekeeper")

CALM_SECONDS = 0.1
"""So long what is news is left alone, while a failover, say, has better things to do; and so many pieces of it are one."""
ALL_SECONDS = 30.0
"""So often all caches are read, and else those that have changed: word of a change may be missed."""
CHECK_SECONDS = 5.0
"""So often it is seen to that nobody has taken the doors away."""


class Filter(Protocol):
    """What keeps doors on this machine."""

    async def keep(self, doors: Sequence[Door]) -> None:
        """These and no others, all at once. Raises CachekeepError: those from before are kept."""

    async def kept(self) -> bool:
        """Whether they still are. Raises CachekeepError."""


class Gatekeeper:
    """Keeps the doors."""

    def __init__(self, store: Store, filter: Filter, clock: Clock, *, default: SecurityGroup, lenient: bool) -> None:
        self._store, self._filter, self._clock = store, filter, clock
        self._default, self._lenient = default, lenient
        self._news = asyncio.Event()
        self._touched: set[str] = set()
        """Caches that have changed since they were read."""
        self._caches: dict[str, Cache] = {}
        self._read_at: float | None = None
        """When all of them were, by the seconds of our clock; None: they were not."""
        self._kept: tuple[Door, ...] | None = None
        """As last taken by the filter; None: nobody knows."""
        self._seen_at = 0.0
        """When they were last known to be there, by the seconds of our clock."""
        self._no_filter: str | None = None
        self.problem = ""
        """Why they are not kept; empty while they are."""

    async def check(self, no_filter: str | None) -> None:
        """Raises ``Unusable`` where somebody is to be kept out and nothing can: ``no_filter`` says why, None that it can be."""
        self._no_filter = no_filter
        if no_filter is not None and (not self._default.lets_everybody_in or await self.due(buses=False)):
            raise Unusable(
                f"security groups are to keep clients out, and {no_filter}. Nothing is served; running caches are as they were. "
                "Start with what is missing, or, there, let everybody in again: by the default security group and "
                "--default-ingress everybody."
            )

    async def run(self) -> None:
        """Work until cancelled."""
        self._kept = self._read_at = None
        ignore = self._store.on_change(self._changed)
        try:
            while True:
                self._news.clear()
                await self._attempt()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._news.wait()
                await self._clock.sleep(CALM_SECONDS)
        finally:
            ignore()

    def lacks(self) -> tuple[str, ...]:
        """What is not as it is wanted, in a sentence."""
        if self._no_filter is not None:
            return (f"The bus of a cluster is open to whoever reaches a node, and security groups are refused: {self._no_filter}.",)
        return (f"Security groups are not in force as they are wanted: {self.problem}.",) if self.problem else ()

    def hasten(self) -> None:
        self._news.set()

    async def _attempt(self) -> None:
        try:
            await self._bring_about(await self.due())
        except CachekeepError as error:
            if self.problem != str(error):
                log.error("security groups are not in force as they are wanted: %s", error)
            self.problem = str(error)
        else:
            if self.problem:
                log.info("security groups are in force again")
            self.problem = ""

    def _changed(self, uid: str) -> None:
        self._touched.add(uid)
        self._news.set()

    async def due(self, *, buses: bool = True) -> tuple[Door, ...]:
        """The doors as they are to be, those of all buses among them or not. Raises StoreFailed."""
        now = self._clock.monotonic()
        if self._read_at is None or now - self._read_at > ALL_SECONDS:
            self._touched.clear()
            async with self._store.reading() as tx:
                everyone = [*await tx.caches(kind="cluster"), *await tx.caches(kind="group")]
            self._caches, self._read_at = {cache.uid: cache for cache in everyone}, now
        while self._touched:
            uid = self._touched.pop()
            try:
                cache = await self._store.load(uid)
            except CachekeepError:
                self._touched.add(uid)
                raise
            if cache is None:
                self._caches.pop(uid, None)
            else:
                self._caches[uid] = cache
        async with self._store.reading() as tx:
            groups = {group.name: group for group in await tx.list(SecurityGroup)}
        return doors(self._caches.values(), groups, self._default, lenient=self._lenient, buses=buses)

    async def _bring_about(self, due: tuple[Door, ...]) -> None:
        now = self._clock.monotonic()
        if self._kept == due and (not due or now - self._seen_at < CHECK_SECONDS):
            return
        if self._kept == due and await self._filter.kept():
            self._seen_at = now
            return
        self._kept = None
        await self._filter.keep(due)
        self._kept, self._seen_at = due, now
