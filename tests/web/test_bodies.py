"""What bodies may hold while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cachekeep.web.bodies import FREE_BYTES, Bodies, Body, Gone, Message

KIB = 1 << 10


def sending(*chunks: bytes, ends: bool = True) -> Callable[[], Awaitable[Message]]:
    """A client that sends these chunks; without an end it then waits for ever."""
    left = list(chunks)

    async def receive() -> Message:
        if not left and not ends:
            await asyncio.Event().wait()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or not ends}

    return receive


async def test_a_small_body_holds_nothing_and_a_large_one_what_is_beyond_that_until_it_is_done() -> None:
    bodies = Bodies()
    small, large = Body(bodies, "a", 100 * KIB), Body(bodies, "a", 100 * KIB)
    assert await small.read(sending(b"x" * FREE_BYTES)) == (b"x" * FREE_BYTES, True)
    assert bodies.held_bytes == 0
    assert (await large.read(sending(b"x" * 10 * KIB, b"y" * 30 * KIB)))[1]
    assert bodies.held_bytes == 40 * KIB - FREE_BYTES
    large.done()
    large.done()
    assert bodies.held_bytes == 0


async def test_what_is_more_than_is_kept_is_dropped_and_told() -> None:
    bodies = Bodies()
    assert await Body(bodies, "a", 10).read(sending(b"x" * 8, b"y" * 8)) == (b"x" * 8 + b"y" * 2, False)
    endless = Body(bodies, "a", 0)
    assert await endless.read(sending(*[b"x" * (1 << 20)] * 20)) == (b"", False)
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("peers", [("a", "a", "b"), ("a", "b", "c")], ids=["of a peer", "of all"])
async def test_one_that_finds_no_room_waits_until_another_is_done(peers: tuple[str, str, str]) -> None:
    most = 100 * KIB
    limits = (
        {"all_bytes_max": 1 << 30, "peer_bytes_max": most}
        if peers[0] == peers[1]
        else {"all_bytes_max": most, "peer_bytes_max": most}
    )
    bodies = Bodies(**limits)
    first = Body(bodies, peers[0], 1 << 20)
    stalled = asyncio.create_task(first.read(sending(b"x" * (most + FREE_BYTES), ends=False)))
    while bodies.held_bytes < most:
        await asyncio.sleep(0)
    second = asyncio.create_task(Body(bodies, peers[1], 1 << 20).read(sending(b"x" * 50 * KIB)))
    small = await Body(bodies, peers[1], 1 << 20).read(sending(b"x" * FREE_BYTES))
    assert small[1], "an ordinary request goes past them"
    third = asyncio.create_task(Body(bodies, peers[2], 1 << 20).read(sending(b"x" * 50 * KIB)))
    await asyncio.wait({third}, timeout=60 if peers[0] == peers[1] else 0.05)
    assert not second.done()
    assert third.done() is (peers[0] == peers[1]), "another peer is not held up by the quota of one"
    stalled.cancel()
    first.done()
    assert (await second)[1]
    assert (await third)[1]


async def test_who_hangs_up_or_gives_up_waiting_leaves_nothing() -> None:
    bodies = Bodies(all_bytes_max=KIB, peer_bytes_max=KIB)

    async def hang_up() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(Gone):
        await Body(bodies, "a", 1).read(hang_up)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Body(bodies, "a", 1 << 20).read(sending(b"x" * (FREE_BYTES + 2 * KIB)))
    assert bodies.held_bytes == 0
