"""What the process of a node is to run with, all of it in one value."""

from __future__ import annotations

from functools import lru_cache

from cachekeep.engines.config import Sort, settings_of, sort
from cachekeep.engines.limits import limits_of
from cachekeep.engines.users import REPLICA, default_user, hash_of, our_users, secret_of
from cachekeep.model import Cache, Login, Node, Runtime, Secret


def runtime(cache: Cache, node: Node) -> Runtime:
    """Of ``node`` in ``cache``: to be read only. Raises KeyError for a node type that is not in the table."""
    return _runtime(sort(cache, node), cache.admin_password)


@lru_cache(maxsize=1024)
def _runtime(node: Sort, admin: Secret) -> Runtime:
    found, limits = settings_of(node), limits_of(node)
    if node.engine == "memcached":
        return Runtime(settings=found.live, boot=found.boot, limits=limits)
    return Runtime(
        settings=found.live,
        boot=found.boot,
        acl=(*our_users(node.engine, node.numbers, admin), default_user(node.engine, node.numbers)),
        login=Login(REPLICA, hash_of(secret_of(REPLICA, admin))),
        limits=limits,
    )
