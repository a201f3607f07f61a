"""Hand-overs under fire: writers hammer the endpoint, and every write that was acknowledged is there at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import valkey.asyncio
import valkey.exceptions
from tests.addresses import new_address
from tests.engines.servers import REDIS_LIKE, Orders, Server, build_of, carry, servers, until

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Target
from cachekeep.compute.link import EngineLink
from cachekeep.errors import OrderFailed
from cachekeep.model import Follow, HandOver, Promote


class Writer:
    """Counts up one key at the endpoint, reconnecting as a client does; remembers the last number that was acknowledged."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name, self.endpoint = name, endpoint
        self.acknowledged = 0
        self.longest_wait_seconds = 0.0
        self.done = False

    async def run(self) -> None:
        clock = SystemClock()
        last = clock.monotonic()
        client = valkey.asyncio.Valkey(host=self.endpoint, port=6379, retry_on_error=[], retry=None)
        try:
            while not self.done:
                number = self.acknowledged + 1
                try:
                    await client.set(f"{self.name}:{number}", number)
                except (valkey.exceptions.ValkeyError, OSError):
                    await asyncio.sleep(0.0002)
                    continue
                self.acknowledged = number
                now = clock.monotonic()
                self.longest_wait_seconds = max(self.longest_wait_seconds, now - last)
                last = now
        finally:
            await client.aclose()


async def lead(link: EngineLink, first: Server, second: Server, endpoint: str) -> None:
    await carry(link, Promote(first.target.name, 1, (first.node.address, endpoint)), first.target)
    await carry(link, Follow(second.target.name, first.target.name, 1), second.target, first.target)
    await until(lambda: online(link, first.target, second.target))


async def online(link: EngineLink, primary: Target, replica: Target) -> bool:
    view = await link.look(primary, deadline_seconds=30)
    mine = await link.look(replica, deadline_seconds=30)
    return bool(mine.link_up) and any(r.online and r.address == replica.address for r in view.replicas)


async def check(writers: list[Writer], endpoint: str) -> None:
    async with valkey.asyncio.Valkey(host=endpoint, port=6379) as client:
        for writer in writers:
            keys = [f"{writer.name}:{n}" for n in range(1, writer.acknowledged + 1)]
            values = [v for at in range(0, len(keys), 1000) for v in await client.mget(keys[at : at + 1000])]
            lost = [key for key, value in zip(keys, values, strict=True) if value is None]
            assert not lost, f"{len(lost)} of {len(keys)} acknowledged writes are gone, the first is {lost[0]}"


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_fifty_hand_overs_lose_no_acknowledged_write(engine: str, major: int, tmp_path: Path) -> None:
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await lead(link, first, second, endpoint)
        writers = [Writer(f"w{i}", endpoint) for i in range(4)]
        tasks = [asyncio.create_task(w.run()) for w in writers]
        for order in range(2, 52):
            before = [w.acknowledged for w in writers]
            await until(lambda before=before: all(w.acknowledged > b + 5 for w, b in zip(writers, before, strict=True)))
            await carry(
                link,
                HandOver(first.target.name, second.target.name, order, (first.node.address,), (second.node.address, endpoint), 10),
                first.target,
                second.target,
            )
            first, second = second, first
            await until(lambda a=first, b=second: online(link, a.target, b.target))
        for w in writers:
            w.done = True
        await asyncio.gather(*tasks)
        await check(writers, endpoint)
        pauses = ", ".join(f"{w.longest_wait_seconds * 1000:.1f}" for w in writers)
        print(f"{engine} {major}: {sum(w.acknowledged for w in writers)} writes, longest waits of the writers {pauses} ms")
    await link.aclose()


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_hand_overs_to_a_stalling_taker_lose_no_acknowledged_write(engine: str, major: int, tmp_path: Path) -> None:
    """The taker stops for longer than the time allowed, the pause ends by itself, and nothing is lost."""
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await lead(link, first, second, endpoint)
        writers = [Writer(f"w{i}", endpoint) for i in range(2)]
        tasks = [asyncio.create_task(w.run()) for w in writers]
        for order in range(2, 5):
            before = [w.acknowledged for w in writers]
            await until(lambda before=before: all(w.acknowledged > b + 5 for w, b in zip(writers, before, strict=True)))
            second.freeze()
            with pytest.raises(OrderFailed, match=r"leads on|did not answer|caught up"):
                await carry(
                    link,
                    HandOver(
                        first.target.name, second.target.name, order, (first.node.address,), (second.node.address, endpoint), 0.2
                    ),
                    first.target,
                    second.target,
                )
            second.thaw()
            await until(lambda a=first, b=second: online(link, a.target, b.target))
        for w in writers:
            w.done = True
        await asyncio.gather(*tasks)
        await check(writers, endpoint)
    await link.aclose()


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_hand_overs_by_a_stalling_giver_lose_no_acknowledged_write(engine: str, major: int, tmp_path: Path) -> None:
    """The giver stops somewhere in the middle, for longer than the pause: whoever leads then, nothing is lost."""
    link, endpoint = EngineLink(Orders(), SystemClock()), new_address()
    with servers(build_of(engine, major), tmp_path, 2) as (first, second):
        await lead(link, first, second, endpoint)
        writers = [Writer(f"w{i}", endpoint) for i in range(2)]
        tasks = [asyncio.create_task(w.run()) for w in writers]
        for order in range(2, 8):
            before = [w.acknowledged for w in writers]
            await until(lambda before=before: all(w.acknowledged > b + 5 for w, b in zip(writers, before, strict=True)))
            moving = asyncio.create_task(
                carry(
                    link,
                    HandOver(
                        first.target.name, second.target.name, order, (first.node.address,), (second.node.address, endpoint), 0.2
                    ),
                    first.target,
                    second.target,
                )
            )
            await asyncio.sleep(0.0007 * (order - 1))  # another moment each time
            first.freeze()
            await asyncio.sleep(0.25)
            first.thaw()
            try:
                await moving
            except OrderFailed:
                pass
            else:
                first, second = second, first
            assert (await link.look(first.target, deadline_seconds=30)).role == "primary"
            await until(lambda a=first, b=second: online(link, a.target, b.target))
        for w in writers:
            w.done = True
        await asyncio.gather(*tasks)
        await check(writers, endpoint)
    await link.aclose()
