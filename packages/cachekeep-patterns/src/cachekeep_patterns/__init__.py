"""Caching patterns for Valkey, Redis and Memcached: cache-aside, write-through, near cache, sessions, locks and their like.

Stands alone: imports nothing of the rest of Cachekeep, and needs only `valkey` and `msgspec` (`pip install cachekeep-patterns`).
Names are loaded when they are first used.

    from cachekeep_patterns import Cache, connect

    cache = Cache(connect("valkey://127.0.0.1:6379"), namespace="shop")

    @cache.cached(key="user:{user_id}")
    def user(user_id: int) -> User: ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachekeep_patterns.cache import AsyncCache as AsyncCache
    from cachekeep_patterns.cache import Cache as Cache
    from cachekeep_patterns.codecs import Compressed as Compressed
    from cachekeep_patterns.codecs import Encrypted as Encrypted
    from cachekeep_patterns.codecs import Msgspec as Msgspec
    from cachekeep_patterns.codecs import Versioned as Versioned
    from cachekeep_patterns.errors import CacheDown as CacheDown
    from cachekeep_patterns.errors import LoadTimeout as LoadTimeout
    from cachekeep_patterns.errors import Overloaded as Overloaded
    from cachekeep_patterns.errors import PatternError as PatternError
    from cachekeep_patterns.errors import RecursiveLoad as RecursiveLoad
    from cachekeep_patterns.errors import UncacheableArgument as UncacheableArgument
    from cachekeep_patterns.errors import Uncodable as Uncodable
    from cachekeep_patterns.near import NearCache as NearCache
    from cachekeep_patterns.observe import Trouble as Trouble
    from cachekeep_patterns.policy import Breaker as Breaker
    from cachekeep_patterns.policy import Policy as Policy
    from cachekeep_patterns.stores.memory import MemoryStore as MemoryStore
    from cachekeep_patterns.topology import connect as connect
    from cachekeep_patterns.topology import connect_async as connect_async
    from cachekeep_patterns.topology import connect_async_memcached as connect_async_memcached
    from cachekeep_patterns.write import Outcome as Outcome

_HOMES = {
    "AsyncCache": "cache",
    "Breaker": "policy",
    "Cache": "cache",
    "CacheDown": "errors",
    "Compressed": "codecs",
    "Encrypted": "codecs",
    "LoadTimeout": "errors",
    "Msgspec": "codecs",
    "NearCache": "near",
    "Outcome": "write",
    "Overloaded": "errors",
    "Policy": "policy",
    "Trouble": "observe",
    "MemoryStore": "stores.memory",
    "PatternError": "errors",
    "RecursiveLoad": "errors",
    "UncacheableArgument": "errors",
    "Uncodable": "errors",
    "Versioned": "codecs",
    "connect": "topology",
    "connect_async": "topology",
    "connect_async_memcached": "topology",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
