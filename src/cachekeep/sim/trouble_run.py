"""One seeded run in which something goes wrong with one node, or front, and goes on going wrong: everybody else is looked after.

Others are killed meanwhile, one after the other, the primary among them. Who can lead leads within ``LEAD_SECONDS``; those that can
work are back and in sync within ``BACK_SECONDS``; what keeps failing is told; nothing that was acknowledged is lost; and when the
cause has gone, the trouble ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from cachekeep.model import ErrandKind, Wanted
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import LivenessViolation, Report, Scenario, Violation
from cachekeep.sim.timeless import run
from cachekeep.sim.users import NAME, UID

LEAD_SECONDS, BACK_SECONDS = 1.0, 8.0
HEALED_SECONDS = 12.0
"""Longest rest of what failed, what it takes to start and to be in sync, and a moment for which that has to last."""
TOLD_SECONDS = 25.0
"""The longest deadline of an effect, and more than what is failing for long."""
SILENT_SECONDS = 0.5
"""A decision makes what was told before it void, until the next look."""
ROUNDS = 3
"""Before and after the trouble has been told."""


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with ``name`` from ``begin`` on: what is begun on it hangs, or cannot be begun. ``fails``: that is told."""

    name: str
    role: str
    begin: Callable[[TroubleRun, str], None]
    fails: bool = True


def _cannot_start(run: TroubleRun, name: str) -> None:
    run.world.take_away((UID, name))


def _starts_for_ever(run: TroubleRun, name: str) -> None:
    run.world.stuck.add((UID, name))
    run.world.kill((UID, name))


def _hangs(run: TroubleRun, name: str) -> None:
    run.world.stuck.add((UID, name))


def _spins(run: TroubleRun, name: str) -> None:
    run.world.disturb((UID, name), "busy")


def _cannot_be_stopped(run: TroubleRun, name: str) -> None:
    run.world.stuck.add((UID, name))
    run.ask("reboot", name)


def _cannot_be_configured(run: TroubleRun, name: str) -> None:
    run.world.stuck.add((UID, name))
    run.want(lambda wanted: replace(wanted, node_type="cache.t3.small"))


def _cannot_be_erased(run: TroubleRun, name: str) -> None:
    run.world.stuck.add((UID, name))
    run.without(name)


TROUBLES = (
    Trouble("cannot-start", "replica", _cannot_start),
    Trouble("primary-cannot-start", "primary", _cannot_start),
    Trouble("starts-for-ever", "replica", _starts_for_ever),
    Trouble("spins", "replica", _spins, fails=False),
    Trouble("cannot-be-stopped", "replica", _cannot_be_stopped),
    Trouble("cannot-be-configured", "replica", _cannot_be_configured),
    Trouble("cannot-be-erased", "replica", _cannot_be_erased),
    Trouble("readers-cannot-start", "readers", _cannot_start),
    Trouble("readers-hang", "readers", _hangs, fails=False),
    Trouble("first-cannot-start", "first", _cannot_start),
)
"""``first``: from before its creation on, so that the group cannot come up."""


def trouble_scenario(seed: int) -> Scenario:
    """What a seed stands for."""
    return Scenario(seed, nodes=4 + seed % 2, flaky=0.0, moves=False)


