"""Is it accepting connections? One attempt, by the least that each protocol answers to anybody."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from typing import Literal

_GREETINGS = {"resp": b"PING\r\n", "memcached": b"version\r\n", "tcp": b""}


def family(address: str) -> socket.AddressFamily:
    """The address family of a literal address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def why_not_free(address: str, port: int) -> str | None:
    """Why nobody could listen there now, in words; None if somebody could."""
    with socket.socket(family(address), socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a connection in TIME_WAIT is no obstacle
        try:
            trial.bind((address, port))
        except OSError as error:
            reason = "not an address of this machine" if error.errno == errno.EADDRNOTAVAIL else os.strerror(error.errno or 0)
            return f"{address}:{port}: {reason}"
    return None


async def accepts(
    address: str, port: int, protocol: Literal["resp", "memcached", "tcp"], *, tls: bool = False, deadline_seconds: float
) -> bool:
    """Whether a connection is accepted and, where the protocol has a greeting, answered: by an error too (NOAUTH, LOADING).
    Nothing is told there that anybody must not hear, so by TLS whoever answers is believed."""
    loop = asyncio.get_running_loop()
    with socket.socket(family(address), socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            # On this machine a connection is made or refused at once: the usual "not yet" costs one call.
            if (code := connection.connect_ex((address, port))) not in (0, errno.EINPROGRESS):
                return False
            async with asyncio.timeout(deadline_seconds):
                if code:
                    await loop.sock_connect(connection, (address, port))
                if not (ask := _GREETINGS[protocol]):
                    return True
                answer = await (_ask_by_tls if tls else _ask)(connection, ask)
        except (OSError, TimeoutError):
            return False
    return answer[:1] in (b"+", b"-") if protocol == "resp" else bool(answer)


async def _ask(connection: socket.socket, ask: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, ask)
    return await loop.sock_recv(connection, 64)


async def _ask_by_tls(connection: socket.socket, ask: bytes) -> bytes:
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(sock=connection.dup(), ssl=anybody, server_hostname=connection.getpeername()[0])
    try:
        writer.write(ask)
        return await reader.read(64)
    finally:
        writer.transport.abort()
