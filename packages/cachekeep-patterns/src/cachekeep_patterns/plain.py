"""Plain reading and writing of single keys, beside loads: nothing here loads, and all of it minds loads and writes under way."""

from __future__ import annotations

import random
from typing import Any

from cachekeep_patterns import entry as entries
from cachekeep_patterns.aside import POLL_SECONDS, Aside, Request, identity
from cachekeep_patterns.entry import Verdict, judge, parse
from cachekeep_patterns.errors import CacheDown, Uncodable
from cachekeep_patterns.near import MISS

_TRIES = 64


async def peek(aside: Aside, request: Request) -> Any:
    """The value that a get would be served, or MISS, also where the cache cannot be asked."""
    try:
        sight = await aside.look(request)
    except CacheDown:
        return MISS
    if judge(sight.entry, sight.tags, aside.now(), 0.0) is not Verdict.FRESH:
        aside.counters.add["misses"]()
        return MISS
    return aside.serve(request, sight)


async def put(aside: Aside, request: Request, value: Any) -> None:
    """Store a value in the place of what is there; where a write is under way (write.py) the key stays empty instead.

    Raises CacheDown, and Uncodable for a value that cannot be stored.
    """
    tags = await aside.tag_versions(request.tags) if request.tags else []
    fill = aside.fill(request, value, 0.0, tags)
    if fill.raw is None and tags is not None and request.policy.lifetime_seconds(value) > 0:
        raise Uncodable(f"{request.key}: a {type(value).__qualname__} cannot be stored there; the log says why")

    aside.forget([request.key])
    for _ in range(_TRIES):
        seen = parse(await aside.guard(aside.store.read(request.key)))
        if seen is not None and seen.kind == entries.Kind.BARRIER:
            await aside.guard(aside.store.drop([request.key]))
            break
        if await aside.swap(request.key, identity(seen), fill.raw, fill.seconds):
            break
        await aside.port.sleep(POLL_SECONDS[0] * random.random())
    else:
        raise CacheDown(f"{request.key}: {_TRIES} others were faster; it was not stored")
    aside.forget([request.key])


async def add(aside: Aside, request: Request, by: int, initial: int) -> int:
    """Add to a whole number; where there is none it begins as ``initial``. Its lifetime goes on from when it began.

    Raises CacheDown, TypeError if something else is stored there.
    """
    for _ in range(_TRIES):
        entry = (await aside.look(request)).entry
        now = aside.now()
        verdict = judge(entry, [], now, 0.0)
        if verdict is Verdict.WRITING:
            raise CacheDown(f"{request.key}: a write is under way; it was not counted")
        if entry is not None and verdict is Verdict.FRESH and not entry.negative:
            held = request.decode(entry.payload)
            if type(held) is not int:
                raise TypeError(f"{request.key} holds a {type(held).__qualname__}, not a whole number")
            total, until = held + by, entry.fresh_until
        else:
            total, until = initial + by, now + request.policy.lifetime_seconds(initial)
        payload = request.codec.encode(total, request.key)
        raw = entries.value(payload, fresh_until=until, cost_seconds=0.0, negative=False, tag_versions=[])
        if await aside.swap(request.key, identity(entry), raw, until - now):
            aside.forget([request.key])
            return total
        await aside.port.sleep(POLL_SECONDS[0] * random.random())
    raise CacheDown(f"{request.key}: {_TRIES} others were faster; it was not counted")
