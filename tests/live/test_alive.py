"""What anonymous clients can do to a primary that is healthy: it is not stopped for it, nobody takes over, and no write is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey
from tests.engines.servers import REDIS_LIKE
from tests.live.harness import LiveCache
from tests.live.test_failover import ENGINES, endpoint, goes_on, group, lost, whole, writing
from tests.live.test_spares import holders

from cachekeep.compute.spares import Spares
from cachekeep.plan import Policy

CLIENTS = 40
ANYBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""It is enough for these clients that somebody is there."""
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def untouched(live: LiveCache) -> AsyncIterator[None]:
    """Whoever leads now leads at the end, in the same process, and so do all others."""
    cache = await live.cache()
    before = {n.name: await live.pid(n.name) for n in cache.decided.nodes}
    yield
    assert live.primary_of(await whole(live)) == live.primary_of(cache)
    assert {n.name: await live.pid(n.name) for n in cache.decided.nodes} == before
    assert not live.said_any("stopped for certain")


def anonymous(live: LiveCache, address: str) -> valkey.Valkey:
    return valkey.Valkey(host=address, port=6379, socket_timeout=60, decode_responses=True)


def in_background(client: valkey.Valkey, *command: object) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(valkey.ValkeyError), client:
            client.execute_command(*command)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@ENGINES
async def test_clients_that_pause_it_or_run_scripts_do_not_end_it(engine: str, major: int, tmp_path: Path) -> None:
    """Silence is given less than each of them lasts, so that it would count as a hang."""
    policy = Policy(silence_seconds=7.0, script_seconds=60.0)
    async with group(tmp_path, engine, major, nodes=2, policy=policy) as live, writing(live) as writer, untouched(live):
        where = endpoint(await live.cache())
        with anonymous(live, where) as client:
            client.execute_command("CLIENT", "PAUSE", 10_000, "ALL")
        await live.until(lambda _: live.said_any("holds back every command"), "a pause is seen")
        await goes_on(live, writer)
        spin = "local t = redis.call('TIME'); while redis.call('TIME')[1] - t[1] < 10 do end"
        running = in_background(anonymous(live, where), "EVAL", spin, 0)
        await live.until(lambda _: live.said_any("is busy with a script"), "a script is seen")
        await asyncio.to_thread(running.join)
        await goes_on(live, writer)
        assert await lost(live, writer) == 0


SEARCH = "local n = tonumber(ARGV[1]); return tostring(string.find(('a'):rep(n), ('a-'):rep(4) .. 'b'))"
"""One call of some n⁵ steps: the engine looks at no clock in the middle of it."""


def took(client: valkey.Valkey, length: int) -> float:
    before = time.monotonic()
    client.eval(SEARCH, 0, length)  # type: ignore[no-untyped-call]
    return time.monotonic() - before


async def test_one_command_that_takes_long_does_not_end_it(tmp_path: Path) -> None:
    """It answers nobody for longer than silence is given, and says nothing of it: only its CPU time tells it from a hang."""
    engine, major = REDIS_LIKE[-1]
    policy = Policy(silence_seconds=2.0)
    async with group(tmp_path, engine, major, nodes=2, policy=policy) as live, writing(live) as writer, untouched(live):
        where = endpoint(await live.cache())
        with anonymous(live, where) as client:
            length = 20
            while (seconds := await asyncio.to_thread(took, client, length)) < 0.05:
                length = length * 5 // 4
        length = int(length * (6.0 / seconds) ** 0.2)
        running = in_background(anonymous(live, where), "EVAL", SEARCH, 0, length)
        await live.until(lambda _: live.said_any("is at work"), "a long command is seen")
        await asyncio.to_thread(running.join)
        await goes_on(live, writer)
        assert await lost(live, writer) == 0


