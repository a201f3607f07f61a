"""One seeded run: create a group, let clients write, do harm, stop doing harm, and see that everything comes right again.

First safety while the faults last, then liveness when they have stopped. The seed is in every failure line.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from msgspec.structs import replace

from cachekeep.compute.contract import Key, Places, ProcessSpec
from cachekeep.control import Hands, Keeper, Observer
from cachekeep.engines.limits import limits
from cachekeep.engines.runtime import runtime
from cachekeep.model import Cache, Errand, Node
from cachekeep.network.addresses import Pool
from cachekeep.plan import Policy
from cachekeep.plan.lead.starve import STARVING_SECONDS
from cachekeep.sim import excuses, promises
from cachekeep.sim.doors import SimDriver, SimLink
from cachekeep.sim.faults import AILS, Fault, Strike, known
from cachekeep.sim.fronts import SimFronts
from cachekeep.sim.hosts import Hosts
from cachekeep.sim.jobs import SimJobs, Tasks
from cachekeep.sim.scenario import CreationViolation, LivenessViolation, Report, SafetyViolation, Scenario, Violation
from cachekeep.sim.store import Stores, WatchedStore, WitnessedStore
from cachekeep.sim.timeless import run
from cachekeep.sim.users import SEALING, UID, Users, group
from cachekeep.sim.world import World
from cachekeep.store.contract import Lease

CALM_SECONDS, WRITE_SECONDS = 60.0, 0.02
LINGER_SECONDS = 2.0
SPARED_SECONDS = 1.0
"""Who has said for so long that he is alive has been heard by everybody who may decide about him."""


class Run(Users):
    """One scenario in one world."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.random = random.Random(scenario.seed)
        self.world = self._world(scenario.seed)
        self.tasks, self.tasks_go_on = Tasks(self.world), False
        self.hosts = Hosts(self.world, random.Random(scenario.seed + 1))
        self.clock = self.hosts.clock("store")
        self.places: Places = Pool("127.77.0.0/16")
        self.report = Report(scenario.seed)
        self.store = WitnessedStore(self.clock, self._saved)
        self.stores = Stores(self.store, self.hosts, alone=not scenario.two_keepers, chance=self.random, seed=scenario.seed)
        self.cache: Cache | None = None
        self.decider = ""
        """The keeper that has decided last."""
        self.acknowledged: list[int] = []
        self.keepers: list[asyncio.Task[None]] = []
        self.world.decided = self._decided
        self.world.seen, self.world.attended = self.hosts.awake, self.hosts.attended
        self.world.die_of_promotion = lambda: self.world.spawn(self._die_of_promotion())
        self.away = 0
        """So many things keep all keepers away."""
        self.broken: Violation | None = None
        self.created = False
        """It has been as it should be."""
        self.consents: set[str] = set()
        """Shards for which the user has accepted a loss, and it has not been used yet."""
        self.excused_since: dict[Key, float] = {}
        self.lasting: list[Callable[[], None]] = []
        """What ends the faults that have not ended."""
        self.world.promoted = lambda key: self._kept(promises.empty_lead(self.world, self.cache, key) if self.cache else None)
        self.world.handed = lambda key: self._kept(promises.moved_out_of_sync(self.cache, key) if self.cache else None)
        self.world.remote = scenario.fence == "starve"

    def _world(self, seed: int) -> World:
        return World(seed)

    # -- safety

    async def _saved(self, saved: Cache, lease: Lease) -> None:
        """Decisions have one order, wherever each is kept; each is looked at once."""
        self.decider = lease.holder.rpartition("-")[0]
        row, before = await self.store.load(saved.uid), self.cache
        after = replace(saved, wanted=row.wanted) if row is not None else saved
        if before is None or before.decided.serial < after.decided.serial:
            self._check(before or after, after)
        elif before.decided.serial == after.decided.serial and before.decided != after.decided:
            self._broken(f"decision {after.decided.serial} was made twice: {before.decided} and {after.decided}")

    def _check(self, before: Cache, after: Cache) -> None:
        """A primary is replaced only by one that has all that was acknowledged but for what was on its way, by one that a hand-over
        caught up, or with the user's consent."""
        self.cache = after
        self._spared(before, after)
        self._note_consent(before, after)
        for what in promises.broken(self.world, before, after):
            self._broken(what)
        for shard in after.decided.shards:
            old = before.shard(shard.id)
            if old is None or old.primary in (None, shard.primary) or shard.primary is None:
                continue
            self.report.failovers += 1
            if shard.order < old.order:
                self._broken(f"order went back from {old.order} to {shard.order}")
            if not any(e.alive and e.history for e in self.world.processes.values()):
                continue  # there is nothing to lose
            if shard.primary == old.moving_to:
                continue
            if self.world.remote:
                self.world.note_losses((UID, old.primary or ""))
            self.world.lossable |= excuses.lossable(self.world, after, self.decider)
            engine = self.world.processes.get((UID, shard.primary))
            if engine is not None and (lost := set(self.acknowledged) - set(engine.writes) - self.world.lossable):
                self._broken(f"{shard.primary} was promoted without {len(lost)} acknowledged writes: {sorted(lost)[:5]}")

    def _kept(self, what: str | None) -> None:
        if what is not None:
            self._broken(what)

    def _note_consent(self, before: Cache, after: Cache) -> None:
        """The user's word is good for one promotion, and nobody's else is. To restart or to succeed a primary that hangs is such a
        word, too."""
        begun = [j.work for j in after.decided.jobs if before.decided.job(j.id) is None]
        heard = any(isinstance(work, Errand) and work.kind != "rebalance" for work in begun)
        for shard in after.decided.shards:
            old = before.shard(shard.id)
            if shard.accept_stale and (old is None or not old.accept_stale):
                if not heard:
                    self._broken(f"a loss in shard {shard.id} counts as accepted, and nobody has accepted it")
                self.consents.add(shard.id)
            if shard.id in self.consents and (not shard.accept_stale or (old and old.primary != shard.primary)):
                self.consents.discard(shard.id)
                self.world.lossable |= set(self.acknowledged)

    def _spared(self, before: Cache, after: Cache) -> None:
        """Whoever says why he does not work is alive: nobody stops such a primary unless the user asked for that."""
        for shard in before.decided.shards:
            old, new = before.node(shard.primary or ""), after.node(shard.primary or "")
            if old is None or new is None or old.condemned or not new.condemned or new.due or shard.moving_to:
                continue
            if self.clock.monotonic() - self.excused_since.get((UID, new.name), math.inf) > SPARED_SECONDS:
                self._broken(f"{new.name} is to be stopped, and says all the while that it is alive")

    async def _hear_excuses(self) -> None:
        """Since when each engine says why it does not work, to all who ask."""
        while True:
            for key, engine in self.world.processes.items():
                if engine.excuse is None or not self.world.within_reach(key):
                    self.excused_since.pop(key, None)
                else:
                    self.excused_since.setdefault(key, self.clock.monotonic())
            await asyncio.sleep(WRITE_SECONDS)

    def _decided(self) -> set[Key]:
        """Whoever is being stopped is as good as gone: what only it holds is lost with the others, and so it is said."""
        return {(UID, n.name) for n in self.cache.decided.nodes if not n.condemned} if self.cache else set()

    def _broken(self, what: str, kind: type[Violation] = SafetyViolation) -> NoReturn:
        """Remembered as well as raised: whoever hears it first may be a keeper, which survives anything."""
        if not self.created:
            kind = CreationViolation
        self.broken = self.broken or kind(f"{self.scenario} at {self.clock.monotonic():.3f} s: {what}")
        raise self.broken

    def _one_writer(self) -> None:
        """Never two writable primaries at one endpoint; never two processes of one node."""
        self.world.note_leaders()
        bound: dict[str, str] = {}
        for (_, name), engine in self.world.processes.items():
            if engine.alive and engine.role == "primary" and not self.world.lacks_replicas(engine):
                for address in engine.bound - {engine.spec.address}:
                    if address in bound:
                        self._broken(f"{name} and {bound[address]} are both primaries at {address}")
                    bound[address] = name

    # -- clients

    async def _write(self) -> None:
        """Write at the primary endpoint for ever; remember what was acknowledged."""
        id = 0
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._one_writer()
            endpoint = self.cache.decided.shards[0].primary_address if self.cache and self.cache.decided.shards else None
            id += 1
            if endpoint and self.world.write(endpoint, id):
                self.acknowledged.append(id)
            if endpoint and self.world.remote:
                id += 1
                self._write_inside(endpoint, id)

    def _write_inside(self, endpoint: str, id: int) -> None:
        """The clients of a host that is cut off reach the primary there, if it is there: never beside another that takes writes."""
        leaders = [e for e in self.world.processes.values() if e.works and e.role == "primary" and endpoint in e.bound]
        for engine in leaders:
            if engine.spec.key in self.world.cut and self.world.take(engine, id):
                self.acknowledged.append(id)
                if any(e is not engine and not self.world.lacks_replicas(e) for e in leaders):
                    self._broken(f"{engine.spec.key[1]} takes writes where it is cut off, and another leads already")

    # -- control planes

    def _keeper(self, name: str) -> asyncio.Task[None]:
        clock = self.hosts.clock(name)
        driver, link = self._doors(name)
        fronts = SimFronts(self.world)
        store = self.stores.of(name) if AILS in self.scenario.vocabulary else self.store
        jobs = SimJobs(self.tasks, outlives=self.tasks_go_on)
        knows = partial(Observer, clock=clock, places=self.places, password_of=SEALING.password_of)
        observer = knows(store=store, driver=driver, link=link, fronts=fronts, jobs=jobs)
        hands = self._hands(driver=driver, link=link, fronts=fronts, specs=self._spec, observer=observer)
        keeper = Keeper(
            store=store,
            driver=driver,
            link=link,
            observer=observer,
            hands=hands,
            clock=clock,
            holder=f"{name}-{clock.new_id()}",
            policy=Policy(
                silence_seconds=2.0,
                script_seconds=3.0,
                replica_seconds=2.0,
                linger_seconds=LINGER_SECONDS,
                fence=self.scenario.fence,
            ),
            lease_seconds=self.scenario.lease_seconds,
        )

        async def live() -> None:
            await driver.open()
            try:
                if isinstance(store, WatchedStore):
                    await self.stores.open(name)
                await keeper.run()
            finally:
                await driver.aclose()
                if isinstance(store, WatchedStore):
                    store.kill()
                await link.aclose()

        return self.hosts.run(name, live())

    def _doors(self, keeper: str) -> tuple[SimDriver, SimLink]:
        return SimDriver(self.world), SimLink(self.world, keeper)

    def _spec(self, cache: Cache, node: Node) -> ProcessSpec:
        """A node of the simulated world needs no installed engine: its name and its address are all."""
        with_what = runtime(cache, node)
        return ProcessSpec(
            key=(cache.uid, node.name),
            incarnation=node.incarnation,
            argv=(node.engine, node.version),
            address=node.address,
            port=node.port,
            digests=with_what.digests,
            limits=with_what.limits,
            settings=with_what.settings,
            order=shard.order if (shard := cache.shard(node.shard)) is not None else 0,
        )

    def _hands(self, **parts: Any) -> Hands:
        """A seam for tests that want worse hands."""
        return Hands(**parts)

    async def _restart_keeper(self, which: int) -> None:
        """kill -9: no release, no goodbye. A new one comes up a moment later."""
        await self.hosts.kill(f"keeper{which}")
        await asyncio.sleep(self.random.random())
        self._begin(which)

    def _begin(self, which: int) -> None:
        """Unless it is there, or something keeps it away."""
        if self.keepers[which].done() and not self.away:
            self.keepers[which] = self._keeper(f"keeper{which}")

    async def boot(self) -> None:
        """The control planes' host goes down and comes up."""
        await self.hosts.kill()
        self.world.boot()
        await asyncio.sleep(self.random.random())
        for which in range(len(self.keepers)):
            self._begin(which)

    # -- the run

    async def main(self) -> Report:
        """Create, harm, calm, judge."""
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper0")]
        if self.scenario.two_keepers:
            self.keepers.append(self._keeper("keeper1"))
        await self._until(self._healthy, "creation")
        if self.scenario.compatible:
            await self._change(lambda wanted: replace(wanted, cluster_mode="compatible"))
        writer = asyncio.get_running_loop().create_task(self._write())
        self.world.spawn(self._hear_excuses())
        try:
            await self._harm(writer)
            await self._calm(writer)
        finally:
            for task in (writer, *self.keepers, *self.world.tasks):
                task.cancel()
            await asyncio.gather(writer, *self.keepers, return_exceptions=True)
        return self._judge()

    async def _create(self) -> None:
        cache = group(self.scenario.nodes, self.scenario.engine, created_at=self.clock.now())
        cache = replace(cache, wanted=replace(cache.wanted, automatic_failover=self.scenario.automatic_failover))
        async with self.store.transaction() as tx:
            await tx.insert(cache)
            tx.wake(UID)

    async def _harm(self, writer: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.scenario.harm_seconds
        self.world.flaky = self.scenario.flaky if self.scenario.faults else 0.0
        while loop.time() < end:
            await asyncio.sleep(self.random.random() * 2)
            if writer.done():
                writer.result()
            await self._one_harm()

    async def _one_harm(self) -> None:
        names = [n.name for n in self.cache.decided.nodes] if self.cache else []
        if not names:
            return
        key = (UID, self.random.choice(names))
        what: list[Callable[[], object]] = [functools.partial(self.strike, fault, key) for fault in known(self)]
        if self.scenario.moves:
            what += self._moves()
            if self.scenario.compatible:
                what.append(lambda: self.world.spawn(self._other_mode()))
        if what:
            self.random.choice(what)()

    def strike(self, fault: Fault, key: Key) -> None:
        """Let a fault happen; it ends by itself, or when faults stop."""
        keys = fault.struck(self, key)
        if fault.end is None:
            for k in keys:
                fault.begin(self, k)
        else:
            self.world.spawn(self._for_a_while(fault, fault.end, keys))

    async def _for_a_while(self, fault: Fault, end: Strike, keys: tuple[Key, ...]) -> None:
        def over() -> None:
            for k in keys:
                end(self, k)

        for k in keys:
            fault.begin(self, k)
        self.lasting.append(over)
        seconds = max(fault.seconds, STARVING_SECONDS * 4) if self.world.remote else fault.seconds
        try:
            await asyncio.sleep(self.random.random() * seconds)
        finally:
            if over in self.lasting:
                self.lasting.remove(over)
                over()

    def nodes(self) -> list[Key]:
        """All that are decided."""
        return [(UID, n.name) for n in self.cache.decided.nodes] if self.cache else []

    def primary(self) -> Key:
        """Who is decided to lead, or the first node."""
        return UID, self._primary() or self.nodes()[0][1]

    def dismiss(self) -> None:
        """kill -9 of all control planes, and none comes up."""
        self.away += 1
        self.world.spawn(self.hosts.kill())

    def recall(self) -> None:
        """They come up again, when everything is over that keeps them away."""
        self.away -= 1
        if not self.away:
            self.world.spawn(self._come_up())

    async def _come_up(self) -> None:
        await self.hosts.kill()
        for which in range(len(self.keepers)):
            self._begin(which)

    async def _die_of_promotion(self) -> None:
        """Its promotion has killed the keeper. The promoted one leads for a while, and may die of it, too."""
        self.dismiss()
        await asyncio.sleep(self.random.random() * 6)
        if self.random.random() < 0.5:
            self.world.kill(self.primary())
        self.recall()

    def restart_a_keeper(self) -> None:
        """kill -9 of a control plane."""
        self.world.spawn(self._restart_keeper(self.random.randrange(len(self.keepers))))

    def _primary(self) -> str | None:
        return self.cache.decided.shards[0].primary if self.cache and self.cache.decided.shards else None

    async def _calm(self, writer: asyncio.Task[None]) -> None:
        """Faults stop; where only stale data is left the user accepts the loss, as the refusal asks."""
        self.world.flaky = 0.0
        await asyncio.sleep(5.0)
        for over in (*self.lasting,):
            over()
        self.lasting.clear()
        for key in self.world.processes:
            self.world.thaw(key)
        consent = asyncio.get_running_loop().create_task(self._consent())
        try:
            await self._until(self._healthy, "recovery")
        finally:
            consent.cancel()
        if writer.done():
            writer.result()
        before = len(self.acknowledged)
        await self._until(lambda: len(self.acknowledged) > before, "writes")

    async def _until(self, met: Callable[[], bool], what: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + CALM_SECONDS
        while True:
            if self.world.outgrown:
                self._broken(self.world.outgrown)
            if self.broken:
                raise self.broken
            if met():
                self.created = True
                return
            if loop.time() > end:
                kind = CreationViolation if what == "creation" else LivenessViolation
                self._broken(f"no {what} within {CALM_SECONDS:.0f} s; {self._why()}", kind)
            await asyncio.sleep(0.05)

    def _why(self) -> str:
        state = {k[1]: (e.alive, e.frozen, e.role, e.follows, e.linked, e.online) for k, e in self.world.processes.items()}
        return f"decided {self.cache.decided if self.cache else None}; world {state}"

    def _healthy(self) -> bool:
        """Every wanted node runs and plays its part, endpoints included."""
        cache = self.cache
        if cache is None or cache.decided.available_at is None:
            return False
        shard = cache.decided.shards[0]
        if shard.moving_to or shard.lost or shard.preferred or any(n.due or not n.announced for n in cache.decided.nodes):
            return False
        names = set(cache.wanted_names())
        if names != {n.name for n in cache.decided.nodes} or shard.in_sync != names - {shard.primary}:
            return False
        if cache.cluster_mode != cache.wanted.cluster_mode or not self._configured(cache):
            return False
        leader = self.world.at(shard.primary_address or "")
        if leader is None or leader.spec.key != (UID, shard.primary) or leader.role != "primary":
            return False
        return all(n.node_type == cache.wanted.node_type and self._held(cache, n) for n in cache.decided.nodes)

    def _held(self, cache: Cache, node: Node) -> bool:
        """It works, and its process is held to what is decided for it."""
        engine = self.world.processes.get((UID, node.name))
        return engine is not None and engine.works and engine.limits == limits(cache, node)

    def _configured(self, cache: Cache) -> bool:
        """Who answers at the configuration endpoint is there exactly when it is meant to be."""
        engine = self.world.processes.get((UID, "configuration"))
        if cache.wanted.cluster_mode == "disabled":
            return engine is None and cache.decided.configuration_address is None
        return engine is not None and engine.works and engine.spec.address == cache.decided.configuration_address

    def _judge(self) -> Report:
        if self.broken or self.cache is None:
            raise self.broken or Violation("there is no cache")
        leader = self.world.processes[UID, self.cache.decided.shards[0].primary or ""]
        kept = set(leader.writes)
        missing = [w for w in self.acknowledged if w not in kept]
        unexcused = [w for w in missing if w not in self.world.lossable]
        if unexcused:
            self._broken(f"{len(unexcused)} acknowledged writes were lost that an in-sync node held: {unexcused[:5]}")
        if not self.scenario.faults and missing:
            self._broken(f"planned moves alone lost {len(missing)} acknowledged writes: {missing[:5]}")
        self.report.acknowledged, self.report.lost = len(self.acknowledged), len(missing)
        return self.report


def simulate(scenario: Scenario) -> Report:
    """Run a scenario in virtual time. Raises ``Violation`` with the seed."""
    return run(Run(scenario).main())
