"""A known load gives exactly the values that are documented, and what lies across a restart or a promotion invents none."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
import valkey
from msgspec.structs import replace
from pymemcache.client.base import Client
from tests.engines.servers import Orders, Server, build_of, carry, servers, until

from cachekeep.clock import SystemClock
from cachekeep.compute.link import EngineLink
from cachekeep.compute.meter import Meter
from cachekeep.metrics.datum import Datum
from cachekeep.metrics.points import About, behind_seconds, points
from cachekeep.model import Follow, Moment, Promote
from cachekeep.model.sample import Sample


async def ask(meter: Meter, node: Server, minute: int) -> Sample:
    """What it says, as if it were said then."""
    sample = await meter.sample(node.target, deadline_seconds=60)
    assert sample is not None
    return replace(sample, at=Moment("test", minute * 60.0))


def totals(found: dict[str, Datum]) -> dict[str, float]:
    return {name: datum.total for name, datum in found.items()}


def load(node: Server) -> None:
    with valkey.Valkey(node.node.address, node.node.port, lib_name=None, lib_version=None) as client:
        for number in range(10):
            client.set(f"k{number}", "v", ex=1000 if number < 4 else None)
        for number in range(15):
            client.get(f"k{number}")  # 10 hits, 5 misses
        client.hset("h", mapping={"a": "1", "b": "2"})
        client.hgetall("h")
        client.lpush("l", "x", "y", "z")
        client.delete("l")
        client.publish("channel", "word")
        client.eval("return 1", 0)
        with pytest.raises(valkey.ResponseError):
            client.lpush("h", "x")  # WRONGTYPE


@pytest.mark.parametrize(("engine", "major", "tracks"), [("redis", 7, "no"), ("valkey", 8, "yes"), ("valkey", 9, "no")])
async def test_a_known_load(engine: str, major: int, tracks: str, tmp_path: Path) -> None:
    clock = SystemClock()
    meter, link, about = Meter(clock), EngineLink(Orders(), clock), About(engine=engine)
    with servers(build_of(engine, major), tmp_path, 1) as (node,):
        await carry(link, Promote(node.target.name, 1, (node.node.address,)), node.target)
        await link.commands.send(node.target, ("CONFIG", "SET", "latency-tracking", tracks))
        before = await ask(meter, node, 0)
        assert bool(before.durations) == (tracks == "yes")
        await asyncio.to_thread(load, node)
        after = await ask(meter, node, 1)
        found = points(before, after, about)
        wanted = {
            "CacheHits": 11,  # HGETALL finds its key, too
            "CacheMisses": 5,
            "CacheHitRate": round(11 / 16 * 100, 4),
            "NewConnections": 1,
            "CurrItems": 11,
            "CurrVolatileItems": 4,
            "GetTypeCmds": 16,
            "SetTypeCmds": 14,
            "StringBasedCmds": 25,
            "HashBasedCmds": 2,
            "ListBasedCmds": 2,
            "KeyBasedCmds": 1,
            "PubSubBasedCmds": 1,
            "EvalBasedCmds": 1,
            "StreamBasedCmds": 0,
            "ErrorCount": 1,
            "Evictions": 0,
            "IsMaster": 1,
        }
        told = totals(found)
        assert {name: told.get(name) for name in wanted} == wanted
        assert found["SuccessfulReadRequestLatency"].count == 16
        assert found["SuccessfulWriteRequestLatency"].count == 14
        assert told["GetTypeCmdsLatency"] > 0
        assert told["NetworkBytesIn"] > 500

        node.kill()
        node.start()
        begun = await ask(meter, node, 2)
        across = points(after, begun, about)
        assert not {"CacheHits", "NewConnections", "GetTypeCmds", "CPUUtilization", "EngineCPUUtilization"} & set(across)
        assert across["CurrItems"].total == 0
    assert await meter.sample(node.target, deadline_seconds=60) is None
    await meter.aclose()
    await link.aclose()


async def test_a_replica_that_is_promoted(tmp_path: Path) -> None:
    clock, orders = SystemClock(), Orders()
    meter, link, about = Meter(clock), EngineLink(orders, clock), About(engine="valkey")
    with servers(build_of("valkey", 8), tmp_path, 2) as (primary, replica):
        await carry(link, Promote(primary.target.name, 1, (primary.node.address,)), primary.target)
        await carry(link, Follow(replica.target.name, primary.target.name, 1), primary.target, replica.target)

        async def follows() -> bool:
            seen = await ask(meter, primary, 0)
            return behind_seconds(seen, replica.node.address, replica.node.port) is not None

        await until(follows)
        before = await ask(meter, replica, 0)
        told = totals(points(None, before, replace(about, behind_seconds=0.0)))
        assert (told["IsMaster"], told["MasterLinkHealthStatus"], told["ReplicationLag"]) == (0, 1, 0)
        await carry(link, Promote(replica.target.name, 2, (replica.node.address,)), replica.target)
        after = await ask(meter, replica, 1)
        told = totals(points(before, after, about))
        assert told["IsMaster"] == 1
        assert "ReplicationBytes" not in told
        assert "ReplicationLag" not in told
        assert told["CacheHits"] == 0  # the same process goes on counting
    await meter.aclose()
    await link.aclose()


async def test_memcached(tmp_path: Path) -> None:
    meter, about = Meter(SystemClock()), About(engine="memcached")
    tmp_path.chmod(0o755)

    def use(node: Server) -> None:
        client = Client((node.node.address, node.node.port))
        for number in range(6):
            client.set(f"k{number}", "v", noreply=False)
        for number in range(9):
            client.get(f"k{number}")
        client.incr("none", 1)
        client.delete("k0", noreply=False)
        client.close()

    with servers(build_of("memcached", 1), tmp_path, 1) as (node,):
        before = await ask(meter, node, 0)
        await asyncio.to_thread(use, node)
        told = totals(points(before, await ask(meter, node, 1), about))
        wanted = {"CmdGet": 9, "GetHits": 6, "GetMisses": 3, "CmdSet": 6, "IncrMisses": 1, "DeleteHits": 1, "CurrItems": 5}
        wanted |= {"NewItems": 6, "Evictions": 0}
        assert {name: told.get(name) for name in wanted} == wanted
        assert told["UnusedMemory"] > 0
        assert told["NewConnections"] >= 1  # its threads may count the one by which it was seen to listen late
    await meter.aclose()


async def test_a_node_that_hangs_is_a_gap_and_holds_up_nobody(tmp_path: Path) -> None:
    meter = Meter(SystemClock())
    with servers(build_of("valkey", 8), tmp_path, 2) as (one, other):
        await ask(meter, one, 0)
        one.freeze()
        silent, said = await asyncio.gather(meter.sample(one.target, deadline_seconds=0.2), ask(meter, other, 1))
        assert silent is None
        assert said.fields["role"] == "slave" or said.fields["role"] == "master"
        one.signal(signal.SIGCONT)
        assert (await ask(meter, one, 2)).fields["run_id"]
    await meter.aclose()
