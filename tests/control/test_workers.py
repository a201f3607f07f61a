"""Workers run beside each other, and one that ends is noticed."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from cachekeep.control.workers import PRUNE_SECONDS, Pruner, Single, at_work
from cachekeep.model import Event
from cachekeep.sim.halts import Process
from cachekeep.sim.timeless import SimClock, run
from cachekeep.store import MemoryStore, StoreFailed
from cachekeep.store.families.events import EVENTS_KEPT_DAYS

LEASE = 15.0


class Hand:
    """Works until it is cancelled, or until it fails."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.failing = failing
        self.said: list[str] = []

    async def run(self) -> None:
        self.said.append("begun")
        try:
            if self.failing is not None:
                raise self.failing
            await asyncio.Event().wait()
        finally:
            self.said.append("ended")

    def hasten(self) -> None: ...


@pytest.mark.anyio
async def test_all_work_until_the_end_of_the_block_and_have_ended_after_it() -> None:
    first, second = Hand(), Hand()
    async with at_work([first, second]) as working:
        await asyncio.sleep(0)
        assert [first.said, second.said] == [["begun"], ["begun"]]
        assert not any(task.done() for task in working)
    assert [first.said, second.said] == [["begun", "ended"], ["begun", "ended"]]


@pytest.mark.anyio
async def test_what_ended_one_is_seen_at_once_and_raised_when_the_others_have_ended() -> None:
    other = Hand()
    with pytest.raises(ValueError, match="broken"):
        async with at_work([other, Hand(ValueError("broken"))]) as working:
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
    assert other.said == ["begun", "ended"]


# -- those of which one works in an installation


class Ticker:
    """Says once a second that it works."""

    def __init__(self, name: str, said: list[tuple[float, str]]) -> None:
        self.name, self.said, self.hastened = name, said, 0

    async def run(self) -> None:
        while True:
            self.said.append((asyncio.get_running_loop().time(), self.name))
            await asyncio.sleep(1.0)

    def hasten(self) -> None:
        self.hastened += 1


class Installation:
    """Two control planes on one store, each with the same worker."""

    def __init__(self) -> None:
        self.said: list[tuple[float, str]] = []
        self.clock = SimClock(random.Random(1))
        self.store = MemoryStore(self.clock)
        self.planes = {name: Process() for name in ("one", "two")}
        self.workers = {name: Ticker(name, self.said) for name in self.planes}
        self.singles = {name: self._single(name) for name in self.planes}

    def _single(self, name: str) -> Single:
        return Single("tick", self.workers[name], store=self.store, clock=self.clock, holder=name, lease_seconds=LEASE)

    def begin(self) -> None:
        self.tasks = {name: process.run(self.singles[name].run()) for name, process in self.planes.items()}

    def since(self, seconds: float) -> set[str]:
        """Who has worked in the last so many seconds."""
        now = asyncio.get_running_loop().time()
        return {name for at, name in self.said if at > now - seconds}


def in_virtual_time(test: Callable[[Installation], Awaitable[None]]) -> Callable[[], None]:
    def tried() -> None:
        async def main() -> None:
            installation = Installation()
            installation.begin()
            await asyncio.sleep(30)
            assert installation.since(30) == {"one"}
            await test(installation)

        run(main())

    tried.__name__, tried.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return tried


@in_virtual_time
async def test_when_the_first_dies_the_other_takes_over(installation: Installation) -> None:
    await installation.planes["one"].kill()
    died_at = asyncio.get_running_loop().time()
    await asyncio.sleep(2 * LEASE)
    assert min(at for at, name in installation.said if name == "two") <= died_at + LEASE + LEASE / 3 + 1
    assert installation.since(5) == {"two"}


@in_virtual_time
async def test_who_was_halted_for_longer_than_the_lease_takes_no_step_of_it(installation: Installation) -> None:
    installation.planes["one"].halt()
    await asyncio.sleep(2 * LEASE)
    halted = installation.since(2 * LEASE - 1)
    installation.planes["one"].go_on()
    await asyncio.sleep(60)
    assert (halted, installation.since(60)) == ({"two"}, {"two"})


@in_virtual_time
async def test_who_cannot_renew_stops_before_it_is_anothers(installation: Installation) -> None:
    """And goes on when that is possible again, if nobody else has taken it meanwhile."""
    claim = installation.store.claim_work

    async def away(holder: str, name: str, *, ttl_seconds: float) -> int | None:
        raise StoreFailed("the store is away")

    installation.store.claim_work = away  # type: ignore[method-assign]
    await asyncio.sleep(2 * LEASE)
    assert installation.since(LEASE) == set()
    installation.store.claim_work = claim  # type: ignore[method-assign]
    await asyncio.sleep(LEASE)
    assert len(installation.since(5)) == 1


@in_virtual_time
async def test_never_do_two_work_at_once(installation: Installation) -> None:
    for _ in range(4):
        for process in installation.planes.values():
            process.halt()
            await asyncio.sleep(LEASE * 1.5)
            process.go_on()
            await asyncio.sleep(1.0)
    turns = [name for _, name in installation.said]
    handed = [at for (_, former), (at, name) in pairwise(installation.said) if name != former]
    assert set(turns) == {"one", "two"}
    assert all(later - at > LEASE / 3 for at, later in pairwise(handed)), "they never take turns"


@in_virtual_time
async def test_only_who_works_is_hastened(installation: Installation) -> None:
    for single in installation.singles.values():
        single.hasten()
    assert {name: worker.hastened for name, worker in installation.workers.items()} == {"one": 1, "two": 0}


class Fragile:
    """Fails at the first times."""

    def __init__(self, times: int) -> None:
        self.times, self.begun = times, 0

    async def run(self) -> None:
        self.begun += 1
        if self.begun <= self.times:
            raise OverflowError("too large")
        await asyncio.Event().wait()

    def hasten(self) -> None: ...


def test_who_fails_is_told_of_and_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is: a scaler that cannot count is no reason for caches to stay without failover."""

    async def main() -> None:
        clock, fragile = SimClock(random.Random(1)), Fragile(2)
        work = asyncio.create_task(Single("x", fragile, store=MemoryStore(clock), clock=clock, holder="k").run())
        await asyncio.sleep(60)
        assert fragile.begun == 3
        assert not work.done()
        work.cancel()

    run(main())
    assert [record.getMessage() for record in caplog.records] == ["x has failed, and is begun anew; everything else goes on"] * 2
    assert "OverflowError: too large" in caplog.text


def test_what_is_too_old_is_removed() -> None:
    async def main() -> None:
        clock = SimClock(random.Random(1))
        store = MemoryStore(clock)
        old, new = (
            Event(source_type="user", source="u", message=m, at=clock.now() - dt.timedelta(days=days))
            for m, days in (("old", EVENTS_KEPT_DAYS + 1), ("new", EVENTS_KEPT_DAYS - 1))
        )
        async with store.transaction() as tx:
            await tx.tell(old, new)
        work = asyncio.create_task(Pruner(store, clock).run())
        await asyncio.sleep(1)
        assert [event.message for _, _, event in store._state.events] == ["new"]
        await asyncio.sleep(2 * 86400 + PRUNE_SECONDS)
        assert store._state.events == []
        work.cancel()

    run(main())
