"""What is asked of a keeper once, by whatever service."""

from __future__ import annotations

from cachekeep.model import Cache, Errand, ErrandKind


def with_errand(
    cache: Cache, kind: ErrandKind, *, nodes: tuple[str, ...] = (), shard: str | None = None, snapshot: str = ""
) -> tuple[Errand, ...]:
    """The errands that are left, and a new one."""
    return (*cache.errands_left, cache.wanted.asking(kind, nodes=nodes, shard=shard, snapshot=snapshot).errands[-1])
