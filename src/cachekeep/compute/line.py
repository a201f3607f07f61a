"""A line to an engine: one connection, commands and heartbeats pipelined on it, replies in order (RESP2 or Memcached's ASCII)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import cast

from cachekeep.compute.peer import served, stranger

Reply = object
"""bytes, str (a status), int, None, a list of these, or ReplyError."""
Parse = Callable[[bytearray, int], "tuple[Reply, int] | None"]
"""(buffer, position) → (reply, position behind it), or None while it is incomplete."""
Answer = Callable[["list[Reply] | None"], None]
"""Called once: with the replies, or with None when the line was lost before they came."""


_TCP_INFO_BYTES, _UNACKED_AT = 104, 24
"""``tcpi_unacked`` of ``struct tcp_info`` (linux/tcp.h)."""


class ReplyError(Exception):
    """An engine's error reply."""


class LineLost(Exception):
    """The connection was refused, closed or reset."""


class Line(asyncio.Protocol):
    """One connection. All its calls come from the event loop's thread."""

    def __init__(self, parse: Parse, on_lost: Callable[[], None] | None = None) -> None:
        self._parse = parse
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._pending: deque[tuple[int, Answer, float]] = deque()
        self._replies: list[Reply] = []
        self._transport: asyncio.Transport | None = None
        self.open = False

    # -- for callers

    def send(self, payload: bytes, count: int, answer: Answer) -> None:
        """Send ``count`` commands at once; ``answer`` gets their replies. On a line that is lost it gets None at once."""
        if not self.open or self._transport is None:
            answer(None)
            return
        self._pending.append((count, answer, time.monotonic()))
        self._transport.write(payload)

    async def ask(self, payload: bytes, count: int) -> list[Reply]:
        """Send ``count`` commands at once and wait for all replies. Raises LineLost."""
        waiting: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def answer(replies: list[Reply] | None) -> None:
            if waiting.done():
                return
            if replies is None:
                waiting.set_exception(LineLost("the connection was lost"))
            else:
                waiting.set_result(replies)

        self.send(payload, count, answer)
        return await waiting

    @property
    def silent_seconds(self) -> float:
        """How long the oldest command has been waiting for its reply; 0 when none is."""
        return time.monotonic() - self._pending[0][2] if self._pending else 0.0

    @property
    def unacknowledged(self) -> bool:
        """Whether something that was sent has not arrived at the other host. Its kernel acknowledges even if the engine is busy:
        within 40 ms, for so long it may wait for a reply to ride on (Linux, TCP_DELACK_MIN)."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is None or not hasattr(socket, "TCP_INFO"):
            return False
        with contextlib.suppress(OSError, struct.error):
            told: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            return bool(struct.unpack_from("=I", told, _UNACKED_AT)[0])
        return False

    def served(self, addresses: Collection[str], port: int) -> frozenset[str]:
        """Of the addresses at which the engine says that it listens, those at which it is so by the kernel's word, as far as that
        is to be had: one that could not bind them says so all the same, and then anybody may."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        with contextlib.suppress(OSError, ValueError):
            return served(sock, addresses, port) if sock is not None else frozenset(addresses)
        return frozenset(addresses)

    def close(self) -> None:
        """Close at once; whoever waits is told that the line was lost."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def forsake(self) -> None:
        """Close at once, and do not tell that it was lost."""
        self._on_lost = None
        self.close()

    # -- for asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance
        self.open = True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position, end = 0, len(self._buffer)
        while position < end and self._pending:
            found = self._parse(self._buffer, position)
            if found is None:
                break
            reply, position = found
            self._replies.append(reply)
            if len(self._replies) == self._pending[0][0]:
                replies, self._replies = self._replies, []
                self._pending.popleft()[1](replies)
        if position == end:
            self._buffer.clear()
        elif position:
            del self._buffer[:position]

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        pending, self._pending = self._pending, deque()
        for _, answer, _ in pending:
            answer(None)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost()


async def connect(
    address: str,
    port: int,
    parse: Parse,
    on_lost: Callable[[], None] | None = None,
    *,
    greeting: bytes = b"",
    secret: bool = False,
    trust: str = "",
) -> Line:
    """Open a line. ``greeting``: a command that is sent first, whose reply must be good. ``trust``: as for ``line_over``. Raises
    LineLost with the reason, or the reply as ReplyError.

    An engine that refuses a connection says why and closes it at once, be there a greeting on its way or not. A transport may fail
    to send before it has read, and what was said is lost; so this much goes over the bare socket, which is read to its end.
    """
    if trust:
        return await greeted(
            await line_over(await dial(address, port, parse, secret=secret), parse, on_lost, trust=trust), greeting
        )
    return await line_over(await dial(address, port, parse, greeting, secret=secret), parse, on_lost)


async def greeted(line: Line, greeting: bytes) -> Line:
    """The line, when the greeting was answered well. Raises LineLost or ReplyError."""
    try:
        if greeting:
            good(await line.ask(greeting, 1))
    except BaseException:
        line.forsake()
        raise
    return line


async def dial(address: str, port: int, parse: Parse, *greetings: bytes, secret: bool = False) -> socket.socket:
    """A connection on which all greetings were answered well, one after the other. Raises as ``connect`` does.

    ``secret``: the greetings are for nobody of this machine but processes of ours and root's.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        if secret and (user := stranger(sock)) is not None:
            raise LineLost(f"a process of user {user} listens at {address}:{port}, and none of ours: it is told nothing")
        for greeting in filter(None, greetings):
            await _greet(sock, greeting, parse)
    except OSError as error:
        sock.close()
        raise LineLost(error.strerror or str(error)) from error
    except BaseException:
        sock.close()
        raise
    return sock


