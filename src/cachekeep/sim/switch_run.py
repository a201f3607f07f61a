"""One seeded run of a switch from ``compatible`` to ``enabled``: engines of both modes in one world, which feed each other.

What was acknowledged before, meanwhile and afterwards is found again, unless nobody who was in sync held it; nobody leads who has
carried out in database 0 what was meant for another.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace

from cachekeep.compute.contract import File, Key, ProcessSpec, Target
from cachekeep.engines.launch import nodes_conf
from cachekeep.model import Cache, Node, NodeView, Wanted
from cachekeep.sim.cluster import ClusterWorld
from cachekeep.sim.cluster_doors import SimClusterDriver, SimClusteredLink
from cachekeep.sim.faults import beside, vocabulary
from cachekeep.sim.member import Member
from cachekeep.sim.run import WRITE_SECONDS, Run
from cachekeep.sim.scenario import Report, Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID
from cachekeep.sim.world import Engine, World

HARM_BEFORE_SECONDS = 6.0
"""At most so long after the first harm the switch is asked for."""


@dataclass
class SwitchScenario(Scenario):
    """A group that is compatible from the first moment of harm on, and is to be enabled soon after."""

    compatible: bool = True
    databases: bool = False
    """Some client uses another database for a while, and some keys stay there."""
    undecided: bool = False
    """The user goes back to compatible now and then, and at last to enabled."""


class MixedWorld(ClusterWorld):
    """Engines with and without cluster mode. Their streams hold writes, not keys by slot: there is one shard."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.foreign: set[int] = set()
        """Writes to another database."""
        self.kept_elsewhere = False
        """Another database holds keys."""

    def data(self, member: Member) -> dict[int, int]:
        return {}

    def note_losses(self, key: Key) -> None:
        World.note_losses(self, key)

    def receive(self, primary: Engine, replica: Engine) -> None:
        member = self.members.get(replica.spec.key)
        if member is not None and primary.spec.key not in self.members:
            if not replica.history and self.kept_elsewhere:
                self.kill(replica.spec.key)  # "Data file was created with a server configured to handle more than 1 databases"
                return
            if replica.history and self.foreign & set(primary.writes[len(replica.writes) :]):
                member.refused += 1
        super().receive(primary, replica)


class SimMixedLink(SimClusteredLink):
    """``Link`` to engines of both modes."""

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        seen = await super().look(target, deadline_seconds=deadline_seconds)
        world = self._clustered
        assert isinstance(world, MixedWorld)
        there = seen.answering and target.key not in world.members and world.kept_elsewhere
        return replace(seen, other_databases=(3,)) if there else seen


