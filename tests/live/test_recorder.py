"""Any moment that was recorded, against a model kept beside a random workload: exact, through a failover, or refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkey.asyncio
from tests.backup.data import fill
from tests.engines.servers import PASSWORD, REDIS_LIKE, Server, build_of, servers, until
from tests.live.test_backup import leading

from cachekeep.backup.recording import RecordedShard, ShardRecording, Upstream
from cachekeep.engines.users import REPLICA, secret_of
from cachekeep.errors import InvalidValue

DATABASES = (0, 3)
NASTY = b"\r\n\x00*1\r\n"


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[ShardRecording]:
    made = ShardRecording(tmp_path / "recordings" / "uid-0001")
    yield made
    made.stop()
    ends_at = time.monotonic() + 60
    while made.directory.exists() and made.running():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def follow(recording: ShardRecording, server: Server, *, rebase_seconds: float = 86400) -> None:
    node = server.node
    about = RecordedShard("demo", "group", "uid", "0001", node.engine, node.version)
    recording.point(about, Upstream(node.address, node.port, REPLICA, secret_of(REPLICA, PASSWORD), rebase_seconds))
    if not recording.running():
        recording.start()


async def recorded(recording: ShardRecording, client: valkey.asyncio.Valkey) -> int:
    """A moment at which everything that was written is recorded, and nothing more is written before it is."""

    async def has(since_ns: int) -> bool:
        if not recording.directory.exists():
            return False
        told = await client.info("replication")  # an engine's history begins anew with its first replica
        found = [s for s in recording.timeline().segments if s.history == told["master_replid"] and s.times]
        return bool(found) and found[-1].offsets[-1] >= told["master_repl_offset"] and found[-1].times[-1] > since_ns

    await until(lambda: has(0))
    at_ns = time.time_ns()
    await until(lambda: has(at_ns))
    return at_ns


async def write(client: valkey.asyncio.Valkey, chance: random.Random) -> None:
    """Some random writes, transactions and scripts among them."""
    ask = client.execute_command
    for _ in range(chance.randrange(1, 15)):
        await ask("SELECT", chance.choice(DATABASES))
        key, value = b"key%d" % chance.randrange(20), chance.randbytes(chance.choice([0, 3, 300])) + NASTY
        match chance.randrange(8):
            case 0 | 1:
                await ask("SET", key, value)
            case 2:
                await ask("DEL", key)
            case 3:
                await ask("SET", key, value, "PX", chance.choice([1, 3_600_000]))
            case 4:
                async with client.pipeline(transaction=True) as pipe:
                    pipe.set(key, value).rpush(b"list" + key, value).incr("counter")
                    await pipe.execute()
            case 5:
                await ask("EVAL", "redis.call('SET', KEYS[1], ARGV[1]); redis.call('INCR', 'scripted')", 1, key, value)
            case 6:
                await ask("XADD", b"stream" + key, "*", "field", value)
            case 7:
                await ask("FLUSHDB") if chance.random() < 0.1 else await ask("HSET", b"hash" + key, value, value)
    await ask("SELECT", 0)


async def model(client: valkey.asyncio.Valkey) -> dict[object, Any]:
    """What a reader sees now."""
    found: dict[object, Any] = {}
    for database in DATABASES:
        await client.execute_command("SELECT", database)
        for key in await client.execute_command("KEYS", "*"):
            kind = await client.type(key)
            command = {b"string": "GET {}", b"list": "LRANGE {} 0 -1", b"hash": "HGETALL {}", b"stream": "XRANGE {} - +"}.get(kind)
            if command is not None:  # it may have expired meanwhile
                words = [key if word == "{}" else word for word in command.split()]
                found[database, key] = await client.execute_command(*words), await client.execute_command("PEXPIRETIME", key)
    return found


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_moments_are_exact_through_a_failover(engine: str, major: int, tmp_path: Path, recording: ShardRecording) -> None:
    build, chance = build_of(engine, major), random.Random(major)
    moments: list[tuple[int, dict[object, Any]]] = []
    with servers(build, tmp_path, 2) as [first, second]:
        client = await leading(first)
        other = await leading(second)
        await other.execute_command("REPLICAOF", first.node.address, first.node.port)
        await fill(client, field_ttl=build.can("hash-field-expiration"))
        await client.flushall()
        await write(client, chance)
        follow(recording, first)
        for turn in range(10):
            if turn == 5:

                async def caught_up(client: valkey.asyncio.Valkey = client) -> bool:
                    told, at = await other.info("replication"), await client.info("replication")
                    return bool(
                        told.get("slave_repl_offset", -1) >= at["master_repl_offset"] and told["master_link_status"] == "up"
                    )

                await until(caught_up)
                first.kill()
                await client.aclose()
                client = other
                await client.execute_command("REPLICAOF", "NO", "ONE")
                follow(recording, second)
            await write(client, chance)
            at_ns = await recorded(recording, client)
            moments.append((at_ns, await model(client)))
        timeline = recording.timeline()
        assert len(timeline.bases) == 1  # the failover was followed by what the new primary has, not by all of it
        assert len({s.history for s in timeline.segments}) == 2
        for at_ns, expected in [moments[0], *moments[3:7], moments[9]]:
            async with recording.materialised(at_ns, (build.server,), parent=tmp_path) as past:
                assert await model(past.engine.client) == expected
        begin = timeline.spans()[0].begin
        with pytest.raises(InvalidValue, match=r"was not recorded: the first one after it is 20"):
            recording.way(begin - 1)
        with pytest.raises(InvalidValue, match=r"was not recorded: the last one before it is 20"):
            recording.way(time.time_ns() + 10**12)
        await client.aclose()


async def test_a_recorder_that_was_killed_goes_on_and_a_base_beside_it_lets_the_old_one_go(
    tmp_path: Path, recording: ShardRecording
) -> None:
    build = build_of("valkey", 9)
    with servers(build, tmp_path, 1) as [server]:
        client = await leading(server)
        await client.set("key", "one")
        follow(recording, server)
        first = await recorded(recording, client)
        kill_holder(recording)
        await until(lambda: not recording.running())
        await client.set("key", "two")
        follow(recording, server, rebase_seconds=0)
        second = await recorded(recording, client)
        await until(lambda: len(recording.timeline().bases) > 1)
        await client.set("key", "three")
        third = await recorded(recording, client)
        now = dt.datetime.now(dt.UTC)
        for at_ns, expected in ((first, b"one"), (second, b"two"), (third, b"three")):
            async with recording.materialised(at_ns, (build.server,), parent=tmp_path) as past:
                assert await past.read(["get", "key"], database=0, now=now) == expected
        gap = [span.why for span in recording.timeline().spans()]
        assert gap == ["recording was switched on", "the recorder was started anew"]
        assert recording.prune(third) > 0
        assert recording.timeline().way(first) is None
        async with recording.materialised(third, (build.server,), parent=tmp_path) as past:
            assert await past.read(["get", "key"], database=0, now=now) == b"three"
        await client.aclose()


async def test_what_has_expired_since_is_read_as_it_was(tmp_path: Path, recording: ShardRecording) -> None:
    for engine, major in REDIS_LIKE:
        build = build_of(engine, major)
        recording.directory = tmp_path / f"{engine}-{major}"
        with servers(build, tmp_path / build.program, 1) as [server]:
            client = await leading(server)
            follow(recording, server)
            await recorded(recording, client)
            await client.set("soon", "gone", px=30_000)
            at_ns = await recorded(recording, client)
            later = dt.datetime.fromtimestamp(at_ns / 1e9, dt.UTC) + dt.timedelta(hours=1)
            async with recording.materialised(at_ns, (build.server,), parent=tmp_path) as past:
                left = await past.read(["pttl", "soon"], database=0, now=later)
                assert isinstance(left, int)
                assert 3_600_000 < left < 3_640_000  # read now, as if it were an hour later
                assert await past.read(["dbsize"], database=0, now=later) == 1
            writes = [tuple(words[:2]) for _, _, words in recording.writes(0, 1 << 62)]
            assert (b"SET", b"soon") in writes
            await client.aclose()
            recording.stop()
            await until(lambda: not recording.running())


def kill_holder(recording: ShardRecording) -> None:
    """SIGKILL the recorder, and nobody else."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(recording.directory).encode() in words and b"-S" in words:
            os.kill(int(process.name), signal.SIGKILL)


