"""Reads to the reader endpoint, everything else to the primary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import valkey
import valkey.asyncio
from valkey.exceptions import ConnectionError, TimeoutError

_ONE_KEY_READS = frozenset(
    [
        "GET",
        "STRLEN",
        "GETRANGE",
        "EXISTS",
        "TTL",
        "PTTL",
        "TYPE",
        "HGET",
        "HMGET",
        "HGETALL",
        "HLEN",
        "HEXISTS",
        "HKEYS",
        "HVALS",
        "LLEN",
        "LRANGE",
        "LINDEX",
        "SCARD",
        "SISMEMBER",
        "SMISMEMBER",
        "SMEMBERS",
        "ZCARD",
        "ZCOUNT",
        "ZRANGE",
        "ZREVRANGE",
        "ZRANGEBYSCORE",
        "ZREVRANGEBYSCORE",
        "ZSCORE",
        "ZMSCORE",
        "ZRANK",
        "ZREVRANK",
        "BITCOUNT",
        "GETBIT",
        "XLEN",
        "XRANGE",
        "XREVRANGE",
    ]
)
_ALL_KEY_READS = frozenset(("MGET", "SUNION", "SINTER", "SDIFF"))
_ALL_KEY_WRITES = frozenset(("DEL", "UNLINK", "RENAME", "SMOVE", "RPOPLPUSH"))
_KEYLESS = frozenset(("PING", "INFO", "CONFIG", "CLIENT", "TIME", "SCRIPT", "HELLO", "WAIT", "ROLE", "COMMAND", "DBSIZE"))
_MAX_REMEMBERED = 10_000


def read_keys(command: Sequence[Any]) -> Sequence[Any] | None:
    """The keys a plain read touches; None if it is not one that a replica may answer."""
    name = str(command[0]).upper()
    if name in _ONE_KEY_READS:
        return command[1:2]
    return command[1:] if name in _ALL_KEY_READS else None


def written_keys(command: Sequence[Any]) -> Sequence[Any] | None:
    """The keys a write touches; None if they cannot be told, () if none."""
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return ()
    if name in _ALL_KEY_WRITES:
        return command[1:]
    if name in ("MSET", "MSETNX"):
        return command[1::2]
    if name in ("EVAL", "EVALSHA", "FCALL"):
        return command[3 : 3 + int(command[2])]
    if name in ("FLUSHALL", "FLUSHDB", "SWAPDB", "EXEC", "MULTI"):
        return None
    return command[1:2]


class RecentWrites:
    """Which keys this process wrote within the last ``seconds``: those are read from the primary."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: dict[bytes, float] = {}
        self._all_until = 0.0

    def note(self, keys: Sequence[Any] | None) -> None:
        if not self.seconds or (keys is not None and not keys):
            return
        until = time.monotonic() + self.seconds
        if keys is None or len(self._until) + len(keys) > _MAX_REMEMBERED:
            self._until = {}
            self._all_until = until
            return
        for key in keys:
            self._until[_bytes(key)] = until

    def covers(self, keys: Sequence[Any]) -> bool:
        if not self.seconds:
            return False
        now = time.monotonic()
        if now < self._all_until:
            return True
        for key in map(_bytes, keys):
            until = self._until.get(key)
            if until is not None:
                if now < until:
                    return True
                self._until.pop(key, None)
        return False


def _bytes(key: Any) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


class SplitValkey(valkey.Valkey):
    """A client of the primary that sends plain reads to ``reader``. What a replica answers may be old by its lag; with
    ``read_your_writes_seconds`` a key that this process wrote is read from the primary for that long.

    Pipelines, scripts and transactions go to the primary. A reader that cannot be reached is replaced by the primary.
    """

    def attach(self, reader: valkey.Valkey, read_your_writes_seconds: float) -> SplitValkey:
        self.reader: Any = reader
        self.recent = RecentWrites(read_your_writes_seconds)
        return self

    def execute_command(self, *args: Any, **options: Any) -> Any:
        keys = read_keys(args)
        if keys is None:
            self.recent.note(written_keys(args))
            try:
                return cast(Any, super()).execute_command(*args, **options)
            finally:
                self.recent.note(written_keys(args))  # the window counts from the reply, the write may have taken long
        if not self.recent.covers(keys):
            try:
                return self.reader.execute_command(*args, **options)
            except (ConnectionError, TimeoutError):
                pass
        return cast(Any, super()).execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        self.recent.note(None)  # whatever it writes
        return super().pipeline(transaction, shard_hint)

    def close(self) -> None:
        cast(Any, super()).close()
        if hasattr(self, "reader"):
            self.reader.close()


class AsyncSplitValkey(valkey.asyncio.Valkey):
    """The same for asyncio."""

    def attach(self, reader: valkey.asyncio.Valkey, read_your_writes_seconds: float) -> AsyncSplitValkey:
        self.reader: Any = reader
        self.recent = RecentWrites(read_your_writes_seconds)
        return self

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        keys = read_keys(args)
        if keys is None:
            self.recent.note(written_keys(args))
            try:
                return await cast(Any, super()).execute_command(*args, **options)
            finally:
                self.recent.note(written_keys(args))
        if not self.recent.covers(keys):
            try:
                return await self.reader.execute_command(*args, **options)
            except (ConnectionError, TimeoutError):
                pass
        return await cast(Any, super()).execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        self.recent.note(None)
        return super().pipeline(transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        if hasattr(self, "reader"):
            await self.reader.aclose(close_connection_pool)