async def line_over(sock: socket.socket, parse: Parse, on_lost: Callable[[], None] | None = None, *, trust: str = "") -> Line:
    """A line over a connection that is there. ``trust``: by TLS, with one that these authorities (PEM) call by the
    address. Raises LineLost; ReplyError where an engine has closed the connection at once.

    An engine that has as many clients as it may says so, but not by TLS: there it hangs up before it has shaken hands.
    """
    line = Line(parse, on_lost)
    try:
        sock.setblocking(False)
        tls, name = (_by_authorities(trust), sock.getpeername()[0]) if trust else (None, None)
        await asyncio.get_running_loop().create_connection(lambda: line, sock=sock, ssl=tls, server_hostname=name)
    except (ssl.SSLEOFError, ConnectionResetError) as error:
        sock.close()
        if trust:
            raise ReplyError(_HUNG_UP) from error
        raise LineLost(error.strerror or str(error)) from error
    except ssl.SSLError as error:
        sock.close()
        raise LineLost(f"TLS failed: {getattr(error, 'verify_message', None) or error.reason}") from error
    except OSError as error:
        sock.close()
        raise LineLost(error.strerror or str(error)) from error
    return line


_HUNG_UP = "ERR max number of clients reached, it seems: it closed the connection before TLS began"


@lru_cache(maxsize=256)
def _by_authorities(trust: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=trust)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _greet(sock: socket.socket, greeting: bytes, parse: Parse) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        await loop.sock_sendall(sock, greeting)
    said = bytearray()
    while (found := parse(said, 0)) is None:
        if not (more := await loop.sock_recv(sock, 4096)):
            raise LineLost("it closed the connection without a word")
        said += more
    if isinstance(found[0], ReplyError):
        raise found[0]


# -- RESP2


def resp(*commands: tuple[str, ...]) -> bytes:
    """Commands as an engine reads them."""
    out = bytearray()
    for command in commands:
        out += b"*%d\r\n" % len(command)
        for word in command:
            data = word.encode()
            out += b"$%d\r\n%b\r\n" % (len(data), data)
    return bytes(out)


def good(replies: list[Reply]) -> list[Reply]:
    """The replies, if none of them is an error. Raises ReplyError."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


def text(value: object) -> str:
    """A word of a reply."""
    return value.decode() if isinstance(value, bytes) else str(value)


def parse_resp(buffer: bytearray, at: int) -> tuple[Reply, int] | None:
    """``Parse`` for RESP2 [https://valkey.io/topics/protocol/]."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        return None
    kind, line, after = buffer[at], buffer[at + 1 : end], end + 2
    if kind == 0x24:  # $ bulk
        size = int(line)
        if size < 0:
            return None, after
        return (bytes(buffer[after : after + size]), after + size + 2) if len(buffer) >= after + size + 2 else None
    if kind == 0x2B:  # + status
        return line.decode(), after
    if kind == 0x2D:  # - error
        return ReplyError(line.decode(errors="replace")), after
    if kind == 0x3A:  # : integer
        return int(line), after
    if kind == 0x2A:  # * array
        items: list[Reply] = []
        for _ in range(int(line)):
            found = parse_resp(buffer, after)
            if found is None:
                return None
            item, after = found
            items.append(item)
        return items, after
    return ReplyError(f"not RESP: {bytes(buffer[at : at + 40])!r}"), len(buffer)


# -- Memcached


def parse_memcached(buffer: bytearray, at: int) -> tuple[Reply, int] | None:
    """``Parse`` for the ASCII protocol: a line; for ``get`` of one key and ``config get`` the value or None; for ``stats`` all of
    its lines."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        return None
    line = bytes(buffer[at:end])
    if line.startswith((b"VALUE ", b"CONFIG ")):
        size = int(line.split()[3])
        after = end + 2 + size + len(b"\r\nEND\r\n")
        return (bytes(buffer[end + 2 : end + 2 + size]), after) if len(buffer) >= after else None
    if line.startswith(b"STAT "):
        last = buffer.find(b"END\r\n", at)
        return None if last < 0 else (bytes(buffer[at:last]), last + 5)
    if line == b"END":
        return None, end + 2
    if line.startswith((b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")):
        return ReplyError(line.decode(errors="replace")), end + 2
    return line.decode(errors="replace"), end + 2
