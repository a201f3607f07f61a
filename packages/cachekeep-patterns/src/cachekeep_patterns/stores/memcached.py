"""Entries in Memcached, by `gets` and `cas`: the same five verbs, one more round trip for each swap."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cachekeep_patterns import entry as entries
from cachekeep_patterns import forks

_THIRTY_DAYS = 30 * 86_400  # beyond this Memcached reads an expiry as a date (doc/protocol.txt, "Expiration times")
_WRITE_TRIES = 64
_GONE = -1  # an expiry in the past: `cas` with it is a compare-and-delete


class Memcached(Protocol):
    """A client reduced to what we need of it."""

    down: tuple[type[BaseException], ...]
    refused: tuple[type[BaseException], ...]

    async def get(self, key: str) -> bytes | None: ...
    async def get_many(self, keys: Sequence[str]) -> dict[str, bytes]: ...
    async def gets(self, key: str) -> tuple[bytes, Any] | None: ...
    async def add(self, key: str, value: bytes, expire: int) -> bool: ...
    async def cas(self, key: str, value: bytes, token: Any, expire: int) -> bool: ...
    async def delete(self, key: str) -> None: ...
    async def time(self) -> int | None:
        """The server's clock; None if the client cannot ask for it."""


def _expiry(ttl_seconds: float) -> int:
    # Its clock ticks in whole seconds, so n means "between n-1 and n": one more, lest a lease run out before it is renewed.
    seconds = max(1, math.ceil(ttl_seconds)) + 1
    return seconds if seconds <= _THIRTY_DAYS else int(time.time()) + seconds


class MemcachedStore:
    def __init__(self, client: Memcached) -> None:
        self.client = client
        self.quick: Callable[[str], Any] | None = None
        self.quick_many: Callable[[Sequence[str]], Any] | None = None
        self.down = client.down
        self.refused = client.refused
        self.lags = False

    async def read(self, key: str) -> bytes | None:
        return await self.client.get(key)

    async def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            return [await self.client.get(keys[0])]
        first = await self.client.get(keys[0])
        others = await self.client.get_many(keys[1:])
        return [first, *(others.get(key) for key in keys[1:])]

    async def swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        if expected is None:
            return new is None or await self.client.add(key, new, _expiry(ttl_seconds))
        found = await self.client.gets(key)
        if found is None or found[0][: len(expected)] != expected or (not expected and found[0]):
            return False
        expire = _GONE if new is None else _expiry(ttl_seconds)
        return await self.client.cas(key, new or b"", found[1], expire)

    async def relabel(self, key: str, expected: bytes, header: bytes, ttl_seconds: float) -> bool:
        found = await self.client.gets(key)
        if found is None or found[0][: len(expected)] != expected:
            return False
        return await self.client.cas(key, header + found[0][len(header) :], found[1], _expiry(ttl_seconds))

    async def swap_many(self, swaps: Sequence[tuple[str, bytes | None, bytes | None, float]]) -> list[bool]:
        return [await self.swap(*one) for one in swaps]

    async def clock(self) -> tuple[float, float] | None:
        try:
            seconds = await self.client.time()
        except (TypeError, ValueError, LookupError):
            return None
        except (*self.down, *self.refused):
            return None
        return None if seconds is None else (seconds + 0.5, 1.0)

    async def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            while True:
                found = await self.client.gets(key)
                if found is None:
                    break
                seen = entries.parse(found[0])
                if seen is not None and seen.kind == entries.Kind.BARRIER:
                    new, ttl = entries.taint_barrier(seen, time.time())
                    if await self.client.cas(key, new, found[1], _expiry(ttl)):
                        break
                elif await self.client.cas(key, b"", found[1], _GONE):
                    break

    async def _change(self, key: str, transition: Callable[[entries.Entry | None], tuple[bytes | None, float] | None]) -> None:
        for _ in range(_WRITE_TRIES):
            found = await self.client.gets(key)
            changed = transition(None if found is None else entries.parse(found[0]))
            if changed is None:
                return
            new, ttl = changed
            if found is not None:
                if await self.client.cas(key, new or b"", found[1], _GONE if new is None else _expiry(ttl)):
                    return
            elif new is None or await self.client.add(key, new, _expiry(ttl)):
                return
        raise self.refused[0](f"{key}: {_WRITE_TRIES} writers were faster")

    async def raise_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        for key in keys:
            await self._change(key, lambda seen: entries.raise_barrier(seen, writer, now, lease_seconds))

    async def renew_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        for key in keys:
            await self._change(key, lambda seen: entries.renew_barrier(seen, writer, now, lease_seconds))

    async def lower_barriers(
        self, keys: Sequence[str], writer: bytes, now: float, publish: Mapping[str, tuple[bytes, float]]
    ) -> None:
        for key in keys:
            new, ttl = publish.get(key, (None, 0.0))
            await self._change(key, lambda seen, new=new, ttl=ttl: entries.lower_barrier(seen, writer, now, new, ttl))  # type: ignore[misc]


