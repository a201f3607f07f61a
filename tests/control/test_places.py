"""Free places come from a door that may be slow or away: nobody's look waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from tests.control.test_still import World
from tests.plan.builders import group

from cachekeep.control import Observer
from cachekeep.control.jobs import JobsHere
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache
from cachekeep.sim.users import SEALING
from cachekeep.store.memory import MemoryStore

NEW = group(2, settled=False)


class Door:
    """Hands out ``given``; None: it never answers; an error: it is away."""

    def __init__(self, given: tuple[str, ...] | OrderFailed | None) -> None:
        self.given = given
        self.asked: list[tuple[str, int, Collection[str]]] = []

    async def free(self, uid: str, count: int, *, taken: Collection[str]) -> tuple[str, ...]:
        self.asked.append((uid, count, taken))
        if self.given is None:
            await asyncio.Event().wait()
        if isinstance(self.given, OrderFailed):
            raise self.given
        return self.given or ()


async def looked(cache: Cache, door: Door) -> tuple[str, ...] | None:
    clock: Any = World()
    observer = Observer(
        store=MemoryStore(clock),
        driver=clock,
        link=clock,
        fronts=clock,
        jobs=JobsHere({}),
        clock=clock,
        places=door,
        password_of=SEALING.password_of,
    )
    return (await observer.look(cache)).free_addresses


async def test_what_the_door_gives_is_what_may_be_decided() -> None:
    door = Door(("a", "b", "c"))
    assert await looked(NEW, door) == ("a", "b", "c")
    ((uid, count, taken),) = door.asked
    assert (uid, set(taken)) == (NEW.uid, set())
    assert count >= 3, "two nodes and an endpoint at least"


@pytest.mark.parametrize("given", [None, OrderFailed("the door is away")], ids=["slow", "away"])
async def test_a_door_that_gives_nothing_is_not_one_that_has_nothing(given: OrderFailed | None) -> None:
    async with asyncio.timeout(60):
        assert await looked(NEW, Door(given)) is None


async def test_a_cache_that_has_all_its_places_does_not_ask() -> None:
    door = Door(None)
    assert await looked(group(2), door) == ()
    assert door.asked == []
