"""What a replica says to us while we are its primary."""

from __future__ import annotations

import asyncio

from cachekeep.backup.feed import _command


async def test_who_loads_for_long_says_so_by_empty_lines_and_is_heard_on() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"\n\n*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n7\r\n\n*1\r\n$4\r\nPING\r\n")
    reader.feed_eof()
    assert [await _command(reader) for _ in range(3)] == [[b"REPLCONF", b"ACK", b"7"], [b"PING"], []]
