"""Barriers on the server: what keeps keys empty while a write is under way (entry.py says what they are, write.py what they do)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cachekeep_patterns.aside import Aside
from cachekeep_patterns.errors import CacheDown


async def raise_barriers(aside: Aside, keys: Sequence[str], writer: bytes, lease_seconds: float) -> None:
    """Empty each key and keep it empty while ``writer`` is at work. Raises CacheDown, at once if the cache did not answer
    lately: a database transaction is open, and it is not the one to find out."""
    aside.forget(keys)
    if not aside.breaker.closed:
        raise CacheDown("the cache did not answer lately; it is not asked while a transaction is open")
    await aside.guard(aside.store.raise_barriers(keys, writer, aside.now(), lease_seconds))
    aside.forget(keys)


def hold_barriers(aside: Aside, keys: Sequence[str], writer: bytes, lease_seconds: float) -> Callable[[], None]:
    """Renew them until the returned function is called."""

    async def renew() -> bool:
        await aside.guard(aside.store.renew_barriers(keys, writer, aside.now(), lease_seconds))
        return True

    return aside.port.every(lease_seconds / 3, renew)


async def lower_barriers(aside: Aside, keys: Sequence[str], writer: bytes, publish: Mapping[str, tuple[bytes, float]]) -> None:
    """End a write, putting in (entry, time to live) of ``publish`` where it was the only one. Raises CacheDown."""
    await aside.guard(aside.store.lower_barriers(keys, writer, aside.now(), publish))
    aside.forget(keys)
