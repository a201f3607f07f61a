"""A bound for a client's connections. valkey-py opens one for every call under way: for 5,000 misses, 5,000 connections.

Beyond the bound a call waits for a connection to come free, and fails as if the server did not answer if none does in time.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import valkey
import valkey.asyncio

Client = TypeVar("Client")


def bounded(client: Client, max_connections: int, wait_seconds: float) -> Client:
    """``client``, over a pool that is bounded. Of a single node; a blocking cluster client has as many as it has threads."""
    standing: Any = client
    pool = standing.connection_pool
    asks_loop = isinstance(client, valkey.asyncio.Valkey)
    kind: Any = valkey.asyncio.BlockingConnectionPool if asks_loop else valkey.BlockingConnectionPool
    standing.connection_pool = kind(
        max_connections=max_connections,
        timeout=wait_seconds,
        connection_class=pool.connection_class,
        **pool.connection_kwargs,
    )
    return client


class BoundedCluster(valkey.asyncio.ValkeyCluster):
    """An async cluster client with at most so many commands under way at once."""

    def bound(self, max_connections: int, wait_seconds: float) -> BoundedCluster:
        self._places = asyncio.Semaphore(max_connections)
        self._wait_seconds = wait_seconds
        return self

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            await asyncio.wait_for(self._places.acquire(), self._wait_seconds)
        except asyncio.TimeoutError:
            raise valkey.exceptions.TimeoutError(f"no connection came free within {self._wait_seconds} s") from None
        try:
            return await super().execute_command(*args, **kwargs)
        finally:
            self._places.release()


def idle_connections(client: Any) -> list[Any]:
    """The idle connections of a client: they may lead to a node that is primary no more."""
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, valkey.BlockingConnectionPool):
        return [one for one in list(pool.pool.queue) if one is not None]
    return list(getattr(pool, "_available_connections", ()))
