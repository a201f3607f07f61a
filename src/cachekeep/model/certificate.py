"""By what the nodes of a cache prove to clients, and to each other, who they are."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

Transit = Literal["disabled", "preferred", "required"]
"""Whether clients come by TLS [CreateReplicationGroup, TransitEncryptionMode]. ``preferred``: by TLS or without."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """One certificate of a cache, which all its nodes have: everything that it says, and no key.

    Whoever holds the authority's key makes it, and the key that belongs to it, from this and the cache's uid.
    """

    serial: int
    authority: str
    """Id of the authority that issues it."""
    trusted: tuple[str, ...]
    """Ids of the authorities by which nodes know each other; of the first, every node is known to show a certificate."""
    names: tuple[str, ...]
    """Addresses and names of all nodes and endpoints, sorted."""
    issued_at: dt.datetime
    expires_at: dt.datetime


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is told of TLS."""

    certificate: Certificate
    settings: tuple[tuple[str, str], ...]
    """Ports, files and who must come by TLS."""
