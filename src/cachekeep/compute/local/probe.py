"""Is it accepting connections? One attempt, by the least that each protocol answers to anybody."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Literal

_ASK = {"resp": b"PING\r\n", "memcached": b"version\r\n", "tcp": b""}


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


async def accepts(address: str, port: int, protocol: Literal["resp", "memcached", "tcp"], *, deadline_seconds: float) -> bool:
    """Whether a connection is accepted and, where the protocol has a greeting, answered: by an error too (NOAUTH, LOADING)."""
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
                if not (ask := _ASK[protocol]):
                    return True
                await loop.sock_sendall(connection, ask)
                answer = await loop.sock_recv(connection, 64)
        except (OSError, TimeoutError):
            return False
    return answer[:1] in (b"+", b"-") if protocol == "resp" else bool(answer)
