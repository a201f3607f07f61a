"""The faults of the simulated worlds, a row each. To add one is to add a row, and its physics to ``world``.

A scenario has a *vocabulary*: the names of the faults that may happen in it. Not every seed uses every word: with few at a time the
rare combinations come up, and a new row leaves most seeds what they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cachekeep.compute.contract import Key
from cachekeep.sim.hosts import Hosts
from cachekeep.sim.store import Stores
from cachekeep.sim.world import World

FAULT_SECONDS = 5.0
"""Freezes and cuts end within this; where a primary may be starved, they last long enough for that."""
HALT_SECONDS = 10.0
"""Of a control plane: longer than its lease."""
LONG_SECONDS = 20.0
SYNC_SECONDS = 8.0
"""Long beside all deadlines, as minutes are beside those of real caches."""
KEEPER = "keeper0"
AILS = "store-ails"
CHANCE = 0.25
"""Of a word that is not classic to be in a seed's vocabulary."""


class Setting(Protocol):
    """Of a scenario: what may happen at all."""

    @property
    def vocabulary(self) -> frozenset[str]: ...
    @property
    def faults(self) -> bool: ...
    @property
    def moves(self) -> bool: ...
    @property
    def compatible(self) -> bool: ...


class Run(Protocol):
    """Where faults happen."""

    world: World
    hosts: Hosts
    stores: Stores
    random: random.Random

    @property
    def scenario(self) -> Setting: ...
    def nodes(self) -> list[Key]:
        """All that are decided."""
        ...

    def primary(self) -> Key:
        """Who is decided to lead, or the first node."""
        ...

    def dismiss(self) -> None:
        """kill -9 of all control planes, and none comes up."""
        ...

    def recall(self) -> None:
        """They come up again."""
        ...

    def restart_a_keeper(self) -> None:
        """kill -9 of a control plane."""
        ...

    def other_node_type(self) -> None:
        """A user's change to a larger or a smaller one."""
        ...

    async def boot(self) -> None:
        """The control planes' host goes down and comes up."""
        ...

    def reboot_all(self) -> None:
        """A user has everything restarted."""
        ...

    def upgrade(self) -> None:
        """A user wants another version."""
        ...

    def accept_loss(self) -> None:
        """A user reads a refusal, and does what it asks for."""
        ...


Struck = Callable[[Run, Key], tuple[Key, ...]]
"""(run, a node by chance) → the nodes that are struck, at the same moment."""
Strike = Callable[[Run, Key], object]


def one(run: Run, key: Key) -> tuple[Key, ...]:
    """Any node."""
    return (key,)


def primary(run: Run, key: Key) -> tuple[Key, ...]:
    """Who is decided to lead."""
    return (run.primary(),)


def primary_and_one(run: Run, key: Key) -> tuple[Key, ...]:
    """The primary and another, if chance has it."""
    return tuple(dict.fromkeys((run.primary(), key)))


def several(run: Run, key: Key) -> tuple[Key, ...]:
    """Each node with a chance of its own."""
    return tuple(k for k in run.nodes() if k == key or run.random.random() < 0.6)


def replicas(run: Run, key: Key) -> tuple[Key, ...]:
    """Those that are not primaries, each with a chance of its own."""
    return tuple(k for k in several(run, key) if (e := run.world.processes.get(k)) is not None and e.role == "replica")


def process(name: str) -> Struck:
    """A process that is no node."""
    return lambda run, key: ((key[0], name),)


def always(run: Run) -> bool:
    """In every scenario whose vocabulary has the word."""
    return True


def _sever(run: Run, key: Key) -> None:
    """The keeper from the primary, or this replica from it."""
    run.world.sever(KEEPER if key == run.primary() else run.primary(), key)


def _mend(run: Run, key: Key) -> None:
    run.world.mend(key)


def _sync_slowly(run: Run, key: Key) -> None:
    run.world.sync_seconds = SYNC_SECONDS


def _sync_at_once(run: Run, key: Key) -> None:
    run.world.sync_seconds = 0.0


def _moves(run: Run) -> bool:
    """Users change their minds."""
    return run.scenario.moves


def _away(run: Run) -> bool:
    """Hosts can be lost, and none is: somebody is cut off most of the time."""
    return run.world.remote and not run.world.cut


