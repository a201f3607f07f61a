"""What is stored under a key, and what that means now. Pure: no clock, no server.

One key holds one entry: a 32-byte header, the versions of its tags, the encoded value. The header is the entry's identity: `mark`
is drawn anew for every write, so *compare the header, then swap* is a compare-and-swap without ABA, on any server that can compare
bytes.

    ABSENT  ──claim──▶ CLAIM ──fill──▶ VALUE ──claim──▶ VALUE (claimed) ──fill──▶ VALUE
       ▲                 │ lapses by its own expiry, or is dropped by an invalidation: the fill finds another header
       └── invalidate ───┴── from anywhere          BARRIER: a write to the database is under way; nothing may be filled
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct(">BBH8sddf")  # kind, flags, tags or writers, mark, fresh until, claimed until, cost
HEADER_BYTES = HEADER.size
TAG_BYTES = 8

_FRESH_UNTIL = struct.Struct(">d")
_PLAIN_VALUE = b"\xc1\x00\x00\x00"  # kind, no flags, no tags

NEGATIVE = 1  # the loader answered None
TAINTED = 2  # on a barrier: more than one writer, so nobody may publish a value


class Kind(IntEnum):
    # None of these bytes can begin a JSON or msgpack document, so foreign values are recognised.
    VALUE = 0xC1
    CLAIM = 0xF5
    BARRIER = 0xF6


def new_mark() -> bytes:
    """Eight bytes nobody else draws. From the system: a forked child must not repeat its parent's draws."""
    return os.urandom(8)


@dataclass(slots=True)  # not frozen: that costs a microsecond per look
class Entry:
    """An entry as read. ``raw`` is everything; ``header`` is what a swap compares."""

    raw: bytes
    kind: int
    flags: int
    count: int
    mark: bytes
    fresh_until: float
    claimed_until: float
    cost_seconds: float

    @property
    def header(self) -> bytes:
        return self.raw[:HEADER_BYTES]

    @property
    def negative(self) -> bool:
        return bool(self.flags & NEGATIVE)

    @property
    def tag_versions(self) -> list[bytes]:
        at = HEADER_BYTES
        return [self.raw[at + i * TAG_BYTES : at + (i + 1) * TAG_BYTES] for i in range(self.count)]

    @property
    def payload(self) -> bytes:
        return self.raw[HEADER_BYTES + self.count * TAG_BYTES :]


def parse(raw: bytes | None) -> Entry | None:
    """The entry in ``raw``; None for absent. Foreign or damaged bytes parse as an entry that is never fresh (so: replaced)."""
    if raw is None:
        return None
    if len(raw) >= HEADER_BYTES and raw[0] in (Kind.VALUE, Kind.CLAIM, Kind.BARRIER):
        return Entry(raw, *HEADER.unpack_from(raw))
    return Entry(raw, 0, 0, 0, b"", 0.0, 0.0, 0.0)


def fresh_payload(raw: bytes | None, now: float) -> bytes | None:
    """The payload of a plain, fresh value; None for everything that needs a closer look (`parse`, `judge`). The hot path."""
    if raw is None or raw[:4] != _PLAIN_VALUE or len(raw) < HEADER_BYTES or now >= _FRESH_UNTIL.unpack_from(raw, 12)[0]:
        return None
    return raw[HEADER_BYTES:]


def fresh_tagged_payload(raw: bytes | None, tags_now: list[bytes | None], now: float) -> bytes | None:
    """The same for a value that hangs on tags, whose versions are ``tags_now``."""
    end = HEADER_BYTES + len(tags_now) * TAG_BYTES
    if raw is None or len(raw) < end or raw[:2] != _PLAIN_VALUE[:2] or now >= _FRESH_UNTIL.unpack_from(raw, 12)[0]:
        return None
    if int.from_bytes(raw[2:4], "big") != len(tags_now) or None in tags_now or raw[HEADER_BYTES:end] != b"".join(tags_now):  # type: ignore[arg-type]
        return None
    return raw[end:]


def mark_of(header: bytes) -> bytes:
    mark: bytes = HEADER.unpack_from(header)[3]
    return mark


def claim(until: float) -> bytes:
    """A claim with no value yet: its holder is loading."""
    return HEADER.pack(Kind.CLAIM, 0, 0, new_mark(), 0.0, until, 0.0)


def claimed(entry: Entry, until: float) -> bytes:
    """The header of ``entry`` under a new claim; its value goes on being served while its holder reloads."""
    return HEADER.pack(entry.kind, entry.flags, entry.count, new_mark(), entry.fresh_until, until, entry.cost_seconds)


def value(payload: bytes, *, fresh_until: float, cost_seconds: float, negative: bool, tag_versions: list[bytes]) -> bytes:
    flags = NEGATIVE if negative else 0
    head = HEADER.pack(Kind.VALUE, flags, len(tag_versions), new_mark(), fresh_until, 0.0, cost_seconds)
    return b"".join((head, *tag_versions, payload))


