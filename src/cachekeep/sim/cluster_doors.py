"""The doors to engines in cluster mode: what keepers start, see and order there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from cachekeep.compute.contract import ApplyParts, Key, ProcessSpec, Target, Targets
from cachekeep.engines.catalogue import capabilities_of
from cachekeep.errors import OrderFailed
from cachekeep.model import (
    ClusterSeen,
    Convert,
    Disown,
    Elect,
    Introduce,
    Meet,
    MoveSlots,
    NodeView,
    Own,
    Replicate,
    Settle,
    SlotRange,
    Swap,
)
from cachekeep.plan.slots.ranges import Ranges, common, expand, take, union, without
from cachekeep.sim.cluster import BAN_SECONDS, ClusterWorld
from cachekeep.sim.doors import SimDriver, SimLink
from cachekeep.sim.member import Member, Peer
from cachekeep.sim.world import NOBODY, Engine

BATCH_SLOTS = 256


class SimClusterDriver(SimDriver):
    """Starts processes that know what their files say."""

    def __init__(self, world: ClusterWorld) -> None:
        super().__init__(world)
        self._cluster = world

    async def start(self, spec: ProcessSpec) -> None:
        await super().start(spec)
        engine = self._cluster.processes[spec.key]
        if "nodes.conf" not in spec.files:
            return
        if (there := self._cluster.members.get(spec.key)) is None or there.engine is not engine:
            self._cluster.join(engine)

    async def stop(self, key: Key, *, grace_seconds: float, decision: int | None = None) -> None:
        self._cluster.by_order.add(key)
        try:
            await super().stop(key, grace_seconds=grace_seconds, decision=decision)
        finally:
            self._cluster.by_order.discard(key)

    async def erase(self, key: Key, *, decision: int | None = None) -> None:
        await super().erase(key, decision=decision)
        self._cluster.members.pop(key, None)


class SimClusteredLink(SimLink):
    """``Link`` to engines in cluster mode."""

    def __init__(self, world: ClusterWorld, keeper: str = "keeper") -> None:
        super().__init__(world, keeper)
        self._clustered = world
        orders = SimClusterOrders(world, self)
        self.carried_by |= {
            Convert: self.convert,
            Elect: orders.elect,
            Swap: orders.swap,
            Replicate: orders.replicate,
            Meet: orders.meet,
            Introduce: orders.introduce,
            Disown: orders.disown,
            Own: orders.own,
            Settle: orders.settle,
            MoveSlots: orders.move_slots,
        }

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        seen = await super().look(target, deadline_seconds=deadline_seconds)
        member = self._clustered.members.get(target.key)
        if not seen.answering or member is None:
            return seen
        return replace(
            seen,
            has_history=member.engine.history or bool(member.engine.writes) or bool(seen.replicas),
            cluster=ClusterSeen(
                id=member.id,
                ok=member.ok,
                epoch=member.epoch,
                slots=member.slots,
                inherits=member.owner.get(member.follows, ()) if not member.leads else (),
                migrating=dict(member.migrating),
                importing=dict(member.importing),
                knows=frozenset(member.peers) | {member.id},
                untold=frozenset(
                    id for id, p in member.peers.items() if p.follows and not (p.told and member.owner.get(p.follows))
                ),
                refused=member.refused,
            ),
        )

    async def apply_parts(self, effect: ApplyParts, at: Targets) -> None:
        await super().apply_parts(effect, at)
        settings = effect.settings
        if (member := self._clustered.members.get(at[effect.node].key)) and "cluster-node-timeout" in settings:
            member.timeout_seconds = float(settings["cluster-node-timeout"]) / 1000
            member.abstains = settings["cluster-replica-no-failover"] == "yes"

    async def convert(self, effect: Convert, at: Targets) -> None:
        world, giver, taker, order = self._clustered, at[effect.giver], at[effect.taker], effect.order
        give, takes = self._engine(giver), self.reached(taker)
        if give is None or not give.works:
            raise OrderFailed(f"{giver.key[1]} does not answer")
        moved = give.role != "primary" and takes.leads
        if not moved and (
            give.role != "primary" or takes.leads or takes.engine.follows != giver.address or not takes.engine.linked
        ):
            raise OrderFailed(f"{giver.key[1]} does not lead, or {taker.key[1]} does not follow it")
        await self.let_pass(order, giver)
        await self.let_pass(order, taker, leading=True)
        if moved:
            return
        until = world.now + effect.timeout_seconds
        give.paused_until = world.wall + effect.timeout_seconds
        while len(takes.engine.writes) < len(give.writes):
            await asyncio.sleep(0.002)
            if world.now > until - 0.1 or not give.works or not takes.engine.works or takes.engine.follows != giver.address:
                give.paused_until = 0.0
                raise OrderFailed("the taker did not catch up in time")
        if refused := self._has_refused(takes):
            give.paused_until = 0.0
            raise OrderFailed(f"{taker.key[1]} has refused {refused} commands")
        give.role, give.follows, give.link_epoch, give.paused_until = "replica", NOBODY, give.link_epoch + 1, 0.0
        self._bind(give, effect.giver_addresses)
        if world.random.random() < world.flaky:
            if world.random.random() < 0.5:
                world.spawn(self._take_late(takes, order))
            raise OrderFailed("the connection broke in the middle of a hand-over")
        self._take_all(takes)

    def _has_refused(self, takes: Member) -> int:
        return takes.refused

    async def _take_late(self, takes: Member, order: int) -> None:
        await asyncio.sleep(self._clustered.random.random() * 3)
        if takes.engine.works and await self._memory.admit(takes.engine.spec.key, order, leading=True):
            self._take_all(takes)

    def _take_all(self, takes: Member) -> None:
        if not takes.leads:
            self._clustered.seize(takes)

    def reached(self, target: Target) -> Member:
        """Raises OrderFailed where nobody answers."""
        engine = self._engine(target)
        member = self._clustered.members.get(target.key)
        if engine is None or not engine.works or member is None:
            raise OrderFailed(f"{target.key[1]} does not answer")
        return member

    async def let_pass(self, order: int, target: Target, *, leading: bool = False) -> None:
        """Raises OrderFailed where a later order was seen."""
        if not await self._memory.admit(target.key, order, leading=leading):
            raise OrderFailed(f"{target.key[1]} has seen a later order than {order}")


class SimClusterOrders:
    """The orders of cluster mode in the simulated world."""

    def __init__(self, world: ClusterWorld, link: SimClusteredLink) -> None:
        self._world, self._link = world, link

    def _last(self, target: Target) -> int:
        return self._world.orders.get(target.key, 0)

    async def elect(self, effect: Elect, at: Targets) -> None:
        world, target = self._world, at[effect.node]
        if effect.seize:
            await self._has_heard(target, [at[o] for o in effect.others])

        def do(engine: Engine) -> None:
            member = world.members[target.key]
            if member.leads or member.follows not in member.peers:
                raise OrderFailed(f"{target.key[1]} is no replica")
            if effect.seize:
                world.seize(member)
            else:
                world.spawn(world.stand(member, forced=True))

        await self._link.order(target, effect.order, do, leading=True)
        await asyncio.sleep(0.05)

    async def _has_heard(self, target: Target, others: Sequence[Target]) -> None:
        owned = self._owned_by(others)
        end = self._world.now + 2.0
        while common((takes := self._link.reached(target)).owner.get(takes.follows, ()), owned):
            if self._world.now > end:
                raise OrderFailed(f"{target.key[1]} would take slots that others own by now")
            await asyncio.sleep(0.002)

    def _owned_by(self, others: Sequence[Target]) -> Ranges:
        return union(*(self._link.reached(o).slots for o in others))

    async def swap(self, effect: Swap, at: Targets) -> None:
        world, giver, taker = self._world, at[effect.giver], at[effect.taker]
        order, timeout_seconds = effect.order, effect.timeout_seconds
        gives, takes = self._link.reached(giver), self._link.reached(taker)
        await self._link.let_pass(order, giver)
        await self._link.let_pass(order, taker)
        if not gives.leads and takes.leads:
            return
        if not gives.leads or takes.follows != gives.id or not takes.engine.linked:
            raise OrderFailed(f"{taker.key[1]} does not follow {giver.key[1]} as its primary")
        until = world.now + timeout_seconds
        gives.engine.paused_until = world.wall + timeout_seconds
        while len(takes.engine.writes) < len(gives.engine.writes) or not self._agreed(gives, takes):
            await asyncio.sleep(0.002)
            lost = self._link.reached(giver) is not gives or self._link.reached(taker) is not takes or takes.follows != gives.id
            if lost or world.now > until - 0.2 * timeout_seconds:
                gives.engine.paused_until = 0.0
                raise OrderFailed("the taker did not catch up in time")
        until = world.now + timeout_seconds
        gives.engine.paused_until = world.wall + timeout_seconds
        if world.random.random() < world.flaky:
            if world.random.random() < 0.5:
                raise OrderFailed("the connection broke in the middle of a move")
            await self._link.let_pass(order, taker, leading=True)
            world.freeze(taker.key)
            world.spawn(self._take_late(takes))
            await asyncio.sleep(0.4 * timeout_seconds)
            gives.engine.paused_until = world.wall + 2 * timeout_seconds
            raise OrderFailed(f"{taker.key[1]} did not answer")
        await self._link.let_pass(order, taker, leading=True)
        world.seize(takes)
        while gives.leads and gives.slots:
            await asyncio.sleep(0.001)
            self._link.reached(giver)
            if world.now > until - 0.1 * timeout_seconds:
                gives.engine.paused_until = world.wall + 2 * timeout_seconds
                raise OrderFailed(f"{taker.key[1]} has taken over, but {giver.key[1]} has not heard of it")
        gives.engine.paused_until = 0.0
        self._become_replica(gives, taker)

    async def _take_late(self, takes: Member) -> None:
        """What a frozen process was told, it does when it is thawed; but not where the keeper that told it has died or gone blind
        meanwhile: nobody can have stopped it then, and both together may lose what was acknowledged since."""
        world, restarts = self._world, self._world.restarts
        await asyncio.sleep(3 * world.random.random())
        if world.blind or world.restarts != restarts:
            world.kill(takes.engine.spec.key)
        if takes.engine.alive and not takes.leads:
            takes.engine.frozen = False
            world.seize(takes)

    def _agreed(self, gives: Member, takes: Member) -> bool:
        """The taker would take what the giver owns: neither less nor more."""
        return takes.owner.get(gives.id, ()) == gives.slots

    def _become_replica(self, member: Member, primary: Target) -> None:
        if primary.cluster_id not in member.peers:
            raise OrderFailed(f"Unknown node {primary.cluster_id}")
        if member.leads:
            if member.slots:
                raise OrderFailed(f"{member.engine.spec.key[1]} owns slots, so it cannot become a replica")
            member.engine.writes = []
        if member.follows != primary.cluster_id:
            self._world._follow(member, primary.cluster_id)

    async def replicate(self, effect: Replicate, at: Targets) -> None:
        target, primary = at[effect.node], at[effect.primary]
        await self._link.order(target, effect.order, lambda e: self._become_replica(self._world.members[target.key], primary))

    async def meet(self, effect: Meet, at: Targets) -> None:
        world, target = self._world, at[effect.node]

        async def shake(other: Target) -> None:
            await asyncio.sleep(0.002 + 0.02 * world.random.random())
            one, two = world.members.get(target.key), world.members.get(other.key)
            if (
                one is None
                or two is None
                or not one.engine.works
                or not two.engine.works
                or not world.peers(one.engine, two.engine)
            ):
                return
            for a, b in ((one, two), (two, one)):
                a.peers.setdefault(b.id, Peer(b.engine.spec.address, b.follows, b.epoch, world.wall))
                a.banned.pop(b.id, None)
            world._send(one, two)
            world._send(two, one)

        def do(engine: Engine) -> None:
            for other in effect.others:
                world.spawn(shake(at[other]))

        await self._link.order(target, self._last(target), do)

    async def introduce(self, effect: Introduce, at: Targets) -> None:
        world, target = self._world, at[effect.node]

        async def greet(other: Target) -> None:
            await asyncio.sleep(0.002 + 0.02 * world.random.random())
            one, two = world.members.get(target.key), world.members.get(other.key)
            if one is not None and two is not None:
                world._send(one, two)

        def do(engine: Engine) -> None:
            for other in effect.others:
                world.spawn(greet(at[other]))

        await self._link.order(target, self._last(target), do)

    async def disown(self, effect: Disown, at: Targets) -> None:
        world, target = self._world, at[effect.node]

        def do(engine: Engine) -> None:
            member = world.members[target.key]
            for id in effect.ids:
                if id == member.follows and not member.leads:
                    raise OrderFailed("Can't forget my master!")
                if member.peers.pop(id, None) is not None:
                    member.owner.pop(id, None)
                    member.banned[id] = world.wall + BAN_SECONDS

        await self._link.order(target, self._last(target), do)

    async def own(self, effect: Own, at: Targets) -> None:
        target, slots = at[effect.node], effect.slots
        if common(self._owned_by([at[o] for o in effect.others]), slots):
            raise OrderFailed(f"{target.key[1]} is not given slots that somebody owns after all")

        def do(engine: Engine) -> None:
            member = self._world.members[target.key]
            if not member.leads:
                raise OrderFailed("ERR Please use SETSLOT only with masters.")
            self._world.newer_epoch(member)
            for id, ranges in list(member.owner.items()):
                member.owner[id] = without(ranges, slots)
            member.owner[member.id] = union(member.slots, slots)
            member.unclaimed = without(member.unclaimed, slots)
            for slot in expand(slots):
                member.importing.pop(slot, None)
            self._world.broadcast(member)

        await self._link.order(target, effect.order, do)

    async def settle(self, effect: Settle, at: Targets) -> None:
        target = at[effect.node]

        def do(engine: Engine) -> None:
            member = self._world.members[target.key]
            for slot in expand(effect.slots):
                member.migrating.pop(slot, None)
                member.importing.pop(slot, None)

        await self._link.order(target, self._last(target), do)

    async def move_slots(self, effect: MoveSlots, at: Targets) -> None:
        source, target, slots = at[effect.source], at[effect.target], effect.slots
        gives = self._link.reached(source)
        self._link.reached(target)
        await self._link.let_pass(effect.source_order, source)
        await self._link.let_pass(effect.target_order, target)
        end = self._world.now + effect.seconds
        able = capabilities_of(source.engine, source.version) & capabilities_of(target.engine, target.version)
        if "atomic-slot-migration" in able:
            await self._move_whole(gives, target, slots, end)
            return
        left: Ranges = slots
        while left and self._world.now < end:
            batch = take(left, BATCH_SLOTS)
            left = without(left, batch)
            if not await self._move_batch(source, target, batch, end):
                return

    # -- slots that go as a whole: the engines do it, whether or not a keeper is there to see it

    async def _move_whole(self, gives: Member, target: Target, slots: Ranges, end: float) -> None:
        if gives.job is None:
            slots = common(slots, gives.slots)
            if not slots:
                return  # they have gone since
            peer = gives.peers.get(target.cluster_id)
            if peer is None or peer.follows:
                raise OrderFailed(f"{target.cluster_id} is unknown, or no primary")
            gives.job = asyncio.Event()
            self._world.spawn(self._job(gives, target.cluster_id, slots, gives.job))
        job = gives.job
        while self._world.now < end and not job.is_set() and gives.engine.works:
            await asyncio.sleep(0.01)

    async def _job(self, gives: Member, to: str, slots: Ranges, done: asyncio.Event) -> None:
        world = self._world
        takes = world.at_id(to)

        def both(*, leading: bool = True) -> bool:
            if takes is None or not gives.engine.alive or not takes.engine.alive:
                return False
            return not leading or (takes.leads and gives.leads and not without(slots, gives.slots))

        async def for_a_while(most_seconds: float) -> bool:
            await asyncio.sleep(most_seconds * world.random.random())
            waited = world.now
            while (
                both()
                and takes is not None
                and not (gives.engine.works and takes.engine.works and world.peers(gives.engine, takes.engine))
            ):
                await asyncio.sleep(0.02)
                if world.now - waited > 5.0:
                    return False
            return both()

        try:
            if takes is not None and await for_a_while(0.5):
                gives.handing = slots
                if await for_a_while(0.01):
                    mine = {k: v for k, v in world.data(gives).items() if common(((k, k),), slots)}
                    for key, value in mine.items():
                        world.write_op(takes, key, value)
                    world.newer_epoch(takes)
                    world._claim(takes, takes.id, takes.epoch, slots)
                    world.broadcast(takes)
                    while common(gives.slots, slots) and both(leading=False) and gives.leads:  # writes wait until it has heard
                        await asyncio.sleep(0.005)
        finally:
            gives.handing, gives.job = (), None
            done.set()

    # -- key by key

    async def _move_batch(self, source: Target, target: Target, batch: Ranges, end: float) -> bool:
        world = self._world

        async def step() -> tuple[Member, Member]:
            await asyncio.sleep((0.001 + 0.002 * world.random.random()) * world.slowness)
            return self._both(source, target)

        _, takes = await step()
        self._set(takes.importing, without(batch, takes.slots), source.cluster_id)
        gives, _ = await step()
        self._set(gives.migrating, common(batch, gives.slots), target.cluster_id)
        if without(batch, gives.slots):
            raise OrderFailed(f"{source.key[1]} does not own all of these slots")
        while keys := [k for k in world.data((await step())[0]) if common(((k, k),), batch)]:
            gives, takes = await step()
            if not world.peers(gives.engine, takes.engine):
                raise OrderFailed("IOERR")
            if keys[0] in world.data(gives):
                self._restore(takes, keys[0], world.data(gives)[keys[0]])
                world.write_op(gives, keys[0], None)
            if world.now > end:
                return False
        _, takes = await step()
        if gained := without(batch, takes.slots):
            for slot in expand(batch):
                takes.importing.pop(slot, None)
            world.newer_epoch(takes)
            world._claim(takes, takes.id, takes.epoch, gained)
            world.broadcast(takes)
        gives, takes = await step()
        if common(gives.slots, batch):
            if any(common(((k, k),), batch) for k in world.data(gives)):
                raise OrderFailed("Can't assign hashslot to a different node while I still hold keys for this hash slot")
            for slot in expand(batch):
                gives.migrating.pop(slot, None)
            gives.owner[gives.id] = without(gives.slots, batch)
            gives.owner[takes.id] = union(gives.owner.get(takes.id, ()), batch)
        return True

    def _restore(self, takes: Member, key: int, value: int) -> None:
        self._world.write_op(takes, key, value)

    def _both(self, source: Target, target: Target) -> tuple[Member, Member]:
        gives, takes = self._link.reached(source), self._link.reached(target)
        if not gives.leads or not takes.leads:
            raise OrderFailed("ERR Please use SETSLOT only with masters.")
        for one, other in ((gives, takes), (takes, gives)):
            if other.id not in one.peers:
                raise OrderFailed(f"I don't know about node {other.id}")
        return gives, takes

    def _set(self, half_open: dict[int, str], slots: Iterable[SlotRange], id: str) -> None:
        half_open.update(dict.fromkeys(expand(tuple(slots)), id))
