"""What every store keeps to: memory, SQLite, SQLite with a journal before it, PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sqlite3
import traceback
from collections.abc import Callable, Iterable
from typing import cast

import asyncpg
import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from tests.contract.stores import LINGER_SECONDS, World

from cachekeep.errors import Conflict, LeaseLost
from cachekeep.model import (
    Cache,
    CacheKind,
    Condition,
    Confirmed,
    Decided,
    Errand,
    Event,
    Member,
    Node,
    ParameterGroup,
    Shard,
    SubnetGroup,
    Tags,
    Wanted,
    WantedShard,
)
from cachekeep.store import AddressTaken, AlreadyThere, Lease, Store, StoreFailed
from cachekeep.store.contract import Along
from cachekeep.store.migrate import VERSION_TABLE
from cachekeep.store.tables import metadata

BORN = dt.datetime(2026, 1, 1, 12, 0, 0, 123457, tzinfo=dt.UTC)
replace = msgspec.structs.replace


def cache(name: str, *, kind: CacheKind = "group", members: Iterable[str] | None = None) -> Cache:
    names = members if members is not None else ([f"{name}-001", f"{name}-002"] if kind == "group" else [name])
    return Cache(
        uid=f"uid-{kind}-{name}",
        name=name,
        kind=kind,
        region="us-east-1",
        created_at=BORN,
        wanted=Wanted(
            engine="valkey",
            version="8.0",
            node_type="cache.t3.micro",
            port=6379,
            shards=(WantedShard(id="0001", members=tuple(Member(name=n, zone="us-east-1a") for n in names), slots=((0, 16383),)),),
            errands=(Errand(serial=1, kind="reboot", nodes=("a", "b")),),
            deferred=frozenset({"version", "node_type"}),
            parameters={"maxmemory-policy": "allkeys-lru"},
        ),
    )


def decided(*nodes: tuple[str, str], **changes: object) -> Decided:
    made = tuple(
        Node(
            name=name,
            shard="0001",
            zone="us-east-1a",
            address=address,
            port=6379,
            engine="valkey",
            version="8.0.1",
            node_type="cache.t3.micro",
            created_at=BORN,
        )
        for name, address in nodes
    )
    return replace(
        Decided(nodes=made, shards=(Shard(id="0001", confirmed=Confirmed(primary="z", nodes=frozenset({"x", "y"}))),)), **changes
    )


async def insert(store: Store, *caches: Cache) -> None:
    async with store.transaction() as t:
        for one in caches:
            await t.insert(one)


async def claim(store: Store, holder: str, uid: str) -> Lease:
    (lease,) = await store.claim(holder, ttl_seconds=60, uids=[uid])
    return lease


def event(message: str, at: dt.datetime | None = None, source: str = "demo") -> Event:
    return Event(source_type="replication-group", source=source, message=message, at=at)


async def wanted_version(store: Store, name: str) -> str:
    async with store.reading() as t:
        found = await t.cache(name, "group")
    assert found is not None
    return found.wanted.version


# ---------------------------------------------------------------------------------------------------- caches


async def test_a_cache_comes_back_as_it_was_written(world: World) -> None:
    store = await world.store()
    one = cache("demo")
    await insert(store, one)
    lease = await claim(store, "k", one.uid)
    full = replace(
        one, version=1, decided=decided(("demo-001", "127.77.0.1"), configuration_address="127.77.0.9", available_at=BORN)
    )
    saved = await store.save_decided(full, lease, Along(addresses=["127.77.0.1", "127.77.0.9"]))
    assert saved == replace(full, decided=replace(full.decided, serial=1), version=2)
    again = await world.store()
    assert await again.load(one.uid) == saved
    async with again.reading() as t:
        assert await t.cache("demo", "group") == saved
        assert await t.cache("demo", "cluster") is None
        assert await t.cache_of("demo-002") == saved
        assert await t.cache_of("demo-003") is None
    assert await again.addresses() == {"127.77.0.1", "127.77.0.9"}


async def test_names_are_taken_once_per_kind_and_cluster_ids_once_at_all(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"), cache("demo", kind="cluster"))
    for again, kind, name in (
        (replace(cache("demo"), uid="other"), "group", "demo"),
        (replace(cache("demo", kind="cluster"), uid="other"), "cluster", "demo"),
        (cache("fresh", members=["fresh-001", "demo-002"]), "member", "demo-002"),
        (cache("demo-001", kind="cluster"), "member", "demo-001"),
    ):
        async with store.transaction() as t:
            with pytest.raises(AlreadyThere) as refused:
                await t.insert(again)
        assert (refused.value.kind, refused.value.name) == (kind, name)
    async with store.reading() as t:
        # The transactions above were committed: a refused insert leaves nothing to commit.
        assert [(c.kind, c.name) for c in await t.caches()] == [("cluster", "demo"), ("group", "demo")]


async def test_a_cluster_becomes_a_group_and_keeps_its_uid(world: World) -> None:
    store = await world.store()
    await insert(store, cache("solo", kind="cluster"), cache("taken"))
    async with store.transaction() as t:
        solo = await t.cache("solo", "cluster")
        assert solo is not None
        with pytest.raises(AlreadyThere):
            await t.save_wanted(replace(solo, kind="group", name="taken"))
        shards = (replace(solo.wanted.shards[0], members=tuple(Member(name=n, zone="a") for n in ("solo", "big-002"))),)
        grown = await t.save_wanted(replace(solo, kind="group", name="big", wanted=replace(solo.wanted, shards=shards)))
    async with store.reading() as t:
        assert await t.cache("solo", "cluster") is None
        assert await t.cache("big", "group") == grown
        assert (await t.cache_of("solo")) == (await t.cache_of("big-002")) == grown
    assert (grown.uid, grown.version) == (solo.uid, 2)
    await insert(store, replace(cache("solo", kind="cluster", members=["elsewhere"]), uid="new"))  # the old name is free again


async def test_a_member_id_is_free_again_once_neither_wanted_nor_there(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    one = await store.load("uid-group-demo")
    assert one is not None
    one = await store.save_decided(
        replace(one, decided=decided(("demo-001", "a"), ("demo-002", "b"))), lease, Along(addresses=["a", "b"])
    )
    async with store.transaction() as t:
        shard = replace(one.wanted.shards[0], members=one.wanted.shards[0].members[:1])
        one = await t.save_wanted(replace(one, wanted=replace(one.wanted, shards=(shard,))))
    async with store.reading() as t:
        assert await t.cache_of("demo-002") == one, "its node is still there"
    await store.save_decided(replace(one, decided=decided(("demo-001", "a"))), lease, Along(addresses=["a"]))
    async with store.reading() as t:
        assert await t.cache_of("demo-002") is None


async def test_pages_are_cut_by_code_point(world: World) -> None:
    store = await world.store()
    names = ["B", "a", "a-1", "a0", "a_", "b", "é"]
    await insert(store, *(cache(n, kind="cluster") for n in reversed(names)), cache("a"))
    async with store.reading() as t:
        pages, after = [], ""
        while page := await t.caches(kind="cluster", after=after, limit=3):
            pages.append([c.name for c in page])
            after = page[-1].name
        assert pages == [["B", "a", "a-1"], ["a0", "a_", "b"], ["é"]]
        ids, after = [], ""
        while rows := await t.members(after=after, limit=2):
            ids += rows
            after = rows[-1][0]
        assert [i for i, _ in ids] == sorted([*names, "a-001", "a-002"])
        assert dict(ids)["a-001"] == "uid-group-a"


# ---------------------------------------------------------------------------------------------------- nothing lost


async def test_no_increment_is_lost(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    await insert(stores[0], cache("demo"))

    async def increments(store: Store) -> None:
        for _ in range(20):
            async with store.transaction() as t:
                found = await t.cache("demo", "group")
                assert found is not None
                await asyncio.sleep(0)
                await t.save_wanted(replace(found, wanted=replace(found.wanted, port=found.wanted.port + 1)))

    await asyncio.gather(*(increments(store) for store in stores))
    found = await stores[0].load("uid-group-demo")
    assert found is not None
    assert (found.wanted.port, found.version) == (6379 + 80, 81)


async def test_transactions_are_serial_across_rows(world: World) -> None:
    """Each looks whether it may, then writes a row of its own: only one of them may."""
    stores = [await world.store() for _ in range(4)]

    async def first(store: Store, name: str) -> None:
        async with store.transaction() as t:
            if not await t.list(Tags):
                await asyncio.sleep(0.01)
                await t.put(Tags(name=name, values={}))

    await asyncio.gather(*(first(store, f"arn-{i}") for i, store in enumerate(stores)))
    async with stores[0].reading() as t:
        assert len(await t.list(Tags)) == 1


async def test_the_two_halves_do_not_overwrite_one_another(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    seen = await store.load("uid-group-demo")
    assert seen is not None
    async with store.transaction() as t:
        await t.save_wanted(replace(seen, wanted=replace(seen.wanted, port=7000)))
    with pytest.raises(Conflict):
        await store.save_decided(
            replace(seen, decided=decided(("demo-001", "a"))), lease, Along(addresses=["a"], events=[event("no")])
        )
    now = await store.load("uid-group-demo")
    assert now is not None
    # A keeper's copy of what is wanted is never written, nor is a request's copy of what has been decided.
    await store.save_decided(replace(now, decided=decided(("demo-001", "a")), wanted=seen.wanted), lease, Along(addresses=["a"]))
    async with store.transaction() as t:
        with pytest.raises(Conflict):
            await t.save_wanted(now)
        latest = await t.cache("demo", "group")
        assert latest is not None
        await t.save_wanted(replace(latest, decided=Decided()))
    final = await store.load("uid-group-demo")
    assert final is not None
    assert (final.wanted.port, final.decided, final.version) == (7000, replace(decided(("demo-001", "a")), serial=1), 4)
    async with store.reading() as t:
        assert await t.events(limit=10) == []


async def test_a_keeper_waits_for_a_request_that_has_read(world: World) -> None:
    store, other = await world.store(), await world.store()
    await insert(store, cache("demo"))
    lease = await claim(other, "k", "uid-group-demo")
    async with store.transaction() as t:
        found = await t.cache("demo", "group")
        assert found is not None
        saving = asyncio.create_task(
            other.save_decided(replace(found, decided=decided(("demo-001", "a"))), lease, Along(addresses=["a"]))
        )
        await asyncio.wait([saving], timeout=0.1)
        assert (await t.save_wanted(found)).version == 2
    with pytest.raises(Conflict):
        await saving


async def test_an_exception_takes_everything_back(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    woken: list[str] = []
    store.on_change(woken.append)
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as t:
            found = await t.cache("demo", "group")
            assert found is not None
            await t.save_wanted(replace(found, wanted=replace(found.wanted, port=1)))
            await t.insert(cache("second"))
            await t.put(Tags(name="arn", values={}))
            await t.tell(event("never"))
            t.wake("somebody")
            raise ZeroDivisionError
    async with store.reading() as t:
        assert [c.name for c in await t.caches()] == ["demo"]
        assert (await t.caches())[0].wanted.port == 6379
        assert await t.get(Tags, "arn") is None
        assert await t.events(limit=10) == []
    assert woken == []


async def test_a_cancelled_transaction_is_taken_back_and_the_next_one_runs(world: World) -> None:
    store = await world.store()
    inside = asyncio.Event()

    async def stuck() -> None:
        async with store.transaction() as t:
            await t.insert(cache("half"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await insert(store, cache("whole"))
    async with store.reading() as t:
        assert [c.name for c in await t.caches()] == ["whole"]


async def test_a_reader_sees_one_snapshot_and_cannot_write(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    async with store.reading() as t:
        before = await t.cache("demo", "group")
        assert before is not None
        await insert(store, cache("later"))
        assert [c.name for c in await t.caches()] == ["demo"]
        for write in (t.insert(cache("x")), t.save_wanted(before), t.put(Tags(name="a", values={})), t.delete(Tags, "a"), t.tell()):
            with pytest.raises(RuntimeError):
                await write
        with pytest.raises(RuntimeError):
            t.wake("x")


# ---------------------------------------------------------------------------------------------------- leases


async def test_a_lease_has_one_holder_and_a_new_epoch_each_time(world: World) -> None:
    one, two = await world.store(), await world.store()
    await insert(one, cache("a"), cache("b"), cache("c"))
    first = await one.claim("one", ttl_seconds=60, limit=2)
    assert first == [Lease("uid-group-a", "one", 1), Lease("uid-group-b", "one", 1)]
    assert await two.claim("two", ttl_seconds=60) == [Lease("uid-group-c", "two", 1)]
    assert await two.claim("two", ttl_seconds=60) == await one.claim("one", ttl_seconds=60) == []
    await one.release(first[0])
    assert await two.claim("two", ttl_seconds=60, uids=["uid-group-b"]) == []
    assert await two.claim("two", ttl_seconds=60, uids=["uid-group-a"]) == [Lease("uid-group-a", "two", 2)]
    await one.release(first[0])  # late: it is no longer one's to give
    assert await one.renew("one", ttl_seconds=60) == [Lease("uid-group-b", "one", 1)]
    assert await two.renew("two", ttl_seconds=60) == [Lease("uid-group-a", "two", 2), Lease("uid-group-c", "two", 1)]


async def test_work_is_one_workers_at_a_time(world: World) -> None:
    """It is kept for as long as its holder lives, taken over when that has been seen to be silent, and given up by burial."""
    one, two = await world.store(), await world.store()
    assert await one.claim_work("host:one", "prune", ttl_seconds=60) == 1
    assert await two.claim_work("host:two", "prune", ttl_seconds=60) is None
    assert await two.claim_work("host:two", "collect", ttl_seconds=60) == 1, "another work is another's"
    world.pass_seconds(59)
    assert await one.claim_work("host:one", "prune", ttl_seconds=60) == 1
    assert await two.claim_work("host:two", "prune", ttl_seconds=60) is None
    world.pass_seconds(59)
    assert await two.claim_work("host:two", "prune", ttl_seconds=60) is None
    world.pass_seconds(2)
    assert await two.claim_work("host:two", "prune", ttl_seconds=60) == 2
    assert await one.claim_work("host:one", "prune", ttl_seconds=60) is None
    await one.bury("host:")
    assert await one.claim_work("host:one", "prune", ttl_seconds=60) == 3


async def test_many_who_claim_work_at_once_are_one_in_the_end(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    for expected in (1, 2):
        epochs = await asyncio.gather(*(s.claim_work(f"k{expected}{i}", "prune", ttl_seconds=60) for i, s in enumerate(stores)))
        assert sorted(filter(None, epochs)) == [expected]
        await stores[0].bury("k")


async def test_who_is_silent_loses_and_is_fenced_off(world: World) -> None:
    one, two = await world.store(), await world.store()
    await insert(one, cache("demo"))
    old = await claim(one, "one", "uid-group-demo")
    seen = await one.load("uid-group-demo")
    assert seen is not None
    await one.renew("one", ttl_seconds=10)
    assert await two.claim("two", ttl_seconds=60) == []
    world.pass_seconds(9.9)
    assert await two.claim("two", ttl_seconds=60) == []
    world.pass_seconds(0.2)
    new = await claim(two, "two", "uid-group-demo")
    assert new.epoch == old.epoch + 1
    assert await one.renew("one", ttl_seconds=60) == []
    late = replace(seen, decided=decided(("demo-001", "a")))
    with pytest.raises(LeaseLost):
        await one.save_decided(late, old, Along(addresses=["a"]))
    with pytest.raises(LeaseLost):
        await one.forget(seen, old)
    with pytest.raises(LeaseLost):
        await one.publish(seen.uid, Condition(status="available", because="b", settled=True, version=1), old)
    with pytest.raises(LeaseLost):
        await one.save_decided(late, replace(new, holder="one"), Along(addresses=["a"]))
    with pytest.raises(LeaseLost):
        await two.save_decided(late, replace(new, epoch=old.epoch), Along(addresses=["a"]))
    assert await two.load("uid-group-demo") == seen
    assert (await two.save_decided(late, new, Along(addresses=["a"]))).version == 2


async def test_a_holder_that_comes_back_before_anybody_asked_goes_on(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "one", "uid-group-demo")
    await store.renew("one", ttl_seconds=0.01)
    world.pass_seconds(0.05)
    assert await store.claim("one", ttl_seconds=60) == [], "it has it still, in the same epoch"
    assert await store.renew("one", ttl_seconds=60) == [lease]
    assert await store.claim("two", ttl_seconds=60) == []
    seen = await store.load("uid-group-demo")
    assert seen is not None
    await store.save_decided(seen, lease, Along(addresses=[]))


async def test_the_buried_let_go_at_once_and_are_fenced_off(world: World) -> None:
    store = await world.store()
    await insert(store, cache("a"), cache("b"), cache("c"))
    old = await claim(store, "host_1:one", "uid-group-a")
    await claim(store, "host_1:two", "uid-group-b")
    await claim(store, "host-1:one", "uid-group-c")
    await store.bury("host_1:")
    new = await store.claim("heir", ttl_seconds=60)
    assert new == [Lease("uid-group-a", "heir", 2), Lease("uid-group-b", "heir", 2)]
    assert await store.renew("host_1:one", ttl_seconds=60) == []
    with pytest.raises(LeaseLost):
        await store.save_decided(cast(Cache, await store.load("uid-group-a")), old, Along(addresses=[]))


async def test_claims_at_the_same_time_never_share(world: World) -> None:
    stores = [await world.store() for _ in range(3)]
    await insert(stores[0], *(cache(f"c{i:02}") for i in range(30)))
    claimed: list[Lease] = []

    async def take(store: Store, holder: str) -> None:
        for _ in range(10):
            claimed.extend(await store.claim(holder, ttl_seconds=60, limit=4))

    await asyncio.gather(*(take(store, f"h{i}") for i, store in enumerate(stores)))
    assert sorted(lease.uid for lease in claimed) == [f"uid-group-c{i:02}" for i in range(30)]
    assert {lease.epoch for lease in claimed} == {1}


# ---------------------------------------------------------------------------------------------------- the keeper's half


async def test_an_address_belongs_to_one_cache(world: World) -> None:
    store = await world.store()
    await insert(store, cache("a"), cache("b"))
    leases = {lease.uid: lease for lease in await store.claim("k", ttl_seconds=60)}
    a, b = [cast(Cache, await store.load(f"uid-group-{n}")) for n in "ab"]
    a = await store.save_decided(replace(a, decided=decided(("a-001", "x"))), leases[a.uid], Along(addresses=["x"]))
    with pytest.raises(AddressTaken) as refused:
        await store.save_decided(
            replace(b, decided=decided(("b-001", "x"))), leases[b.uid], Along(addresses=["w", "x"], events=[event("e")])
        )
    assert refused.value.address == "x"
    assert await store.load(b.uid) == b
    assert await store.addresses() == {"x"}
    a = await store.save_decided(replace(a, decided=decided(("a-001", "y"))), leases[a.uid], Along(addresses=["y"]))
    world.pass_seconds(LINGER_SECONDS)
    await store.save_decided(replace(b, decided=decided(("b-001", "x"))), leases[b.uid], Along(addresses=["x"]))
    assert await store.addresses() == {"x", "y"}


async def given_up(world: World, how: str) -> tuple[Store, Cache, Lease]:
    """``x`` was given up by cache ``a``; cache ``b`` would like to have it."""
    store = await world.store()
    await insert(store, cache("a"), cache("b"))
    leases = {lease.uid: lease for lease in await store.claim("k", ttl_seconds=60)}
    a, b = [cast(Cache, await store.load(f"uid-group-{n}")) for n in "ab"]
    a = await store.save_decided(
        replace(a, decided=decided(("a-001", "x"), ("a-002", "y"))), leases[a.uid], Along(addresses=["x", "y"])
    )
    smaller = decided(("a-002", "y"))
    match how:
        case "saved":
            await store.save_decided(replace(a, decided=smaller), leases[a.uid], Along(addresses=["y"]))
        case "merged":
            await store.merge_decided(a.uid, replace(smaller, serial=a.decided.serial + 1), leases[a.uid], Along(addresses=["y"]))
        case "forgotten":
            await store.forget(a, leases[a.uid])
    return store, b, leases[b.uid]


@pytest.mark.parametrize("how", ["saved", "merged", "forgotten"])
async def test_an_address_that_is_given_up_is_nobodys_for_a_while(world: World, how: str) -> None:
    """However it is given up: clients that have not heard of it must not find a stranger there."""
    store, b, lease = await given_up(world, how)
    wishes = replace(b, decided=decided(("b-001", "x")))
    for seconds in (0.0, LINGER_SECONDS - 0.5):
        world.pass_seconds(seconds)
        assert await store.addresses() == {"x", "y"}
        with pytest.raises(AddressTaken, match="or was until a moment ago"):
            await store.save_decided(wishes, lease, Along(addresses=["x"]))
    world.pass_seconds(0.5)
    assert await store.addresses() == ({"y"} if how != "forgotten" else set())
    b = await store.save_decided(wishes, lease, Along(addresses=["x"]))
    assert "x" in await store.addresses()
    await store.save_decided(replace(b, decided=decided()), lease, Along(addresses=[]))
    assert "x" in await store.addresses(), "and again from when it was given up last"


async def test_its_former_cache_may_have_it_back(world: World) -> None:
    """Not that it would be told that it is free. But a decision in a journal may rest on one before it was given up."""
    store, b, lease = await given_up(world, "saved")
    with_z = decided(("b-001", "z"))
    b = await store.save_decided(replace(b, decided=with_z), lease, Along(addresses=["z"]))
    b = await store.save_decided(replace(b, decided=decided()), lease, Along(addresses=[]))
    assert "z" in await store.addresses()
    await store.merge_decided(b.uid, replace(with_z, serial=b.decided.serial + 1), lease, Along(addresses=["z"]))
    assert cast(Cache, await store.load(b.uid)).decided.nodes == with_z.nodes


async def test_who_opens_the_store_does_not_forget_that(world: World) -> None:
    """Neither when a control plane starts anew, nor when its host does: then it is counted from the start."""
    await given_up(world, "forgotten")
    world.pass_seconds(LINGER_SECONDS - 1)
    again = await world.store()
    assert await again.addresses() == {"x", "y"}
    world.pass_seconds(1)
    assert await again.addresses() == set()


async def test_what_another_boot_began_is_counted_anew(world: World) -> None:
    await given_up(world, "forgotten")
    world.boot("the next")
    again = await world.store()
    world.pass_seconds(LINGER_SECONDS - 1)
    assert await again.addresses() == {"x", "y"}
    world.pass_seconds(1)
    assert await again.addresses() == set()


async def test_what_was_decided_meanwhile_is_merged_over_what_is_wanted_since(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    before = await store.save_decided(
        replace(cache("demo"), version=1, decided=decided(("demo-001", "x"))),
        lease,
        Along(addresses=["x"], events=[event("first", BORN)]),
    )
    async with store.transaction() as t:
        asked = cast(Cache, await t.cache("demo", "group"))
        await t.save_wanted(replace(asked, wanted=replace(asked.wanted, version="9.0")))
    told = [event("first", BORN), event("second", BORN + dt.timedelta(seconds=1))]
    later = replace(decided(("demo-002", "x")), serial=4)
    for _ in range(2):  # whoever is not sure that it was done does it again
        merged = await store.merge_decided(before.uid, later, lease, Along(events=told, addresses=["x"]))
    assert merged.wanted.version == "9.0"
    assert merged.decided == later
    assert merged.version == 3 + (4 - 1) + 1, "greater than whatever was counted up to meanwhile, and once"
    assert await store.load(before.uid) == merged
    with pytest.raises(Conflict):
        await store.save_decided(before, lease, Along(addresses=["x"]))
    async with store.reading() as t:
        assert [(e.message, e.at) for _, e in await t.events(limit=9, start=BORN)] == [(e.message, e.at) for e in told]
        assert await t.cache_of("demo-002") == merged


async def records(store: Store, *names: str) -> dict[str, str]:
    """Name and version of the group's tags, and what they say."""
    async with store.reading() as t:
        found = [await t.get(Tags, name) for name in names]
    return {f"{r.name} {r.version}": r.values["said"] for r in found if r is not None}