class BlockingMemcached:
    """pymemcache's Client, PooledClient, or our MemcachedCluster. Not its HashClient: while a node is down that one answers "done"
    to deletes it never sent, and moves keys to other nodes, where older values may lie.
    """

    def __init__(self, client: Any) -> None:
        from pymemcache.exceptions import MemcacheClientError, MemcacheError  # type: ignore[import-untyped]

        if type(client).__name__ in ("HashClient", "AWSElastiCacheHashClient"):
            raise TypeError("pymemcache's HashClient hides failed deletes; use cachekeep_patterns.connect('memcached://…')")
        self.client = client
        self.down: tuple[type[BaseException], ...] = (MemcacheError, OSError)
        self.refused: tuple[type[BaseException], ...] = (MemcacheClientError,)
        forks.renew_in_children(self)

    def forked(self) -> None:
        pool = getattr(self.client, "client_pool", None)
        if pool is not None:  # the parent goes on with those sockets, and may have held the lock
            pool._lock = threading.Lock()
            pool.clear()
        elif not hasattr(self.client, "memcached_nodes"):
            self.client.close()

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = self.client.get(key)
        return value

    async def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        values: dict[str, bytes] = self.client.get_many(list(keys))
        return values

    async def gets(self, key: str) -> tuple[bytes, Any] | None:
        value, token = self.client.gets(key)
        return None if value is None else (value, token)

    async def add(self, key: str, value: bytes, expire: int) -> bool:
        return bool(self.client.add(key, value, expire=expire, noreply=False))

    async def cas(self, key: str, value: bytes, token: Any, expire: int) -> bool:
        return bool(self.client.cas(key, value, token, expire=expire, noreply=False))

    async def delete(self, key: str) -> None:
        self.client.delete(key, noreply=False)

    async def time(self) -> int | None:
        stats = getattr(self.client, "stats", None)
        return None if stats is None else int(stats()[b"time"])


class LoopMemcached:
    """emcache's client, which discovers nodes by itself (``autodiscovery=True``)."""

    def __init__(self, client: Any) -> None:
        import emcache

        self.client = client
        self.down: tuple[type[BaseException], ...] = (emcache.ClusterNoAvailableNodes, OSError, TimeoutError, EOFError)
        self.refused: tuple[type[BaseException], ...] = (emcache.CommandError,)
        self._not_stored = emcache.NotStoredStorageCommandError

    async def get(self, key: str) -> bytes | None:
        item = await self.client.get(key.encode())
        return None if item is None else bytes(item.value)

    async def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        items = await self.client.get_many([key.encode() for key in keys])
        return {key.decode(): bytes(item.value) for key, item in items.items()}

    async def gets(self, key: str) -> tuple[bytes, Any] | None:
        item = await self.client.gets(key.encode())
        return None if item is None else (bytes(item.value), item.cas)

    async def add(self, key: str, value: bytes, expire: int) -> bool:
        try:
            await self.client.add(key.encode(), value, exptime=expire)
        except self._not_stored:
            return False
        return True

    async def cas(self, key: str, value: bytes, token: Any, expire: int) -> bool:
        try:
            await self.client.cas(key.encode(), value, token, exptime=expire)
        except self._not_stored:
            return False
        return True

    async def delete(self, key: str) -> None:
        await self.client.delete(key.encode())

    async def time(self) -> int | None:
        return None  # emcache does not ask for statistics


def memcached_for(client: Any, *, blocking: bool) -> Memcached:
    if type(client).__module__.startswith("emcache"):
        if blocking:
            raise TypeError("emcache's client is async; use it with the Async classes")
        return LoopMemcached(client)
    if not blocking:
        raise TypeError("pymemcache's clients block; give AsyncCache an emcache client")
    return BlockingMemcached(client)
