"""Plain data as bytes and back, exactly: what comes out equals what went in and is of its types, or it is refused. No pickle.

MessagePack with extensions. Injective, so the bytes do for a key as well.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from cachekeep_patterns.errors import Uncodable

_SAME = frozenset({str, bytes, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Extension:
    """How values of exactly ``kind`` are stored: ``code`` is theirs for ever, ``pack`` makes something simpler of one."""

    code: int
    kind: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def _datetime(value: dt.datetime) -> Any:
    """Text where that says everything, else [local text, name of the zone, fold]."""
    zone = value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        return value.isoformat() if not value.fold else [value.isoformat(), "", 1]
    if not isinstance(zone, ZoneInfo) or zone.key is None:
        raise TypeError(f"a time zone of type {type(zone).__qualname__} cannot be stored")
    return [value.replace(tzinfo=None).isoformat(), zone.key, value.fold]


def _to_datetime(packed: Any) -> dt.datetime:
    if isinstance(packed, str):
        return dt.datetime.fromisoformat(packed)
    text, zone, fold = packed
    value = dt.datetime.fromisoformat(text).replace(fold=fold)
    return value.replace(tzinfo=ZoneInfo(zone)) if zone else value


def _time(value: dt.time) -> str:
    if value.fold or (value.tzinfo is not None and type(value.tzinfo) is not dt.timezone):
        raise TypeError("a time of day in a named zone cannot be stored")
    return value.isoformat()


PLAIN = (
    Extension(0, tuple, list, tuple),
    Extension(1, set, list, set),
    Extension(2, frozenset, list, frozenset),
    Extension(3, int, str, int),  # beyond 64 bits
    Extension(4, dt.datetime, _datetime, _to_datetime),
    Extension(5, dt.date, dt.date.isoformat, dt.date.fromisoformat),
    Extension(6, dt.time, _time, dt.time.fromisoformat),
    Extension(7, dt.timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda p: dt.timedelta(*p)),
    Extension(8, decimal.Decimal, str, decimal.Decimal),
    Extension(9, uuid.UUID, lambda value: value.bytes, lambda raw: uuid.UUID(bytes=raw)),
)


class Exact:
    """A `Codec`. ``more`` are extensions of your own (codes from 32 on; those below are the library's)."""

    def __init__(self, *more: Extension) -> None:
        every = (*PLAIN, *more)
        self._by_kind = {one.kind: one for one in every}
        self._by_code = {one.code: one for one in every}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ext_hook=self._revive).decode

    def encode(self, value: Any, key: str) -> bytes:
        try:
            return self._encode(self._plain(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise Uncodable(f"{type(value).__name__} cannot be stored: {error}") from error

    def decode(self, data: bytes, key: str) -> Any:
        try:
            return self._decode(data)
        except Exception as error:  # whatever an `unpack` makes of damaged bytes
            raise Uncodable(f"stored bytes do not decode: {error}") from error

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SAME or (kind is int and -(2**63) <= value < 2**64):
            return value
        if kind is list:
            return [self._plain(one) for one in value]
        if kind is dict:
            return {self._key(key): self._plain(one) for key, one in value.items()}
        found = self._by_kind.get(kind)
        if found is None:
            raise TypeError(f"a cached value cannot hold a {kind.__module__}.{kind.__qualname__}: store plain data")
        return self._extended(found, value)

    def _extended(self, extension: Extension, value: Any) -> msgspec.msgpack.Ext:
        return msgspec.msgpack.Ext(extension.code, self._encode(self._plain(extension.pack(value))))

    @staticmethod
    def _key(key: Any) -> Any:
        if type(key) in _SAME or (type(key) is int and -(2**63) <= key < 2**64):
            return key
        raise TypeError(f"a cached dict's key cannot be a {type(key).__qualname__}")

    def _revive(self, code: int, packed: memoryview) -> Any:
        return self._by_code[code].unpack(self._decode(packed))
