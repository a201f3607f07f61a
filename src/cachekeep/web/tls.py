"""The API by TLS: with a certificate of the installation's own authority, renewed before it ends, while it serves."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
from typing import Final

from cachekeep.clock import Clock
from cachekeep.model import Certificate
from cachekeep.security.certs import Authorities

_LIFETIME: Final = dt.timedelta(days=90)
_RENEWED_BEFORE: Final = dt.timedelta(days=30)
_HERE: Final = ("127.0.0.1", "::1", "localhost")


def serving(authorities: Authorities, host: str, more: str, clock: Clock) -> ssl.SSLContext:
    """For connections to the API at ``host``, which may be called by ``more`` names and addresses (commas between them), too.

    A certificate that is about to end, or whose authority issues no more, gives way to another as somebody connects: whoever shakes
    hands then is shown the new one.
    Raises ``Unsealable``.
    """
    names = tuple(sorted({host, socket.gethostname(), *_HERE, *filter(None, (name.strip() for name in more.split(",")))}))
    issuer = authorities.ids[-1]
    context, ends_at = _context(authorities, names, clock.now())

    def choose(connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        nonlocal context, ends_at, issuer
        if ends_at - clock.now() <= _RENEWED_BEFORE or authorities.ids[-1] != issuer:
            issuer = authorities.ids[-1]
            context, ends_at = _context(authorities, names, clock.now())
        connection.context = context

    listening = context
    listening.sni_callback = choose
    return listening


def _context(authorities: Authorities, names: tuple[str, ...], now: dt.datetime) -> tuple[ssl.SSLContext, dt.datetime]:
    certificate = Certificate(
        serial=int(now.timestamp()),
        authority=authorities.ids[-1],
        trusted=(),
        names=names,
        issued_at=now,
        expires_at=now + _LIFETIME,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)  # OpenSSL takes it from a file, and it is to be on no disk
    try:
        os.write(fd, authorities.identity("api", "Cachekeep API", certificate).encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context, certificate.expires_at
