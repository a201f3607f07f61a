"""The few things the cache does atomically. Every script touches exactly one key, so cluster mode needs no care.

A session's record is a hash:

    t  digest of the token            p  digest of the token before it
    q  until when the old token may still save (ms)      r  … may still read (ms)
    v  version, one more at each save n  bytes of all fields, names included
    o  the last eight operation ids: a repeated save is recognised and not done twice
    c  created (ms)                   a  absolute end (ms, 0 for none)      i  idle time (ms)
    u  user                           e  the user's nonce at login, or two of them while one replaces the other
    :x the field named x

A user's hash holds `e`, the nonce that its live sessions carry, and `:handle` → login time (ms) for each of them.
A session whose nonce is not the user's is dead, also when its record is still there: changing the one nonce logs
out everywhere, and losing the key (eviction) does so too, which is the safe side.

All times are the server's own clock. Works from Redis 6.2 and Valkey 7.2: no functions, no field expiry, effects
replication (so TIME before a write is allowed).
"""

from __future__ import annotations

from ..stores.commands import Script

_NOW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function ms(number) return string.format('%.0f', number) end
"""

_KEEP_USER = """
local function keep_user(ttl)
  if redis.call('PTTL', KEYS[1]) < ttl + 60000 then
    redis.call('PEXPIRE', KEYS[1], ms(ttl + math.floor(ttl / 8) + 60000))
  end
end
"""

LOAD = Script(
    _NOW
    + """
-- ARGV: token digest, '1' to slide the expiry. A write is spared while little of the idle time has gone.
local m = redis.call('HMGET', KEYS[1], 't', 'p', 'r', 'i', 'a')
if not m[1] then return {'gone'} end
local current = m[1] == ARGV[1]
if not current then
  if m[2] ~= ARGV[1] then return {'gone'} end
  if now >= tonumber(m[3]) then return {'superseded'} end
end
local ttl, last = tonumber(m[4]), tonumber(m[5])
local slack = math.min(60000, ttl / 20)
if last > 0 then ttl = math.min(ttl, last - now) end
if ttl <= 0 then
  redis.call('UNLINK', KEYS[1])
  return {'gone'}
end
if ARGV[2] == '1' and redis.call('PTTL', KEYS[1]) < ttl - slack then redis.call('PEXPIRE', KEYS[1], ms(ttl)) end
return {'ok', current and '1' or '0', ms(ttl), redis.call('HGETALL', KEYS[1])}
"""
)

SAVE = Script(
    _NOW
    + """
local op, create, token, next_token = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local read_grace, write_grace, expected = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local idle, max_age, limit = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local user, nonces, pairs_count = ARGV[11], ARGV[12], tonumber(ARGV[13])
local first_del = 14 + 2 * pairs_count
local m = redis.call('HMGET', KEYS[1], 't', 'p', 'q', 'v', 'n', 'o', 'u', 'a')
local held, version, size, ops, last = m[1], m[4] or '0', tonumber(m[5] or 0), m[6] or '', tonumber(m[8] or 0)

-- The reply to an earlier try was lost: it is done, and others may have saved since.
if held and string.find(ops, op, 1, true) then return {'ok', version, ms(redis.call('PTTL', KEYS[1]))} end
if create then
  if held then return {'exists'} end
else
  if not held then return {'gone'} end
  if held ~= token then
    -- A request that began before the rotation may still save fields, but decides nothing.
    if m[2] ~= token or now >= tonumber(m[3]) or next_token ~= '' or user ~= '' then return {'gone'} end
  end
  if expected ~= '' and expected ~= version then return {'conflict'} end
end

local grown = size
for at = 14, first_del - 2, 2 do
  local old = redis.call('HSTRLEN', KEYS[1], ARGV[at])
  if old > 0 then grown = grown - old - #ARGV[at] + 1 end
  grown = grown + #ARGV[at] - 1 + #ARGV[at + 1]
end
for at = first_del, #ARGV do
  local old = redis.call('HSTRLEN', KEYS[1], ARGV[at])
  if old > 0 then grown = grown - old - #ARGV[at] + 1 end
end
if grown > limit and grown > size then return {'large', ms(grown)} end

