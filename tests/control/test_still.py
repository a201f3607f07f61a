"""Since when a node can have acknowledged nothing: what looks, one after the other, allow to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from tests.plan.builders import group, later

from cachekeep.compute.contract import Key, ProcessSeen, Target
from cachekeep.control import Observer
from cachekeep.control.jobs import JobsHere
from cachekeep.model import Moment, NodeView, Silence
from cachekeep.network.addresses import Pool
from cachekeep.sim.users import SEALING
from cachekeep.store.memory import MemoryStore

CACHE = group(1)
KEY = (CACHE.uid, "demo-001")


class World:
    """Clock, driver and link: at a moment, one process in one state."""

    def __init__(self) -> None:
        self.at, self.takes_seconds = 0.0, 0.0
        self.process = ProcessSeen(process="running", incarnation=1)
        self.node = NodeView(answer="complete")

    def moment(self) -> Moment:
        return later(self.at)

    def monotonic(self) -> float:
        return self.at

    async def look(self, what: Any, **_: Any) -> Any:
        if isinstance(what, Target):
            self.at += self.takes_seconds
            return self.node
        keys: Iterable[Key] = what
        return dict.fromkeys(keys, self.process)


def dead(incarnation: int = 1, ended_at: Moment | None = None) -> ProcessSeen:
    return ProcessSeen(process="exited", incarnation=incarnation, ended_at=ended_at)


FROZEN = ProcessSeen(process="frozen", incarnation=1)
RUNS = ProcessSeen(process="running", incarnation=1)
STUCK = ProcessSeen(process="stuck", incarnation=1)
WELL, BUSY, AWAY, BROKEN = (
    NodeView(answer="complete"),
    NodeView(answer=Silence(reachable=True)),
    NodeView(answer=Silence(reachable=False)),
    NodeView(answer=Silence()),
)


@pytest.mark.parametrize(
    ("looks", "since"),
    [
        ([(0.0, RUNS, WELL)], None),
        ([(0.0, RUNS, BUSY)], 0.0),
        ([(0.0, RUNS, BUSY), (0.5, RUNS, BUSY), (1.0, FROZEN, WELL), (1.5, dead(), WELL)], 0.0),
        ([(0.0, RUNS, AWAY)], None),  # whoever reaches it may be served
        ([(0.0, RUNS, BROKEN)], None),  # nothing of ours has arrived there
        ([(0.0, RUNS, BUSY), (0.5, RUNS, AWAY), (1.0, RUNS, BUSY)], 1.0),
        # its sockets are closed before it is known to hang in the kernel for good
        ([(0.0, RUNS, BUSY), (0.5, RUNS, BROKEN)], 0.0),
        ([(0.0, RUNS, BUSY), (0.5, RUNS, BROKEN), (1.0, STUCK, WELL), (9.0, STUCK, WELL)], 0.0),
        ([(0.0, RUNS, BUSY), (0.5, RUNS, BROKEN), (2.5, RUNS, BROKEN)], None),  # that is not known for long
        ([(0.0, RUNS, BUSY), (0.5, RUNS, BROKEN), (2.5, RUNS, BUSY)], 2.5),
        ([(0.0, FROZEN, WELL), (1.0, FROZEN, WELL)], 0.0),
        ([(0.0, FROZEN, WELL), (1.0, RUNS, WELL), (2.0, FROZEN, WELL)], 2.0),
        ([(0.0, FROZEN, WELL), (9.0, FROZEN, WELL)], 9.0),  # nobody looked meanwhile: it may have been thawed
        ([(0.0, dead(), WELL), (9.0, dead(), WELL)], 0.0),  # but nobody rises from the dead
        ([(0.0, FROZEN, WELL), (9.0, dead(), WELL)], 9.0),  # it may have been thawed before it died
        ([(0.0, FROZEN, WELL), (1.0, dead(), WELL), (9.0, dead(), WELL)], 0.0),
        ([(0.0, dead(), WELL), (9.0, dead(2), WELL)], 9.0),  # another process is another process
        ([(5.0, dead(1, later(3.0)), WELL)], 3.0),  # the driver saw it
        ([(5.0, STUCK, WELL)], 5.0),
        ([(5.0, ProcessSeen(process=None), WELL)], None),
    ],
)
async def test_since_when_it_is_still(looks: list[tuple[float, ProcessSeen, NodeView]], since: float | None) -> None:
    world = World()
    clock: Any = world
    observer = Observer(
        store=MemoryStore(clock),
        driver=clock,
        link=clock,
        fronts=clock,
        jobs=JobsHere({}),
        clock=clock,
        places=Pool("127.77.0.0/16"),
        password_of=SEALING.password_of,
    )
    for world.at, world.process, world.node in looks:
        view = await observer.look(CACHE)
    assert view.node("demo-001").still_since == (None if since is None else later(since))


async def test_whoever_was_halted_in_the_middle_of_a_look_does_not_know_what_it_missed() -> None:
    """The answer had come, perhaps, and was never read: the node may have gone on since it was asked."""
    world = World()
    clock: Any = world
    observer = Observer(
        store=MemoryStore(clock),
        driver=clock,
        link=clock,
        fronts=clock,
        jobs=JobsHere({}),
        clock=clock,
        places=Pool("127.77.0.0/16"),
        password_of=SEALING.password_of,
    )
    world.process, world.node, world.takes_seconds = RUNS, BUSY, 5.0
    view = await observer.look(CACHE)
    assert view.node("demo-001").still_since == later(5.0)
