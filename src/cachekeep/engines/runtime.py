"""What the process of a node is to run with, all of it in one value."""

from __future__ import annotations

from functools import lru_cache

from cachekeep.engines.config import Sort, settings_of, sort
from cachekeep.engines.limits import limits_of
from cachekeep.engines.tls import tls
from cachekeep.engines.users import REPLICA, names_of, our_users, users_of
from cachekeep.model import Cache, Clients, Credential, Login, Node, Runtime, Tls
from cachekeep.model.traits import traits


def runtime(cache: Cache, node: Node) -> Runtime:
    """Of ``node`` in ``cache``: to be read only. Raises KeyError for a node type that is not in the table."""
    return _runtime(sort(cache, node), cache.credentials, cache.wanted.clients, cache.decided.known_users, tls(cache, node))


@lru_cache(maxsize=1024)
def _runtime(
    node: Sort, credentials: tuple[Credential, ...], clients: Clients, known: frozenset[str], encryption: Tls | None
) -> Runtime:
    found, limits = settings_of(node), limits_of(node)
    if not traits(node.engine).has_users:
        return Runtime(settings=found.live, boot=found.boot, tls=encryption, limits=limits)
    by_age = sorted(credentials, key=lambda c: c.serial)
    return Runtime(
        settings=found.live,
        boot=found.boot,
        acl=(*our_users(node.engine, node.numbers, by_age), *users_of(clients, node.engine, node.numbers)),
        gone=tuple(sorted(known - names_of(clients))),
        login=Login(REPLICA, credentials[0].hash_of(REPLICA)) if credentials else None,
        tls=encryption,
        limits=limits,
    )