@ENGINES
async def test_a_script_without_end_is_ended_and_not_the_primary(engine: str, major: int, tmp_path: Path) -> None:
    policy = Policy(script_seconds=6.0)
    async with group(tmp_path, engine, major, nodes=2, policy=policy) as live, writing(live) as writer, untouched(live):
        running = in_background(anonymous(live, endpoint(await live.cache())), "EVAL", "while true do end", 0)
        await asyncio.to_thread(running.join)
        assert live.said_any("has been busy with a script for 6 s: it is ended")
        await goes_on(live, writer)
        assert await lost(live, writer) == 0


@ENGINES
async def test_a_script_that_has_written_is_waited_for_until_the_user_gives_it_up(engine: str, major: int, tmp_path: Path) -> None:
    policy = Policy(script_seconds=5.0)
    async with group(tmp_path, engine, major, nodes=2, policy=policy) as live, writing(live, replicas=1) as writer:
        cache = await live.cache()
        old = live.primary_of(cache)
        in_background(anonymous(live, endpoint(cache)), "EVAL", "redis.call('SET', KEYS[1], 1); while true do end", 1, "k")
        await live.until(lambda _: live.said_any(old, "cannot be ended, as it has written"), "it is seen to be for good")

        async def told(_: object) -> bool:
            condition = await live.condition()
            return condition is not None and condition.refused and "as it has written" in condition.because

        await live.until(told, "the status says why")
        await live.errand("test-failover", shard="0001")
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        await goes_on(live, writer)
        await whole(live)
        assert await lost(live, writer) == 0


@ENGINES
async def test_a_control_plane_that_finds_it_full_leaves_it_alone(engine: str, major: int, tmp_path: Path) -> None:
    await full_is_left_alone(engine, major, tmp_path)


async def full_is_left_alone(engine: str, major: int, tmp_path: Path, **wanted: object) -> None:
    limit = {"maxclients": str(CLIENTS)}
    policy = Policy(silence_seconds=1.0)
    async with group(tmp_path, engine, major, nodes=2, policy=policy, parameters=limit, **wanted) as live, untouched(live):
        cache = await live.cache()
        await _spares(live)
        await live.stop_control_plane()
        for holder in holders(live.place):
            os.kill(holder, signal.SIGKILL)
        crowd = [await asyncio.to_thread(_stay, endpoint(cache), cache.encrypted) for _ in range(2 * CLIENTS)]
        assert crowd[-1] is None, "it lets nobody else in"
        await live.start_control_plane()
        await live.until(lambda _: live.said_any("has as many clients as it may"), "it is seen to be full")
        await asyncio.sleep(3 * policy.silence_seconds)  # nothing is to happen in this time
        condition = await live.condition()
        assert condition is not None
        assert condition.status == "available", "it serves the clients that it has"
        for client in crowd:
            if client is not None:
                client.close()


async def _spares(live: LiveCache) -> None:
    """Wait until there is a spare line to each node."""
    spares = Spares(live.place)
    nodes = (await live.cache()).decided.nodes
    await live.until(lambda _: all(spares.has(f"{live.uid}/{n.name} {n.address}:{n.port}") for n in nodes), "spare lines")


@ENGINES
async def test_a_control_plane_that_starts_anew_is_let_in_where_everything_is_full(engine: str, major: int, tmp_path: Path) -> None:
    await let_in_where_everything_is_full(engine, major, tmp_path)


