"""The doors through which keepers see and touch the simulated world: Driver and Link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from cachekeep.compute.contract import (
    ApplyParts,
    CarriedBy,
    File,
    Kept,
    Key,
    LinkEffect,
    ProcessSeen,
    ProcessSpec,
    PublishDiscovery,
    Target,
    Targets,
)
from cachekeep.errors import OrderFailed
from cachekeep.model import (
    Admit,
    Bind,
    Detach,
    Digests,
    Excuse,
    Follow,
    HandOver,
    Heard,
    Interrupt,
    Limits,
    LimitsSeen,
    Moment,
    NodeView,
    Promote,
    ReplicaSeen,
    Silence,
    Stream,
    Witness,
    recalled,
)
from cachekeep.model.limits import RESOURCES
from cachekeep.sim.world import NOBODY, Engine, World

PLENTY = Limits(memory_bytes=1 << 50, cpus=1024.0, open_files=1 << 20)
"""What a simulated machine has."""


class SimDriver:
    """The world's processes behind the ``Driver`` door. One that is not open hears of no deaths."""

    def __init__(self, world: World, *, start_deadline_seconds: float = 10.0) -> None:
        self._world, self._start_deadline_seconds = world, start_deadline_seconds
        self._callbacks: list[Callable[[Key], None]] = []

    async def open(self) -> None:
        """Be there, as a control plane that runs is."""
        self._world.witnesses.append(self._died)

    def capacity(self) -> Limits:
        return PLENTY

    def known(self) -> list[Key]:
        return list(self._world.processes)

    async def start(self, spec: ProcessSpec) -> None:
        world, name = self._world, spec.key[1]
        await asyncio.sleep(0.01 + 0.02 * world.random.random())
        await world.progress(spec.key)
        if spec.key in world.unstartable:
            raise OrderFailed(f"{spec.key[1]}: not started: {spec.address}:{spec.port}: Address already in use")
        there = world.processes.get(spec.key)
        if there is not None and there.alive:
            if there.spec.incarnation != spec.incarnation:
                raise OrderFailed(f"{name}: incarnation {there.spec.incarnation} is alive; it must be confirmed stopped first")
            if there.frozen:
                await asyncio.sleep(self._start_deadline_seconds)
                if not there.works:
                    raise OrderFailed(f"{name} is there but does not accept connections")
            return
        if there is not None and there.spec.incarnation > spec.incarnation:
            raise OrderFailed(f"{name}: incarnation {spec.incarnation} is older than the last, {there.spec.incarnation}")
        if world.at(spec.address) is not None:
            raise OrderFailed(f"{name}: not started: Address already in use ({spec.address})")
        holds = self._kept(spec)
        self._needs_disk(spec.key)
        world.born += 1
        engine = Engine(
            spec,
            world.orders.get(spec.key, 0),
            pid=world.born,
            digests=spec.digests,
            lineage=Stream(world.new_history(), 0),
        )
        engine.heed(spec.settings)
        engine.writes = holds
        engine.limits = spec.limits
        engine.bound = {spec.address}
        world.processes[spec.key] = engine
        world.heard.pop(spec.key, None)
        world.ended.pop(spec.key, None)
        world.lead_orders[spec.key] = 0
        world.orders[spec.key] = max(world.orders.get(spec.key, 0), spec.order)
        if world.unfit(spec):
            engine.alive, engine.bound, engine.problem = False, set(), "exited with code 1"
            raise OrderFailed(f"{name}: {engine.problem}")

    async def stop(self, key: Key, *, grace_seconds: float, decision: int | None = None) -> None:
        await asyncio.sleep(0.002)
        await self._world.progress(key)
        if self._world.remote and key in self._world.cut:
            raise OrderFailed(f"{key[1]} cannot be confirmed stopped: its host does not answer")
        there = self._world.processes.get(key)
        if there is not None and decision is not None and (by := there.spec.decision) > decision:
            raise OrderFailed(f"{key[1]} was started by decision {by}; its end was decided before that, by {decision}")
        self._world.kill(key, by_order=True)

    async def erase(self, key: Key, *, decision: int | None = None) -> None:
        await self.stop(key, grace_seconds=0, decision=decision)
        self._world.processes.pop(key, None)
        for memory in (self._world.orders, self._world.lead_orders, self._world.heard, self._world.ended):
            memory.pop(key, None)

    async def look(self, keys: Iterable[Key]) -> dict[Key, ProcessSeen]:
        return {key: self._look(key) for key in keys}

    def _look(self, key: Key) -> ProcessSeen:
        engine = self._world.processes.get(key)
        if engine is None:
            return ProcessSeen(process="absent")
        state = "frozen" if engine.frozen else "running" if engine.alive else "exited"
        return ProcessSeen(
            process=state,  # type: ignore[arg-type]
            incarnation=engine.spec.incarnation,
            decision=engine.spec.decision,
            pid=engine.pid if engine.alive else None,
            program=engine.spec.argv[0],
            problem=engine.problem,
            limits=LimitsSeen(held=engine.limits, most=PLENTY, resident_bytes=0) if engine.alive else None,
            digests=engine.digests,
            last_order=self._world.orders.get(key, 0),
            lead_order=self._world.lead_orders.get(key, 0),
            heard=self._world.heard.get(key, ()),
            ended_at=None if engine.alive else self._world.ended.get(key),
        )

    async def rewrite(self, key: Key, files: Mapping[str, File], *, digests: Digests) -> None:
        await self._world.progress(key)
        if (engine := self._world.processes.get(key)) is None:
            raise OrderFailed(f"{key[1]}: was never started, so there is nothing to rewrite")
        self._needs_disk(key)
        engine.digests = {**engine.digests, **digests}

    async def limit(self, key: Key, limits: Limits) -> None:
        await asyncio.sleep(0.001)
        engine = self._world.processes.get(key)
        if engine is None or not engine.alive:
            raise OrderFailed(f"{key[1]}: does not run, so there is nothing to limit")
        if self._world.random.random() < self._world.flaky:
            raise OrderFailed(f"{key[1]}: more than that is in use")
        held = {name: value for name in RESOURCES if (value := getattr(limits, name)) is not None}
        engine.limits = replace(engine.limits, **held)

    def _kept(self, spec: ProcessSpec) -> list[int]:
        """What it is to start from."""
        held: list[int] = []
        for file in spec.files.values():
            if isinstance(file.content, Kept):
                if (found := self._world.kept.get(file.content.name)) is None:
                    raise OrderFailed(f"{spec.key[1]}: not started: No such file or directory ({file.content.name})")
                held += found
        return held

    def _needs_disk(self, key: Key) -> None:
        if key in self._world.full:
            raise OrderFailed(f"{key[1]}: No space left on device")

    async def admit(self, key: Key, order: int, *, leading: bool = False) -> bool:
        if key not in self._world.processes:
            raise OrderFailed(f"{key[1]}: was never started, so it takes no orders")
        if order < self._world.orders.get(key, 0):
            return False
        leads = order if leading else self._world.lead_orders.get(key, 0)
        if (order, leads) != (self._world.orders.get(key, 0), self._world.lead_orders.get(key, 0)):
            self._needs_disk(key)
        self._world.orders[key] = order
        if leading:
            self._world.lead_orders[key] = order
        return True

    def remember(self, key: Key, heard: Heard) -> None:
        if key in self._world.processes:
            self._world.heard[key] = recalled(heard, self._world.heard.get(key, ()))

    def on_death(self, callback: Callable[[Key], None]) -> None:
        self._callbacks.append(callback)

    def _died(self, key: Key) -> None:
        for callback in self._callbacks:
            with contextlib.suppress(Exception):
                callback(key)

    async def aclose(self) -> None:
        if self._died in self._world.witnesses:
            self._world.witnesses.remove(self._died)