class SwitchRun(Run):
    """One scenario."""

    world: MixedWorld
    scenario: SwitchScenario
    elsewhere = False
    """A client uses another database now."""

    def _world(self, seed: int) -> MixedWorld:
        return MixedWorld(seed)

    def _doors(self, keeper: str) -> tuple[SimClusterDriver, SimMixedLink]:
        return SimClusterDriver(self.world), SimMixedLink(self.world, keeper)

    def _spec(self, cache: Cache, node: Node) -> ProcessSpec:
        spec = super()._spec(cache, node)
        return replace(spec, files={"nodes.conf": File(nodes_conf(cache, node), False)}) if cache.in_cluster_mode(node) else spec

    # -- safety

    def _check(self, before: Cache, after: Cache) -> None:
        super()._check(before, after)
        for shard in after.decided.shards:
            old = before.shard(shard.id)
            if old is None or shard.moving_to in (None, old.moving_to) or not shard.lost:
                continue
            if after.clustered:
                continue
            engine = self.world.processes.get((UID, shard.moving_to or ""))
            fed = old.confirmed_by(before.decided.preparing.confirmed, ended=True)  # by a lead that is over, if it has begun anew
            if shard.moving_to not in fed or engine is None:
                self._broken(f"{shard.moving_to} is to inherit and was never fed")
        if after.clustered and not before.clustered:
            self._enabled(before, after)

    def _enabled(self, before: Cache, after: Cache) -> None:
        """Nobody takes writes any more whose place was taken; who leads has everything, each in its database."""
        for node in before.decided.nodes:
            engine = self.world.processes.get((UID, node.name))
            if engine is not None and engine.works and engine.role == "primary":
                self._broken(f"{node.name} leads still, and cluster mode is enabled")
        leader = self.world.members.get((UID, after.decided.shards[0].primary or ""))
        if leader is not None and leader.refused:
            self._broken(f"{leader.engine.spec.key[1]} leads, and has refused {leader.refused} commands")

    def _decided(self) -> set[Key]:
        """Successors keep what nobody else does."""
        found = super()._decided()
        if self.cache is None or any(k in found and (e.alive and e.role == "replica") for k, e in self.world.processes.items()):
            return found
        return found | {(UID, name) for name in self.cache.decided.fed}

    def _one_writer(self) -> None:
        super()._one_writer()
        leaders = [m for m in self.world.serving() if self.world.accepts(m, 0)]
        known = {n.name for n in self.cache.decided.nodes} if self.cache else set()
        writable = [m.engine.spec.key[1] for m in leaders if m.engine.spec.key[1] in known]
        if len(writable) > 1:
            self._broken(f"{' and '.join(writable)} all accept writes")

    # -- clients

    async def _write(self) -> None:
        id = 0
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._one_writer()
            id += 1
            cache = self.cache
            if cache is None or not cache.decided.shards:
                continue
            if cache.clustered:
                holder = self.world.at(cache.decided.configuration_address or "")
                first = self.world.members.get(holder.spec.key) if holder is not None and holder.works else None
                member = self.world.route(0, first) if first is not None else None
                if member is not None and self.world.take(member.engine, id):
                    self.acknowledged.append(id)
            elif self.world.write(cache.decided.shards[0].primary_address or "", id):
                self.acknowledged.append(id)
                if self.elsewhere:
                    self.world.foreign.add(id)
                    self.world.kept_elsewhere = self.world.kept_elsewhere or self.random.random() < 0.3

    # -- what users do

    async def _harm(self, writer: asyncio.Task[None]) -> None:
        self.world.spawn(self._switch())
        if self.scenario.databases:
            self.world.spawn(self._use_another())
        await super()._harm(writer)

    async def _switch(self) -> None:
        await asyncio.sleep(HARM_BEFORE_SECONDS * self.random.random())
        await self._to("enabled")
        while self.scenario.undecided and self.random.random() < 0.7:
            await asyncio.sleep(2 * self.random.random())
            await self._to("compatible")
            await asyncio.sleep(2 * self.random.random())
            await self._to("enabled")

    async def _to(self, mode: str) -> None:
        """As the API has it: back as long as nothing is on its way that cannot be undone."""

        def other(wanted: Wanted) -> Wanted:
            decided = self.cache.decided if self.cache else None
            if decided is None or self.cache is None or self.cache.clustered or decided.shards[0].moving_to:
                return wanted
            return replace(wanted, cluster_mode=mode)

        await self._change(other)

    async def _use_another(self) -> None:
        await asyncio.sleep(8 * self.random.random())
        self.elsewhere = True
        await asyncio.sleep(4 * self.random.random())
        self.elsewhere = False

    async def _other_mode(self) -> None:
        """Only ``_switch`` says what is wanted."""

    async def _calm(self, writer: asyncio.Task[None]) -> None:
        """The user does what the refusal asks: nobody uses another database any more."""
        self.elsewhere = self.world.kept_elsewhere = False
        await self._to("enabled")
        await super()._calm(writer)

    def _healthy(self) -> bool:
        cache = self.cache
        if cache is None or cache.decided.available_at is None:
            return False
        if cache.wanted.cluster_mode != "enabled":
            return super()._healthy()
        decided = cache.decided
        if not cache.clustered or decided.successors or decided.retired or decided.fronts or decided.refusals:
            return False
        shard = decided.shards[0]
        if shard.moving_to or shard.lost or any(n.due or n.leaving or not n.announced for n in decided.nodes):
            return False
        if {n.member for n in decided.nodes} != set(cache.wanted_names()):
            return False
        if shard.in_sync != {n.name for n in decided.nodes} - {shard.primary} or any(
            k[1] in ("readers", "configuration") for k in self.world.processes
        ):
            return False
        members = [self.world.members.get((UID, n.name)) for n in decided.nodes]
        ids = {m.id for m in members if m is not None}
        if any(m is None or not m.engine.works or not m.ok or {*m.peers, m.id} != ids for m in members):
            return False
        holder = self.world.at(decided.configuration_address or "")
        return holder is not None and holder.spec.key == (UID, decided.configuration_node)


def switch_scenario(seed: int) -> SwitchScenario:
    """What a seed stands for: every fifth has planned moves only, every third a client of another database,
    every fourth a user who cannot decide."""
    return SwitchScenario(
        seed,
        faults=seed % 5 != 0,
        nodes=2 + seed % 3,
        databases=seed % 3 == 1,
        undecided=seed % 4 == 2,
        vocabulary=vocabulary(seed),
        two_keepers=beside(seed),
    )


def simulate_switch(scenario: SwitchScenario) -> Report:
    """Run a scenario in virtual time. Raises ``Violation`` with the seed."""
    return run(SwitchRun(scenario).main())
