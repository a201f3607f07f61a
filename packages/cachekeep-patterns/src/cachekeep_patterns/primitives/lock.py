"""A lock between processes, with a fencing token.

No lock held over a network can promise that its holder is not paused just after it looked (Kleppmann, "How to do distributed
locking", 2016). So every grant carries a number that only grows; give it to whatever the lock protects, and let that refuse smaller
ones (`UPDATE … WHERE fence <= :fence`). One engine, not Redlock: the numbers come from one counter, and after a failover that lost
the last writes the counter may repeat, unless the protected side keeps the highest number it saw.
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

# KEYS: lock, counter. ARGV: holder, lease in ms. Answers the fence, or 0 and nothing done.
_TAKE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('INCR', KEYS[2])
""")
_RENEW = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0")
_FREE = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")


class _Lock:
    """``fence`` grows with every grant. ``held`` is False as soon as the lease may have run out,
    measured from before it was asked for."""

    def __init__(self, commands: Commands, port: Port, name: str, lease_seconds: float) -> None:
        if lease_seconds <= 0:
            raise ValueError("lease_seconds must be above 0")
        self.name, self.lease_seconds = name, lease_seconds
        self.fence = 0
        self._commands, self._port = commands, port
        self._keys = (f"{{{name}}}:lock", f"{{{name}}}:fence")  # the braces keep both in one slot of a cluster
        self._holder = ""
        self._until = 0.0
        self._stop: Callable[[], None] | None = None

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    def check(self) -> int:
        """The fence. Raises LockLost if the lock is, or may be, somebody else's by now."""
        if not self.held:
            raise LockLost(f"{self.name}: the lease ran out")
        return self.fence

    async def _take(self, wait_seconds: float | None) -> None:
        if self.held:
            raise LockBusy(f"{self.name}: this lock object is held already")
        give_up = None if wait_seconds is None else time.monotonic() + wait_seconds
        self._holder = secrets.token_hex(16)
        pause = 0.002
        while True:
            asked = time.monotonic()
            fence = await _TAKE(self._commands, self._keys, self._holder, int(self.lease_seconds * 1000))
            if fence:
                self.fence, self._until = int(fence), asked + self.lease_seconds
                self._stop = self._port.every(self.lease_seconds / 3, self._renew)
                return
            if give_up is not None and time.monotonic() >= give_up:
                raise LockBusy(f"{self.name}: held by somebody else for {wait_seconds} s")
            await self._port.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.1)

    async def _renew(self) -> bool:
        asked = time.monotonic()
        if await _RENEW(self._commands, self._keys[:1], self._holder, int(self.lease_seconds * 1000)):
            self._until = asked + self.lease_seconds
            return True
        self._until = 0.0
        return False

    async def _free(self) -> None:
        if self._stop is not None:
            self._stop()
        self._until = 0.0
        await _FREE(self._commands, self._keys[:1], self._holder)


class Lock(_Lock):
    """Blocking. `with Lock(client, "report", lease_seconds=5) as fence: …`; renewed by a thread until the block ends."""

    def __init__(self, client: Any, name: str, *, lease_seconds: float = 10.0, wait_seconds: float | None = None) -> None:
        super().__init__(commands_for(client, blocking=True), Threads(), name, lease_seconds)
        self.wait_seconds = wait_seconds

    def acquire(self, wait_seconds: float | None = None) -> int:
        """The fence. Raises LockBusy after ``wait_seconds`` (None: wait for ever)."""
        run(self._take(wait_seconds))
        return self.fence

    def release(self) -> None:
        run(self._free())

    def __enter__(self) -> int:
        return self.acquire(self.wait_seconds)

    def __exit__(self, *_: object) -> None:
        self.release()


class AsyncLock(_Lock):
    """`async with AsyncLock(client, "report") as fence: …`"""

    def __init__(self, client: Any, name: str, *, lease_seconds: float = 10.0, wait_seconds: float | None = None) -> None:
        super().__init__(commands_for(client, blocking=False), Loop(), name, lease_seconds)
        self.wait_seconds = wait_seconds

    async def acquire(self, wait_seconds: float | None = None) -> int:
        await self._take(wait_seconds)
        return self.fence

    async def release(self) -> None:
        await self._free()

    async def __aenter__(self) -> int:
        return await self.acquire(self.wait_seconds)

    async def __aexit__(self, *_: object) -> None:
        await self.release()
