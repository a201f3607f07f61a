"""HTTP/1.1 connections with a deadline: a client that sends its request line and headers drop by drop is shown out."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX: Final = 64 << 10
HEADERS_MAX: Final = 128


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's own, which knows no deadline for headers and no limit to their size. Bodies are the application's matter."""

    head_seconds: ClassVar[float] = 10.0
    """For a request line and all headers, from the first byte; for the first byte, from when the connection was made."""
    peer_connections_max: ClassVar[int] = 1000
    """So many connections one address may have; how many there are for all is ``limit_concurrency``. A user of this machine has
    all of 127.0.0.0/8 to come from."""
    _connections: ClassVar[Counter[str]] = Counter()
    _peer: str | None = None
    _head_bytes = 0
    _headers = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self._connections[self._peer] += 1
        too_many = self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency
        if too_many or self._connections[self._peer] > self.peer_connections_max:
            transport.close()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is not None:
            self._connections[self._peer] -= 1
            if not self._connections[self._peer]:
                del self._connections[self._peer]
            self._peer = None
        self._head_is_here()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > HEADERS_MAX:
            raise httptools.HttpParserError(f"more than {HEADERS_MAX} headers")
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_is_here()
        self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _head_is_here(self) -> None:
        self._head_bytes = self._headers = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > HEAD_BYTES_MAX:
            raise httptools.HttpParserError(f"more than {HEAD_BYTES_MAX} bytes of headers")
