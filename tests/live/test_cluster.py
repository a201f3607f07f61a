"""Cluster mode on real engines: created, led, lost and healed."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.addresses import new_pool
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.writer import Writer
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.crc import key_slot

from cachekeep.compute.contract import Target
from cachekeep.compute.line import Reply
from cachekeep.engines.launch import cluster_node_id
from cachekeep.model import Cache
from cachekeep.network.addresses import free
from cachekeep.plan import Policy
from cachekeep.plan.slots.ranges import SLOTS, count, even, expand
from cachekeep.store.contract import Along

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


engines = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))


async def slots_at(address: str, port: int = 6379) -> dict[str, set[int]]:
    """Who owns what, as an ordinary client reads it there (CLUSTER SLOTS): primary's address → slots."""
    client = valkey.asyncio.Valkey(host=address, port=port, decode_responses=True)
    try:
        found: dict[str, set[int]] = {}
        for first, last, primary, *_ in await client.execute_command("CLUSTER SLOTS"):
            found.setdefault(primary[0] if isinstance(primary, list) else primary, set()).update(range(first, last + 1))
        return found
    finally:
        await client.aclose()


Shards = dict[str, tuple[frozenset[int], frozenset[str]]]
"""Address of a primary → its slots, and the addresses of its replicas."""


async def views_at(address: str, port: int = 6379) -> dict[str, Shards]:
    """Who owns what and which replica follows which primary, by each command that a client may ask."""
    client = valkey.asyncio.Valkey(host=address, port=port, decode_responses=True)
    try:
        slots, shards, nodes = [await client.execute_command(f"CLUSTER {what}") for what in ("SLOTS", "SHARDS", "NODES")]
    finally:
        await client.aclose()
    by_slots: dict[str, tuple[set[int], set[str]]] = {}
    for first, last, primary, *replicas in slots:
        owned, fed = by_slots.setdefault(primary[0], (set(), set()))
        owned.update(range(first, last + 1))
        fed.update(r[0] for r in replicas)
    by_shards: dict[str, tuple[set[int], set[str]]] = {}
    for shard in map(_fields, shards):
        members = [_fields(m) for m in shard["nodes"]]
        (leads,) = [m["ip"] for m in members if m["role"] == "master"] or [""]
        bounds = iter(map(int, shard["slots"]))
        owned = {slot for first, last in zip(bounds, bounds, strict=True) for slot in range(first, last + 1)}
        assert not leads or leads not in by_shards, "nobody is in two shards"
        by_shards[leads] = owned, {m["ip"] for m in members if m["role"] != "master"}
    address_of = {node["node_id"]: where.rpartition(":")[0] for where, node in nodes.items()}
    by_nodes: dict[str, tuple[set[int], set[str]]] = {a: (set(), set()) for a in address_of.values()}
    for where, node in nodes.items():
        if "slave" in node["flags"]:
            by_nodes[address_of[node["master_id"]]][1].add(where.rpartition(":")[0])
        for words in node["slots"]:
            by_nodes[where.rpartition(":")[0]][0].update(range(int(words[0]), int(words[-1]) + 1))
    every = {"SLOTS": by_slots, "SHARDS": by_shards, "NODES": by_nodes}
    return {k: {a: (frozenset(o), frozenset(f)) for a, (o, f) in v.items() if o} for k, v in every.items()}


def _fields(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))


async def astray(cache: Cache) -> list[str]:
    """Nodes, and commands, that tell a client anything but what was decided."""
    address = {n.name: n.address for n in cache.decided.nodes}
    expected = {
        address[x.primary]: (
            frozenset(expand(x.slots)),
            frozenset(n.address for n in cache.decided.nodes if n.shard == x.id and n.name != x.primary),
        )
        for x in cache.decided.shards
        if x.primary and x.slots
    }
    asked = {**address, "the configuration endpoint": cache.decided.configuration_address or ""}
    return [f"{name}: {what}: {v}" for name, a in asked.items() for what, v in (await views_at(a)).items() if v != expected]


def in_order(cache: Cache) -> bool:
    """Every wanted node is there, announced, in sync or leading."""
    return all(
        x.moving_to is None
        and x.lost is None
        and x.in_sync == {n.name for n in cache.decided.nodes if n.shard == x.id} - {x.primary}
        for x in cache.decided.shards
    ) and all(n.announced and not n.due for n in cache.decided.nodes)


