"""The API's own certificate is for its names, and another before it ends, without a restart."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading

from cachekeep.clock import SystemClock
from cachekeep.security.certs import Authorities, new_authority
from cachekeep.security.sealing import Sealing
from cachekeep.web.tls import serving


class LaterClock(SystemClock):
    days = 0

    def now(self) -> dt.datetime:
        return super().now() + dt.timedelta(days=self.days)


def ends(server: ssl.SSLContext, trust: str, name: str) -> str:
    """Until when the certificate is good that a client is shown who calls it by this name."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        server.wrap_socket(theirs, server_side=True).close()

    serving_one = threading.Thread(target=serve)
    serving_one.start()
    with ssl.create_default_context(cadata=trust).wrap_socket(ours, server_hostname=name) as client:
        certificate = client.getpeercert() or {}
    serving_one.join()
    return str(certificate["notAfter"])


def test_it_is_renewed_as_clients_come() -> None:
    clock = LaterClock()
    authorities = Authorities((), Sealing(bytes(32)))
    authorities.add(*new_authority(clock.now() - dt.timedelta(days=400)))
    clock.days = -70  # what is issued now has 20 days left today
    server = serving(authorities, "192.0.2.7", "cache.example.org, 192.0.2.8", clock)
    first = {ends(server, authorities.pem(), name) for name in ("192.0.2.7", "192.0.2.8", "cache.example.org", "localhost")}
    assert len(first) == 1
    clock.days = -41
    assert {ends(server, authorities.pem(), "localhost")} == first
    clock.days = 0
    for name in ("localhost", "192.0.2.7"):
        assert ssl.cert_time_to_seconds(ends(server, authorities.pem(), name)) > ssl.cert_time_to_seconds(next(iter(first)))
