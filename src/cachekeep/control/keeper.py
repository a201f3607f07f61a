"""The keeper: one task per cache that it holds the lease of.

A pass looks, plans, and either saves a decision, carries out effects, or waits. Nothing is remembered between passes that safety
rests on: a keeper that is killed anywhere is replaced by one that looks and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Driver, Key, Link
from cachekeep.control.execute import Hands
from cachekeep.control.observe import Observer, target
from cachekeep.errors import CachekeepError, Conflict, LeaseLost
from cachekeep.model import Act, Cache, Decide, Forget, Start, Step, View, Wait
from cachekeep.plan import Policy, condition, plan
from cachekeep.plan.members import addresses_used
from cachekeep.plan.situation import Situation
from cachekeep.store.contract import Lease, Store

log = logging.getLogger("cachekeep.keeper")

LEASE_SECONDS = 15.0
SCAN_SECONDS = 5.0
LONGEST_POLL_SECONDS = 0.5
MOST_DECISIONS = 50
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.05, 5.0
NOISE_SECONDS = 0.2
HEARTBEAT_SECONDS, CALM_HEARTBEAT_SECONDS = 0.4, 2.0
HEARTBEAT_DEADLINE_SECONDS = 0.25


class Keeper:
    """Keeps every cache whose lease it can get."""

    def __init__(
        self,
        *,
        store: Store,
        driver: Driver,
        link: Link,
        observer: Observer,
        hands: Hands,
        clock: Clock,
        holder: str,
        policy: Policy | None = None,
    ) -> None:
        self._store, self._driver, self._link, self._observer, self._hands = store, driver, link, observer, hands
        self._clock, self._holder, self._policy = clock, holder, policy or Policy()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._alarms: dict[str, asyncio.Event] = {}
        """Set by a death or a heartbeat: not by what anybody wants."""
        self._moving: set[str] = set()
        """Caches of which a lead is on its way to another node."""
        self._news = asyncio.Event()
        self._unclaimed: set[str] = set()

    async def run(self) -> None:
        """Claim, renew, keep; until cancelled. Processes go on; leases run out, or are buried by whoever knows that we are gone."""
        forget_change = self._store.on_change(self._changed)
        self._driver.on_death(self._alarmed)
        renewal = asyncio.create_task(self._renew())
        try:
            while True:
                await self._claim()
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SCAN_SECONDS):
                        await self._news.wait()
        finally:
            forget_change()
            tasks = [renewal, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- leases

    async def _claim(self) -> None:
        """Take every lease that is free, and keep its cache."""
        try:
            leases = await self._store.claim(self._holder, ttl_seconds=LEASE_SECONDS)
        except CachekeepError as error:
            log.warning("leases cannot be claimed: %s", error)
            return
        for lease in leases:
            old = self._tasks.get(lease.uid)
            if old is not None:
                old.cancel()
            self._wakes[lease.uid], self._alarms[lease.uid] = asyncio.Event(), asyncio.Event()
            self._tasks[lease.uid] = asyncio.create_task(self._keep(lease), name=f"keep {lease.uid}")

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(LEASE_SECONDS / 3)
            try:
                held = await self._store.renew(self._holder, ttl_seconds=LEASE_SECONDS)
            except CachekeepError as error:
                log.warning("leases cannot be renewed: %s", error)
                continue
            for uid in [u for u in self._tasks if u not in held]:
                self._tasks.pop(uid).cancel()

    # -- wakes

    def _changed(self, uid: str) -> None:
        if uid in self._wakes:
            self._wakes[uid].set()
        else:
            self._news.set()

    def _alarmed(self, key: Key) -> None:
        if key[0] in self._alarms:
            self._alarms[key[0]].set()
        self._changed(key[0])

    # -- one cache

    async def _keep(self, lease: Lease) -> None:
        """Pass after pass, until the cache is forgotten or the lease is lost."""
        backoff, said, failed_at = FIRST_BACKOFF_SECONDS, "", self._clock.monotonic()
        while True:
            try:
                await self._passes(lease)
                break
            except LeaseLost as error:
                log.info("%s", error)
                break
            except Conflict:
                backoff = FIRST_BACKOFF_SECONDS
            except CachekeepError as error:
                now = self._clock.monotonic()
                if now - failed_at > 2 * LONGEST_BACKOFF_SECONDS:  # it has worked since
                    backoff = FIRST_BACKOFF_SECONDS
                failed_at = now
                if lease.uid in self._moving:  # clients may be waiting, for a second, say
                    backoff = FIRST_BACKOFF_SECONDS
                if str(error) != said:
                    log.warning("%s: %s; tried again, at longer and longer intervals", lease.uid, error)
                said = str(error)
                # What failed has made noise of its own (a death, a save): that must not cut the pause short. Real news may.
                await self._clock.sleep(min(backoff, NOISE_SECONDS))
                self._wakes[lease.uid].clear()
                await self._rest(lease.uid, backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
            except Exception:
                log.exception("%s: a pass failed in a way that nobody expected; tried again in %.2f s", lease.uid, backoff)
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
        if self._tasks.get(lease.uid) is asyncio.current_task():
            for memory in (self._tasks, self._wakes, self._alarms):
                memory.pop(lease.uid, None)
            self._moving.discard(lease.uid)

    async def _passes(self, lease: Lease) -> None:
        said, pause = "", 0.0
        while True:
            self._wakes[lease.uid].clear()
            self._alarms[lease.uid].clear()
            cache = await self._store.load(lease.uid)
            if cache is None:
                return
            view = await self._observer.look(cache)
            before = cache.version
            cache, step = await self._think(cache, view, lease)
            self._moving.discard(cache.uid)
            if any(x.moving_to for x in cache.decided.shards):
                self._moving.add(cache.uid)
            if isinstance(step, Wait) and cache.version != before:
                continue  # what was just decided has not been looked at yet
            if isinstance(step, Forget):
                await self._forget(cache, step, lease)
                return
            self._watch(cache, view)
            await self._publish(cache, view, step, lease, urgent=isinstance(step, Act))
            if isinstance(step, Act):
                self._narrate(cache, step)
                await self._carry(cache, step)
                said = ""
            elif isinstance(step, Wait):
                if step.because != said or step.steady:
                    if step.because != said:
                        self._narrate(cache, step)
                    said, pause = step.because, step.seconds
                else:
                    pause = min(pause * 1.5, max(LONGEST_POLL_SECONDS, step.seconds))
                await self._rest(lease.uid, pause)

    async def _think(self, cache: Cache, view: View, lease: Lease) -> tuple[Cache, Step]:
        """Save decisions until there is something to do or to wait for: thinking again needs no new look."""
        for _ in range(MOST_DECISIONS):
            step = plan(cache, view, self._clock.now(), self._clock.moment(), self._policy)
            if not isinstance(step, Decide):
                return cache, step
            self._narrate(cache, step)
            new = replace(cache, decided=step.decided)
            cache = await self._store.save_decided(new, lease, events=step.events, addresses=addresses_used(step.decided))
        raise CachekeepError(f"{cache.name}: {MOST_DECISIONS} decisions in a row led nowhere, the last one: {step.because}")

    async def _forget(self, cache: Cache, step: Forget, lease: Lease) -> None:
        self._narrate(cache, step)
        await self._store.forget(cache, lease, events=step.events)
        for node in cache.decided.everyone:
            self._link.unwatch((cache.uid, node.name))
        self._observer.forget(cache)

    async def _carry(self, cache: Cache, act: Act) -> None:
        """Starting may take long, and on a lost host it never ends. Who fails meanwhile is not kept waiting: the driver goes on
        without us, and the next look shows how far it is."""
        if not all(isinstance(e, Start) for stage in act.stages for e in stage):
            await self._hands.carry(cache, act)
            return
        carrying = asyncio.create_task(self._hands.carry(cache, act))
        alarm = asyncio.create_task(self._alarms[cache.uid].wait())
        try:
            await asyncio.wait({carrying, alarm}, return_when=asyncio.FIRST_COMPLETED)
            if carrying.done():
                await carrying
        finally:
            carrying.cancel()
            alarm.cancel()
            await asyncio.gather(carrying, alarm, return_exceptions=True)

    async def _rest(self, uid: str, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wakes[uid].wait()

    async def _publish(self, cache: Cache, view: View, step: Step, lease: Lease, *, urgent: bool) -> None:
        """Tell the API side how the cache is; not before effects that clients wait for."""
        if urgent and cache.decided.available_at is not None:
            return
        told = condition(Situation(cache, view, self._clock.now(), self._clock.moment(), self._policy), step)
        await self._store.publish(cache.uid, told, lease)

    def _watch(self, cache: Cache, view: View) -> None:
        """Heartbeats for what runs: quick for a primary whose failover may follow, calm for the rest, of which there is more."""
        leads = {shard.primary for shard in cache.decided.shards} if cache.wanted.automatic_failover else set()
        for node in cache.decided.everyone:
            if view.node(node.name).process == "running" and not node.leaving:
                self._link.watch(
                    target(cache, node),
                    interval_seconds=HEARTBEAT_SECONDS if node.name in leads else CALM_HEARTBEAT_SECONDS,
                    deadline_seconds=HEARTBEAT_DEADLINE_SECONDS,
                    wake=self._alarmed,
                )
            else:
                self._link.unwatch((cache.uid, node.name))

    def _narrate(self, cache: Cache, step: Step) -> None:
        log.info("%s: %s: %s", cache.name, type(step).__name__.lower(), step.because)
