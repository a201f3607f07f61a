"""Clients made from an endpoint: valkey-py and pymemcache/emcache, set up to live through a failover."""

from cachekeep_patterns.topology.factory import connect, connect_async, connect_async_memcached
from cachekeep_patterns.topology.retry import AsyncDeadlineRetry, DeadlineRetry
from cachekeep_patterns.topology.split import AsyncSplitValkey, SplitValkey

__all__ = [
    "AsyncDeadlineRetry",
    "AsyncSplitValkey",
    "DeadlineRetry",
    "SplitValkey",
    "connect",
    "connect_async",
    "connect_async_memcached",
]
