"""Hosts that cannot be reached: the primary's for everybody, or only for us. Cut by rules between loopback addresses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import valkey
from tests.live.harness import LiveCache
from tests.live.test_failover import (
    ENGINES,
    anyio_backend,  # noqa: F401  (fixture)
    endpoint,
    goes_on,
    group,
    lost,
    whole,
    writing,
)

from cachekeep.chaos.cuts import Cuts, unusable
from cachekeep.compute.contract import Key
from cachekeep.engines.runtime import runtime
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache
from cachekeep.plan import Policy

pytestmark = pytest.mark.skipif(unusable() is not None, reason=unusable() or "")
_tags = itertools.count()
US = "127.0.0.1"
"""Where connections come from that were not bound to an address: the control plane's and the clients'."""


@contextlib.asynccontextmanager
async def cutting() -> AsyncIterator[Cuts]:
    """Cuts that end with the block."""
    cuts = Cuts(f"test{os.getpid()}n{next(_tags)}")
    cuts.open()
    try:
        yield cuts
    finally:
        cuts.clear()


async def cut_host(live: LiveCache, cuts: Cuts, name: str) -> None:
    """The node's host is gone with all that it listens on. The endpoint is at nobody's host once the process is."""
    node, cache = await live.node(name), await live.cache()
    loop, moves = asyncio.get_running_loop(), [a for a in cache_endpoints(cache) if a in (await live.view()).node(name).bound]  # type: ignore[operator]
    pidfd = os.pidfd_open(await live.pid(name))

    def gone() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        if moves:
            cuts.heal(moves)

    loop.add_reader(pidfd, gone)
    cuts.cut([node.address, *moves])


def takes_writes(address: str) -> bool:
    with contextlib.suppress(valkey.ValkeyError), valkey.Valkey(host=address, port=6379, socket_timeout=2) as client:
        return bool(client.set("k", "v"))
    return False


def cache_endpoints(cache) -> list[str]:  # type: ignore[no-untyped-def]
    return [a for x in cache.decided.shards for a in (x.primary_address, x.reader_address) if a]


@ENGINES
@pytest.mark.parametrize("nodes", [2, 3])
async def test_a_primary_whose_host_nobody_reaches_is_succeeded(engine: str, major: int, nodes: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes) as live, cutting() as cuts, writing(live, replicas=1) as writer:
        old = live.primary_of(await live.cache())
        await cut_host(live, cuts, old)
        await live.until(lambda c: live.primary_of(c) != old, "another primary")
        await live.until(lambda c: takes_writes(endpoint(c)), "writes again")
        assert live.said_any(old, "unreachable", "for its replicas too")
        cuts.heal([(await live.node(old)).address])
        await whole(live)
        await goes_on(live, writer)
        assert (await live.view()).node(old).role == "replica"
        assert await lost(live, writer) == 0


@ENGINES
async def test_clients_of_a_cut_node_are_told_when_it_is_stopped(engine: str, major: int, tmp_path: Path) -> None:
    """The cut keeps the kernel's word from them, and they would wait for their own timeouts."""
    async with group(tmp_path, engine, major) as live, cutting() as cuts:
        old = live.primary_of(await live.cache())
        address = (await live.node(old)).address
        with contextlib.closing(socket.create_connection((address, 6379))) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(100) == b"+PONG\r\n"
            client.settimeout(90)
            await cut_host(live, cuts, old)
            client.sendall(b"PING\r\n")
            await live.until(lambda c: live.primary_of(c) != old, "another primary")
            with pytest.raises(ConnectionError):
                assert await asyncio.to_thread(client.recv, 100) == b"unheard"


@ENGINES
async def test_who_dials_a_node_behind_a_cut_hears_so_soon(engine: str, major: int, tmp_path: Path) -> None:
    """Again and again, while its new process, too, is behind the cut: cluster clients ask any node that they know, and would wait
    for their own connect timeouts, one after the other."""
    async with group(tmp_path, engine, major) as live, cutting() as cuts:
        old = await live.node(live.primary_of(await live.cache()))
        await cut_host(live, cuts, old.name)
        dial = f"import socket; socket.create_connection(({old.address!r}, {old.port}), timeout=20)"

        def dialled() -> str:
            return subprocess.run([sys.executable, "-c", dial], capture_output=True, text=True, check=False).stderr

        for _ in range(2):
            assert "Connection" in (await asyncio.to_thread(dialled)).splitlines()[-1], "aborted or refused"
            await live.until(lambda c: next(n for n in c.decided.nodes if n.name == old.name).incarnation > 1, "it starts anew")
        cuts.heal([old.address])
        await whole(live)
        assert not await asyncio.to_thread(dialled)