async def healthy(live: LiveCache) -> Cache:
    """Until everything is as it should be, by the keeper's word; then by the engines' own."""
    await live.until(in_order, "in order")
    await live.available()
    return await live.until(lambda c: agreed(live, c), "all nodes agree")


async def agreed(live: LiveCache, cache: Cache) -> bool:
    """Every node, asked as a client and as the administrator, tells what was decided."""
    ids = {cluster_node_id(cache, n) for n in cache.decided.nodes}
    seen = (await live.view()).nodes.values()
    return not await astray(cache) and all(v.cluster and v.cluster.ok and v.cluster.knows == ids for v in seen)


async def write(cache: Cache, keys: range) -> None:
    """As a cluster client that was given the configuration endpoint."""
    client = valkey.asyncio.ValkeyCluster(host=cache.decided.configuration_address, port=cache.wanted.port)
    try:
        for key in keys:
            await client.set(f"key:{key}", key)
    finally:
        await client.aclose()


async def replicated(live: LiveCache) -> bool:
    """Every replica has what its primary wrote."""
    cache, view = await live.cache(), await live.view()
    return all(
        view.node(n.name).offset == view.node(x.primary or "").offset
        for x in cache.decided.shards
        for n in cache.decided.nodes
        if n.shard == x.id
    )


async def missing(cache: Cache, keys: range) -> list[int]:
    client = valkey.asyncio.ValkeyCluster(host=cache.decided.configuration_address, port=cache.wanted.port)
    try:
        return [key for key in keys if await client.get(f"key:{key}") != str(key).encode()]
    finally:
        await client.aclose()


@engines
async def test_few_shards_share_all_slots_evenly(engine: str, major: int) -> None:
    build = build_of(engine, major)

    async def one(shards: int) -> None:
        async with LiveCache(None, wanted_cluster(build, shards=shards, replicas=0), name=f"c{shards}") as live:
            cache = await live.available()
            dealt = await slots_at(cache.decided.configuration_address or "")
            assert sorted(map(len, dealt.values())) == sorted(count(r) for r in even([str(i) for i in range(shards)]).values())
            assert set().union(*dealt.values()) == set(range(SLOTS))
            await write(cache, range(20))
            assert not await missing(cache, range(20))

    await asyncio.gather(one(1), one(2))


@engines
async def test_who_connects_as_soon_as_it_is_available_sees_everybody_wherever_he_asks(engine: str, major: int) -> None:
    """Nothing was written yet: the replicas' offset is 0 until they are introduced."""
    async with LiveCache(None, wanted_cluster(build_of(engine, major), shards=3, replicas=2)) as live:
        assert await astray(await live.available()) == []


@engines
async def test_a_cluster_outlives_its_nodes(engine: str, major: int) -> None:
    """One cluster through it all: a primary lost, the endpoint's node lost, a planned move,
    everything lost, every address changed."""
    async with LiveCache(None, wanted_cluster(build_of(engine, major), shards=3, replicas=1)) as live:
        cache = await healthy(live)
        assert [x.slots for x in cache.decided.shards] == [((0, 5461),), ((5462, 10922),), ((10923, 16383),)]
        keys = range(200)
        await write(cache, keys)
        await live.until(lambda c: replicated(live), "replicas have it all")

        lost = live.primary_of(cache, "0002")
        await live.signal(lost)
        await live.until(lambda c: live.primary_of(c, "0002") != lost, "another leads")
        cache = await healthy(live)
        assert not await missing(cache, keys), "what its replica had is still there"
        assert live.said_any(lost, "is gone", "becomes primary")
        assert any("Failover" in e.message and lost in e.message for e in await live.events())

        holder = cache.decided.configuration_node or ""
        await live.signal(holder)
        await live.until(lambda c: c.decided.configuration_node != holder, "the endpoint moves")
        cache = await healthy(live)
        assert not await missing(cache, keys)

        leader = live.primary_of(cache, "0003")
        await live.errand("test-failover", shard="0003")
        await live.until(lambda c: live.primary_of(c, "0003") != leader, "handed over")
        cache = await healthy(live)
        assert not await missing(cache, keys), "a planned move loses nothing"

        await lose_everything(live, cache)
        await live.start_control_plane()
        await live.until(lambda c, old=cache: started_anew(old, c), "all start anew")
        cache = await healthy(live)
        await write(cache, keys)

        await lose_everything(live, cache)
        cache = await move_house(live, cache)
        await live.start_control_plane()
        await live.until(lambda c, old=cache: started_anew(old, c), "all start anew")
        cache = await healthy(live)
        await write(cache, keys)
        assert not await missing(cache, keys)


