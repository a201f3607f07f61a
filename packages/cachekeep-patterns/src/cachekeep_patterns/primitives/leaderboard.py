"""A leaderboard: a sorted set, asked the questions people ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachekeep_patterns.ports import run
from cachekeep_patterns.stores.commands import Commands, Script
from cachekeep_patterns.stores.valkey import commands_for

# Score and rank must be of one moment. Equal scores share a rank (1, 2, 2, 4).
_STANDING = Script("""
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return false end
return {score, redis.call('ZCOUNT', KEYS[1], '(' .. score, '+inf') + 1}
""")
_SLICE = Script("""
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])
if ARGV[3] ~= '' then
  local place = redis.call('ZREVRANK', KEYS[1], ARGV[3])
  if not place then return {} end
  first, last = math.max(0, place - first), place + last
end
local found = redis.call('ZREVRANGE', KEYS[1], first, last, 'WITHSCORES')
local out = {}
for i = 1, #found, 2 do
  out[#out + 1] = {found[i], found[i + 1], redis.call('ZCOUNT', KEYS[1], '(' .. found[i + 1], '+inf') + 1}
end
return out
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """``rank`` counts from 1; equal scores share one."""

    member: str
    score: float
    rank: int


class _Board:
    def __init__(self, commands: Commands, name: str) -> None:
        self.name = name
        self._commands = commands

    async def _add(self, member: str, points: float) -> float:
        return float(await self._commands("ZINCRBY", self.name, repr(float(points)), member))

    async def _record(self, member: str, score: float, best_only: bool) -> None:
        await self._commands("ZADD", self.name, *(("GT",) if best_only else ()), repr(float(score)), member)

    async def _remove(self, member: str) -> bool:
        return bool(await self._commands("ZREM", self.name, member))

    async def _standing(self, member: str) -> Standing | None:
        found = await _STANDING(self._commands, [self.name], member)
        return None if found is None else Standing(member, float(found[0]), int(found[1]))

    async def _slice(self, first: int, last: int, around: str) -> list[Standing]:
        found = await _SLICE(self._commands, [self.name], first, last, around)
        return [Standing(member.decode(), float(score), int(rank)) for member, score, rank in found]


class Leaderboard(_Board):
    """Highest score first; equal scores in reverse order of name."""

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(commands_for(client, blocking=True), name)

    def add(self, member: str, points: float) -> float:
        """Add points; the new score."""
        return run(self._add(member, points))

    def record(self, member: str, score: float, *, best_only: bool = True) -> None:
        """Set the score, by default only if it is better."""
        run(self._record(member, score, best_only))

    def remove(self, member: str) -> bool:
        return run(self._remove(member))

    def standing(self, member: str) -> Standing | None:
        return run(self._standing(member))

    def top(self, count: int = 10, *, skip: int = 0) -> list[Standing]:
        return run(self._slice(skip, skip + count - 1, ""))

    def around(self, member: str, neighbours: int = 3) -> list[Standing]:
        """The member with up to so many above and below; empty if it has no score."""
        return run(self._slice(neighbours, neighbours, member))


class AsyncLeaderboard(_Board):
    """The same for asyncio."""

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(commands_for(client, blocking=False), name)

    async def add(self, member: str, points: float) -> float:
        return await self._add(member, points)

    async def record(self, member: str, score: float, *, best_only: bool = True) -> None:
        await self._record(member, score, best_only)

    async def remove(self, member: str) -> bool:
        return await self._remove(member)

    async def standing(self, member: str) -> Standing | None:
        return await self._standing(member)

    async def top(self, count: int = 10, *, skip: int = 0) -> list[Standing]:
        return await self._slice(skip, skip + count - 1, "")

    async def around(self, member: str, neighbours: int = 3) -> list[Standing]:
        return await self._slice(neighbours, neighbours, member)
