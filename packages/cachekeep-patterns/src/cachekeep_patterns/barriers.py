"""Barriers on the server: what keeps keys empty while a write is under way (entry.py says what they are, write.py what they do)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from cachekeep_patterns import entry as entries
from cachekeep_patterns.aside import POLL_SECONDS, Aside, identity
from cachekeep_patterns.entry import Entry, parse
from cachekeep_patterns.errors import CacheDown

_WRITE_TRIES = 64


async def raise_barriers(aside: Aside, keys: Sequence[str], lease_seconds: float) -> dict[str, bytes]:
    """Empty each key and keep it empty while a write is under way; the marks to lower them by. Raises CacheDown."""
    aside.forget(keys)
    marks = {}
    for key in keys:
        raised = await _change(aside, key, entries.raise_barrier, lease_seconds)
        assert raised is not None
        marks[key] = entries.HEADER.unpack(raised)[3]
    aside.forget(keys)
    return marks


def hold_barriers(aside: Aside, marks: Mapping[str, bytes], lease_seconds: float) -> Callable[[], None]:
    """Renew them until the returned function is called."""

    async def renew() -> bool:
        for key, mark in marks.items():
            seen = parse(await aside.guard(aside.store.read(key)))
            if seen is not None and seen.kind == entries.Kind.BARRIER and seen.mark == mark:
                await aside.swap(key, seen.header, seen.header, lease_seconds)
        return True

    return aside.port.every(lease_seconds / 3, renew)


async def lower_barriers(
    aside: Aside, marks: Mapping[str, bytes], publish: Mapping[str, tuple[bytes, float]], lease_seconds: float
) -> None:
    """End a write, putting in (entry, time to live) of ``publish`` where we were the only writer. Raises CacheDown."""
    for key, mark in marks.items():
        new, ttl = publish.get(key, (None, lease_seconds))

        def lower(seen: Entry | None, mark: bytes = mark, new: bytes | None = new) -> bytes | None:
            return entries.lower_barrier(seen, mark, new)

        await _change(aside, key, lower, lease_seconds, ttl if new is not None else lease_seconds)
    aside.forget(list(marks))


async def _change(
    aside: Aside,
    key: str,
    transition: Callable[[Entry | None], bytes | None],
    lease_seconds: float,
    value_seconds: float | None = None,
) -> bytes | None:
    """Apply a pure transition to a key by compare-and-swap."""
    for _ in range(_WRITE_TRIES):
        seen = parse(await aside.guard(aside.store.read(key)))
        new = transition(seen)
        is_value = new is not None and new[0] == entries.Kind.VALUE
        ttl = value_seconds if is_value and value_seconds is not None else lease_seconds
        if await aside.swap(key, identity(seen), new, ttl):
            return new
        await aside.port.sleep(POLL_SECONDS[0] * random.random())
    raise CacheDown(f"{key}: {_WRITE_TRIES} writers were faster")