@ENGINES
async def test_a_primary_that_only_we_cannot_reach_leads_on(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live, cutting() as cuts, writing(live) as writer:
        old = live.primary_of(await live.cache())
        address, pid = (await live.node(old)).address, await live.pid(old)
        cuts.cut_line(US, address)
        await live.until(lambda _: live.said_any(old, "it may be we who are cut off"), "it asks the replicas")
        await goes_on(live, writer)
        cuts.heal_line(US, address)
        await whole(live)
        assert (live.primary_of(await live.cache()), await live.pid(old)) == (old, pid)
        assert await lost(live, writer) == 0, "being asked costs no write"


@ENGINES
async def test_a_zone_that_is_cut_takes_its_replicas_with_it(engine: str, major: int, tmp_path: Path) -> None:
    """Four nodes in three zones: the primary's zone has a replica, too, that goes on hearing it.
    It does not count: we cannot ask it."""
    async with group(tmp_path, engine, major, 4) as live, cutting() as cuts, writing(live, replicas=1) as writer:
        cache = await live.cache()
        old = live.primary_of(cache)
        zone = (await live.node(old)).zone
        inside = [n for n in cache.decided.nodes if n.zone == zone]
        assert len(inside) == 2
        cuts.cut([n.address for n in inside if n.name != old])
        await cut_host(live, cuts, old)
        cache = await live.until(lambda c: live.primary_of(c) != old, "another primary")
        assert (await live.node(live.primary_of(cache))).zone != zone
        await goes_on(live, writer)
        cuts.heal([n.address for n in inside])
        await whole(live)
        assert await lost(live, writer) == 0


async def _armed(live: LiveCache, cache: Cache) -> bool:
    """The primary has its orders to take no writes without its replicas, and is known to have them."""
    primary = cache.node(live.primary_of(cache))
    assert primary is not None
    in_force = runtime(cache, primary).is_in((await live.view()).node(primary.name).digests, "settings")
    return cache.decided.shards[0].min_replicas > 0 and in_force


@ENGINES
async def test_a_primary_that_cannot_be_stopped_is_starved_before_another_leads(
    engine: str, major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host is cut off, with a client on it, and no order reaches it: as if it were another machine. Where it is not, its
    endpoint would be in the successor's way, so that is closed."""
    async with group(tmp_path, engine, major, policy=Policy(fence="starve")) as live, cutting() as cuts:
        cache = await live.cache()
        old, inside = live.primary_of(cache), f"{live.pool.rpartition('.')[0]}.250"
        address, pid = (await live.node(old)).address, await live.pid(old)
        await live.until(lambda c: _armed(live, c), "it depends on its replicas")
        stop = live.driver.stop

        async def unheard(key: Key, **how: Any) -> None:
            if key[1] == old:
                raise OrderFailed(f"{old} cannot be confirmed stopped: its host does not answer")
            await stop(key, **how)

        monkeypatch.setattr(live.driver, "stop", unheard)
        cuts.cut([address, inside])
        subprocess.run(["ss", "-K", "-t", "-a", "-n", "src", f"{endpoint(cache)}:6379"], check=True, capture_output=True)
        with contextlib.closing(socket.create_connection((address, 6379), source_address=(inside, 0))) as client:
            client.sendall(b"SET k inside\r\n")
            assert client.recv(100) == b"+OK\r\n", "it does not know yet that it is alone"
            cache = await live.until(lambda c: live.primary_of(c) != old, "another primary")
            client.sendall(b"SET k inside\r\n")
            assert client.recv(100).startswith(b"-NOREPLICAS")
            assert os.path.exists(f"/proc/{pid}")
            assert live.said_any(old, "has been without replicas for 5 s and takes no writes")
            await live.until(lambda c: takes_writes(endpoint(c)), "writes again")
            monkeypatch.undo()
            cuts.heal([address, inside])
        await whole(live)
        assert live.said_any(old, "can be reached again and is stopped")
        assert (await live.view()).node(old).role == "replica"


@ENGINES
async def test_a_crash_during_a_cut_is_not_kept_waiting(engine: str, major: int, tmp_path: Path) -> None:
    """One node's host is gone and its replacement cannot start; the new primary dies meanwhile."""
    async with group(tmp_path, engine, major) as live, cutting() as cuts, writing(live, replicas=1) as writer:
        first = live.primary_of(await live.cache())
        await cut_host(live, cuts, first)
        cache = await live.until(lambda c: live.primary_of(c) != first, "another primary")
        second = live.primary_of(cache)
        await live.until(
            lambda c: second not in c.decided.shards[0].in_sync and len(c.decided.shards[0].in_sync) == 1, "the third is in sync"
        )
        await goes_on(live, writer)
        await live.signal(second, signal.SIGKILL)
        await live.until(lambda c: live.primary_of(c) not in (first, second), "the third leads")
        await goes_on(live, writer)
        cuts.heal([(await live.node(first)).address])
        await whole(live)