async def let_in_where_everything_is_full(engine: str, major: int, tmp_path: Path, **wanted: object) -> None:
    """Clients take every place that becomes free, at all nodes, while it is away. Then the primary dies."""
    limit = {"maxclients": str(CLIENTS)}
    async with group(tmp_path, engine, major, nodes=2, parameters=limit, **wanted) as live:
        cache = await live.cache()
        old = live.primary_of(cache)
        await _spares(live)
        enough = threading.Event()
        crowd: list[socket.socket] = []
        hungry = [
            threading.Thread(target=_crowd, args=(n.address, crowd, enough, cache.encrypted), daemon=True)
            for n in cache.decided.nodes
        ]
        for thread in hungry:
            thread.start()
        try:
            await live.stop_control_plane()
            for node in cache.decided.nodes:
                while (stayed := await asyncio.to_thread(_stay, node.address, cache.encrypted)) is not None:
                    crowd.append(stayed)
            await live.start_control_plane()
            await live.until(lambda _: _tell_everything(live), "all nodes tell everything")
            await live.signal(old, signal.SIGKILL)
            await live.until(lambda c: live.primary_of(c) != old, "another primary")
            await whole(live)
        finally:
            enough.set()
            for thread in hungry:
                await asyncio.to_thread(thread.join)
            for client in crowd:
                client.close()
        await _spares(live)


async def _tell_everything(live: LiveCache) -> bool:
    return all(seen.answering for seen in (await live.view()).nodes.values())


def _stay(address: str, encrypted: bool = False) -> socket.socket | None:
    """A client that is let in and stays; None: it is not let in."""
    client = socket.create_connection((address, 6379), timeout=10)
    with contextlib.suppress(OSError):
        if encrypted:
            client = ANYBODY.wrap_socket(client)
        client.sendall(b"PING\r\n")
    try:
        if client.recv(64).startswith(b"+PONG"):
            return client
    except OSError:
        pass
    client.close()
    return None


HARM = (
    *(f"CLIENT KILL TYPE {kind} SKIPME yes" for kind in ("normal", "pubsub", "replica", "master")),
    "CLIENT KILL USER cachekeep-admin",
    "CLIENT NO-EVICT on",
    "FUNCTION FLUSH SYNC",
    "SCRIPT FLUSH SYNC",
    "SCRIPT DEBUG SYNC",
    "ACL LOG RESET",
    "LATENCY RESET",
    "SLOWLOG RESET",
    "MEMORY PURGE",
    "PFSELFTEST",
)


@ENGINES
async def test_clients_that_cut_our_lines_and_the_links_of_replicas_cause_no_failover(
    engine: str, major: int, tmp_path: Path
) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live, writing(live, replicas=1) as writer, untouched(live):
        cache = await live.cache()
        for address in {endpoint(cache), *(n.address for n in cache.decided.nodes)}:
            with anonymous(live, address) as client:
                for command in HARM:
                    with contextlib.suppress(valkey.ResponseError):  # a replica takes no writes
                        client.execute_command(*command.split())
        await goes_on(live, writer)
        await whole(live)
        assert await lost(live, writer) == 0


@ENGINES
async def test_a_replica_that_starts_anew_is_let_in_at_a_primary_that_is_full(engine: str, major: int, tmp_path: Path) -> None:
    """Clients take every place that becomes free, all the while."""
    limit = {"maxclients": str(CLIENTS)}
    async with group(tmp_path, engine, major, nodes=2, parameters=limit) as live:
        cache = await live.cache()
        primary = live.primary_of(cache)
        (replica,) = cache.decided.shards[0].in_sync
        full = threading.Event()
        crowd: list[socket.socket] = []
        hungry = threading.Thread(target=_crowd, args=(endpoint(cache), crowd, full), daemon=True)
        hungry.start()
        try:
            while (places := (await live.view()).node(primary).places) is None or places > 0:
                await asyncio.sleep(0.01)
            await live.signal(replica)
            await live.until(lambda c: c.node(replica).incarnation == 2, "it is started again")  # type: ignore[union-attr]
            await whole(live)
            assert live.primary_of(await live.cache()) == primary
        finally:
            full.set()
            await asyncio.to_thread(hungry.join)
            for client in crowd:
                client.close()


def _crowd(address: str, crowd: list[socket.socket], enough: threading.Event, encrypted: bool = False) -> None:
    while not enough.wait(0.002):
        with contextlib.suppress(OSError):  # a node that is ended, or is given other addresses, refuses everybody for a moment
            if (client := _stay(address, encrypted)) is not None:
                crowd.append(client)
