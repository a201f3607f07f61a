"""A lock between processes, with a fencing token; and a semaphore, which lets several in.

No lock held over a network can promise that its holder is not paused just after it looked (Kleppmann, "How to do distributed
locking", 2016). So every grant of a lock carries a number that only grows; give it to whatever the lock protects, and let that
refuse smaller ones (`UPDATE … WHERE fence <= :fence`). It is the server's time in microseconds (64 bits: a BIGINT), or one more
than the last where that is more. So it grows on after the lock's keys have expired or were evicted, and nothing is left behind
for ever. One engine, not Redlock: after a failover to a node whose clock is behind, numbers may repeat until that clock has
caught up, unless the protected side keeps the highest number it saw.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any

from cachekeep_patterns.errors import LockBusy, LockLost
from cachekeep_patterns.ports import Loop, Port, Threads, run
from cachekeep_patterns.stores.commands import Commands, Script
from cachekeep_patterns.stores.valkey import commands_for

_CLOCK = """
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
"""
# KEYS: lock, last fence. ARGV: holder, lease in ms. Answers the fence, or 0 and nothing done.
_TAKE = Script(
    _CLOCK
    + """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
local fence = math.max(now_us, tonumber(redis.call('GET', KEYS[2]) or 0) + 1)
local text = string.format('%.0f', fence)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], text, 'PX', 3600000 + ARGV[2])
return text
"""
)
_RENEW = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0")
_FREE = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")

# KEYS: holders by the time (in ms) their leases end. ARGV: holder, lease in ms, how many at once.
_ENTER = Script(
    _CLOCK
    + """
local now = math.floor(now_us / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', last - now))
return redis.call('ZCARD', KEYS[1])
"""
)
_STAY = Script(
    _CLOCK
    + """
local now = math.floor(now_us / 1000)
local until_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not until_ms or tonumber(until_ms) <= now then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', last - now))
return 1
"""
)
_LEAVE = Script("return redis.call('ZREM', KEYS[1], ARGV[1])")


class _Unsaid:
    """As was said when the object was made."""


_UNSAID = _Unsaid()
Patience = float | None | _Unsaid


class _Lease:
    """Something of ``name`` that is held for a while and renewed. ``held`` is False as soon as the lease may have run out, measured
    from before it was asked for."""

    _take_script, _renew_script, _free_script = _TAKE, _RENEW, _FREE
    _more: tuple[Any, ...] = ()

    def __init__(self, commands: Commands, port: Port, name: str, lease_seconds: float, wait_seconds: float | None) -> None:
        if lease_seconds <= 0:
            raise ValueError("lease_seconds must be above 0")
        if not name:
            raise ValueError("a name is needed")
        self.name, self.lease_seconds, self.wait_seconds = name, lease_seconds, wait_seconds
        self.fence = 0
        self._commands, self._port = commands, port
        tag = name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        self._keys = tuple(f"{{{tag}}}:{part}" for part in self._parts())  # the braces keep them in one slot of a cluster
        self._holder = ""
        self._until = 0.0
        self._stop: Callable[[], None] | None = None

    def _parts(self) -> tuple[str, ...]:
        return ("lock", "fence")

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    def check(self) -> int:
        """The fence. Raises LockLost if the lock is, or may be, somebody else's by now."""
        if not self.held:
            raise LockLost(f"{self.name}: the lease ran out")
        return self.fence

    async def _take(self, patience: Patience) -> int:
        wait_seconds = self.wait_seconds if isinstance(patience, _Unsaid) else patience
        if self.held:
            raise LockBusy(f"{self.name}: this object holds it already")
        give_up = None if wait_seconds is None else time.monotonic() + wait_seconds
        self._holder = secrets.token_hex(16)
        pause = 0.002
        while True:
            asked = time.monotonic()
            lease_ms = max(1, int(self.lease_seconds * 1000))
            fence = await self._take_script(self._commands, self._keys, self._holder, lease_ms, *self._more)
            if fence:
                self.fence, self._until = int(fence), asked + self.lease_seconds
                self._stop = self._port.every(self.lease_seconds / 3, self._renew)
                return self.fence
            if give_up is not None and time.monotonic() >= give_up:
                raise LockBusy(f"{self.name}: held by somebody else for {wait_seconds} s")
            await self._port.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.1)

    async def _renew(self) -> bool:
        asked = time.monotonic()
        if await self._renew_script(self._commands, self._keys[:1], self._holder, max(1, int(self.lease_seconds * 1000))):
            self._until = asked + self.lease_seconds
            return True
        self._until = 0.0
        return False

    async def _free(self) -> None:
        if self._stop is not None:
            self._stop()
        self._until = 0.0
        await self._free_script(self._commands, self._keys[:1], self._holder)


class _Blocking(_Lease):
    def acquire(self, wait_seconds: Patience = _UNSAID) -> int:
        """The fence. Raises LockBusy after ``wait_seconds`` (0: at once; None: wait for ever; unsaid: as the object was made)."""
        return run(self._take(wait_seconds))

    def release(self) -> None:
        run(self._free())

    def __enter__(self) -> int:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Async(_Lease):
    async def acquire(self, wait_seconds: Patience = _UNSAID) -> int:
        return await self._take(wait_seconds)

    async def release(self) -> None:
        await self._free()

    async def __aenter__(self) -> int:
        return await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class Lock(_Blocking):
    """Blocking. `with Lock(client, "report", lease_seconds=5) as fence: …`; renewed by a thread until the block ends."""

    def __init__(self, client: Any, name: str, *, lease_seconds: float = 10.0, wait_seconds: float | None = None) -> None:
        super().__init__(commands_for(client, blocking=True), Threads(), name, lease_seconds, wait_seconds)


class AsyncLock(_Async):
    """`async with AsyncLock(client, "report") as fence: …`"""

    def __init__(self, client: Any, name: str, *, lease_seconds: float = 10.0, wait_seconds: float | None = None) -> None:
        super().__init__(commands_for(client, blocking=False), Loop(), name, lease_seconds, wait_seconds)


class _Places(_Lease):
    _take_script, _renew_script, _free_script = _ENTER, _STAY, _LEAVE

    def _parts(self) -> tuple[str, ...]:
        return ("places",)

    def _limit_to(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self._more = (limit,)


class Semaphore(_Places, _Blocking):
    """At most ``limit`` holders at once among all processes. `with Semaphore(client, "exports", 3): …`

    `acquire` answers how many there are then. A holder that is paused beyond its lease loses its place and may not know.
    """

    def __init__(
        self, client: Any, name: str, limit: int, *, lease_seconds: float = 10.0, wait_seconds: float | None = None
    ) -> None:
        super().__init__(commands_for(client, blocking=True), Threads(), name, lease_seconds, wait_seconds)
        self._limit_to(limit)


class AsyncSemaphore(_Places, _Async):
    """The same for asyncio."""

    def __init__(
        self, client: Any, name: str, limit: int, *, lease_seconds: float = 10.0, wait_seconds: float | None = None
    ) -> None:
        super().__init__(commands_for(client, blocking=False), Loop(), name, lease_seconds, wait_seconds)
        self._limit_to(limit)