async def test_ten_thousand_writes_are_not_gone_through_by_us(tmp_path: Path, recording: ShardRecording) -> None:
    """More than is counted command by command: the engine says how far it is, and the cut is exact."""
    build = build_of("valkey", 8)
    with servers(build, tmp_path, 1) as [server]:
        client = await leading(server)
        follow(recording, server)
        await recorded(recording, client)
        for number in range(30):
            pipe = client.pipeline(transaction=number % 2 == 0)
            for each in range(10):
                pipe.set(f"key:{number}:{each}", os.urandom(100_000))
            await pipe.execute()
        at_ns = await recorded(recording, client)
        await client.flushall()
        after = await recorded(recording, client)
        async with recording.materialised(at_ns, (build.server,), parent=tmp_path) as past:
            assert await past.engine.keys() == {0: 300}
        async with recording.materialised(after, (build.server,), parent=tmp_path) as past:
            assert await past.engine.keys() == {}
        await client.aclose()


async def test_two_recorders_of_one_shard_are_one(tmp_path: Path, recording: ShardRecording) -> None:
    with servers(build_of("valkey", 8), tmp_path, 1) as [server]:
        client = await leading(server)
        follow(recording, server)
        await recorded(recording, client)
        recording.start()
        await asyncio.sleep(0)
        assert (await client.info("replication"))["connected_slaves"] == 1
        await client.aclose()
