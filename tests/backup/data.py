"""Data of every type and encoding that an engine has, and all of what an engine holds, read by its own commands."""

from __future__ import annotations

from typing import Any

import valkey.asyncio

NASTY = b"\r\n\x00*3\r\n$3\r\nSET\xff"
FAR_MS = 4_000_000_000_000
FUNCTION = "#!lua name=lib\nredis.register_function('answer', function() return 42 end)"


async def fill(client: valkey.asyncio.Valkey, *, field_ttl: bool) -> None:
    """Into databases 0, 3 and 15. ``field_ttl``: the engine has hash fields that expire (Valkey 9)."""
    ask = client.execute_command
    for database in (0, 3, 15):
        await ask("SELECT", database)
        await ask("SET", "int", 12345)
        await ask("SET", "empty", b"")
        await ask("SET", b"raw" + NASTY, NASTY * 1000)
        await ask("SET", "big", bytes(3_000_000))
        await ask("SET", "expires", "x", "PXAT", FAR_MS)
        await ask("RPUSH", "list", *range(5), NASTY)
        await ask("RPUSH", "long list", *(bytes([i % 256]) * 100 for i in range(2000)))
        await ask("SADD", "intset", 1, 2, 3, -(2**60))
        await ask("SADD", "small set", "a", NASTY)
        await ask("SADD", "large set", *range(1000), *(f"m{i}" for i in range(1000)))
        await ask("HSET", "small hash", "a", NASTY, NASTY, "b")
        await ask("HSET", "large hash", *(x for i in range(1000) for x in (f"field{i}", "v" * (i % 200))))
        await ask("ZADD", "small zset", 1.5, "a", "-inf", NASTY)
        await ask("ZADD", "large zset", *(x for i in range(1000) for x in (i / 3, f"m{i}")))
        await ask("PFADD", "hll", *range(500))
        await ask("SETBIT", "bits", 100_000, 1)
        await ask("GEOADD", "geo", 13.4, 52.5, "berlin")
        for i in range(300):
            await ask("XADD", "stream", f"{i + 1}-1", "field", NASTY, "n", i)
        await ask("XGROUP", "CREATE", "stream", "group", "0")
        await ask("XREADGROUP", "GROUP", "group", "one", "COUNT", 20, "STREAMS", "stream", ">")
        await ask("XACK", "stream", "group", "3-1", "4-1")
        await ask("XDEL", "stream", "100-1")
        if field_ttl:
            await ask("HSET", "fields", "stays", 1, "goes", NASTY)
            await ask("HPEXPIREAT", "fields", FAR_MS, "FIELDS", 1, "goes")
    await ask("SELECT", 0)
    await ask("FUNCTION", "LOAD", "REPLACE", FUNCTION)


_WHOLE: dict[bytes, tuple[str, ...]] = {
    b"string": ("GET",),
    b"list": ("LRANGE", "0", "-1"),
    b"set": ("SMEMBERS",),
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
}


async def everything(client: valkey.asyncio.Valkey, databases: tuple[int, ...] = (0, 3, 15)) -> dict[object, Any]:
    """(database, key) → what it holds, when it expires, and how it is encoded; and the functions."""
    ask = client.execute_command
    found: dict[object, Any] = {}
    for database in databases:
        await ask("SELECT", database)
        for key in await ask("KEYS", "*"):
            kind = await client.type(key)
            if kind == b"stream":
                told = await ask("XINFO", "STREAM", key, "FULL", "COUNT", 0)
                value: Any = repr(told).replace("seen-time", "").split("'groups'")[0], repr(await ask("XPENDING", key, "group"))
            else:
                command, *more = _WHOLE[kind]
                value = await ask(command, key, *more)
                if kind == b"hash":
                    value = sorted(value.items()) if isinstance(value, dict) else value
                elif kind == b"set":
                    value = sorted(value)
            encoding = await ask("OBJECT", "ENCODING", key)
            expiry = await ask("PEXPIRETIME", key)
            field = await ask("HPEXPIRETIME", key, "FIELDS", 1, "goes") if key == b"fields" else None
            found[database, key] = (kind, value, encoding, expiry, field)
    await ask("SELECT", 0)
    found["functions"] = await ask("FUNCTION", "DUMP")
    return found
