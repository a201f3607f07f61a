"""A scrape: every node is asked now, and what it says is written for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError
from cachekeep.metrics.collect import Asks, Targets
from cachekeep.metrics.prometheus import Exposed, Scraped, exposition, points_of
from cachekeep.model import Cache, Node
from cachekeep.store.contract import Store
from cachekeep.store.every import every

_DEADLINE_SECONDS: Final = 5.0
_FRESH_SECONDS: Final = 2.0
"""Whoever asks again so soon is told the same: no node is asked more often."""
_AT_ONCE: Final = 32


class Scraper:
    """Asks nodes for whoever scrapes. Raises ``CachekeepError`` while the store cannot be read."""

    def __init__(self, store: Store, asks: Asks, target: Targets, clock: Clock) -> None:
        self._store, self._asks, self._target, self._clock = store, asks, target, clock
        self._asking: asyncio.Task[str] | None = None
        self._asked_at = float("-inf")

    async def text(self, _: None = None) -> str:
        """What there is to tell now."""
        now = self._clock.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > _FRESH_SECONDS):
            self._asking, self._asked_at = asyncio.create_task(self._text()), now
        return await asyncio.shield(self._asking)

    async def _text(self) -> str:
        async with self._store.reading() as tx:
            caches = [cache async for cache in every(tx)]
            conditions = await tx.conditions([cache.uid for cache in caches])
        self._asks.keep_only({(cache.uid, node.name) for cache in caches for node in cache.decided.nodes})
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(cache: Cache, node: Node) -> Scraped:
            said = None
            async with turns:
                with contextlib.suppress(CachekeepError):
                    said = await self._asks.sample(self._target(cache, node), deadline_seconds=_DEADLINE_SECONDS)
            return Scraped(node.engine, node.address, node.port, cache.name, node.name, node.shard, said)

        scraped = await asyncio.gather(*(ask(cache, node) for cache in caches for node in cache.decided.nodes))
        points = [point for node in scraped for point in points_of(node)]
        for cache in caches:
            labels = {"cache": cache.name, "engine": cache.wanted.engine}
            condition = conditions.get(cache.uid)
            status = condition.status if condition is not None else "unknown"
            points.append(Exposed("cachekeep_cache_status", "gauge", {**labels, "status": status}, 1.0))
            for shard in cache.decided.shards:
                of_shard = {"cache": cache.name, "shard": shard.id}
                points.append(Exposed("cachekeep_lead_order", "counter", of_shard, float(shard.lead_order)))
                points.append(Exposed("cachekeep_replicas_in_sync", "gauge", of_shard, float(len(shard.in_sync))))
        return exposition(points)
