"""The socket that requests come in by."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from typing import Any, Final

from cachekeep.errors import Unusable

FILES_SHARE: Final = 0.5
"""Of the files that the process may open: keepers need the rest, for engines, files and processes."""


class _Sparing(socket.socket):
    """Takes no connection that would leave keepers too few files, also while it has not shaken hands (TLS): the kernel gives it the
    lowest number that is free."""

    def accept(self) -> tuple[socket.socket, Any]:
        connection, peer = super().accept()
        if connection.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * FILES_SHARE:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections")
        return connection, peer


def listen(host: str, port: int, *, here_only: bool, encrypted: bool) -> socket.socket:
    """A bound socket. ``here_only``: no other machine may reach it; nor may one where it is not ``encrypted``. Raises
    ``Unusable``."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if here_only and not ipaddress.ip_address(where[0]).is_loopback:
            raise Unusable(
                f"{host} can be reached from other machines, and with --auth open everybody who reaches it is root. "
                "Leave --host at 127.0.0.1, or have signatures checked (--auth enforce)."
            )
        if not encrypted and not ipaddress.ip_address(where[0]).is_loopback:
            raise Unusable(
                f"{host} can be reached from other machines, and without TLS everybody on the way reads and changes what is asked. "
                "Have it served by TLS (--tls), or leave --host at 127.0.0.1, where a proxy of this machine may end TLS in front."
            )
        listener = _Sparing(family, kind, protocol)
    except OSError as error:
        raise Unusable(f"{host} is not an address to serve on: {error.strerror or error}. Choose another with --host.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        # Two binds with SO_REUSEADDR both succeed as long as nobody listens; the first to listen is the one.
        listener.listen(1)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Unusable(
                f"port {port} of {host} is in use by another program. Stop that one, or choose another port with --port."
            ) from error
        raise Unusable(f"{host}:{port}: {error.strerror}. Choose others with --host and --port.") from error
    return listener