class TroubleRun(Run):
    """A group of four or five, of which one gives trouble."""

    def __init__(self, scenario: Scenario, trouble: Trouble) -> None:
        super().__init__(scenario)
        self.trouble = trouble
        self.name = ""

    # -- what users do

    def ask(self, kind: ErrandKind, name: str) -> None:
        """An errand for a node."""
        self.world.spawn(self._errand(kind, name))

    def want(self, change: Callable[[Wanted], Wanted]) -> None:
        """Want something else."""
        self.world.spawn(self._change(change))

    def without(self, name: str) -> None:
        """Want a node no more."""

        def fewer(wanted: Wanted) -> Wanted:
            (shard,) = wanted.shards
            return replace(wanted, shards=(replace(shard, members=tuple(m for m in shard.members if m.name != name)),))

        self.want(fewer)

    # -- the run

    async def main(self) -> Report:
        """Create, trouble, kill others, end the trouble, judge."""
        await self.store.open()
        if self.trouble.role == "first":
            self.name = f"{NAME}-001"
            self.trouble.begin(self, self.name)
        await self._create()
        self.keepers = [self._keeper("keeper0"), self._keeper("keeper1")]
        writer = asyncio.get_running_loop().create_task(self._write())
        try:
            if self.trouble.role != "first":
                await self._until(self._healthy, "creation")
                await asyncio.sleep(1 + self.random.random())
                self.name = self._troubled()
                self.trouble.begin(self, self.name)
                await self._kill_others()
            if self.trouble.fails:
                await self._within(TOLD_SECONDS, self._told, "word of it")
            listener = asyncio.get_running_loop().create_task(self._listen())
            if self.trouble.role != "first":
                await self._kill_others()
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            self.world.unstartable.clear()
            self.world.stuck.clear()
            if self.trouble.name == "spins":
                self.ask("reboot", self.name)
            await self._within(HEALED_SECONDS, self._healthy, "end of the trouble, though its cause has gone")
            await self._within(HEALED_SECONDS, self._is_calm, "calm word, though all is well")
        finally:
            for task in (writer, *self.keepers, *self.world.tasks):
                task.cancel()
            await asyncio.gather(writer, *self.keepers, return_exceptions=True)
        return self._judge()

    def _troubled(self) -> str:
        assert self.cache is not None
        primary = self._primary() or ""
        if self.trouble.role == "replica":
            return self.random.choice([n.name for n in self.cache.decided.nodes if n.name != primary])
        return primary if self.trouble.role == "primary" else self.trouble.role

    async def _kill_others(self) -> None:
        for _ in range(ROUNDS):
            await self._within(BACK_SECONDS, self._others_well, f"good state of all but {self.name}")
            await asyncio.sleep(self.random.random() * 2)
            await self._kill_another()

    async def _listen(self) -> None:
        """The keeper's word is never old, and never silent about a trouble that it has told of. Who waits for something hears of
        it when it is."""
        silent_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.02)
            async with self.store.reading() as tx:
                told = await tx.condition(UID)
            silent_since = None if told is not None else silent_since or loop.time()
            with contextlib.suppress(Violation):
                if told is not None and self.trouble.fails and not self._names(told.because):
                    self._broken(f"{self.trouble.name} ({self.name}): what is told is {told.because}", LivenessViolation)
                if silent_since is not None and loop.time() > silent_since + SILENT_SECONDS:
                    self._broken(f"{self.trouble.name} ({self.name}): no word for {SILENT_SECONDS:g} s", LivenessViolation)

    def _names(self, sentence: str) -> bool:
        return f"{self.name} cannot be" in sentence

    async def _kill_another(self) -> None:
        """The primary, or whoever it is."""
        assert self.cache is not None
        others = [n.name for n in self.cache.decided.nodes if n.name != self.name]
        primary = self._primary() or ""
        victim = primary if primary != self.name and self.random.random() < 0.6 else self.random.choice(others)
        self.world.kill((UID, victim))
        await self._within(LEAD_SECONDS, self._led, f"leader after {victim} was killed")
        await self._within(BACK_SECONDS, self._others_well, f"return of all but {self.name} after {victim} was killed")

    def _led(self) -> bool:
        """Somebody takes writes at the primary endpoint."""
        assert self.cache is not None
        leader = self.world.at(self.cache.decided.shards[0].primary_address or "")
        return leader is not None and leader.works and leader.role == "primary" and leader.spec.key == (UID, self._primary())

    def _others_well(self) -> bool:
        assert self.cache is not None
        (shard,) = self.cache.decided.shards
        replicas = {n.name for n in self.cache.decided.nodes} - {self.name, shard.primary}
        fed = all((e := self.world.processes.get((UID, n))) is not None and e.works and e.online for n in replicas)
        return self._led() and fed and replicas <= shard.in_sync

    async def _told(self) -> bool:
        """The keeper's word of its last pass, and an event, name the one that gives trouble."""
        async with self.store.reading() as tx:
            told = await tx.condition(UID)
            events = [event.message for _, event in await tx.events(limit=10_000)]
        return told is not None and told.refused and self._names(told.because) and any(map(self._names, events))

    async def _is_calm(self) -> bool:
        """Neither the keeper's word nor what it has decided speaks of trouble any more."""
        assert self.cache is not None
        async with self.store.reading() as tx:
            told = await tx.condition(UID)
        return told is not None and told.status == "available" and not told.refused and not self.cache.decided.troubled

    async def _within(self, seconds: float, met: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            found = met()
            if found if isinstance(found, bool) else await found:
                return
            if self.broken:
                raise self.broken
            if loop.time() > end:
                self._broken(f"{self.trouble.name} ({self.name}): no {what} within {seconds:g} s; {self._why()}", LivenessViolation)
            await asyncio.sleep(0.02)


def simulate_trouble(scenario: Scenario, trouble: Trouble | None = None) -> Report:
    """Run a scenario with a trouble, or with the one of its seed, in virtual time. Raises ``Violation`` with the seed."""
    trouble = trouble or TROUBLES[random.Random(f"{scenario.seed} trouble").randrange(len(TROUBLES))]
    return run(TroubleRun(scenario, trouble).main())
