"""A primary dies: what its replica holds, and what orders do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import valkey.asyncio
from tests.addresses import new_address
from tests.engines.servers import REDIS_LIKE, Orders, build_of, carry, servers, until
from tests.live.test_link_hand_over import lead, online

from cachekeep.clock import SystemClock
from cachekeep.compute.link import EngineLink
from cachekeep.model import Follow, Promote


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_a_replica_that_is_called_online_is_being_fed(engine: str, major: int, tmp_path: Path) -> None:
    """In the first second after a synchronisation, too: the primary is killed then, and the replica has what was written."""
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await carry(link, Promote(first.target.name, 1, (first.node.address, endpoint)), first.target)
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            await client.set("before", "1")
            await carry(link, Follow(second.target.name, first.target.name, 1), second.target, first.target)
            await until(lambda: online(link, first.target, second.target))
            for number in range(100):
                await client.set(f"after:{number}", number)
        first.kill()
        await carry(link, Promote(second.target.name, 2, (second.node.address, endpoint)), second.target)
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            assert await client.get("before") == b"1"
            assert await client.get("after:0") == b"0"
            await client.set("k", "v")
    await link.aclose()


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_the_old_primary_comes_back_empty_and_harmless(engine: str, major: int, tmp_path: Path) -> None:
    """Killed, succeeded and started again, it takes no write, and following the new primary brings it level."""
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await lead(link, first, second, endpoint)
        async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
            await client.set("k", "v")
        await until(lambda: _same_offset(link, first, second))
        first.kill()
        await carry(link, Promote(second.target.name, 2, (second.node.address, endpoint)), second.target)
        first.start()
        view = await link.look(first.target, deadline_seconds=30)
        assert (view.role, view.has_history, view.bound) == ("replica", False, {first.node.address})
        await carry(link, Follow(first.target.name, second.target.name, 2), first.target, second.target)
        await until(lambda: online(link, second.target, first.target))
        async with valkey.asyncio.Valkey(host=first.node.address, port=6379) as client:
            assert await client.get("k") == b"v"
    await link.aclose()


async def _same_offset(link: EngineLink, first: object, second: object) -> bool:
    a, b = [await link.look(s.target, deadline_seconds=30) for s in (first, second)]  # type: ignore[attr-defined]
    return a.offset == b.offset
