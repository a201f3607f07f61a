"""Write-behind: a write is done when the engine has it; the database gets it later, in batches, the last value of each key.

The engine is then the truth for what has not been saved yet, so it must keep it: persistence on, no eviction (`noeviction`, or
`volatile-*`: nothing here has an expiry). What was acknowledged and lost by the engine (a crash between two fsyncs, a failover to a
replica that lagged) is lost. Where that is not acceptable, write through.

Outcomes: `put` raised → not queued (or, if the reply was lost, queued: putting again is harmless). `save` raised → the batch stays
and is tried again, in order. The flusher died between `save` and its note of it → the batch is saved twice: `save` must be an
upsert. Two flushers: one at a time has the lock; a paused one is told by its fence, which `save` should hand to the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachekeep_patterns.cache import AsyncCache, Cache
from cachekeep_patterns.codecs import Codec, codec_for
from cachekeep_patterns.errors import Backlogged, LockBusy
from cachekeep_patterns.ports import Loop, Port, Threads, run
from cachekeep_patterns.primitives.lock import AsyncLock, Lock
from cachekeep_patterns.stores.commands import Commands, Script
from cachekeep_patterns.stores.valkey import commands_for

# KEYS: values (hash of key → "number value"), order (sorted set of key by number), counter. ARGV: key, value, most pending.
# A key that is pending already keeps its place in the order and gets the new value.
_PUT = Script("""
local known = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not known and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
local number = redis.call('INCR', KEYS[3])
redis.call('HSET', KEYS[1], ARGV[1], number .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[2], 'NX', number, ARGV[1])
return number
""")
# ARGV: key, number, key, number, …: forget what was saved, unless it was written again meanwhile; then to the end of the order.
_SAVED = Script("""
for i = 1, #ARGV, 2 do
  local now = redis.call('HGET', KEYS[1], ARGV[i])
  if now then
    local number = string.match(now, '^%d+')
    if number == ARGV[i + 1] then
      redis.call('HDEL', KEYS[1], ARGV[i])
      redis.call('ZREM', KEYS[2], ARGV[i])
    else
      redis.call('ZADD', KEYS[2], number, ARGV[i])
    end
  end
end
return redis.call('ZCARD', KEYS[2])
""")

Saver = Callable[[Mapping[str, Any], int], Any]


class _Behind:
    def __init__(
        self,
        commands: Commands,
        port: Port,
        name: str,
        save: Saver,
        cache: Cache | AsyncCache,
        codec: Codec | str,
        batch: int,
        max_pending: int,
    ) -> None:
        self._cache = cache
        self.name, self.batch, self.max_pending = name, batch, max_pending
        self._keys = (f"{{{name}}}:values", f"{{{name}}}:order", f"{{{name}}}:number")
        self._commands, self._port, self._save, self._codec = commands, port, save, codec_for(codec)

    async def _put(self, key: str, value: Any) -> None:
        if not await _PUT(self._commands, self._keys, key, self._codec.encode(value, key), self.max_pending):
            raise Backlogged(f"{self.name}: {self.max_pending} keys are waiting for the database")

    async def _get(self, key: str, load: Callable[[], Any]) -> Any:
        found = await self._commands("HGET", self._keys[0], key)
        if found is not None:
            return self._codec.decode(found.partition(b" ")[2], key)
        return await self._cache._aside.get(self._cache._request(key, load, (), None, None))

    async def _flush(self, fence: int) -> int:
        keys = await self._commands("ZRANGE", self._keys[1], 0, self.batch - 1)
        if not keys:
            return 0
        found = await self._commands("HMGET", self._keys[0], *keys)
        values, numbers = {}, []
        for key, raw in zip(keys, found, strict=True):
            if raw is not None:
                number, _, payload = raw.partition(b" ")
                values[key.decode()] = self._codec.decode(payload, key.decode())
                numbers += [key, number]
        await self._port.call(self._save, values, fence)
        # Before the values stop being found here: the cache may hold what the database had until now.
        await self._cache._aside.invalidate([self._cache._full(key) for key in values])
        await _SAVED(self._commands, self._keys[:2], *numbers)
        return len(values)

    async def _size(self) -> int:
        return int(await self._commands("ZCARD", self._keys[1]))


class WriteBehind(_Behind):
    """``save(values, fence)`` puts a batch into the database and commits. ``cache`` holds what the database has; read through
    `get`, which looks among the unsaved values first. Flush from a thread or a timer of yours.
    """

    def __init__(
        self,
        client: Any,
        name: str,
        save: Saver,
        cache: Cache,
        *,
        codec: Codec | str = "json",
        batch: int = 200,
        max_pending: int = 100_000,
    ) -> None:
        super().__init__(commands_for(client, blocking=True), Threads(), name, save, cache, codec, batch, max_pending)
        self._lock = Lock(client, f"{name}:flusher", lease_seconds=10)

    def put(self, key: str, value: Any) -> None:
        """Raises Backlogged (nothing was queued) and what the client raises."""
        run(self._put(key, value))

    def get(self, key: str, load: Callable[[], Any]) -> Any:
        """The newest value: unsaved, cached, or by ``load()`` from the database."""
        return run(self._get(key, load))

    def __len__(self) -> int:
        return run(self._size())

    def flush(self) -> int:
        """Save until nothing waits; how many. 0 at once if another process is flushing. Raises what ``save`` raises."""
        try:
            self._lock.acquire(0)
        except LockBusy:
            return 0
        try:
            saved = 0
            while done := run(self._flush(self._lock.check())):
                saved += done
            return saved
        finally:
            self._lock.release()


class AsyncWriteBehind(_Behind):
    """The same for asyncio; ``save`` may be async."""

    def __init__(
        self,
        client: Any,
        name: str,
        save: Saver,
        cache: AsyncCache,
        *,
        codec: Codec | str = "json",
        batch: int = 200,
        max_pending: int = 100_000,
    ) -> None:
        super().__init__(commands_for(client, blocking=False), Loop(), name, save, cache, codec, batch, max_pending)
        self._lock = AsyncLock(client, f"{name}:flusher", lease_seconds=10)

    async def put(self, key: str, value: Any) -> None:
        await self._put(key, value)

    async def get(self, key: str, load: Callable[[], Any]) -> Any:
        return await self._get(key, load)

    async def size(self) -> int:
        return await self._size()

    async def flush(self) -> int:
        try:
            await self._lock.acquire(0)
        except LockBusy:
            return 0
        try:
            saved = 0
            while done := await self._flush(self._lock.check()):
                saved += done
            return saved
        finally:
            await self._lock.release()
