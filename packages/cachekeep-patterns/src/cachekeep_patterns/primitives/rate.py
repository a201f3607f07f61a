"""A rate limiter: never more than so many in any window of so many seconds, by the server's clock.

Counted in a thousandth of the window at a time. What came within one counts from its end on, so a window never holds more than the
limit, and a place comes free up to a thousandth late. With ``burst`` less may come at once, and the rest evenly (GCRA, ITU-T
I.371); by itself that would let a burst and a whole limit through in one window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.keys import Namespace
from cachekeep_patterns.ports import run
from cachekeep_patterns.stores.commands import Commands, Script
from cachekeep_patterns.stores.valkey import commands_for

# KEYS: one, a hash: number of a slot of time → how many came in it, and "full", when an even flow will have its burst again.
# ARGV: window in seconds, limit, burst, how many, '1' to only look. Times go back as text: Lua numbers go as integers.
_TAKE = Script("""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local window, limit, burst, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local width = window / 1000
local slot = math.floor(now / width)
local sum, full, slots, old = 0, now, {}, {}
local held = redis.call('HGETALL', KEYS[1])
for at = 1, #held, 2 do
  if held[at] == 'full' then
    full = math.max(now, tonumber(held[at + 1]))
  elseif tonumber(held[at]) < slot - 1000 then
    old[#old + 1] = held[at]
  else
    sum = sum + held[at + 1]
    slots[#slots + 1] = {tonumber(held[at]), tonumber(held[at + 1])}
  end
end
local wait = 0
if sum + count > limit then
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  local free = limit - sum
  for _, one in ipairs(slots) do
    if free >= count then break end
    free = free + one[2]
    wait = (one[1] + 1001) * width - now
  end
end
local gap = window / limit
local room = burst
if burst < limit then
  room = (now + gap * burst - full) / gap
  if room + 0.000001 < count then wait = math.max(wait, (count - room) * gap) end
end
if wait > 0 or ARGV[5] == '1' then
  local left = math.max(0, math.min(limit - sum, math.floor(room + 0.000001)))
  return {wait > 0 and 0 or 1, string.format('%.0f', left), string.format('%.6f', wait)}
end
for _, name in ipairs(old) do redis.call('HDEL', KEYS[1], name) end
redis.call('HINCRBY', KEYS[1], string.format('%.0f', slot), count)
if burst < limit then redis.call('HSET', KEYS[1], 'full', string.format('%.6f', full + gap * count)) end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil((window + 2 * width) * 1000)))
return {1, string.format('%.0f', math.min(limit - sum - count, math.floor(room - count + 0.000001))), '0'}
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
        if burst is not None and burst > limit:
            raise ValueError(f"burst={burst} would let more than limit={limit} through within {per_seconds} s")
        self.name, self.limit, self.per_seconds, self.burst, self.when_down = name, limit, per_seconds, burst or limit, when_down
        self._commands, self._names = commands, Namespace(name)

    async def _take(self, who: str, count: int, *, look: bool = False) -> Decision:
        if not 0 < count <= self.burst:
            raise ValueError(f"count must be from 1 to {self.burst}")
        try:
            allowed, remaining, wait = await _TAKE(
                self._commands,
                [self._names.key(who)],
                repr(float(self.per_seconds)),
                self.limit,
                self.burst,
                count,
                "1" if look else "0",
            )
        except (*self._commands.down, *self._commands.refused) as error:
            if self.when_down is None:
                raise CacheDown(f"the limit could not be checked: {error}") from error
            return Decision(self.when_down, 0, 0.0 if self.when_down else self.per_seconds / self.limit)
        return Decision(bool(int(allowed)), int(remaining), float(wait))

    async def _reset(self, who: str) -> None:
        try:
            await self._commands("DEL", self._names.key(who))
        except (*self._commands.down, *self._commands.refused) as error:
            raise CacheDown(f"the limit could not be reset: {error}") from error


class RateLimiter(_Limiter):
    """At most ``limit`` in any ``per_seconds`` for each name given to `take`; of these ``burst`` (default: all) at once, the rest
    evenly.

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

    def peek(self, who: str, count: int = 1) -> Decision:
        """What `take` would answer; nothing is taken. ``remaining`` is what is left now."""
        return run(self._take(who, count, look=True))

    def reset(self, who: str) -> None:
        """Forget what was taken. Raises CacheDown."""
        run(self._reset(who))


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

    async def peek(self, who: str, count: int = 1) -> Decision:
        return await self._take(who, count, look=True)

    async def reset(self, who: str) -> None:
        await self._reset(who)
