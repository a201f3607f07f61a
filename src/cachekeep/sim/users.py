"""What users of the simulated world do: they ask for a group, change what they want, send errands, read refusals."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
from collections.abc import Callable

from msgspec.structs import replace

from cachekeep.errors import Conflict
from cachekeep.model import Cache, ErrandKind, Member, Secret, Wanted, WantedShard
from cachekeep.security.sealing import Sealing
from cachekeep.sim.world import World
from cachekeep.store.memory import MemoryStore

UID, NAME = "u1", "demo"
SEALING = Sealing(bytes(32))
NODE_TYPES = ("cache.t3.micro", "cache.t3.small", "cache.t3.medium")


def group(nodes: int, engine: str, *, created_at: dt.datetime) -> Cache:
    """One shard of so many nodes, spread over three zones."""
    members = tuple(Member(name=f"{NAME}-{i + 1:03}", zone="abc"[i % 3]) for i in range(nodes))
    return Cache(
        uid=UID,
        name=NAME,
        kind="group",
        region="us-east-1",
        created_at=created_at,
        wanted=Wanted(
            engine=engine,
            version="8.0.1",
            node_type="cache.t3.micro",
            port=6379,
            shards=(WantedShard(id="0001", members=members),),
            parameter_group="default.valkey8",
            credentials=(SEALING.credential(UID, 1, Secret("x")),),
        ),
    )


class Users:
    """Those of one cache."""

    store: MemoryStore
    world: World
    random: random.Random
    cache: Cache | None
    """As it was last saved, what is decided wherever it is kept."""
    acknowledged: list[int]

    async def _change(self, change: Callable[[Wanted], Wanted]) -> None:
        for _ in range(20):
            with contextlib.suppress(Conflict):
                async with self.store.transaction() as tx:
                    cache = await tx.cache(NAME, "group")
                    if cache is not None:
                        saved = await tx.save_wanted(replace(cache, wanted=change(cache.wanted)))
                        self.cache = replace(self.cache or saved, wanted=saved.wanted)
                        tx.wake(UID)
                return

    def reboot_all(self) -> None:
        """A user has every node that has a replica or is one restarted."""
        self.world.spawn(self._reboot_all())

    def upgrade(self) -> None:
        """A user wants a version that differs in nothing but its number. A lone node would lose by it what it holds."""
        self.world.spawn(self._upgrade())

    def accept_loss(self) -> None:
        """A user reads a refusal, if there is one."""
        self.world.spawn(self._accept())

    async def _reboot_all(self) -> None:
        def add(wanted: Wanted) -> Wanted:
            return wanted.asking("reboot", nodes=tuple(m.name for w in wanted.shards if len(w.members) > 1 for m in w.members))

        await self._change(add)

    async def _upgrade(self) -> None:
        if self.cache is not None and all(len(w.members) > 1 for w in self.cache.wanted.shards):
            await self._change(lambda wanted: replace(wanted, version=f"{wanted.version}0"))

    async def _errand(self, kind: ErrandKind, name: str = "") -> None:
        def add(wanted: Wanted) -> Wanted:
            names = tuple(m.name for m in wanted.shards[0].members)
            return wanted.asking(kind, nodes=(name or self.random.choice(names),), shard="0001")

        await self._change(add)

    async def _resize(self) -> None:
        def other(wanted: Wanted) -> Wanted:
            members = wanted.shards[0].members
            if len(members) > 2 and self.random.random() < 0.5:
                gone = self.random.choice(members)
                members = tuple(m for m in members if m is not gone)
            elif len(members) < 5:
                used = {m.name for m in members}
                name = next(f"{NAME}-{i:03}" for i in range(1, 10) if f"{NAME}-{i:03}" not in used)
                members = (*members, Member(name=name, zone="a"))
            return replace(wanted, shards=(replace(wanted.shards[0], members=members),))

        await self._change(other)

    async def _other_mode(self) -> None:
        def other(wanted: Wanted) -> Wanted:
            return replace(wanted, cluster_mode="disabled" if wanted.cluster_mode == "compatible" else "compatible")

        await self._change(other)

    def other_node_type(self) -> None:
        """A user's change to a larger or a smaller one."""
        node_type = self.random.choice(NODE_TYPES)
        self.world.spawn(self._change(lambda wanted: replace(wanted, node_type=node_type)))

    def _moves(self) -> list[Callable[[], object]]:
        """What users do."""
        return [
            lambda: self.world.spawn(self._errand("test-failover")),
            lambda: self.world.spawn(self._errand("promote")),
            lambda: self.world.spawn(self._errand("reboot")),
            lambda: self.world.spawn(self._resize()),
        ]

    async def _consent(self) -> None:
        """The user reads every refusal."""
        while True:
            await self._accept()
            await asyncio.sleep(3.0)

    async def _accept(self) -> None:
        """The user reads a refusal and accepts the loss."""
        if self.cache is not None and self.cache.decided.refusals:
            self.world.lossable |= set(self.acknowledged)
            await self._errand("promote-stale")