def _relieve(run: Run, key: Key) -> None:
    run.world.relieve(key)


def _doom(run: Run, by: int) -> None:
    """Whoever lets a node lead dies of it, before it can tell anybody else."""
    run.world.fatal_promotions += by


def _stall(run: Run, key: Key) -> None:
    """A replica stalls, while its primary takes writes."""
    if key != run.primary():
        run.world.freeze(key)


def _go_on_without_primary(run: Run, key: Key) -> None:
    """The primary dies, and the replica goes on."""
    run.world.kill(run.primary())
    run.world.thaw(key)


def _stall_unseen(run: Run, key: Key) -> None:
    """Nobody looks."""
    run.dismiss()
    _stall(run, key)


def _see_again(run: Run, key: Key) -> None:
    _go_on_without_primary(run, key)
    run.recall()


def _stall_halted(run: Run, key: Key) -> None:
    """Whoever has just asked is halted before it hears the answer."""
    run.world.on_answer = run.hosts.halt_all
    _stall(run, key)


def _hear_again(run: Run, key: Key) -> None:
    run.world.on_answer = None
    _go_on_without_primary(run, key)
    run.hosts.go_on_all()


@dataclass(frozen=True)
class Fault:
    """``begin`` strikes each of ``struck``; with ``end`` it is over after at most ``seconds``, and when faults stop."""

    name: str
    begin: Strike
    end: Strike | None = None
    struck: Struck = one
    weight: int = 1
    seconds: float = FAULT_SECONDS
    when: Callable[[Run], bool] = always
    """Which worlds and moments know it."""
    classic: bool = False
    """In every seed's vocabulary."""
    gentle: bool = False
    """No data is in danger: it happens beside planned moves, too."""


