"""Where entries live: five verbs over one key, each atomic on the server. Valkey/Redis and Memcached have them alike."""

from cachekeep_patterns.stores.commands import Commands
from cachekeep_patterns.stores.protocol import Store
from cachekeep_patterns.stores.valkey import ValkeyStore, commands_for

__all__ = ["Commands", "Store", "ValkeyStore", "commands_for", "store_for"]


def store_for(client: object, *, blocking: bool) -> Store:
    """The store for a client of valkey-py, redis-py, GLIDE, pymemcache or emcache, or a store made by yourself.

    Raises TypeError for anything else, and for an async client under the blocking API or the reverse.
    """
    if isinstance(client, Store):
        return client
    module = type(client).__module__.partition(".")[0]
    if module in ("pymemcache", "emcache") or hasattr(client, "memcached_nodes"):
        from cachekeep_patterns.stores.memcached import MemcachedStore, memcached_for

        return MemcachedStore(memcached_for(client, blocking=blocking))
    return ValkeyStore(commands_for(client, blocking=blocking))
