"""Slot arithmetic: even shares, and how to get there by moving as little as possible. Pure.

A shard's slots are ascending ranges, both ends included, none touching the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cachekeep.model import SlotRange

SLOTS = 16384
Ranges = tuple[SlotRange, ...]


class SlotMigration(NamedTuple):
    """Slots that go from one shard to another."""

    source: str
    target: str
    slots: Ranges


def count(ranges: Ranges) -> int:
    """How many slots these are."""
    return sum(b - a + 1 for a, b in ranges)


def expand(ranges: Ranges) -> Iterable[int]:
    """Slot by slot."""
    return (slot for a, b in ranges for slot in range(a, b + 1))


def compact(slots: Iterable[int]) -> Ranges:
    """The ranges that hold exactly these slots."""
    found: list[list[int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1][1] = slot
        elif not found or found[-1][1] != slot:
            found.append([slot, slot])
    return tuple((a, b) for a, b in found)


def union(*parts: Ranges) -> Ranges:
    """All slots that are in one of them."""
    joined: list[SlotRange] = []
    for a, b in sorted(r for part in parts for r in part):
        if joined and a <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(b, joined[-1][1]))
        else:
            joined.append((a, b))
    return tuple(joined)


def common(one: Ranges, other: Ranges) -> Ranges:
    """Slots that are in both."""
    found: list[SlotRange] = []
    i = j = 0
    while i < len(one) and j < len(other):
        a, b = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if a <= b:
            found.append((a, b))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def without(one: Ranges, other: Ranges, *, slots: int = SLOTS) -> Ranges:
    """Slots of ``one`` that are not in ``other``."""
    gaps: list[SlotRange] = []
    at = 0
    for a, b in other:
        if at < a:
            gaps.append((at, a - 1))
        at = b + 1
    if at < slots:
        gaps.append((at, slots - 1))
    return common(one, tuple(gaps))


def take(ranges: Ranges, number: int) -> Ranges:
    """The first ``number`` slots."""
    taken: list[SlotRange] = []
    for a, b in ranges:
        if number <= 0:
            break
        last = min(b, a + number - 1)
        taken.append((a, last))
        number -= last - a + 1
    return tuple(taken)


def even(ids: Sequence[str], *, slots: int = SLOTS) -> dict[str, Ranges]:
    """One range for each shard, in order, the odd slots to the first ones, as ElastiCache deals them (0-5461,5462-10922,…)."""
    small, odd = divmod(slots, len(ids))
    edges = [i * small + min(i, odd) for i in range(len(ids) + 1)]
    return {id: ((a, b - 1),) if b > a else () for id, a, b in zip(ids, edges, edges[1:], strict=False)}


def rebalance(current: Mapping[str, Ranges], ids: Sequence[str], *, slots: int = SLOTS) -> dict[str, Ranges]:
    """Even shares for ``ids``, reached from ``current`` by moving the fewest slots. Others end up with none.

    However the odd slots are dealt out, a shard with a share of q that has c keeps at most min(q, c): so the most is kept, and the
    fewest are moved, when the larger shares go to those that have most. Slots that nobody has are dealt out too.
    """
    has = {id: count(current.get(id, ())) for id in ids}
    small, odd = divmod(slots, len(ids))
    rich = sorted(ids, key=lambda id: -has[id])[:odd]
    share = {id: small + (id in rich) for id in ids}
    kept: dict[str, Ranges] = {}
    homeless: Ranges = ((0, slots - 1),)
    for id in ids:  # shards are looked at one after the other, so one slot may seem to be with two of them
        kept[id] = take(common(current.get(id, ()), homeless), share[id])
        homeless = without(homeless, kept[id], slots=slots)
    target: dict[str, Ranges] = {}
    for id in ids:
        given = take(homeless, share[id] - count(kept[id]))
        homeless = without(homeless, given, slots=slots)
        target[id] = union(kept[id], given)
    return target


def moves(current: Mapping[str, Ranges], target: Mapping[str, Ranges]) -> list[SlotMigration]:
    """Which slots go from which shard to which. Slots that nobody has are nobody's to move."""
    owner: list[tuple[int, int, str]] = sorted((a, b, id) for id, ranges in target.items() for a, b in ranges)
    found: dict[tuple[str, str], list[SlotRange]] = {}
    for source, ranges in current.items():
        astray = without(ranges, target.get(source, ()))
        for a, b, id in _overlapping(astray, owner):
            if id != source:
                found.setdefault((source, id), []).append((a, b))
    return [SlotMigration(source, id, tuple(ranges)) for (source, id), ranges in found.items()]


def _overlapping(ranges: Ranges, owner: list[tuple[int, int, str]]) -> Iterable[tuple[int, int, str]]:
    at = 0
    for a, b in ranges:
        while at < len(owner) and owner[at][1] < a:
            at += 1
        i = at
        while i < len(owner) and owner[i][0] <= b:
            yield max(a, owner[i][0]), min(b, owner[i][1]), owner[i][2]
            i += 1
