"""The keeper: one task per cache that it holds the lease of.

A pass looks, plans, and either saves a decision, begins effects, or waits. Effects go on by themselves: a pass waits for them only
as long as they usually take, and then looks again, and what is in flight is part of what is seen. Nothing is remembered between
passes that safety rests on: a keeper that is killed anywhere is replaced by one that looks and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Driver, Key, Link
from cachekeep.control.execute import Hands
from cachekeep.control.observe import ENDED, Observer
from cachekeep.control.workers import LEASE_SECONDS, SPARE_SECONDS, end
from cachekeep.errors import CachekeepError, Conflict, LeaseLost
from cachekeep.model import Act, Cache, Condition, Decide, Decided, Forget, Moment, Step, View, Wait, alike, elapsed, subjects
from cachekeep.plan import Policy, condition, invariants, plan
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import unsure
from cachekeep.store.contract import Along, Lease, Store

log = logging.getLogger("cachekeep.keeper")

SCAN_SECONDS = 5.0
LONGEST_POLL_SECONDS = 0.5
MOST_DECISIONS = 50
VIEW_SECONDS = 2.0
"""What was seen longer ago is no ground to decide or act on."""
PATIENCE_SECONDS = 0.1
"""So long a pass waits for what it has begun, or until somebody fails: most effects have ended by then."""
FIGURES_SECONDS = 5.0
"""So often at most the API side is told of nothing but other figures."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.05, 5.0
NOISE_SECONDS = 0.2
HEARTBEAT_SECONDS, CALM_HEARTBEAT_SECONDS = 0.4, 2.0
HEARTBEAT_DEADLINE_SECONDS = 0.25


@dataclass(eq=False)
class _Kept:
    """A cache that is kept here: while ``lease`` is held."""

    lease: Lease
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by whatever may be news: a change of its row, a death, a heartbeat, the end of an effect."""
    alarmed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a death or a heartbeat: not by what anybody wants."""
    alarms: set[str] = field(default_factory=set)
    """Whose they are."""
    decided: Decided | None = None
    """As last loaded or saved: an act goes on with its next stage only while this is what it follows from."""
    sound: int | None = None
    """The last decision that was loaded and found to be possible."""
    told: Condition | None = None
    published: tuple[Step, Condition, float] | None = None
    """What the API side was told last, at which step, and when."""
    expired: bool = False
    """The lease ran out before it was renewed, so ``task`` was ended."""
    task: asyncio.Task[None] | None = None

    def alarm(self, name: str) -> None:
        """There is news of a node."""
        self.alarms.add(name)
        self.alarmed.set()

    def hear(self, names: Set[str]) -> None:
        """Alarms of these are no news any more: the end of a process is told by its driver, and again by its lost connection."""
        self.alarms -= names
        if not self.alarms:
            self.alarmed.clear()


@dataclass
class _Said:
    """What the log says already: a step that goes on is not told again, nor one that fails and is tried again and again."""

    step: Step | None = None
    held: Wait | None = None
    """What has kept ``step`` from being done since."""

    def adds(self, step: Step) -> bool:
        """Note a step; whether it says something new."""
        if isinstance(step, Wait) and step.reason in ("flight", "failure"):
            acting = self.step.stages if isinstance(self.step, Act) and step.reason == "flight" else ()
            if alike(step, self.held) or any(step.about == subjects(e) for stage in acting for e in stage):
                return False
            self.held = step
            return True
        if alike(step, self.step):
            return False
        self.step, self.held = step, None
        return True


