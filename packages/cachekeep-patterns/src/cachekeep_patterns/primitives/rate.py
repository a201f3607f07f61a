"""A rate limiter: so many per so many seconds, evenly (GCRA, ITU-T I.371), by the server's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.ports import run
from cachekeep_patterns.stores.commands import Commands, Script
from cachekeep_patterns.stores.valkey import commands_for

# KEYS: one. ARGV: seconds between two, burst, how many. The stored number is when the bucket will be full again.
# Times go back as text: Lua numbers become integers on their way out.
_TAKE = Script("""
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local gap, burst, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1]) or now)
if full < now then full = now end
local after = full + gap * count
local room = now + gap * burst - after
if room < -0.0000001 then
  return {0, math.floor((now + gap * burst - full) / gap + 0.000001), string.format('%.6f', -room)}
end
redis.call('SET', KEYS[1], string.format('%.6f', after), 'PX', math.ceil((after - now) * 1000))
return {1, math.floor(room / gap + 0.000001), '0'}
""")


@dataclass(frozen=True, slots=True)
class Decision:
    """``remaining`` could be taken at once; ``retry_after_seconds`` is 0 when allowed."""

    allowed: bool
    remaining: int
    retry_after_seconds: float

    def __bool__(self) -> bool:
        return self.allowed


class _Limiter:
    def __init__(
        self, commands: Commands, name: str, limit: int, per_seconds: float, burst: int | None, when_down: bool | None
    ) -> None:
        if limit < 1 or per_seconds <= 0 or (burst is not None and burst < 1):
            raise ValueError("limit and burst must be at least 1, per_seconds above 0")
        self.name, self.burst, self.gap_seconds, self.when_down = name, burst or limit, per_seconds / limit, when_down
        self._commands = commands

    async def _take(self, who: str, count: int) -> Decision:
        if not 0 < count <= self.burst:
            raise ValueError(f"count must be from 1 to {self.burst}")
        try:
            allowed, remaining, wait = await _TAKE(
                self._commands, [f"{self.name}:{who}"], repr(self.gap_seconds), self.burst, count
            )
        except (*self._commands.down, *self._commands.refused) as error:
            if self.when_down is None:
                raise CacheDown(f"the limit could not be checked: {error}") from error
            return Decision(self.when_down, 0, 0.0 if self.when_down else self.gap_seconds)
        return Decision(bool(allowed), int(remaining), float(wait))


class RateLimiter(_Limiter):
    """``limit`` per ``per_seconds`` for each name given to `take`, of which ``burst`` (default: all) may come at once.

    ``when_down``: what to answer when the server cannot be asked: True lets everybody through, False nobody, None raises CacheDown.
    """

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        limit: int,
        per_seconds: float,
        burst: int | None = None,
        when_down: bool | None = None,
    ) -> None:
        super().__init__(commands_for(client, blocking=True), name, limit, per_seconds, burst, when_down)

    def take(self, who: str, count: int = 1) -> Decision:
        return run(self._take(who, count))


class AsyncRateLimiter(_Limiter):
    """The same for asyncio."""

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        limit: int,
        per_seconds: float,
        burst: int | None = None,
        when_down: bool | None = None,
    ) -> None:
        super().__init__(commands_for(client, blocking=False), name, limit, per_seconds, burst, when_down)

    async def take(self, who: str, count: int = 1) -> Decision:
        return await self._take(who, count)
