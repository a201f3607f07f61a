"""The worker that notices newer builds, tells of them, and applies them in maintenance windows."""

from __future__ import annotations

import logging
from typing import Final

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.engines.catalogue import Build
from cachekeep.model import Cache
from cachekeep.model.updates import ServiceUpdate
from cachekeep.model.windows import in_window
from cachekeep.rounds import rounds
from cachekeep.services.core.caches import every
from cachekeep.services.core.dispatch import Services
from cachekeep.services.core.inside import Ask
from cachekeep.services.elasticache import service_updates as updates
from cachekeep.services.elasticache.status import group_status
from cachekeep.store.contract import Store, Transaction

log = logging.getLogger("cachekeep.patcher")

TICK_SECONDS: Final = 30.0


class Patcher:
    """One in an installation works (``control.workers.Single``)."""

    def __init__(self, store: Store, clock: Clock, services: Services, ask: Ask) -> None:
        self._store, self._clock, self._services, self._ask = store, clock, services, ask

    async def run(self) -> None:
        """Look every ``TICK_SECONDS``, until cancelled."""
        await rounds(self._clock, TICK_SECONDS, self.tick, log, "nothing is known of newer builds for now")

    def hasten(self) -> None:
        """A build that has just been installed is noticed at the next tick."""

    async def tick(self) -> None:
        """Tell of what is newer than what runs, note what is done, and begin with one cache whose window is open."""
        async with self._store.transaction() as tx:
            await self._tell(tx)
            await self._note(tx)
        async with self._store.reading() as tx:
            chosen = await self._next(tx)
        if chosen is not None:
            update, cache = chosen
            answer = await self._ask(
                "elasticache", "BatchApplyUpdateAction", {"ServiceUpdateName": update.name, "ReplicationGroupIds": [cache.name]}
            )
            for refused in answer["UnprocessedUpdateActions"]:
                log.info("%s is not updated for now: %s", cache.name, refused["ErrorMessage"])

    async def _tell(self, tx: Transaction) -> None:
        """A record for each build that is newer than what some node runs."""
        known = {update.name: update for update in await tx.list(ServiceUpdate)}
        found: dict[str, tuple[str, str, Build, list[Build]]] = {}
        async for cache in every(tx, lambda cache: not cache.wanted.deleted):
            for node, said in await updates.nodes_of(tx, cache):
                if (pair := updates.newer(self._services.catalogue, cache, node, said)) is not None:
                    old, new = pair
                    name = f"{updates.name_of(node.engine, new)}-for-{node.version.replace('.', '-')}"
                    found.setdefault(name, (node.engine, node.version, new, []))[3].append(old)
        for name, (engine, line, new, old_ones) in found.items():
            grade, cures = updates.severity(old_ones, new)
            before = known.get(name)
            if before is None:
                log.warning(
                    "%s %s is older than the installed %s: `aws elasticache describe-update-actions`", engine, line, new.version
                )
            update = before or ServiceUpdate(
                name=name,
                engine=engine,
                line=line,
                build=new.version,
                program=new.program,
                severity=grade,
                cures=cures,
                released_at=self._clock.now().replace(microsecond=0),
            )
            if before is None or not set(cures) <= set(before.cures):
                await tx.put(replace(update, severity=grade, cures=cures))

    async def _note(self, tx: Transaction) -> None:
        """How far what was asked is, and when it was done."""
        for update in await tx.list(ServiceUpdate):
            asked = dict(update.asked)
            async for action in updates.actions(tx, update):
                if action.asked is not None and action.known:
                    done_at = action.asked.done_at
                    if action.status == "complete" and done_at is None:
                        done_at = self._clock.now()
                    asked[action.cache.uid] = replace(action.asked, updated=action.updated, done_at=done_at)
            if asked != update.asked:
                await tx.put(replace(update, asked=asked))

    async def _next(self, tx: Transaction) -> tuple[ServiceUpdate, Cache] | None:
        """The next cache that is to be updated by itself: in its window, with a replica for each primary, while no other is."""
        everything = await tx.list(ServiceUpdate)
        wishes: list[tuple[ServiceUpdate, Cache]] = []
        for update in everything:
            if updates.status_of(update, everything, self._services.catalogue) != "available":
                continue
            async for action in updates.actions(tx, update):
                if action.under_way():
                    return None  # one cache at a time
                if action.status == "not-applied" and await self._may(tx, action.cache):
                    wishes.append((update, action.cache))
        return min(wishes, key=lambda wish: (list(updates.APPLY_BY_DAYS).index(wish[0].severity), wish[1].name), default=None)

    async def _may(self, tx: Transaction, cache: Cache) -> bool:
        """Nobody's data is lost for it: whoever has no replica is updated on request only."""
        wanted = cache.wanted
        if not wanted.auto_minor_version_upgrade or not in_window(wanted.maintenance_window, self._clock.now()):
            return False
        if cache.kind != "group" or any(not shard.in_sync for shard in cache.decided.shards):
            return False
        return group_status(cache, await tx.condition(cache.uid)) == "available"
