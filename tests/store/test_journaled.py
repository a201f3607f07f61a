"""Decisions while the store beneath ails: kept at once, seen by everybody here,
and in the store when that is back. In virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
from msgspec.structs import replace
from tests.contract.test_store import cache, decided, event

from cachekeep.errors import Conflict
from cachekeep.model import Cache, Condition, Decided, Tags
from cachekeep.plan import Policy
from cachekeep.sim.store import AilingStore, Ailment, SimDisk
from cachekeep.sim.timeless import SimClock, run
from cachekeep.store import Journal, JournaledStore, Lease, MemoryStore, Store, StoreFailed
from cachekeep.store.contract import Along
from cachekeep.store.journaled import PATIENCE_SECONDS, REQUEST_SECONDS, TRY_SECONDS

UID = "uid-group-demo"
AILMENTS = {
    "locked": Ailment(locked=True),
    "full": Ailment(full=True),
    "hung": Ailment(hung=True),
    "gone": Ailment(gone=True),
    "slow": Ailment(slow_seconds=8.0),
}
ANY = pytest.mark.parametrize("ailment", AILMENTS.values(), ids=AILMENTS)


class Bench:
    """One cache, kept by one holder, over a store that can be made to ail."""

    def __init__(self) -> None:
        chance = random.Random(1)
        self.clock = SimClock(chance)
        self.truth = MemoryStore(self.clock)
        self.ailment = Ailment()
        self.disk = SimDisk(chance)
        self.beneath = AilingStore(self.truth, self.ailment, chance)
        self.alone = True

    async def open(self) -> JournaledStore:
        """A control plane: it has the journal, and nobody else."""
        self.store = JournaledStore(self.beneath, Journal(self.disk, half_bytes=1 << 14), self.clock, alone=lambda: self.alone)
        await self.store.open()
        return self.store

    async def begin(self) -> Cache:
        await self.open()
        async with self.store.transaction() as tx:
            await tx.insert(cache("demo"))
        (self.lease,) = await self.store.claim("holder", ttl_seconds=15.0)
        first = cast(Cache, await self.store.load(UID))
        return await self.save(replace(first, decided=decided(("demo-001", "a"), ("demo-002", "b"))))

    async def save(self, cache: Cache, *messages: str, addresses: tuple[str, ...] = ("a", "b")) -> Cache:
        return await self.store.save_decided(cache, self.lease, Along(events=[event(m) for m in messages], addresses=addresses))

    def ail(self, ailment: Ailment | None = None) -> None:
        vars(self.ailment).update(vars(ailment or Ailment()))

    async def healed(self) -> None:
        self.ail()
        async with asyncio.timeout(60):
            while self.store.trouble():
                await asyncio.sleep(0.01)

    async def row(self) -> Cache:
        return cast(Cache, await self.truth.load(UID))

    async def told(self) -> list[tuple[str, float]]:
        """Messages and the seconds of virtual time at which they happened."""
        async with self.truth.reading() as tx:
            return [
                (e.message, round((e.at - self.clock.now()).total_seconds() + self.clock.monotonic(), 2))
                for _, e in await tx.events(limit=99)
                if e.at
            ]

    async def want(self, version: str) -> None:
        """What is wanted changes, past the ailment: a request that was already under way."""
        async with self.truth.transaction() as tx:
            asked = cast(Cache, await tx.cache("demo", "group"))
            await tx.save_wanted(replace(asked, wanted=replace(asked.wanted, version=version)))


def in_virtual_time(test: Callable[[Bench, Cache], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def go() -> None:
            bench = Bench()
            await test(bench, await bench.begin())
            await bench.store.aclose()

        run(go())

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


def leading(cache: Cache, order: int) -> Cache:
    """With a decision that can be told from others."""
    shard = replace(cache.decided.shards[0], primary=f"demo-00{order % 2 + 1}", order=order)
    return replace(cache, decided=replace(cache.decided, shards=(shard,)))


def having(cache: Cache, *nodes: tuple[str, str]) -> Cache:
    """With these nodes and addresses."""
    return replace(cache, decided=replace(cache.decided, nodes=decided(*nodes).nodes))


def time() -> float:
    return asyncio.get_running_loop().time()


async def seconds(work: Awaitable[object]) -> float:
    began = time()
    await work
    return time() - began


@ANY
def test_a_decision_waits_a_moment_and_the_next_not_at_all(ailment: Ailment) -> None:
    @in_virtual_time
    async def story(bench: Bench, cache: Cache) -> None:
        before = await bench.row()
        bench.ail(ailment)
        began = time()
        first = await bench.save(leading(cache, 2), "first")
        assert time() - began <= PATIENCE_SECONDS + 0.01
        happened = time()
        began = time()
        assert await bench.store.load(UID) == first
        second = await bench.save(leading(first, 3), "second")
        assert time() - began < 0.01
        assert await bench.store.load(UID) == second
        assert cache.version < first.version < second.version
        assert bench.store._journal.entries[UID].decided == second.decided
        assert "decisions about 1 cache are kept in simulated" in bench.store.trouble()
        await asyncio.sleep(180)
        assert ailment.slow_seconds or (await bench.row()) == before
        await bench.healed()
        row = await bench.row()
        assert row.decided == second.decided
        assert row.version > second.version
        assert bench.store._journal.empty
        assert await bench.told() == [("first", pytest.approx(happened, abs=0.2)), ("second", pytest.approx(happened, abs=0.2))]
        third = await bench.save(leading(row, 4))
        assert await bench.row() == third

    story()


@in_virtual_time
async def test_what_is_wanted_meanwhile_stays(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["locked"])
    saved = await bench.save(leading(cache, 2))
    await bench.want("9.0")
    saved = await bench.save(leading(saved, 3))
    await bench.healed()
    row = await bench.row()
    assert (row.wanted.version, row.decided) == ("9.0", saved.decided)
    with pytest.raises(Conflict):  # it was decided for what was wanted before
        await bench.save(leading(saved, 4))


@in_virtual_time
async def test_an_answer_that_comes_late_is_used_all_the_same(bench: Bench, cache: Cache) -> None:
    bench.ail(Ailment(slow_seconds=1.0))
    await bench.want("9.0")
    woken: list[str] = []
    bench.store.on_change(woken.append)
    known = cast(Cache, await bench.store.load(UID))
    assert known.wanted.version == "8.0"
    await asyncio.sleep(3)
    assert UID in woken
    known = cast(Cache, await bench.store.load(UID))
    assert known.wanted.version == "9.0"


@in_virtual_time
async def test_an_answer_from_before_the_last_decision_takes_nothing_back(bench: Bench, cache: Cache) -> None:
    """It was on its way while that was decided, and while the store got it. The next decision would follow from the one before."""
    held, real = asyncio.Event(), bench.truth.load

    async def late(uid: str) -> Cache | None:
        row = await real(uid)
        await held.wait()
        return row

    bench.truth.load = late  # type: ignore[method-assign]
    known = cast(Cache, await bench.store.load(UID))
    saved = await bench.save(leading(known, 2))
    bench.truth.load = real  # type: ignore[method-assign]
    await bench.healed()
    assert (await bench.row()).decided == saved.decided
    held.set()
    await asyncio.sleep(1)
    bench.ail(AILMENTS["gone"])
    assert cast(Cache, await bench.store.load(UID)).decided == saved.decided


@in_virtual_time
async def test_nothing_is_decided_where_somebody_else_might(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["gone"])
    bench.alone = False
    for work in (bench.save(leading(cache, 2)), bench.store.load(UID)):
        with pytest.raises(StoreFailed):
            await work
    assert bench.store._journal.empty
    bench.alone = True
    await bench.save(leading(cache, 2))


@in_virtual_time
async def test_new_addresses_wait_for_the_store(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["locked"])
    with pytest.raises(StoreFailed, match="c may be in use by another cache"):
        await bench.save(having(cache, ("demo-001", "a"), ("demo-003", "c")), addresses=("a", "c"))
    fewer = await bench.save(having(cache, ("demo-001", "a")), addresses=("a",))
    with pytest.raises(StoreFailed, match="b may be in use"):  # it may be another's when the store has heard
        await bench.save(having(fewer, ("demo-001", "a"), ("demo-002", "b")))
    await bench.healed()
    assert await bench.truth.addresses() == {"a", "b"}, "nobody is given it at once"
    await asyncio.sleep(Policy().linger_seconds)
    assert await bench.truth.addresses() == {"a"}


@in_virtual_time
async def test_what_the_journal_cannot_keep_is_refused(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["gone"])
    for work in (
        bench.store.forget(cache, bench.lease),
        bench.store.addresses(),
        bench.store.claim("other", ttl_seconds=15.0),
        bench.store.renew("holder", ttl_seconds=15.0),
    ):
        with pytest.raises(StoreFailed):
            await work
    bench.disk.full = True
    with pytest.raises(StoreFailed, match="Nothing of this decision was kept"):
        await bench.save(leading(cache, 2))
    assert await bench.store.load(UID) == cache
    await bench.healed()
    assert await bench.row() == cache


@in_virtual_time
async def test_what_was_saved_although_nobody_said_so_is_not_told_twice(bench: Bench, cache: Cache) -> None:
    bench.ail(Ailment(unsure=1.0))
    saved = await bench.save(leading(cache, 2), "once")
    assert (await bench.row()).decided == saved.decided
    saved = await bench.save(leading(saved, 3), "then")
    await asyncio.sleep(3)  # merged, again and again, and never confirmed
    await bench.healed()
    assert (await bench.row()).decided == saved.decided
    assert [message for message, _ in await bench.told()] == ["once", "then"]


@in_virtual_time
async def test_what_decisions_leave_waits_with_them_for_the_store(bench: Bench, cache: Cache) -> None:
    """Also for the next control plane, which finds it in the journal."""

    async def left() -> list[str]:
        async with bench.truth.reading() as t:
            return [r.name for r in await t.list(Tags)]

    async def save(cache: Cache, name: str) -> Cache:
        tags = Tags(name=name, values={})
        return await bench.store.save_decided(cache, bench.lease, Along(records=[tags], addresses=["a", "b"]))

    saved = await save(leading(cache, 2), "before")
    bench.ail(AILMENTS["locked"])
    saved = await save(leading(saved, 3), "first")
    await save(leading(saved, 4), "second")
    assert await left() == ["before"]
    await bench.store.aclose()
    opening = asyncio.ensure_future(bench.open())
    await bench.healed()
    await opening
    assert await left() == ["before", "first", "second"]


@in_virtual_time
async def test_two_decisions_never_have_one_number(bench: Bench, cache: Cache) -> None:
    """A save that was done although nobody said so, and that the journal could not take: what is decided instead comes after it."""
    bench.ail(Ailment(unsure=1.0))
    with pytest.raises(StoreFailed, match="c may be in use"):
        await bench.save(having(cache, ("demo-001", "a"), ("demo-003", "c")), addresses=("a", "c"))
    unconfirmed = (await bench.row()).decided
    assert "demo-003" in [n.name for n in unconfirmed.nodes]
    assert await bench.store.load(UID) == cache
    saved = await bench.save(leading(cache, 2))
    assert saved.decided.serial > unconfirmed.serial
    await bench.healed()
    assert (await bench.row()).decided == saved.decided
    await asyncio.sleep(Policy().linger_seconds)
    assert await bench.truth.addresses() == {"a", "b"}


@in_virtual_time
async def test_a_save_that_is_late_does_not_undo_what_came_after_it(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["locked"])
    late = asyncio.ensure_future(bench.beneath.save_decided(leading(cache, 2), bench.lease, Along(addresses=["a", "b"])))
    saved = await bench.save(leading(await bench.save(leading(cache, 2)), 3))
    await bench.healed()
    with pytest.raises(Conflict):
        await late
    assert (await bench.row()).decided == saved.decided


# ---------------------------------------------------------------------------------------------------- the next control plane


@in_virtual_time
async def test_the_next_control_plane_merges_before_it_claims(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["locked"])
    saved = await bench.save(leading(cache, 2), "told")
    await bench.store.aclose()
    opening = asyncio.ensure_future(bench.open())
    await asyncio.sleep(TRY_SECONDS + 1)
    store = await opening
    assert "decisions about 1 cache are kept" in store.trouble()
    await bench.truth.bury("holder")
    with pytest.raises(StoreFailed):
        await store.claim("next", ttl_seconds=15.0)
    async with store.reading() as tx:
        assert cast(Cache, await tx.cache("demo", "group")).decided == saved.decided, "it is so, whatever the store says"
    await bench.healed()
    assert (await bench.row()).decided == saved.decided
    assert [m for m, _ in await bench.told()] == ["told"]
    assert await store.claim("next", ttl_seconds=15.0) == [Lease(UID, "next", bench.lease.epoch + 1)]
    assert cast(Cache, await store.load(UID)).decided == saved.decided


def test_over_a_newer_epoch_nothing_is_merged_and_the_orders_are_named(caplog: pytest.LogCaptureFixture) -> None:
    @in_virtual_time
    async def story(bench: Bench, cache: Cache) -> None:
        bench.ail(AILMENTS["hung"])
        await bench.save(leading(cache, 7))
        await bench.truth.release(bench.lease)
        (newer,) = await bench.truth.claim("somebody else", ttl_seconds=60.0)
        theirs = await bench.truth.save_decided(leading(cache, 4), newer, Along(addresses=["a", "b"]))
        await bench.healed()
        assert await bench.row() == theirs
        assert bench.store._journal.empty

    with caplog.at_level(logging.ERROR, "cachekeep.store"):
        story()
    assert f"what the journal holds of cache {UID} is void" in caplog.text
    assert "order 7 of shard 0001 for demo-002" in caplog.text


@in_virtual_time
async def test_a_damaged_journal_is_named_and_the_store_counts(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["gone"])
    await bench.save(leading(await bench.save(leading(cache, 2)), 3))
    await bench.store.aclose()
    at = bench.disk.content.index(b'"all"')
    bench.disk.content[at] ^= 1
    bench.ail()
    store = await bench.open()
    assert "damaged" in store._journal.damage
    assert await bench.row() == cache
    assert not store.trouble()


# ---------------------------------------------------------------------------------------------------- what requests see


def condition(cache: Cache, because: str) -> Condition:
    return Condition(status="available", because=because, settled=True, version=cache.version)


@in_virtual_time
async def test_readers_see_what_has_been_decided_and_told_since(bench: Bench, cache: Cache) -> None:
    await bench.store.publish(UID, condition(cache, "before"), bench.lease)
    bench.ail(AILMENTS["locked"])
    saved = await bench.save(leading(cache, 2))

    async def seen() -> tuple[Cache, Condition | None]:
        async with bench.store.reading() as tx:
            found = cast(Cache, await tx.cache("demo", "group"))
            assert await tx.cache_of("demo-001") == found
            assert await tx.caches() == [found]
            told = await tx.condition(UID)
            assert await tx.conditions([UID, "nobody"]) == ({UID: told} if told else {})
            assert await tx.cache("nobody", "group") is None
            assert await tx.events(limit=9) == []
            return found, told

    assert await seen() == (saved, None), "what was told was of another version"
    woken: list[str] = []
    bench.store.on_told(woken.append)
    for _ in range(2):
        await bench.store.publish(UID, condition(saved, "since"), bench.lease)
    assert woken == [UID], "the second time nothing was new"
    assert await seen() == (saved, condition(saved, "since"))
    await bench.want("9.0")
    found, told = await seen()
    assert (found.wanted.version, found.decided, told) == ("9.0", saved.decided, None), "it was told of what was wanted before"
    await bench.healed()
    found, told = await seen()
    assert (found, told) == (await bench.row(), None)
    await bench.store.publish(UID, condition(found, "after"), bench.lease)
    assert await seen() == (found, condition(found, "after"))
    assert not bench.store._told


@in_virtual_time
async def test_requests_wait_for_the_store_but_not_for_ever(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["locked"])
    await bench.save(leading(cache, 2))

    async def write(store: Store) -> None:
        async with store.transaction() as tx:
            assert cast(Cache, await tx.cache("demo", "group")).decided.shards[0].order == 2

    began = time()
    with pytest.raises(StoreFailed):
        await write(bench.store)
    assert time() - began == pytest.approx(REQUEST_SECONDS, abs=0.1)
    asyncio.get_running_loop().call_later(3.0, bench.ail)
    await write(bench.store)


@in_virtual_time
async def test_a_store_that_fails_a_request_is_away_for_keepers_only_when_they_find_out(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["full"])
    with pytest.raises(StoreFailed):
        async with bench.store.transaction():
            pass
    assert not bench.store.trouble()
    assert await bench.store.load(UID) == cache


@in_virtual_time
async def test_a_renewal_that_hangs_finds_out_before_anything_is_lost(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["hung"])
    with pytest.raises(StoreFailed):
        await bench.store.renew("holder", ttl_seconds=15.0)
    assert await seconds(bench.save(leading(cache, 2))) < 0.01


@in_virtual_time
async def test_a_holder_that_was_cut_off_for_longer_than_its_lease_keeps_its_epoch(bench: Bench, cache: Cache) -> None:
    bench.ail(AILMENTS["gone"])
    saved = await bench.save(leading(cache, 2))
    await asyncio.sleep(120)
    await bench.healed()
    assert await bench.store.renew("holder", ttl_seconds=15.0) == [bench.lease]
    assert (await bench.row()).decided == saved.decided
    assert await bench.store.claim("holder", ttl_seconds=15.0) == []


@in_virtual_time
async def test_every_version_is_greater_than_the_one_before(bench: Bench, cache: Cache) -> None:
    """Of two versions that are equal one could be taken for the other: by a save, or by a condition."""
    chance, seen = random.Random(5), {cache.version: (cache.wanted, cache.decided)}
    shown, order = cache, 2
    for _ in range(300):
        match chance.randrange(4):
            case 0:
                bench.ail(chance.choice([Ailment(), *AILMENTS.values(), Ailment(unsure=0.5), Ailment(slow_seconds=0.3)]))
            case 1:
                await bench.want(f"9.{order}")
            case 2:
                await asyncio.sleep(chance.random())
            case _:
                order += 1
                try:
                    shown = await bench.save(leading(shown, order))
                except Conflict:
                    order -= 1
        shown = cast(Cache, await bench.store.load(UID))
        assert max(seen) <= shown.version
        assert seen.setdefault(shown.version, (shown.wanted, shown.decided)) == (shown.wanted, shown.decided)
    await bench.healed()
    assert (await bench.row()).decided.shards[0].order == order
    assert isinstance(shown.decided, Decided)
