"""Be a replica of a running engine for as long as one RDB lasts, which is what a snapshot is.

An engine gives an RDB to whoever asks for its stream (https://valkey.io/topics/replication/, "How replication works"): as many
bytes as it says first, from a file, or, straight from its memory, bytes that end with a mark that it says first. Which of them is
the engine's own setting (``repl-diskless-sync``), so both are read. Nothing is stored on the way: chunks go to a sink as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from cachekeep.errors import OrderFailed
from cachekeep.model import Secret

Sink = Callable[[bytes], Awaitable[None]]
Address = tuple[str, int] | Path
"""Of an engine: host and port, or its unix socket."""
CHUNK_BYTES: Final = 1 << 18
_LINE_BYTES_MAX: Final = 4096
_ANY_VERSION: Final = "99.0.0"
"""Valkey 9.1 leaves out of an RDB what a replica of that version does not know, and fails where it cannot: hash fields that expire,
for one, for who tells no version."""
_MARK_BYTES: Final = 40
_ADVICE: Final = "Nothing was kept. Try again when it serves."


class AsReplica(NamedTuple):
    """By which user, with which password, one comes to an engine as its replica (``engines/users.py``, REPLICA)."""

    user: str
    password: Secret


class Received(NamedTuple):
    """What came: the first ``offset`` bytes of a history, as an RDB."""

    history: str
    """The engine's replication id, 40 hexadecimal digits."""
    offset: int
    bytes: int
    sha256: str
    """Of the RDB, hexadecimal."""


async def receive(
    address: Address,
    login: AsReplica | None,
    sink: Sink,
    *,
    deadline_seconds: float,
    tls: ssl.SSLContext | None = None,
) -> Received:
    """Give the RDB of an engine to ``sink``, chunk by chunk.

    A sink that is slow slows the engine's sending, and never its clients: what is written meanwhile is not sent to us
    (``REPLCONF rdb-only``, Redis 7 and Valkey), so the engine need not keep it either.

    Raises ``OrderFailed`` if the engine refuses, ends, or is not done in time; what the sink raises passes through.
    """
    told = address if isinstance(address, Path) else f"{address[0]}:{address[1]}"
    try:
        async with asyncio.timeout(deadline_seconds), _connected(address, login, tls) as (reader, writer):
            history, offset = await _full(reader, writer)
            digest, count = hashlib.sha256(), 0
            async for chunk in _rdb(reader):
                digest.update(chunk)
                count += len(chunk)
                await sink(chunk)
            return Received(history, offset, count, digest.hexdigest())
    except TimeoutError:
        raise OrderFailed(f"the engine at {told} did not hand over its data within {deadline_seconds:g} s. {_ADVICE}") from None
    except _Refused as error:
        raise OrderFailed(f"the engine at {told} does not hand over its data: {error}. {_ADVICE}") from None
    except (ConnectionError, asyncio.IncompleteReadError, _Unreachable) as error:
        why = str(error.__cause__ or error) if isinstance(error, _Unreachable) else "it closed the connection before the end"
        raise OrderFailed(f"the engine at {told} did not hand over its data: {why}. {_ADVICE}") from error


class _Refused(Exception):
    """By the engine, in its words."""


class _Unreachable(Exception):
    """No connection came about: the sink's own ``OSError`` is another matter."""


@contextlib.asynccontextmanager
async def _connected(
    address: Address, login: AsReplica | None, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        if isinstance(address, Path):
            reader, writer = await asyncio.open_unix_connection(address, limit=2 * CHUNK_BYTES)
        else:
            reader, writer = await asyncio.open_connection(*address, limit=2 * CHUNK_BYTES, ssl=tls)
    except OSError as error:
        raise _Unreachable from error
    try:
        if login is not None:
            await _ask(reader, writer, "AUTH", login.user, login.password.value)
        yield reader, writer
    finally:
        writer.transport.abort()


async def _full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """Ask for everything. History and offset of what comes next."""
    await _ask(reader, writer, "PING")
    await _ask(reader, writer, "REPLCONF", "capa", "eof", "capa", "psync2")
    for setting in (("version", _ANY_VERSION), ("rdb-only", "1")):
        with contextlib.suppress(_Refused):  # without rdb-only it would send what is written meanwhile, too: we go before
            await _ask(reader, writer, "REPLCONF", *setting)
    said = (await _ask(reader, writer, "PSYNC", "?", "-1")).split()
    if len(said) != 3 or said[0] != "FULLRESYNC":
        raise _Refused(f"it answers '{' '.join(said)}'")
    return said[1], int(said[2])


async def _rdb(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    head = await _line(reader)
    if not head.startswith(b"$"):
        raise _Refused(f"it answers '{head.decode(errors='replace').lstrip('-')}'")
    if not head.startswith(b"$EOF:"):
        left = int(head[1:])
        while left:
            chunk = await reader.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise ConnectionError
            left -= len(chunk)
            yield chunk
        return
    mark, held = head[5:], b""
    if len(mark) != _MARK_BYTES:
        raise _Refused("it announces the end of its data in an unknown way")
    while not held.endswith(mark):  # it sends nothing behind the mark before it is acknowledged
        chunk = await reader.read(CHUNK_BYTES)
        if not chunk:
            raise ConnectionError
        held += chunk
        if len(held) > _MARK_BYTES:
            yield held[:-_MARK_BYTES]
            held = held[-_MARK_BYTES:]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str) -> str:
    """The status that the engine answers."""
    coded = [word.encode() for word in words]
    writer.write(b"*%d\r\n" % len(coded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in coded))
    said = (await _line(reader)).decode(errors="replace")
    if not said.startswith("+"):
        raise _Refused(said.lstrip("-"))
    return said[1:]


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line. Empty ones are sent to keep the connection while a fork is at work."""
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise _Refused("it speaks in an unknown way") from None
        if len(line) > _LINE_BYTES_MAX:
            raise _Refused("it speaks in an unknown way")
        if line.strip():
            return line.rstrip(b"\r\n")