# --------------------------------------------------------------------------- barriers
#
# Behind a barrier's header stand its writers, each with a deadline of its own: one that dies holds the key for its own lease, not
# for as long as others go on writing. (Valkey does the same in scripts, by its own clock: stores/barriers.py.)

_WRITER = struct.Struct(">8sd")  # who, until when


def _writers(entry: Entry | None, now: float) -> dict[bytes, float]:
    """The writers of a barrier who may still be alive, with their deadlines."""
    if entry is None or entry.kind != Kind.BARRIER:
        return {}
    body = entry.raw[HEADER_BYTES:]
    found = _WRITER.iter_unpack(body[: len(body) - len(body) % _WRITER.size])
    return {who: deadline for who, deadline in found if deadline > now}


def _barrier(writers: Mapping[bytes, float], flags: int) -> bytes:
    head = HEADER.pack(Kind.BARRIER, flags, min(len(writers), 0xFFFF), new_mark(), 0.0, 0.0, 0.0)
    return head + b"".join(_WRITER.pack(who, deadline) for who, deadline in writers.items())


def raise_barrier(entry: Entry | None, writer: bytes, now: float, lease_seconds: float) -> tuple[bytes, float]:
    """A writer begins: (what to put in the place of ``entry``, its time to live).

    A second one at the same time taints the barrier: their commits may order either way, so neither may publish.
    """
    writers = _writers(entry, now)
    known = writers.pop(writer, None)
    kept = entry.flags if entry is not None and known is not None else 0
    flags = TAINTED if writers else kept
    writers[writer] = now + lease_seconds
    return _barrier(writers, flags), max(writers.values()) - now


def renew_barrier(entry: Entry | None, writer: bytes, now: float, lease_seconds: float) -> tuple[bytes, float] | None:
    """The same with a later deadline for ``writer``; None if it has no part in this barrier any more."""
    writers = _writers(entry, now)
    if entry is None or writer not in writers:
        return None
    writers[writer] = now + lease_seconds
    return _barrier(writers, entry.flags), max(writers.values()) - now


def taint_barrier(entry: Entry, now: float) -> tuple[bytes, float]:
    """Somebody invalidated in the middle of a write: whatever the writer wanted to publish may be old."""
    writers = _writers(entry, now)
    return _barrier(writers, TAINTED), max(writers.values(), default=now) - now


def lower_barrier(
    entry: Entry | None, writer: bytes, now: float, publish: bytes | None, publish_seconds: float
) -> tuple[bytes | None, float]:
    """A writer ends: what to put in the place of ``entry`` (None: nothing), and its time to live.

    ``publish`` goes in only if this writer's barrier stood, untainted, from its beginning to now. If it was lost (evicted, cache
    restarted) a reader may have filled in what it read before the commit, so that goes too. If it lapsed and another writer's
    stands, that one began after us, but may commit before: it is tainted.
    """
    writers = _writers(entry, now)
    known = writers.pop(writer, None)
    if writers:
        return _barrier(writers, TAINTED), max(writers.values()) - now
    if entry is None or known is None or entry.flags & TAINTED:
        return None, 0.0
    return publish, publish_seconds


# --------------------------------------------------------------------------- verdicts


class Verdict(IntEnum):
    ABSENT = 0  # load it, if the claim can be had
    FRESH = 1  # serve it
    EARLY = 2  # serve it, and reload in the background before everybody has to
    STALE = 3  # serve it, and reload in the background
    CLAIMED = 4  # nothing to serve; somebody is loading
    WRITING = 5  # nothing to serve and nothing may be filled: a write is under way


_NOTHING_TO_SERVE = {int(Kind.BARRIER): Verdict.WRITING, int(Kind.CLAIM): Verdict.CLAIMED}


def is_barrier(raw: bytes | None) -> bool:
    return raw is not None and len(raw) >= HEADER_BYTES and raw[0] == Kind.BARRIER


def judge(entry: Entry | None, tags_now: list[bytes | None], now: float, early_beta: float) -> Verdict:
    """What to do with ``entry``. ``tags_now`` are the current versions of its tags, in order.

    Early refresh is XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015): the
    costlier the load and the nearer the expiry, the likelier.
    """
    if tags_now and any(is_barrier(tag) for tag in tags_now):
        return Verdict.WRITING
    if entry is None:
        return Verdict.ABSENT
    kind = entry.kind
    if kind != Kind.VALUE:
        return _NOTHING_TO_SERVE.get(kind, Verdict.ABSENT)
    if (tags_now or entry.count) and entry.tag_versions != tags_now:
        return Verdict.ABSENT
    if now >= entry.fresh_until:
        return Verdict.STALE
    if early_beta and now - entry.cost_seconds * early_beta * math.log(1.0 - random.random()) >= entry.fresh_until:
        return Verdict.EARLY
    return Verdict.FRESH
