"""Where clients reach a cache: what every API, the command line and probes are told, derived in one place."""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.model.cache import Cache, Node
from cachekeep.model.traits import traits

EndpointKind = Literal["primary", "reader", "configuration", "node"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An address that clients are told of. How it comes to lead where it leads belongs to a driver (decision 37)."""

    kind: EndpointKind
    address: str
    port: int
    of: str = ""
    """Id of the shard, or name of the node, that it leads to; of a configuration endpoint empty."""

    def __str__(self) -> str:
        return joined(self.address, self.port)


def endpoints(cache: Cache) -> tuple[Endpoint, ...]:
    """Those of the cache as a whole and of its shards. In cluster mode a shard has none of its own."""
    decided, port = cache.decided, cache.wanted.port
    found = [
        Endpoint(kind=kind, address=address, port=port, of=shard.id)
        for shard in decided.shards
        for kind, address in _of_shard(shard.primary_address, shard.reader_address)
        if address
    ]
    discovered = traits(cache.wanted.engine).listed or cache.cluster_mode != "disabled"
    if discovered and decided.configuration_address:
        found.append(Endpoint(kind="configuration", address=decided.configuration_address, port=port))
    return tuple(found)


def _of_shard(primary: str | None, reader: str | None) -> tuple[tuple[EndpointKind, str | None], ...]:
    return ("primary", primary), ("reader", reader)


def endpoint(cache: Cache, kind: EndpointKind, of: str = "") -> Endpoint | None:
    """The cache's endpoint of that kind, of that shard where shards have their own."""
    return next((e for e in endpoints(cache) if (e.kind, e.of) == (kind, of)), None)


def node_endpoint(node: Node) -> Endpoint:
    """Where the node itself is reached."""
    return Endpoint(kind="node", address=node.address, port=node.port, of=node.name)


def joined(address: str, port: int) -> str:
    """An address and a port as one word (RFC 3986, 3.2.2: an IPv6 address in brackets)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parted(text: str) -> tuple[str, int]:
    """The address and the port of what was ``joined``. Raises ValueError."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
