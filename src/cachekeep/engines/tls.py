"""TLS at an engine: on which port, with which files, and between nodes."""

from __future__ import annotations

from typing import NamedTuple

from cachekeep.model import Cache, Node, Tls
from cachekeep.model.traits import traits

IDENTITY, AUTHORITIES = "tls.pem", "ca.pem"
"""Files in a node's own directory, which is where its engine works: key and certificate; the authorities that it trusts."""
PROTOCOLS = "TLSv1.2 TLSv1.3"
"""[AWS: In-transit encryption, "minimum TLS 1.2"]."""


class Papers(NamedTuple):
    """What a node shows and what it goes by, as PEM."""

    identity: str
    """Its key, its certificate, and that of who issued it. Secret."""
    authorities: str
    """The certificates of the authorities that it trusts."""


def tls(cache: Cache, node: Node) -> Tls | None:
    """What the engine of ``node`` is told of TLS; None: nothing, it has none.

    An engine reads its files anew whenever it is told of them, be they the same ones (``VOLATILE_CONFIG``).
    """
    certificate = cache.decided.certificate
    if certificate is None or cache.decided.transit == "disabled":
        return None
    if traits(node.engine).speaks == "memcached":
        return Tls(certificate=certificate, settings=())
    settings = {
        "port": "0",
        "tls-port": str(node.port),
        "tls-cert-file": IDENTITY,
        "tls-key-file": IDENTITY,
        "tls-ca-cert-file": AUTHORITIES,
        "tls-auth-clients": "no",  # ElastiCache asks clients for none
        "tls-protocols": PROTOCOLS,
        "tls-replication": "yes",
    }
    if cache.in_cluster_mode(node):
        settings["tls-cluster"] = "yes"
    return Tls(certificate=certificate, settings=tuple(settings.items()))