class Keeper:
    """Keeps every cache whose lease it can get.

    ``alone`` says whether nobody but this process can hold leases now, whatever becomes of them. Otherwise what is done by a
    lease is over when it runs out, by a clock of our own that nobody sets: a process that was halted for longer, and goes on,
    does nothing of what it was about to do.
    """

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
        alone: Callable[[], bool] = lambda: False,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._store, self._driver, self._link, self._observer, self._hands = store, driver, link, observer, hands
        self._clock, self._holder, self._policy = clock, holder, policy or Policy()
        self._alone, self._lease_seconds = alone, lease_seconds
        self._until = 0.0
        """By the seconds of our moments."""
        self._expiry: asyncio.TimerHandle | None = None
        self._kept: dict[str, _Kept] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Claim, renew, keep; until cancelled. Processes go on; leases run out, or are buried by whoever knows that we are gone."""
        forget_change = self._store.on_change(self._changed)
        forget_end = self._observer.jobs.on_end(self._changed)
        self._driver.on_death(self._alarmed)
        renewal = asyncio.create_task(self._renew(), name="renew leases")
        try:
            while True:
                await self._claim()
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SCAN_SECONDS):
                        await self._news.wait()
        finally:
            forget_change()
            forget_end()
            if self._expiry is not None:
                self._expiry.cancel()
            await end([renewal, *(k.task for k in self._kept.values() if k.task is not None)])

    # -- leases

    async def _claim(self) -> None:
        """Take every lease that is free, and keep its cache. Waits for nothing but the store."""
        asked_at = self._clock.moment().seconds
        try:
            leases = await self._store.claim(self._holder, ttl_seconds=self._lease_seconds)
        except CachekeepError as error:
            log.warning("leases cannot be claimed: %s", error)
            return
        except Exception:
            log.exception("leases cannot be claimed, for a reason that nobody expected")
            return
        if leases:
            self._live_on(asked_at)
        for lease in leases:
            self._let_go(lease.uid)
            self._keep(_Kept(lease))

    async def _renew(self) -> None:
        """Renew all leases at once, whatever becomes of single caches; let go of those that are lost; keep those whose task has
        ended by accident, and those that were claimed without an answer that said so."""
        while True:
            await self._clock.sleep(self._lease_seconds / 3)
            before, asked_at = list(self._kept.values()), self._clock.moment().seconds
            try:
                leases = await self._store.renew(self._holder, ttl_seconds=self._lease_seconds)
            except CachekeepError as error:
                log.warning("leases cannot be renewed: %s", error)
                continue
            except Exception:
                log.exception("leases cannot be renewed, for a reason that nobody expected")
                continue
            self._live_on(asked_at)
            held = {lease.uid: lease for lease in leases}
            for kept in before:
                uid = kept.lease.uid
                if self._kept.get(uid) is not kept:
                    continue
                if held.get(uid) != kept.lease:
                    self._let_go(uid)
                elif kept.expired and kept.task is not None:
                    await asyncio.wait({kept.task})
                    self._keep(_Kept(kept.lease))
                elif kept.task is None or kept.task.done():
                    log.error("%s: its task has ended by accident, and is started again", uid)
                    self._keep(kept)
            for uid, lease in held.items():
                if uid not in self._kept:
                    self._keep(_Kept(lease))

    def _live_on(self, asked_at: float) -> None:
        """Our leases are ours for another while, from when that was asked for."""
        self._until = asked_at + self._lease_seconds - SPARE_SECONDS
        if self._expiry is not None:
            self._expiry.cancel()
        left = self._until - self._clock.moment().seconds
        self._expiry = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _may_act(self) -> bool:
        """Whether what is ours to decide cannot be another's by now."""
        return self._alone() or self._clock.moment().seconds < self._until

    def _ours(self, kept: _Kept) -> Decided | None:
        """What is decided; None where that may be another's to carry out by now."""
        return kept.decided if self._may_act() and not kept.expired else None

    def _expire(self) -> None:
        """Our leases have run out: stop in the middle of whatever it is. A timer that is due runs before any task takes its next
        step, also in a process that was halted. What nobody else has taken meanwhile goes on with the next renewal."""
        if self._may_act():
            return
        log.warning("leases have not been renewed for %g s: nothing is done until they are", self._lease_seconds - SPARE_SECONDS)
        for kept in self._kept.values():
            kept.expired = True
            self._hands.halt(kept.lease.uid)
            if kept.task is not None:
                kept.task.cancel()

    def _keep(self, kept: _Kept) -> None:
        self._kept[kept.lease.uid] = kept
        kept.task = asyncio.create_task(self._mind(kept), name=f"keep {kept.lease.uid}")

    def _let_go(self, uid: str) -> None:
        kept = self._kept.pop(uid, None)
        if kept is not None and kept.task is not None:
            kept.task.cancel()

    # -- wakes

    def _changed(self, uid: str) -> None:
        if uid in self._kept:
            self._kept[uid].woken.set()
        else:
            self._news.set()

    def _alarmed(self, key: Key) -> None:
        if key[0] in self._kept:
            self._kept[key[0]].alarm(key[1])
        self._changed(key[0])

    def hasten(self) -> None:
        """Try again at once whatever failed: what kept it from working (an engine that is not installed) may be gone."""
        self._observer.flights.hasten()
        for kept in self._kept.values():
            kept.woken.set()

    # -- one cache

    async def _mind(self, kept: _Kept) -> None:
        """Pass after pass, until the cache is forgotten or the lease is lost; then nothing that has been begun goes on."""
        try:
            await self._again_and_again(kept)
        finally:
            await self._hands.abandon(kept.lease.uid)
        if self._kept.get(kept.lease.uid) is kept:
            del self._kept[kept.lease.uid]

    async def _again_and_again(self, kept: _Kept) -> None:
        backoff, said, failed_at = FIRST_BACKOFF_SECONDS, "", self._clock.monotonic()
        while True:
            try:
                await self._passes(kept)
                return
            except LeaseLost as error:
                log.info("%s", error)
                return
            except Conflict:
                backoff = FIRST_BACKOFF_SECONDS
            except Exception as error:
                now = self._clock.monotonic()
                if now - failed_at > 2 * LONGEST_BACKOFF_SECONDS:  # it has worked since
                    backoff = FIRST_BACKOFF_SECONDS
                failed_at = now
                expected = isinstance(error, CachekeepError)
                problem = str(error) if expected else f"{type(error).__name__}: {error}"
                if problem != said:
                    log.warning(
                        "%s: %s; tried again, at longer and longer intervals",
                        kept.lease.uid,
                        problem,
                        exc_info=None if expected else error,
                    )
                said = problem
                await self._confess(kept, problem)
                # What failed has made noise of its own (a save): that must not cut the pause short. Real news may.
                await self._clock.sleep(min(backoff, NOISE_SECONDS))
                kept.woken.clear()
                await self._rest(kept, backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _confess(self, kept: _Kept, problem: str) -> None:
        """Tell the API side that passes fail, as far as that can be told."""
        try:
            cache = await self._store.load(kept.lease.uid)
            if cache is not None:
                because = (
                    f"its keeper fails: {problem}. Its nodes go on; it is tried again every few seconds, and the log says more"
                )
                kept.published = None
                await self._store.publish(cache.uid, unsure(cache, kept.told, because), kept.lease)
        except CachekeepError:
            log.debug("%s: nor can that be told", kept.lease.uid, exc_info=True)

    async def _passes(self, kept: _Kept) -> None:
        said = _Said()
        waited_for: Wait | None = None
        pause = 0.0
        while True:
            kept.woken.clear()
            kept.hear({*kept.alarms})
            cache = await self._load(kept)
            if cache is None:
                return
            looked_at = self._clock.moment()
            view = await self._observer.look(cache)
            kept.hear({name for name, seen in view.nodes.items() if seen.process in ENDED})
            self._watch(cache, view)
            before = cache.version
            cache, step = await self._think(cache, view, looked_at, kept)
            if step is None:
                continue  # what was seen is old by now
            if isinstance(step, Wait) and cache.version != before:
                continue  # what was just decided has not been looked at yet
            if isinstance(step, Forget):
                await self._forget(cache, step, kept.lease)
                return
            if said.adds(step):
                self._narrate(cache, step)
            if isinstance(step, Act) and self._ours(kept) is None:
                await self._rest(kept, LONGEST_POLL_SECONDS)  # until the lease is renewed, or lost for good
            elif isinstance(step, Act):
                waited_for = None
                acting = self._hands.begin(cache, step, decided=lambda: self._ours(kept), ended=kept.woken.set)
                await self._usually(acting, kept)
                if not kept.alarmed.is_set():  # whoever fails is not kept waiting, nor is what has been begun
                    await self._publish(cache, view, step, kept)
            elif isinstance(step, Wait):
                pause = step.seconds if step.steady or not alike(step, waited_for) else _longer(pause, step.seconds)
                waited_for = step
                self._observer.has_to_wait(cache.uid, step)
                await self._publish(cache, view, step, kept)
                await self._rest(kept, pause)

    async def _load(self, kept: _Kept) -> Cache | None:
        cache = await self._store.load(kept.lease.uid)
        if cache is not None and cache.decided.serial != kept.sound:
            invariants.demand(cache.name, cache.decided)
            kept.sound = cache.decided.serial
        kept.decided = cache.decided if cache is not None else None
        return cache

    async def _think(self, cache: Cache, view: View, looked_at: Moment, kept: _Kept) -> tuple[Cache, Step | None]:
        """Save decisions until there is something to do or to wait for: thinking again needs no new look, unless the last one was
        long ago (None): we may have been halted since, or have waited for the store, and whoever hung may have gone on."""
        for _ in range(MOST_DECISIONS):
            if (elapsed(looked_at, self._clock.moment()) or 0.0) > VIEW_SECONDS:
                return cache, None
            step = plan(cache, view, self._clock.now(), self._clock.moment(), self._policy)
            if not isinstance(step, Decide):
                return cache, step
            self._narrate(cache, step)
            invariants.demand(cache.name, step.decided)
            new = replace(cache, decided=step.decided)
            cache = await self._store.save_decided(
                new, kept.lease, Along(events=step.events, records=step.records, addresses=addresses_used(step.decided))
            )
            kept.decided = cache.decided
        raise CachekeepError(f"{cache.name}: {MOST_DECISIONS} decisions in a row led nowhere, the last one: {step.because}")

    async def _forget(self, cache: Cache, step: Forget, lease: Lease) -> None:
        self._narrate(cache, step)
        await self._store.forget(cache, lease, events=step.events)
        for node in cache.decided.everyone:
            self._link.unwatch((cache.uid, node.name))
        self._observer.forget(cache)

    async def _usually(self, acting: asyncio.Task[None], kept: _Kept) -> None:
        """Wait for the end of an act as long as acts usually take. Who fails meanwhile is not kept waiting."""
        alarm = asyncio.create_task(kept.alarmed.wait())
        try:
            await asyncio.wait({acting, alarm}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()

    async def _rest(self, kept: _Kept, seconds: float) -> None:
        """Until there is news, what failed may be tried again, or ``seconds`` have passed."""
        again = self._observer.flights.rest_seconds(kept.lease.uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if again is None else min(seconds, again)):
                await kept.woken.wait()

    async def _publish(self, cache: Cache, view: View, step: Step, kept: _Kept) -> None:
        """Tell the API side how the cache is."""
        kept.told = condition(Situation(cache, view, self._clock.now(), self._clock.moment(), self._policy), step)
        now = self._clock.monotonic()
        if kept.published is not None:
            before, told, told_at = kept.published
            same = alike(step, before) and told.without_figures() == kept.told.without_figures()
            if same and now - told_at < FIGURES_SECONDS:
                return
        await self._store.publish(cache.uid, kept.told, kept.lease)
        kept.published = (step, kept.told, now)

    def _watch(self, cache: Cache, view: View) -> None:
        """Heartbeats for what runs: quick for a primary whose failover may follow, calm for the rest, of which there is more."""
        leads = {shard.primary for shard in cache.decided.shards} if cache.wanted.automatic_failover else set()
        for node in cache.decided.everyone:
            if view.node(node.name).process == "running" and not node.leaving:
                self._link.watch(
                    self._observer.target(cache, node),
                    interval_seconds=HEARTBEAT_SECONDS if node.name in leads else CALM_HEARTBEAT_SECONDS,
                    deadline_seconds=HEARTBEAT_DEADLINE_SECONDS,
                    wake=self._alarmed,
                )
            else:
                self._link.unwatch((cache.uid, node.name))

    def _narrate(self, cache: Cache, step: Step) -> None:
        log.info("%s: %s: %s", cache.name, type(step).__name__.lower(), step.because)


def _longer(pause: float, seconds: float) -> float:
    """The pause before something is looked at again that was waited for already."""
    return min(pause * 1.5, max(LONGEST_POLL_SECONDS, seconds))