if create then
  redis.call('HSET', KEYS[1], 't', token, 'c', ms(now))
  last = max_age > 0 and now + max_age or 0
end
if user ~= '' then
  if m[7] ~= user then last = max_age > 0 and now + max_age or 0 end
  redis.call('HSET', KEYS[1], 'u', user, 'e', nonces)
end
local ttl = idle
if last > 0 then ttl = math.min(ttl, last - now) end
if ttl <= 0 then
  redis.call('UNLINK', KEYS[1])
  return {'gone'}
end
for at = 14, first_del - 2, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
for at = first_del, #ARGV do redis.call('HDEL', KEYS[1], ARGV[at]) end
if next_token ~= '' then
  redis.call('HSET', KEYS[1], 't', next_token, 'p', token, 'q', ms(now + write_grace), 'r', ms(now + read_grace))
end
version = ms(tonumber(version) + 1)
redis.call('HSET', KEYS[1], 'v', version, 'n', ms(grown), 'o', string.sub(ops .. op, -64), 'i', ms(idle), 'a', ms(last))
redis.call('PEXPIRE', KEYS[1], ms(ttl))
return {'ok', version, ms(ttl)}
"""
)

DELETE = Script(
    _NOW
    + """
-- ARGV: token digest, '' for the store's own business. Returns whether it was there, and its user.
local m = redis.call('HMGET', KEYS[1], 't', 'p', 'q', 'u')
if not m[1] then return {'0', ''} end
if ARGV[1] ~= '' and m[1] ~= ARGV[1] and (m[2] ~= ARGV[1] or now >= tonumber(m[3])) then return {'0', ''} end
redis.call('UNLINK', KEYS[1])
return {'1', m[4] or ''}
"""
)

ADMIT = Script(
    _NOW
    + _KEEP_USER
    + """
-- ARGV: a nonce in case there is none, handle, ttl, how many handles to remember. Returns the user's nonce.
local nonce = redis.call('HGET', KEYS[1], 'e')
if not nonce then
  nonce = ARGV[1]
  redis.call('HSET', KEYS[1], 'e', nonce)
end
redis.call('HSET', KEYS[1], ':' .. ARGV[2], ms(now))
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[4]) + 1 then
  local all, oldest, since = redis.call('HGETALL', KEYS[1]), nil, nil
  for at = 1, #all, 2 do
    local seen = tonumber(all[at + 1])
    if string.sub(all[at], 1, 1) == ':' and all[at] ~= ':' .. ARGV[2] and (not since or seen < since) then
      oldest, since = all[at], seen
    end
  end
  if oldest then redis.call('HDEL', KEYS[1], oldest) end
end
keep_user(tonumber(ARGV[3]))
return nonce
"""
)

CHECK = Script(
    _NOW
    + _KEEP_USER
    + """
-- ARGV: one or two nonces of 8 bytes, ttl. Returns the user's nonce if it is among them, else ''.
local nonce = redis.call('HGET', KEYS[1], 'e')
if not nonce then return '' end
if nonce ~= string.sub(ARGV[1], 1, 8) and nonce ~= string.sub(ARGV[1], 9, 16) then return '' end
keep_user(tonumber(ARGV[2]))
return nonce
"""
)

REVOKE = Script(
    _NOW
    + _KEEP_USER
    + """
-- ARGV: the next nonce, the handle it keeps alive or '', that one's ttl. Returns the handles that died.
-- Done already, the reply was lost: who has logged in since stays.
if redis.call('HGET', KEYS[1], 'e') == ARGV[1] then return {} end
local dead = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 1) == ':' and name ~= ':' .. ARGV[2] then table.insert(dead, string.sub(name, 2)) end
end
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], 'e', ARGV[1])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ':' .. ARGV[2], ms(now)) end
keep_user(tonumber(ARGV[3]))
return dead
"""
)

FORGET = Script(
    """
-- ARGV: handle.
return redis.call('HDEL', KEYS[1], ':' .. ARGV[1])
"""
)

ROSTER = Script(
    """
return redis.call('HGETALL', KEYS[1])
"""
)

ALL = (LOAD, SAVE, DELETE, ADMIT, CHECK, REVOKE, FORGET, ROSTER)
