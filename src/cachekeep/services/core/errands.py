"""Errands have one author: what is asked of a keeper once gets its serial here."""

from __future__ import annotations

from typing import Literal

from cachekeep.model import Cache, Errand

Kind = Literal["reboot", "promote", "promote-stale", "test-failover", "rebalance"]


def left(cache: Cache) -> tuple[Errand, ...]:
    """Those that have been asked for and are not done."""
    return tuple(e for e in cache.wanted.errands if e.serial > cache.decided.errands_done)


def with_errand(cache: Cache, kind: Kind, *, nodes: tuple[str, ...] = (), shard: str | None = None) -> tuple[Errand, ...]:
    """The errands that are left, and a new one. Serials are never used twice."""
    serial = max([cache.decided.errands_done, *(e.serial for e in cache.wanted.errands)]) + 1
    return (*left(cache), Errand(serial=serial, kind=kind, nodes=nodes, shard=shard))
