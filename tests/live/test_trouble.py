"""One node gives trouble, and goes on giving it: the others are led and fed as ever, on real engines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engines.servers import REDIS_LIKE, build_of
from tests.live.harness import LiveCache, wanted_group
from tests.live.test_failover import endpoint, goes_on, group, whole, writing

from cachekeep.control import flights
from cachekeep.engines.catalogue import Catalogue
from cachekeep.model import Cache, Done

ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
TAKEN = ("demo-003 cannot be started", "Address already in use")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def taken(live: LiveCache, name: str) -> AsyncIterator[None]:
    """The node has died, and another program listens at its address, before a control plane could start it again."""
    node, pid = await live.node(name), await live.pid(name)
    await live.stop_control_plane()
    os.kill(pid, signal.SIGKILL)
    while (stranger := _listener(node.address, node.port)) is None:
        await asyncio.sleep(0.005)
    with stranger:
        await live.start_control_plane()
        yield


def _listener(address: str, port: int) -> socket.socket | None:
    """Another program's socket there, once the address is free."""
    with contextlib.suppress(OSError):
        return socket.create_server((address, port))
    return None


async def tells(live: LiveCache, *words: str) -> None:
    """Wait until the status and an event have all these words."""

    async def met(_: Cache) -> bool:
        told = await live.condition()
        sentences = [event.message for event in await live.events()]
        return (
            told is not None
            and told.refused
            and all(w in told.because for w in words)
            and any(all(w in sentence for w in words) for sentence in sentences)
        )

    await live.until(met, f"word of {words}")


def in_sync(cache: Cache) -> frozenset[str]:
    return cache.decided.shards[0].in_sync


@ENGINES
@pytest.mark.anyio
async def test_an_address_that_another_program_took_keeps_nobody_from_being_led_and_fed(
    tmp_path: Path, engine: str, major: int
) -> None:
    """demo-003's address is taken; demo-002 is killed, comes back as a replica; then demo-001 is killed: demo-002 has it all."""
    async with group(tmp_path, engine, major) as live, taken(live, "demo-003"):
        await tells(live, *TAKEN)
        async with writing(live, replicas=1) as writer:
            await live.signal("demo-002")
            await live.until(lambda c: "demo-002" not in in_sync(c), "loss of demo-002")
            await live.until(lambda c: "demo-002" in in_sync(c), "return of demo-002")
            await goes_on(live, writer)
            await live.signal("demo-001")
            await live.until(lambda c: live.primary_of(c) == "demo-002", "failover")
            await live.until(lambda c: "demo-001" in in_sync(c), "return of demo-001")
            await goes_on(live, writer)
        assert await asyncio.to_thread(writer.missing, endpoint(await live.cache())) == []
        await tells(live, *TAKEN)


@pytest.mark.anyio
async def test_the_trouble_ends_when_its_cause_has_gone(tmp_path: Path) -> None:
    async with group(tmp_path, "valkey", 8) as live:
        async with taken(live, "demo-003"):
            await tells(live, *TAKEN)
        await whole(live)
        await live.until(lambda c: not c.decided.troubled, "the end of it")

        async def calm(_: Cache) -> bool:
            told = await live.condition()
            return told is not None and told.status == "available" and not told.refused

        await live.until(calm, "a calm word")


@pytest.mark.anyio
async def test_a_create_that_has_no_build_says_so_and_goes_on_at_once_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but ``engines install`` ends a rest of an hour here."""
    live = LiveCache(tmp_path, wanted_group(build_of("valkey", 8), nodes=2))
    builds, live.catalogue = live.catalogue, Catalogue()
    async with live:
        await tells(live, "demo-001 cannot be started", "install")
        told = await live.condition()
        assert told is not None
        assert told.status == "creating"
        monkeypatch.setattr(flights, "FIRST_REST_SECONDS", 3600.0)
        monkeypatch.setattr(flights, "LONGEST_REST_SECONDS", 3600.0)
        await live.until(lambda _: (live.observer.flights.rest_seconds(live.uid) or 0) > 60, "a long rest")
        live.catalogue = builds
        live.keeper.hasten()
        await live.available()


@ENGINES
@pytest.mark.anyio
async def test_a_replica_in_an_endless_script_is_rebooted_and_keeps_nobody_waiting(tmp_path: Path, engine: str, major: int) -> None:
    async with group(tmp_path, engine, major) as live:
        client = await live.client("demo-003")
        spinning = asyncio.create_task(client.execute_command("EVAL", "while true do end", "0"))
        try:
            await live.until(lambda c: "demo-003" not in in_sync(c), "silence of demo-003")
            async with writing(live, replicas=1) as writer:
                await live.signal("demo-001")
                await live.until(lambda c: live.primary_of(c) == "demo-002", "failover")
                await live.until(lambda c: "demo-001" in in_sync(c), "return of demo-001")
                await goes_on(live, writer)
            assert await asyncio.to_thread(writer.missing, endpoint(await live.cache())) == []
            await live.errand("reboot", nodes=("demo-003",))
            cache = await whole(live)
            assert [(job.id, job.state) for job in cache.decided.jobs] == [("errand-1", Done())]
            assert cache.node("demo-003").incarnation == 2  # type: ignore[union-attr]
        finally:
            spinning.cancel()
            await asyncio.gather(spinning, return_exceptions=True)
            await client.aclose()
