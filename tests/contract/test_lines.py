"""What the lines to real engines do that no twin has: room at the door of an engine that is full."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.engines.servers import Server, build_of, cache_of, node_of

from cachekeep.clock import SystemClock
from cachekeep.compute.line import resp
from cachekeep.compute.lines import Lines

_BUSY = "for i = 1, 3e7 do end"


async def test_who_has_connected_while_there_was_room_is_let_in_however_late_the_engine_gets_to_it(tmp_path: Path) -> None:
    """A command of the kept line keeps the engine busy from before the newcomer connects until the room is being taken back. The
    kernel then names the kept line first of the two that wait, since it was ready last."""
    build = build_of("valkey", 8)
    node = node_of(build, "demo-001")
    server = Server(build, cache_of(node), node, tmp_path)
    await asyncio.to_thread(server.start)
    lines = Lines(SystemClock(), lambda _key: None, None)
    try:
        line = await lines.open(server.target)
        await line.ask(b"CONFIG SET maxclients 1 busy-reply-threshold 60000\r\n", 1)
        async with lines.room(server.target):
            busy = asyncio.create_task(line.ask(resp(("EVAL", _BUSY, "0")), 1))
            await asyncio.sleep(0.02)  # had it not begun by then, the newcomer would be let in anyway
            newcomer = socket.create_connection((server.target.address, server.target.port), timeout=30)
            newcomer.sendall(b"PING\r\n")
        await busy
        with newcomer:
            assert (await asyncio.to_thread(newcomer.recv, 64)) == b"+PONG\r\n"
        assert await line.ask(b"CONFIG GET maxclients\r\n", 1) == [[b"maxclients", b"1"]]
    finally:
        lines.hang_up(server.target.key)
        server.kill()
