"""Barriers in Valkey or Redis: what entry.py says of them, as scripts, by the server's clock. One call for all keys of a write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachekeep_patterns.entry import HEADER_BYTES, TAINTED, Kind, new_mark
from cachekeep_patterns.stores.commands import Commands, Script, ms

_MOST_KEYS = 2_000  # of one call: the server does nothing else meanwhile

_WRITERS = f"""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local me, mark = ARGV[1], ARGV[2]
-- The living writers of a barrier but for us, their last deadline, whether we are one of them, and the flags; nil if there is none.
local function writers(key)
  if redis.call('STRLEN', key) < {HEADER_BYTES} or redis.call('GETRANGE', key, 0, 0) ~= '\\{int(Kind.BARRIER)}' then return nil end
  local raw = redis.call('GET', key)
  local others, last, mine = {{}}, 0, false
  for at = {HEADER_BYTES} + 1, #raw - 15, 16 do
    local deadline = struct.unpack('>d', string.sub(raw, at + 8, at + 15))
    if deadline == 0 then deadline = now + redis.call('PTTL', key) / 1000 end
    if deadline > now then
      if string.sub(raw, at, at + 7) == me then
        mine = true
      else
        others[#others + 1] = string.sub(raw, at, at + 7) .. struct.pack('>d', deadline)
        last = math.max(last, deadline)
      end
    end
  end
  return others, last, mine, string.byte(raw, 2)
end
-- One writer alone needs no deadline but the key's own, and to renew it writes nothing.
local function put(key, list, flags, last)
  if #list == 1 then list[1] = string.sub(list[1], 1, 8) .. string.rep('\\0', 8) end
  local count = math.min(#list, 65535)
  local head = string.char({int(Kind.BARRIER)}, flags, math.floor(count / 256), count % 256) .. mark .. string.rep('\\0', 20)
  redis.call('SET', key, head .. table.concat(list), 'PX', string.format('%.0f', math.max(1, math.ceil((last - now) * 1000))))
end
"""

# ARGV: writer, mark, lease in ms, '1' to renew only
_RAISE = Script(
    _WRITERS
    + f"""
local deadline = now + ARGV[3] / 1000
for _, key in ipairs(KEYS) do
  local others, last, mine, flags = writers(key)
  if ARGV[4] == '1' and mine and #others == 0 then
    redis.call('PEXPIRE', key, ARGV[3])
  elseif mine or ARGV[4] ~= '1' then
    others = others or {{}}
    local kept = mine and flags or 0
    if #others > 0 and not mine then kept = {TAINTED} end
    others[#others + 1] = me .. struct.pack('>d', deadline)
    put(key, others, kept, math.max(last or 0, deadline))
  end
end
return 1
"""
)

# ARGV: writer, mark, and for each key what to publish ('' for nothing) and its time to live in ms
_LOWER = Script(
    _WRITERS
    + f"""
for at, key in ipairs(KEYS) do
  local others, last, mine, flags = writers(key)
  local new = ARGV[1 + 2 * at]
  if others and #others > 0 then
    put(key, others, {TAINTED}, last)
  elseif mine and flags ~= {TAINTED} and new ~= '' then
    redis.call('SET', key, new, 'PX', ARGV[2 + 2 * at])
  else
    redis.call('DEL', key)
  end
end
return 1
"""
)


async def _all(
    commands: Commands, script: Script, keys: Sequence[str], args: Sequence[Any], of_each: Sequence[Sequence[Any]]
) -> None:
    if commands.cluster:  # a key to a call, all on their way together
        await commands.many([("EVAL", script.text, 1, key, *args, *own) for key, own in zip(keys, of_each, strict=True)])
        return
    for at in range(0, len(keys), _MOST_KEYS):
        part = keys[at : at + _MOST_KEYS]
        await script(commands, part, *args, *(one for own in of_each[at : at + _MOST_KEYS] for one in own))


async def raise_barriers(commands: Commands, keys: Sequence[str], writer: bytes, lease_seconds: float, *, renew: bool) -> None:
    await _all(commands, _RAISE, keys, (writer, new_mark(), ms(lease_seconds), "1" if renew else "0"), [()] * len(keys))


async def lower_barriers(
    commands: Commands, keys: Sequence[str], writer: bytes, publish: Mapping[str, tuple[bytes, float]]
) -> None:
    of_each = [(value, ms(seconds)) for value, seconds in (publish.get(key, (b"", 1.0)) for key in keys)]
    await _all(commands, _LOWER, keys, (writer, new_mark()), of_each)