class SimLink:
    """The world's engines behind the ``Link`` door. With ``World.flaky`` an order may arrive late, twice, or unconfirmed."""

    def __init__(self, world: World, keeper: str = "keeper") -> None:
        self._world, self._keeper = world, keeper
        self._memory = SimDriver(world)
        self._watched: dict[Key, asyncio.Task[None]] = {}
        self.carried_by: CarriedBy = {
            Promote: self.promote,
            Follow: self.follow,
            HandOver: self.hand_over,
            Witness: self.witness,
            Admit: self.admit,
            Interrupt: self.interrupt,
            Detach: self.detach,
            Bind: self.bind,
            ApplyParts: self.apply_parts,
            PublishDiscovery: self.publish_discovery,
        }

    async def carry(self, effect: LinkEffect, at: Targets) -> None:
        await self.carried_by[type(effect)](effect, at)

    def _engine(self, target: Target) -> Engine | None:
        if target.key in self._world.cut or self._keeper in self._world.blind:
            return None
        if self._world.severed and frozenset((self._keeper, target.key)) in self._world.severed:
            return None
        engine = self._world.processes.get(target.key)
        return engine if engine is not None and engine.alive else None

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        engine, asked_at = self._engine(target), self._world.moment()
        if engine is None or (not engine.works and engine.excuse is None):
            await asyncio.sleep(deadline_seconds)
            return NodeView(answer=Silence(reachable=engine is not None))
        seen, held = await self._world.elsewhere(self._answered(engine))
        if seen.answering:
            self._hear(engine, held, asked_at)
        return seen

    async def _answered(self, engine: Engine) -> tuple[NodeView, Stream | None]:
        """What is in our socket a moment later, whenever we read it."""
        await asyncio.sleep(0.001)
        if self._world.on_answer is not None:
            self._world.on_answer()
        return self._seen(engine), engine.stream

    def _seen(self, engine: Engine) -> NodeView:
        """What it answers now."""
        if engine.excuse is not None:
            return NodeView(answer=Excuse(engine.excuse))
        if not engine.works:
            return NodeView(answer=Silence(reachable=True))
        replicas = tuple(
            ReplicaSeen(e.spec.address, e.spec.port, e.online, len(e.writes), self._lag_seconds(engine, e))
            for e in self._world.processes.values()
            if e.alive and e.follows == engine.spec.address and e.role == "replica" and (e.linked or e.online)
        )
        primary = engine.role == "primary"
        following = not primary and engine.follows != NOBODY
        return NodeView(
            answer="complete",
            role="primary" if primary else "replica",
            follows=engine.follows if following else None,
            link_up=engine.linked if following else None,
            reaches=self._reaches(engine) if following else None,
            offset=len(engine.writes),
            stream=engine.stream,
            has_history=engine.history,
            replicas=replicas if primary else (),
            bound=frozenset(engine.bound),
            used_bytes=0,
            clients=0,
            settings={"maxmemory": str(engine.maxmemory)},
            discovery_version=engine.discovery,
        )

    def _lag_seconds(self, primary: Engine, replica: Engine) -> int:
        return int(self._world.now - primary.acknowledged_at.get(replica.spec.key, self._world.now))

    def _hear(self, engine: Engine, held: Stream | None, asked_at: Moment) -> None:
        """What it said that it held, unless another process has taken its place since."""
        if held is not None and self._world.processes.get(engine.spec.key) is engine:
            self._memory.remember(engine.spec.key, Heard(asked_at, held))

    def _reaches(self, replica: Engine) -> bool | None:
        """By its own word while it is linked; else whether the primary's host takes its connection,
        as one with a frozen engine does."""
        primary = self._world.at(replica.follows)
        return True if replica.linked else None if primary is None else self._world.peers(replica, primary)

    def _reached(self, target: Target, *, held_back: bool = False) -> Engine:
        """Who takes an order. ``held_back``: also one that carries it out when a pause is over."""
        engine = self._engine(target)
        if engine is None or not engine.works:
            raise OrderFailed(f"{target.key[1]} does not answer")
        if engine.loading:
            raise OrderFailed(f"{target.key[1]} answers with an error: it is loading")
        if engine.trouble is not None and not (held_back and engine.trouble == "paused"):
            raise OrderFailed(f"{target.key[1]} answers with an error: it is {engine.trouble}")
        return engine

    async def witness(self, effect: Witness, at: Targets) -> None:
        await asyncio.sleep(0.001)
        engine = self._reached(at[effect.node])
        if engine.role == "replica":
            engine.linked = engine.online = False
        for _ in range(20):
            if engine.linked:
                return
            await asyncio.sleep(0.01)

    async def order(self, target: Target, order: int, do: Callable[[Engine], None], *, leading: bool = False) -> None:
        """Deliver an order: now, or late, or twice; refused by a node that has seen a later one."""
        world = self._world

        async def deliver() -> None:
            engine = self._reached(target, held_back=True)
            if not await self._memory.admit(target.key, order, leading=leading):
                raise OrderFailed(f"{target.key[1]} has seen a later order than {order}")
            if engine.trouble == "paused":
                engine.held_back.append((self._keeper, do))
                raise OrderFailed(f"{target.key[1]} did not confirm in time")
            do(engine)

        async def late() -> None:
            await asyncio.sleep(world.random.random() * 3)
            try:
                await deliver()
            except OrderFailed:
                return

        await asyncio.sleep(0.001)
        if world.random.random() < world.flaky:
            world.spawn(late())
            if world.random.random() < 0.5:
                raise OrderFailed(f"{target.key[1]} did not confirm in time")
        await deliver()

    async def promote(self, effect: Promote, at: Targets) -> None:
        asked_at = self._world.moment()

        def do(engine: Engine) -> None:
            self._world.promoted(at[effect.node].key)
            engine.lead(self._world.new_history())
            self._hear(engine, engine.stream, asked_at)
            self._bind(engine, effect.addresses)

        await self.order(at[effect.node], effect.order, do, leading=True)
        await self._survive()

    async def _survive(self) -> None:
        """Who has let a node lead may die of it."""
        if self._world.fatal_promotions:
            self._world.die_of_promotion()
            await asyncio.sleep(0.001)

    async def follow(self, effect: Follow | Admit, at: Targets) -> None:
        primary = at[effect.primary]

        def do(engine: Engine) -> None:
            if engine.follows != primary.address:
                self._world.follow(engine, primary.address)

        await self.order(at[effect.node], effect.order, do)

    async def hand_over(self, effect: HandOver, at: Targets) -> None:
        giver, taker, order = at[effect.giver], at[effect.taker], effect.order
        if not await self._memory.admit(giver.key, order) or not await self._memory.admit(taker.key, order):
            raise OrderFailed(f"{giver.key[1]} or {taker.key[1]} has seen a later order than {order}")
        give, take = self._reached(giver), self._reached(taker)
        if give.role == "replica" and take.role == "primary":  # only the rest is to be done
            self._bind(give, effect.giver_addresses)
            self._bind(take, effect.taker_addresses)
            if give.follows != taker.address:
                self._world.follow(give, taker.address)
            return
        if give.role != "primary":
            raise OrderFailed(f"{giver.key[1]} does not lead, so it cannot hand over")
        self._world.handed(taker.key)
        if take.follows != give.spec.address or not take.linked:
            raise OrderFailed(f"{taker.key[1]} does not follow {giver.key[1]}, so it cannot take over")
        loop = asyncio.get_running_loop()
        until = loop.time() + effect.timeout_seconds
        give.paused_until = self._world.wall + effect.timeout_seconds
        while len(take.writes) < len(give.writes):  # offsets: all that the engines can be asked for
            await asyncio.sleep(0.002)
            if loop.time() > until - 0.1 or not give.answers or not take.answers or take.follows != give.spec.address:
                give.paused_until = 0.0
                raise OrderFailed("the taker did not catch up in time")
        self._bind(give, effect.giver_addresses)
        self._world.follow(give, taker.address)
        asked_at = self._world.moment()
        if self._world.random.random() < self._world.flaky:
            raise OrderFailed("the connection broke in the middle of a hand-over")
        await self._memory.admit(taker.key, order, leading=True)
        take.lead(self._world.new_history())
        self._hear(take, take.stream, asked_at)
        give.paused_until = 0.0
        self._bind(take, effect.taker_addresses)
        await self._survive()

    def _bind(self, engine: Engine, addresses: tuple[str, ...]) -> None:
        for address in addresses:
            holder = self._world.at(address)
            if holder is not None and holder is not engine and not (self._world.remote and holder.spec.key in self._world.cut):
                raise OrderFailed(f"{engine.spec.key[1]}: {address} is in use by {holder.spec.key[1]}")
        engine.bound = set(addresses)

    async def bind(self, effect: Bind, at: Targets) -> None:
        target = at[effect.node]
        await self.order(target, self._world.orders.get(target.key, 0), lambda e: self._bind(e, effect.addresses))
        if effect.drop_clients:
            await asyncio.sleep(0.001)

    async def apply_parts(self, effect: ApplyParts, at: Targets) -> None:
        await asyncio.sleep(0.001)
        engine = self._reached(at[effect.node])
        if unknown := [name for name in effect.settings if self._world.unknown(name)]:
            raise OrderFailed(f"{effect.node}: Unknown option {unknown[0]}")
        engine.heed(effect.settings)

    async def admit(self, effect: Admit, at: Targets) -> None:
        await self.follow(effect, at)

    async def interrupt(self, effect: Interrupt, at: Targets) -> None:
        await asyncio.sleep(0.001)
        engine = self._engine(at[effect.node])
        if engine is None or engine.excuse != "busy":
            raise OrderFailed(f"{effect.node} does not answer, or is not busy")
        if engine.trouble == "busy":
            engine.trouble = None
        engine.interrupted = True

    async def detach(self, effect: Detach, at: Targets) -> None:
        def do(engine: Engine) -> None:
            engine.role, engine.follows, engine.linked, engine.online = "replica", NOBODY, False, False
            engine.link_epoch += 1

        await self.order(at[effect.node], effect.order, do)

    async def publish_discovery(self, effect: PublishDiscovery, at: Targets) -> None:
        if engine := self._engine(at[effect.node]):
            engine.discovery = int(effect.payload.split("\n", 1)[0])

    def watch(self, target: Target, *, interval_seconds: float, deadline_seconds: float, wake: Callable[[Key], None]) -> None:
        if target.key not in self._watched:
            self._watched[target.key] = asyncio.get_running_loop().create_task(self._beat(target, interval_seconds, wake))

    async def _beat(self, target: Target, interval_seconds: float, wake: Callable[[Key], None]) -> None:
        last: object = None
        while True:
            await asyncio.sleep(interval_seconds)
            engine, asked_at = self._engine(target), self._world.moment()
            if engine:
                seen, held = await self._world.elsewhere(self._answered(engine))
                if seen.answering:
                    self._hear(engine, held, asked_at)
            engine = self._engine(target)
            state = engine and engine.answers and (engine.role, engine.linked, self._fed_by(engine))
            if not state or state != last:
                wake(target.key)
            last = state

    def _fed_by(self, engine: Engine) -> list[Key]:
        """Its replicas that are online, by its own word."""
        address = engine.spec.address
        return sorted(e.spec.key for e in self._world.processes.values() if e.alive and e.online and e.follows == address)

    def unwatch(self, key: Key) -> None:
        if task := self._watched.pop(key, None):
            task.cancel()

    async def aclose(self) -> None:
        for key in list(self._watched):
            self.unwatch(key)
        for engine in self._world.processes.values():
            engine.held_back = [(keeper, do) for keeper, do in engine.held_back if keeper != self._keeper]
