"""Rows of the tables as our values, and our values as rows."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from cachekeep.errors import Conflict
from cachekeep.model import Cache, Condition, Decided, Wanted
from cachekeep.store import tables as t
from cachekeep.store.families.resources import R

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

_decode_wanted = msgspec.json.Decoder(Wanted).decode
_decode_decided = msgspec.json.Decoder(Decided).decode
condition_of = msgspec.json.Decoder(Condition).decode
"""From its text."""

ROW = sa.select(
    t.caches.c.uid,
    t.caches.c.name,
    t.caches.c.kind,
    t.caches.c.region,
    t.caches.c.created_at,
    t.caches.c.wanted,
    t.caches.c.decided,
    t.caches.c.version,
)
"""What ``cache_of`` reads."""


def cache_of(row: Any) -> Cache:
    uid, name, kind, region, created_at, wanted, decided, version = row
    return Cache(
        uid=uid,
        name=name,
        kind=kind,
        region=region,
        created_at=time_of(created_at),
        wanted=_decode_wanted(wanted),
        decided=_decode_decided(decided),
        version=version,
    )


def text_of(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def resource_of(kind: type[R], version: int, body: str) -> R:
    return versioned(msgspec.json.decode(body, type=kind), version)


def versioned(resource: R, version: int) -> R:
    return cast(R, msgspec.structs.replace(cast(msgspec.Struct, resource), version=version))


def micros_of(at: dt.datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def time_of(micros: int) -> dt.datetime:
    return _EPOCH + micros * _MICROSECOND


def stale(cache: Cache) -> Conflict:
    return Conflict(f"cache {cache.name} ({cache.uid}) was changed by somebody else since version {cache.version}, or is gone")
