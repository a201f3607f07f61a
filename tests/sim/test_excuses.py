"""What a decision may lose: the last moments that only nodes hold which cannot be promoted, and no more."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from tests.plan.builders import group

from cachekeep.compute.contract import Key, ProcessSpec
from cachekeep.sim import excuses
from cachekeep.sim.timeless import run
from cachekeep.sim.world import Engine, World

OLD, FRESH = 1, 2


@pytest.mark.parametrize("remote", [False, True], ids=["confirm", "starve"])
@pytest.mark.parametrize(
    ("leaves", "severed_from", "excused"),
    [
        (False, None, set()),
        (True, None, {FRESH}),
        (False, "keeper0", {FRESH}),
        (False, "keeper1", set()),
        (False, "demo-003", set()),
    ],
    ids=["works", "leaves", "not reached by who decides", "not reached by another keeper", "not reached by another node"],
)
def test_last_moments_that_only_nodes_hold_which_cannot_be_promoted(
    leaves: bool, severed_from: str | None, excused: set[int], remote: bool
) -> None:
    cache = group()
    primary, holder, other = ((cache.uid, n.name) for n in cache.decided.nodes)
    nodes = tuple(replace(n, leaving=leaves and n.name == holder[1]) for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes))

    async def life() -> set[int]:
        world = World(1)
        world.remote, world.decided = remote, lambda: {holder, other}
        for key in (primary, holder, other):
            world.processes[key] = _engine(key)
        world.processes[primary].role = "primary"
        world.take(world.processes[primary], OLD)
        await asyncio.sleep(world.in_flight_seconds)
        world.take(world.processes[primary], FRESH)
        await asyncio.sleep(0.1)
        world.processes[holder].writes = [OLD, FRESH]
        world.kill(primary)
        if severed_from is not None:
            world.sever((cache.uid, severed_from) if severed_from.startswith("demo") else severed_from, holder)
        assert not world.lossable
        return excuses.lossable(world, cache, "keeper0")

    assert run(life()) == excused


def _engine(key: Key) -> Engine:
    return Engine(ProcessSpec(key=key, incarnation=1, argv=("valkey",), address=key[1], port=6379), 0)