def record(name: str, said: str, version: int = 0) -> Tags:
    return Tags(name=name, values={"said": said}, version=version)


async def test_what_a_decision_leaves_comes_with_it_or_not_at_all(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    first = await store.save_decided(replace(cache("demo"), version=1), lease, Along(addresses=[], records=[record("a", "1")]))
    assert await records(store, "a", "b") == {"a 1": "1"}
    with pytest.raises(Conflict):
        await store.save_decided(
            replace(first, version=1), lease, Along(addresses=[], records=[record("a", "2"), record("b", "2")])
        )
    with pytest.raises(LeaseLost):
        await store.save_decided(first, replace(lease, epoch=9), Along(addresses=[], records=[record("b", "2")]))
    assert await records(store, "a", "b") == {"a 1": "1"}
    await store.save_decided(first, lease, Along(addresses=[], records=[record("a", "3"), record("b", "3")]))
    assert await records(store, "a", "b") == {"a 2": "3", "b 1": "3"}, "in the place of whatever is there"
    async with store.transaction() as t:
        await t.put(record("b", "4", 1))


async def test_what_a_merged_decision_leaves_is_left_once(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    later = replace(decided(("demo-001", "x")), serial=4)
    await store.merge_decided("uid-group-demo", later, lease, Along(addresses=["x"], records=[record("a", "1")]))
    async with store.transaction() as t:
        await t.put(record("a", "2", 1))
    await store.merge_decided("uid-group-demo", later, lease, Along(addresses=["x"], records=[record("a", "1")]))
    assert await records(store, "a") == {"a 2": "2"}, "as it has become since"


async def test_nothing_is_merged_over_what_is_later(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "k", "uid-group-demo")
    seen = cast(Cache, await store.load("uid-group-demo"))
    for _ in range(3):
        seen = await store.save_decided(
            replace(seen, decided=replace(seen.decided, configuration_node="r")), lease, Along(addresses=[])
        )
    assert seen.decided.serial == 3
    with pytest.raises(Conflict):
        await store.merge_decided(seen.uid, Decided(serial=2), lease, Along(addresses=[]))
    assert await store.load(seen.uid) == seen


async def test_nothing_is_merged_over_a_newer_epoch(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"), cache("other"))
    old = await claim(store, "k", "uid-group-demo")
    await store.release(old)
    new = await claim(store, "k", "uid-group-demo")
    before = await store.load(old.uid)
    for lost in (old, replace(new, holder="h"), replace(new, uid="uid-group-other"), replace(new, epoch=3)):
        with pytest.raises(LeaseLost):
            await store.merge_decided(old.uid, replace(decided(("demo-001", "x")), serial=9), lost, Along(addresses=["x"]))
    assert await store.load(old.uid) == before
    with pytest.raises(LeaseLost):
        await store.merge_decided("nobody", Decided(serial=9), replace(new, uid="nobody"), Along(addresses=[]))


async def test_forget_leaves_nothing(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"), cache("other"))
    leases = {lease.uid: lease for lease in await store.claim("k", ttl_seconds=60)}
    one = cast(Cache, await store.load("uid-group-demo"))
    saved = await store.save_decided(replace(one, decided=decided(("demo-001", "x"))), leases[one.uid], Along(addresses=["x"]))
    with pytest.raises(Conflict):
        await store.forget(one, leases[one.uid])
    await store.forget(saved, leases[one.uid], events=[event("deleted")])
    assert await store.load(one.uid) is None
    world.pass_seconds(LINGER_SECONDS)
    assert await store.addresses() == set()
    async with store.reading() as t:
        assert await t.cache_of("demo-001") is None
        assert [e.message for _, e in await t.events(limit=10)] == ["deleted"]
    with pytest.raises(LeaseLost):
        await store.save_decided(saved, leases[one.uid], Along(addresses=[]))
    assert await store.renew("k", ttl_seconds=60) == [leases["uid-group-other"]]
    await insert(store, replace(cache("demo"), uid="uid-second-life"))


async def test_a_condition_counts_only_while_it_is_true(world: World) -> None:
    store = await world.store()
    await insert(store, cache("demo"))
    lease = await claim(store, "one", "uid-group-demo")
    told = Condition(status="available", because="all is well", settled=True, version=1)

    async def heard() -> Condition | None:
        async with store.reading() as t:
            found = await t.condition("uid-group-demo")
            assert await t.conditions(["uid-group-demo", "nobody"]) == ({"uid-group-demo": found} if found else {})
            return found

    assert await heard() is None
    await store.publish("uid-group-demo", told, lease)
    assert await heard() == told
    async with store.transaction() as t:
        found = await t.cache("demo", "group")
        assert found is not None
        await t.save_wanted(found)
    assert await heard() is None, "the row is newer"
    told = replace(told, version=2)
    await store.publish("uid-group-demo", told, lease)
    assert await heard() == told
    await store.renew("one", ttl_seconds=0.01)
    world.pass_seconds(0.05)
    assert await heard() is None, "its keeper is silent"
    await store.renew("one", ttl_seconds=60)
    assert await heard() == told
    await store.release(lease)
    assert await heard() is None, "nobody keeps it"
    again = await claim(store, "one", "uid-group-demo")
    assert await heard() is None, "the new epoch has not spoken yet"
    await store.publish("uid-group-demo", told, again)
    assert await heard() == told


# ---------------------------------------------------------------------------------------------------- wakes


async def test_wakes_come_after_the_commit_and_only_then(world: World) -> None:
    store = await world.store()
    heard: list[tuple[str, str]] = []
    await insert(store, cache("demo"))
    inside = False

    def listen(uid: str) -> None:
        heard.append((uid, "inside" if inside else "after"))

    def broken(uid: str) -> None:
        raise ZeroDivisionError(uid)

    store.on_change(broken)
    end = store.on_change(listen)
    async with store.transaction() as t:
        inside = True
        found = await t.cache("demo", "group")
        assert found is not None
        await t.save_wanted(found)
        t.wake("friend")
        await asyncio.sleep(0.01)
        inside = False
    assert heard == [("uid-group-demo", "after"), ("friend", "after")]
    heard.clear()
    lease = await claim(store, "k", "uid-group-demo")
    await store.renew("k", ttl_seconds=60)
    assert heard == []
    told = Condition(status="available", because="b", settled=True, version=2)
    conditions: list[str] = []
    end_told = store.on_told(conditions.append)
    await store.publish("uid-group-demo", told, lease)
    await store.publish("uid-group-demo", told, lease)
    assert conditions == ["uid-group-demo"], "the second time nothing was new"
    assert heard == [], "its keeper, which told it, is not woken by that"
    await store.save_decided(cast(Cache, await store.load("uid-group-demo")), lease, Along(addresses=[]))
    await store.forget(cast(Cache, await store.load("uid-group-demo")), lease)
    assert [uid for uid, _ in heard] == ["uid-group-demo"] * 2
    assert conditions == ["uid-group-demo"], "what changes the cache is no news of its condition alone"
    end()
    end()
    end_told()
    async with store.transaction() as t:
        t.wake("friend")
    assert len(heard) == 2


# ---------------------------------------------------------------------------------------------------- resources, events


async def test_resources_of_any_kind(world: World) -> None:
    store = await world.store()
    group = ParameterGroup(name="g", family="valkey8", description="d", values={"a": "1"})
    async with store.transaction() as t:
        one = await t.put(group)
        assert one == replace(group, version=1)
        assert await t.get(ParameterGroup, "g") == one
        assert await t.get(SubnetGroup, "g") is None
        with pytest.raises(Conflict):
            await t.put(group)
        two = await t.put(replace(one, values={"a": "2"}))
        with pytest.raises(Conflict):
            await t.put(replace(one, values={"a": "3"}))
        with pytest.raises(Conflict):
            await t.put(replace(one, name="nobody"))
        for name in ("b", "h", "Z"):
            await t.put(ParameterGroup(name=name, family="f", description=""))
        await t.put(SubnetGroup(name="c", description="", vpc_id="v", subnets=()))
    async with store.reading() as t:
        assert await t.get(ParameterGroup, "g") == two == replace(two, version=2, values={"a": "2"})
        assert [r.name for r in await t.list(ParameterGroup)] == ["Z", "b", "g", "h"]
        assert [r.name for r in await t.list(ParameterGroup, after="b", limit=1)] == ["g"]
    async with store.transaction() as t:
        assert await t.delete(ParameterGroup, "g") is True
        assert await t.delete(ParameterGroup, "g") is False
        assert (await t.put(group)).version == 1


async def test_events_by_time_source_and_page(world: World) -> None:
    store = await world.store()
    now = world.clock.at
    hour = dt.timedelta(hours=1)
    async with store.transaction() as t:
        await t.tell(
            event("long ago", now - 5 * hour), event("forgotten", now - dt.timedelta(days=15)), event("before", now - hour)
        )
        await t.tell(event("now"), event("also now", source="other"))
    async with store.reading() as t:
        everything = await t.events(limit=100)
        assert [e.message for _, e in everything] == ["long ago", "before", "now", "also now"]
        assert everything[2][1].at == now
        paged, after = [], None
        while page := await t.events(after=after, limit=1):
            paged += page
            after = page[-1][0]
        assert paged == everything
        assert [e.message for _, e in await t.events(start=now - hour, end=now, limit=9)] == ["before"]
        assert [e.message for _, e in await t.events(source="other", limit=9)] == ["also now"]
        assert [e.message for _, e in await t.events(source_type="cache-cluster", limit=9)] == []
    world.pass_seconds(dt.timedelta(days=13, hours=23, minutes=30).total_seconds())
    async with store.transaction() as t:
        await t.tell(event("much later"))
    async with store.reading() as t:
        assert [e.message for _, e in await t.events(limit=100)] == ["now", "also now", "much later"]
    world.clock.at -= dt.timedelta(days=1)
    async with store.reading() as t:
        assert len(await t.events(limit=100)) == 5, "what is not told is still there"
    world.clock.at += dt.timedelta(days=1)
    await store.prune()
    world.clock.at -= dt.timedelta(days=1)
    async with store.reading() as t:
        assert [e.message for _, e in await t.events(limit=100)] == ["now", "also now", "much later"]


# ---------------------------------------------------------------------------------------------------- wall clocks that are set


@pytest.mark.parametrize("set_by", [-3600, -20, 20, 3600], ids="{:+}s".format)
async def test_a_wall_clock_that_is_set_takes_no_lease_and_keeps_none(world: World, set_by: int) -> None:
    one, two = await world.store(), await world.store()
    await insert(one, cache("demo"))
    lease = await claim(one, "one", "uid-group-demo")
    told = Condition(status="available", because="all is well", settled=True, version=1)
    await one.publish("uid-group-demo", told, lease)
    assert await two.claim("two", ttl_seconds=60) == []
    world.clock.at += dt.timedelta(seconds=set_by)
    assert await two.claim("two", ttl_seconds=60) == []
    for store in (one, two):
        async with store.reading() as t:
            assert await t.condition("uid-group-demo") == told
    world.pass_seconds(30)
    assert await one.renew("one", ttl_seconds=60) == [lease]
    assert await two.claim("two", ttl_seconds=60) == []
    world.pass_seconds(60)
    assert await two.claim("two", ttl_seconds=60) == [Lease("uid-group-demo", "two", 2)]


async def test_events_come_in_the_order_in_which_they_were_told_though_the_wall_clock_was_set_back(world: World) -> None:
    store = await world.store()
    for number in range(4):
        async with store.transaction() as t:
            await t.tell(event(f"event {number}"))
        world.pass_seconds(1)
        world.clock.at -= dt.timedelta(hours=1) if number == 1 else dt.timedelta()
    async with store.reading() as t:
        first = await t.events(limit=2)
        assert [e.message for _, e in first] == ["event 0", "event 1"]
    async with store.transaction() as t:
        await t.tell(event("event 4"))
    async with store.reading() as t:
        rest = await t.events(after=first[-1][0], limit=9)
    assert [e.message for _, e in rest] == ["event 2", "event 3", "event 4"], "a page does not miss what comes after it"
    assert rest[0][1].at is not None
    assert first[0][1].at is not None
    assert rest[0][1].at < first[0][1].at, "each is dated by the wall clock"


# ---------------------------------------------------------------------------------------------------- PostgreSQL only


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


only_postgres = pytest.mark.parametrize("world", ["postgres"], indirect=True)


@only_postgres
async def test_other_processes_hear_of_changes(world: World) -> None:
    one, two = await world.store(), await world.store()
    heard_by_one: list[str] = []
    heard_by_two: list[str] = []
    one.on_change(heard_by_one.append)
    two.on_change(heard_by_two.append)
    told: list[str] = []
    two.on_told(told.append)
    await insert(one, cache("demo"))
    await until(lambda: heard_by_two == ["uid-group-demo"])
    lease = await claim(one, "k", "uid-group-demo")
    await one.publish("uid-group-demo", Condition(status="available", because="b", settled=True, version=1), lease)
    await until(lambda: told == ["uid-group-demo"])
    with pytest.raises(ZeroDivisionError):
        async with one.transaction() as t:
            t.wake("never")
            raise ZeroDivisionError
    async with one.transaction() as t:
        t.wake("friend")
    await until(lambda: heard_by_two == ["uid-group-demo", "friend"])
    assert heard_by_one == ["uid-group-demo", "friend"], "once each"


@only_postgres
async def test_a_broken_connection_is_said_and_mended(world: World) -> None:
    one, two = await world.store(), await world.store()
    await insert(one, cache("demo"))
    heard: list[str] = []
    two.on_change(heard.append)
    breaker = await asyncpg.connect(world.url)
    ours = "application_name = 'cachekeep' AND datname = current_database()"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"
    with pytest.raises(StoreFailed):
        async with one.transaction() as t:
            await breaker.fetch(cut)
            await t.insert(cache("never"))
    await breaker.close()
    # What was missed while nobody listened is made up for: every cache may have changed.
    await until(lambda: "uid-group-demo" in heard)

    async def names() -> list[str]:
        async with one.reading() as t:
            return [c.name for c in await t.caches()]

    for _ in range(10):  # each pooled connection that was cut is found out once
        try:
            assert await names() == ["demo"]
            break
        except StoreFailed:
            continue
    assert await names() == ["demo"]


@pytest.mark.parametrize("world", ["sqlite", "postgres"], indirect=True)
async def test_an_error_of_the_database_quotes_no_value(world: World) -> None:
    """SQLAlchemy quotes parameters, and PostgreSQL the whole row; both would show a cache's password."""
    store = await world.store()
    if world.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(world.url.removeprefix("sqlite:///"))) as other:
            other.execute("create trigger broken before insert on caches begin select raise(abort, 'broken'); end")
    else:
        other = await asyncpg.connect(world.url)
        await other.execute("alter table caches add constraint broken check (name <> 'demo')")
    try:
        with pytest.raises(StoreFailed) as failed:
            await insert(store, cache("demo"))
    finally:
        if world.kind == "postgres":
            await other.execute("alter table caches drop constraint broken")
            await other.close()
    said = "".join(traceback.format_exception(failed.value))
    assert "broken" in said
    assert "hush" not in said


@only_postgres
async def test_tables_in_postgresql_are_the_declared_ones(world: World) -> None:
    await world.store()
    engine = create_async_engine(world.url.replace("postgresql://", "postgresql+asyncpg://"))

    def difference(connection: sa.Connection) -> object:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(difference) == []
    await engine.dispose()