async def lose_everything(live: LiveCache, cache: Cache) -> None:
    """The control plane and every engine die together, as with their machine."""
    pids = [await live.pid(n.name) for n in cache.decided.nodes]
    await live.stop_control_plane()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def started_anew(old: Cache, new: Cache) -> bool:
    return all(n.incarnation > m.incarnation for n, m in zip(new.decided.nodes, old.decided.nodes, strict=True))


async def move_house(live: LiveCache, cache: Cache) -> Cache:
    """Every node gets another address, as if the machine had been moved to another network while everything was down."""
    new = free(new_pool(), (), len(cache.decided.nodes) + 1, seed="elsewhere")
    nodes = tuple(replace(n, address=a) for n, a in zip(cache.decided.nodes, new, strict=False))
    moved = replace(cache.decided, nodes=nodes, configuration_address=new[-1])
    (lease,) = await live.store.claim("mover", ttl_seconds=5)
    now = await live.cache()
    saved = await live.store.save_decided(replace(now, decided=moved), lease, Along(addresses=set(new)))
    await live.store.release(lease)
    return saved


@engines
async def test_a_primary_that_restarts_by_plan_sends_its_clients_on_first(engine: str, major: int) -> None:
    """Clients deal with a redirection; of a connection that ends some make an error."""
    async with LiveCache(None, wanted_cluster(build_of(engine, major), shards=3, replicas=1), policy=Policy()) as live:
        cache = await healthy(live)
        old = await live.node(live.primary_of(cache))
        key = next(f"k{n}" for n in range(1000) if key_slot(f"k{n}".encode()) in expand(cache.decided.shards[0].owned))
        client = valkey.asyncio.Valkey(host=old.address, port=old.port, retry=Retry(NoBackoff(), 0))
        try:
            assert await client.set(key, "1")
            await live.errand("test-failover", shard="0001")
            await live.until(lambda c: live.said_any(f"clients of {old.name} are still sent on"), "it does not restart yet")
            with pytest.raises(valkey.ResponseError, match="MOVED "):
                await client.set(key, "2")
        finally:
            await client.aclose()
        await live.until(lambda c: next(n for n in c.decided.nodes if n.name == old.name).incarnation > old.incarnation, "it does")
        await healthy(live)


@engines
async def test_a_taker_that_freezes_when_it_is_told_does_not_take_over_late(engine: str, major: int) -> None:
    """What it was told waits in its socket; thawed later, it would take the slots with less than the giver has by then."""
    async with LiveCache(None, wanted_cluster(build_of(engine, major), shards=1)) as live:
        cache = await healthy(live)
        writer = Writer((cache.decided.configuration_address or "", 6379), pause_seconds=0.002)
        real, frozen = live.link.commands.send, list[int]()

        async def order(target: Target, *commands: tuple[str, ...]) -> list[Reply]:
            if commands[0] == ("CLUSTER", "FAILOVER", "TAKEOVER") and not frozen:
                frozen.append(await live.pid(target.key[1]))
                os.kill(frozen[0], signal.SIGSTOP)
            return await real(target, *commands)

        live.link.commands.send = order
        try:
            await live.errand("promote", nodes=("demo-0001-002",), shard="0001")
            await live.until(lambda _: live.said_any("is stopped for certain, before it does so late"), "it is given up")
            await live.until(lambda c: c.decided.shards[0].moving_to is None, "the move is called off")
            before = writer.count
            await live.until(lambda _: writer.count > before + 50, "writes")
            with pytest.raises(ProcessLookupError):
                os.kill(frozen[0], signal.SIGCONT)
            cache = await healthy(live)
        finally:
            await asyncio.to_thread(writer.stop)
        assert cache.decided.shards[0].primary == "demo-0001-001"
        assert await asyncio.to_thread(writer.missing, cache.decided.configuration_address or "") == []
