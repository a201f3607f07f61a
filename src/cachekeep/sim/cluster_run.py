"""One seeded run in cluster mode: as ``sim.run``, with slots. Clients go where MOVED and ASK send them, and judge what they find.

At every moment at most one reachable node accepts writes for a slot; what was acknowledged is found again, unless nobody who was in
sync held it; when faults stop, every slot is owned once, by the shard that it is meant for, in everybody's opinion.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from cachekeep.compute.contract import File, ProcessSpec
from cachekeep.engines.launch import nodes_conf
from cachekeep.model import Cache, ErrandKind, Member, Node, Secret, Wanted, WantedShard
from cachekeep.plan.slots.ranges import SLOTS, common, expand
from cachekeep.sim import promises
from cachekeep.sim.cluster import ClusterWorld
from cachekeep.sim.cluster_doors import SimClusterDriver, SimClusteredLink
from cachekeep.sim.faults import beside, vocabulary
from cachekeep.sim.run import LINGER_SECONDS, WRITE_SECONDS, Run
from cachekeep.sim.scenario import Report, Scenario, Violation
from cachekeep.sim.timeless import run
from cachekeep.sim.users import NAME, SEALING, UID

KEYS = 24
STEP = SLOTS // KEYS
MOST_SHARDS, MOST_REPLICAS = 3, 2


@dataclass
class ClusterScenario(Scenario):
    """``nodes`` are those of each shard."""

    nodes: int = 2
    shards: int = 3
    version: str = "8.0.1"
    quiet: bool = False
    """Neither faults nor moves by chance: whoever runs it does what is done."""


class ClusterRun(Run):
    """One scenario in one world of slots."""

    world: ClusterWorld
    scenario: ClusterScenario

    def __init__(self, scenario: ClusterScenario) -> None:
        super().__init__(scenario)
        self.latest: dict[int, int] = {}
        """Slot → the value of its key that was acknowledged last."""
        self.served_at: dict[str, float] = {}
        """Shard → when clients last found a slot there."""

    def _world(self, seed: int) -> ClusterWorld:
        return ClusterWorld(seed)

    def _doors(self, keeper: str) -> tuple[SimClusterDriver, SimClusteredLink]:
        return SimClusterDriver(self.world), SimClusteredLink(self.world, keeper)

    def _spec(self, cache: Cache, node: Node) -> ProcessSpec:
        spec = super()._spec(cache, node)
        return replace(spec, files={"nodes.conf": File(nodes_conf(cache, node), False)})

    # -- safety

    def _check(self, before: Cache, after: Cache) -> None:
        """Whoever is made to stand for election has all that was acknowledged but for what was on its way, or the user accepted the
        loss. Orders only grow."""
        self.cache = after
        self._spared(before, after)
        self._note_consent(before, after)
        for what in promises.broken(self.world, before, after):
            self._broken(what)
        self._sent_on(before, after)
        for shard in after.decided.shards:
            old = before.shard(shard.id)
            if old is None:
                continue
            if shard.order < old.order:
                self._broken(f"order went back from {old.order} to {shard.order}")
            self.report.failovers += old.primary not in (None, shard.primary)
            if not shard.lost or shard.moving_to in (None, old.moving_to):
                continue
            lost = self.world.members.get((UID, shard.lost))
            if lost is not None and not lost.slots and not self.world.data(lost):
                continue  # an engine without slots takes no writes: there was nothing to be out of sync with
            kin = [m for (_, name), m in self.world.members.items() if name.startswith(f"{NAME}-{shard.id}-")]
            if not any(m.engine.alive and self.world.data(m) for m in kin):
                continue  # there is nothing to lose
            nominated = self.world.members.get((UID, shard.moving_to or ""))
            if nominated is None or after.decided.resharding or before.decided.resharding:
                continue
            held = self.world.data(nominated)
            mine = {slot: v for slot, v in self.latest.items() if common(((slot, slot),), shard.owned)}
            due = {slot: v for slot, v in mine.items() if not self.world.half_open(slot)}
            if missing := {v for slot, v in due.items() if held.get(slot) != v} - self.world.lossable:
                self._broken(f"{shard.moving_to} was nominated without {len(missing)} acknowledged writes: {sorted(missing)[:5]}")

    def _sent_on(self, before: Cache, after: Cache) -> None:
        """No shard goes as a whole before its clients had time to be sent to where its slots are."""
        for id in {n.shard for n in after.decided.nodes if n.leaving} - {w.id for w in after.wanted.shards}:
            stayed = [n for n in before.decided.nodes if n.shard == id and not n.leaving]
            since = self.world.now - self.served_at.get(id, -LINGER_SECONDS)
            if stayed and all(n.leaving for n in after.decided.nodes if n.shard == id) and since < LINGER_SECONDS - WRITE_SECONDS:
                self._broken(f"{stayed[0].name} is sent away {since:.3f} s after clients found slots there")

    def _one_writer(self) -> None:
        self.world.note_leaders()
        leaders = [m for m in self.world.serving() if m.leads and m.ok]
        for member in leaders:
            node = self.cache.node(member.engine.spec.key[1]) if self.cache and member.slots else None
            self.served_at |= {node.shard: self.world.now} if node else {}
        for one, other in itertools.combinations(leaders, 2):
            for slot in expand(common(one.slots, other.slots)):
                if self.world.accepts(one, slot) and self.world.accepts(other, slot):
                    self._broken(f"{one.engine.spec.key[1]} and {other.engine.spec.key[1]} both accept writes for slot {slot}")

    # -- clients

    async def _write(self) -> None:
        """Write for ever, key after key; look first at what was written before."""
        value = 0
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._one_writer()
            value += 1
            slot = STEP * self.random.randrange(KEYS)
            first = self.world.serving()
            member = self.world.route(slot, self.random.choice(first)) if first else None
            if member is None:
                continue
            if not self._found(slot, self.world.data(member).get(slot), member.engine.spec.key[1]):
                continue
            self.world.write_op(member, slot, value)
            self.latest[slot] = value
            self.acknowledged.append(value)
            self.world.acknowledged[value] = self.world.now, member.engine

    def _found(self, slot: int, value: int | None, where: str) -> bool:
        """Whether a client goes on with what it finds."""
        expected = self.latest.get(slot)
        if expected is None or value == expected:
            return True
        if self.scenario.faults and self.world.half_open(slot):
            return False  # its source died half open, and its successor knows nothing of that: it is closed in a moment
        if expected not in self.world.lossable:
            self._broken(f"slot {slot} at {where}: {value} is found where {expected} was acknowledged")
        self.report.lost += 1
        self.latest.pop(slot)
        return True

    # -- what users do

    async def _create(self) -> None:
        scenario = self.scenario
        cache = Cache(
            uid=UID,
            name=NAME,
            kind="group",
            region="us-east-1",
            created_at=self.clock.now(),
            wanted=Wanted(
                engine=scenario.engine,
                version=scenario.version,
                node_type="cache.t3.micro",
                port=6379,
                shards=tuple(wanted_shard(f"{i + 1:04}", scenario.nodes) for i in range(scenario.shards)),
                cluster_mode="enabled",
                credentials=(SEALING.credential(UID, 1, Secret("x")),),
                automatic_failover=True,
                parameter_group=f"default.valkey{scenario.version.partition('.')[0]}.cluster.on",
            ),
        )
        async with self.store.transaction() as tx:
            await tx.insert(cache)
            tx.wake(UID)

    async def _errand(self, kind: ErrandKind, name: str = "") -> None:
        def add(wanted: Wanted) -> Wanted:
            able = [x for x in wanted.shards if len(x.members) > 1]
            if kind != "rebalance" and not able:
                return wanted  # the API refuses a test failover without replicas, and a lone node loses by a reboot what it holds
            shard = self.random.choice(able or wanted.shards)
            nodes = (name or self.random.choice(shard.members).name,)
            return wanted.asking(kind, nodes=nodes, shard=shard.id)

        await self._change(add)

    async def _accept(self) -> None:
        """The user reads a refusal and accepts the loss, shard by shard."""
        if self.cache is not None and self.cache.decided.refusals:
            self.world.lossable |= set(self.acknowledged)
            for shard in self.cache.decided.shards:
                engine = self.world.processes.get((UID, shard.primary or ""))
                if engine is None or not engine.works or engine.role != "primary":
                    await self._change(lambda w, id=shard.id: w.asking("promote-stale", shard=id))  # type: ignore[misc]

    async def _resize(self) -> None:
        """Other shards, or another number of replicas in one."""
        self_cache = self.cache
        taken = {x.id for x in self_cache.decided.shards} if self_cache else set()

        def other(wanted: Wanted) -> Wanted:
            shards = list(wanted.shards)
            chance = self.random.random()
            if chance < 0.3 and len(shards) > 1:
                shards.remove(self.random.choice(shards))
            elif chance < 0.6 and len(shards) < MOST_SHARDS:
                used = taken | {x.id for x in shards}
                shards.append(wanted_shard(next(f"{i:04}" for i in range(1, 50) if f"{i:04}" not in used), self.scenario.nodes))
            else:
                i = self.random.randrange(len(shards))
                shards[i] = replace(shards[i], members=self._fewer_or_more(shards[i]))
            return replace(wanted, shards=tuple(shards))

        await self._change(other)

    def _fewer_or_more(self, shard: WantedShard) -> tuple[Member, ...]:
        members = shard.members
        if len(members) > MOST_REPLICAS or (len(members) > 2 and self.random.random() < 0.5):
            gone = self.random.choice(members)
            return tuple(m for m in members if m is not gone)
        used = {m.name for m in members} | {n.name for n in (self.cache.decided.nodes if self.cache else ())}
        name = next(f"{NAME}-{shard.id}-{i:03}" for i in range(1, 50) if f"{NAME}-{shard.id}-{i:03}" not in used)
        return (*members, Member(name=name, zone="a"))

    async def _one_harm(self) -> None:
        if not self.scenario.quiet:
            await super()._one_harm()

    def _moves(self) -> list[Callable[[], object]]:
        errands: tuple[ErrandKind, ...] = ("test-failover", "promote", "reboot", "rebalance")
        found: list[Callable[[], object]] = [lambda kind=kind: self.world.spawn(self._errand(kind)) for kind in errands]  # type: ignore[misc]
        return [*found, *(lambda: self.world.spawn(self._resize()) for _ in range(3))]

    def _primary(self) -> str | None:
        shards = [x.primary for x in self.cache.decided.shards if x.primary] if self.cache else []
        return self.random.choice(shards) if shards else None

    # -- the end

    def _healthy(self) -> bool:
        """Every wanted node plays its part in one cluster, and all of them are of one opinion."""
        cache = self.cache
        if cache is None or cache.decided.available_at is None or cache.decided.resharding:
            return False
        decided = cache.decided
        if cache.errands_left:
            return False
        if any(n.due or n.leaving or not n.announced for n in decided.nodes) or decided.refusals:
            return False
        if {x.id for x in decided.shards} != {w.id for w in cache.wanted.shards}:
            return False
        if set(cache.wanted_names()) != {n.name for n in decided.nodes}:
            return False
        return all(self._shard_healthy(cache, x.id) for x in decided.shards) and self._configured(cache)

    def _shard_healthy(self, cache: Cache, id: str) -> bool:
        shard = cache.shard(id)
        wanted = next(w for w in cache.wanted.shards if w.id == id)
        names = {m.name for m in wanted.members}
        if shard is None or shard.moving_to or shard.lost or shard.in_sync != names - {shard.primary}:
            return False
        leader = self.world.members.get((UID, shard.primary or ""))
        everybody = [self.world.members.get((UID, n.name)) for n in cache.decided.nodes]
        ids = {m.id for m in everybody if m is not None}
        if leader is None or not leader.leads or any(m is None or not m.engine.works or not m.ok for m in everybody):
            return False
        return all(m is not None and m.owner.get(leader.id) == shard.slots and {*m.peers, m.id} == ids for m in everybody)

    def _configured(self, cache: Cache) -> bool:
        holder = self.world.at(cache.decided.configuration_address or "")
        return holder is not None and holder.spec.key == (UID, cache.decided.configuration_node)

    def _why(self) -> str:
        world = {
            m.engine.spec.key[1]: (m.engine.alive, m.engine.role, m.ok, m.slots, m.epoch, m.engine.linked, m.engine.online)
            for m in self.world.members.values()
        }
        return f"decided {self.cache.decided if self.cache else None}; world {world}"

    def _judge(self) -> Report:
        """Everything that was acknowledged last is where its slot is."""
        if self.broken or self.cache is None:
            raise self.broken or Violation("there is no cache")
        for slot in list(self.latest):
            leaders = [m for m in self.world.members.values() if m.leads and common(((slot, slot),), m.slots)]
            if len(leaders) != 1:
                self._broken(f"slot {slot} is owned by {[m.engine.spec.key[1] for m in leaders]}")
            self._found(slot, self.world.data(leaders[0]).get(slot), leaders[0].engine.spec.key[1])
        if not self.scenario.faults and self.report.lost:
            self._broken(f"planned moves alone lost {self.report.lost} acknowledged writes")
        self.report.acknowledged = len(self.acknowledged)
        return self.report


def cluster_scenario(seed: int) -> ClusterScenario:
    """What a seed stands for: every fourth has planned moves only;
    one to three shards of one to three nodes; both ways to move slots."""
    version = ("8.0.1", "9.1.2")[seed // 2 % 2]
    return ClusterScenario(
        seed,
        faults=seed % 4 != 0,
        nodes=1 + seed % 3,
        shards=1 + seed // 3 % 3,
        version=version,
        vocabulary=vocabulary(seed),
        two_keepers=beside(seed),
    )


def wanted_shard(id: str, nodes: int) -> WantedShard:
    """A shard of so many members."""
    return WantedShard(id=id, members=tuple(Member(name=f"{NAME}-{id}-{i + 1:03}", zone="abc"[i % 3]) for i in range(nodes)))


def simulate_cluster(scenario: ClusterScenario) -> Report:
    """Run a scenario in virtual time. Raises ``Violation`` with the seed."""
    return run(ClusterRun(scenario).main())