FAULTS: tuple[Fault, ...] = (
    Fault("kill", lambda r, k: r.world.kill(k), classic=True),
    Fault("kill-primary", lambda r, k: r.world.kill(k), struck=primary, classic=True),
    Fault("freeze", lambda r, k: r.world.freeze(k), lambda r, k: r.world.thaw(k), classic=True),
    Fault("cut", lambda r, k: r.world.cut.add(k), lambda r, k: r.world.cut.discard(k), classic=True),
    Fault("blind", lambda r, k: r.world.blind.add(KEEPER), lambda r, k: r.world.blind.discard(KEEPER), classic=True),
    Fault("restart-keeper", lambda r, k: r.restart_a_keeper(), classic=True),
    Fault("kill-readers", lambda r, k: r.world.kill(k), struck=process("readers"), classic=True),
    Fault(
        "cut-primary",
        lambda r, k: r.world.cut.add(k),
        lambda r, k: r.world.cut.discard(k),
        struck=primary,
        weight=4,
        when=_away,
        classic=True,
    ),
    Fault(
        "cut-primary-and-one",
        lambda r, k: r.world.cut.add(k),
        lambda r, k: r.world.cut.discard(k),
        struck=primary_and_one,
        weight=8,
        when=_away,
        classic=True,
    ),
    Fault(
        "kill-configuration",
        lambda r, k: r.world.kill(k),
        struck=process("configuration"),
        when=lambda r: r.scenario.compatible,
        classic=True,
        gentle=True,
    ),
    Fault("no-start", lambda r, k: r.world.take_away(k), lambda r, k: r.world.unstartable.discard(k)),
    Fault("stuck", lambda r, k: r.world.stuck.add(k), lambda r, k: r.world.stuck.discard(k)),
    Fault("stuck-readers", lambda r, k: r.world.stuck.add(k), lambda r, k: r.world.stuck.discard(k), struck=process("readers")),
    Fault("other-node-type", lambda r, k: r.other_node_type(), weight=2, gentle=True),
    Fault("slow-command", lambda r, k: r.world.disturb(k, "slow"), _relieve),
    Fault("slow-replicas", lambda r, k: r.world.disturb(k, "slow"), _relieve, struck=replicas, seconds=LONG_SECONDS),
    Fault("script", lambda r, k: r.world.disturb(k, "busy"), _relieve, struck=primary),
    Fault("endless-script", lambda r, k: r.world.disturb(k, "busy")),
    Fault("script-that-writes", lambda r, k: r.world.disturb(k, "written"), _relieve, struck=primary),
    Fault("pause", lambda r, k: r.world.disturb(k, "paused"), _relieve, struck=primary),
    Fault("pauses", lambda r, k: r.world.disturb(k, "paused"), _relieve, struck=several),
    Fault("crowd", lambda r, k: r.world.disturb(k, "crowded"), _relieve, struck=several),
    Fault(
        AILS,
        lambda r, k: r.stores.ail(),
        lambda r, k: r.stores.heal(),
        struck=process("store"),
        weight=6,
        seconds=25.0,
        gentle=True,
    ),
    Fault(
        "old-journal",
        lambda r, k: r.stores.bring_back_the_journal(),
        struck=process("store"),
        when=lambda r: AILS in r.scenario.vocabulary,
    ),
    Fault("stalls", lambda r, k: r.world.freeze(k), lambda r, k: r.world.thaw(k), struck=several),
    Fault("set-clock", lambda r, k: r.hosts.set_a_clock(r.random), weight=3, gentle=True),
    Fault(
        "halt-keeper",
        lambda r, k: r.hosts.halt(k[1]),
        lambda r, k: r.hosts.go_on(k[1]),
        struck=process("keeper0"),
        seconds=HALT_SECONDS,
        weight=3,
    ),
    Fault("boot", lambda r, k: r.world.spawn(r.boot())),
    Fault("sever-keeper", lambda r, k: r.world.sever(KEEPER, k), _mend),
    Fault("sever-primary", lambda r, k: r.world.sever(KEEPER, k), _mend, struck=primary),
    Fault("sever-some", _sever, _mend, struck=several),
    Fault("sever-replica", lambda r, k: r.world.sever(k, r.primary()), _mend, seconds=LONG_SECONDS),
    Fault("tear", lambda r, k: r.world.tear(k, r.primary()), _mend, seconds=LONG_SECONDS),
    Fault("slow-sync", _sync_slowly, _sync_at_once, weight=2, seconds=LONG_SECONDS),
    Fault("disk-full", lambda r, k: r.world.full.add(k), lambda r, k: r.world.full.discard(k), struck=several),
    Fault("reboot-all", lambda r, k: r.reboot_all(), when=_moves, gentle=True),
    Fault("upgrade", lambda r, k: r.upgrade(), when=_moves, gentle=True),
    Fault(
        "deaf",
        lambda r, k: r.world.deaf.add(k),
        lambda r, k: r.world.deaf.discard(k),
        struck=replicas,
        seconds=1.0,
        when=lambda r: r.world.has_bus,
        weight=6,
        gentle=True,
    ),
    Fault("accept-loss", lambda r, k: r.accept_loss(), when=_moves, weight=2),
    Fault("keepers-away", lambda r, k: r.dismiss(), lambda r, k: r.recall(), seconds=8.0),
    Fault("keepers-halted", lambda r, k: r.hosts.halt_all(), lambda r, k: r.hosts.go_on_all(), seconds=HALT_SECONDS),
    Fault("stalls-unseen", _stall_unseen, _see_again, struck=several, weight=2, seconds=8.0),
    Fault("stalls-while-halted", _stall_halted, _hear_again, struck=several, weight=2, seconds=8.0),
    Fault("fatal-promotions", lambda r, k: _doom(r, 1), lambda r, k: _doom(r, -1), seconds=8.0),
)

CLASSIC = frozenset(f.name for f in FAULTS if f.classic)
EVERY = frozenset(f.name for f in FAULTS)


def vocabulary(seed: int) -> frozenset[str]:
    """The classic words, and some others. Each is decided for itself, so that a new row changes only the seeds that get it."""
    return CLASSIC | {f.name for f in FAULTS if not f.classic and random.Random(f"{seed} {f.name}").random() < CHANCE}


def beside(seed: int) -> bool:
    """Whether there are two control planes. Where the store ails there is mostly one, which has a journal of its decisions."""
    return AILS not in vocabulary(seed) or seed % 4 == 0


def known(run: Run) -> list[Fault]:
    """Rows that may strike now, as often as they weigh."""
    able = (f for f in FAULTS if f.name in run.scenario.vocabulary and (run.scenario.faults or f.gentle) and f.when(run))
    return [f for f in able for _ in range(f.weight)]
