"""For how long a node has been silent: only while somebody was there to hear it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.control.test_still import CACHE, RUNS, World

from cachekeep.control import Observer
from cachekeep.control.jobs import JobsHere
from cachekeep.model import NodeView, Silence
from cachekeep.network.addresses import Pool
from cachekeep.sim.users import SEALING
from cachekeep.store.memory import MemoryStore

HALT = 60.0


class Halting(World):
    """A look may take its time: the process that looks is halted in the middle of it."""

    takes = 0.0

    async def look(self, what: Any, **terms: Any) -> Any:
        seen = await super().look(what, **terms)
        if isinstance(seen, NodeView):
            self.at += self.takes
        return seen


def silent(owed: float = 0.0) -> NodeView:
    """``owed``: for how long a heartbeat has waited for its answer."""
    return NodeView(answer=Silence(owed, True))


WELL = NodeView(answer="complete")


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(0.0, silent(), 0.25)], 0.25),
        ([(0.0, silent(), 0.25), (1.0, silent(), 0.25), (2.0, silent(), 0.25)], 2.25),
        ([(0.0, silent(0.4), 0.25)], 0.65),
        # halted between two looks, in the middle of one, and while a heartbeat waited
        ([(0.0, silent(), 0.25), (HALT, silent(), 0.25)], 2.5),
        ([(0.0, silent(), HALT)], 2.0),
        ([(0.0, WELL, 0.01), (HALT, silent(HALT), 0.25)], 2.26),
        # one that is silent for good is known for that soon after
        ([(0.0, silent(), 0.25), (HALT, silent(), 0.25), (HALT + 1, silent(), 0.25), (HALT + 3, silent(), 0.25)], 5.5),
        # whoever answered in between has been heard
        ([(0.0, silent(), 0.25), (1.0, WELL, 0.01), (HALT, silent(), 0.25)], 0.25),
    ],
)
async def test_silence_counts_while_somebody_listens(looks: list[tuple[float, NodeView, float]], seconds: float) -> None:
    world: Any = Halting()
    world.process = RUNS
    observer = Observer(
        store=MemoryStore(world),
        driver=world,
        link=world,
        fronts=world,
        jobs=JobsHere({}),
        clock=world,
        places=Pool("127.77.0.0/16"),
        password_of=SEALING.password_of,
    )
    for world.at, world.node, world.takes in looks:
        view = await observer.look(CACHE)
    assert view.node("demo-001").silent_seconds == pytest.approx(seconds, abs=0.02)
