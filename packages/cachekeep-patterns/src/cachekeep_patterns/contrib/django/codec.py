"""Values of Django's cache as bytes, without pickle, and exactly: what comes out equals what went in, or it is refused.

Integers are stored as decimal text, so the server can increment them. Everything else is MessagePack; tuples, sets,
dates, Decimal, UUID, SafeString and rendered responses are extensions of it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.safestring import SafeString

_PACKED = b"\x01"
_SAME = frozenset({str, bytes, float, bool, type(None)})


def _response_parts(response: HttpResponse) -> list[Any]:
    return [
        response.status_code,
        response.reason_phrase,
        [[name, value] for name, value in response.headers.items()],
        [morsel.OutputString() for morsel in response.cookies.values()],
        response.content,
    ]


def _response(parts: list[Any]) -> HttpResponse:
    status, reason, headers, cookies, content = parts
    response = HttpResponse(content, status=status, reason=reason, headers=dict(headers))
    for cookie in cookies:
        response.cookies.load(cookie)
    return response


_EXTENSIONS: tuple[tuple[type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (tuple, lambda value: [_plain(one) for one in value], tuple),
    (set, lambda value: [_plain(one) for one in value], set),
    (frozenset, lambda value: [_plain(one) for one in value], frozenset),
    (int, str, int),
    (dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),
    (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    (dt.time, dt.time.isoformat, dt.time.fromisoformat),
    (dt.timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda p: dt.timedelta(*p)),
    (decimal.Decimal, str, decimal.Decimal),
    (uuid.UUID, lambda value: value.bytes, lambda raw: uuid.UUID(bytes=raw)),
    (SafeString, lambda value: str(value) + "", SafeString),
    (HttpResponse, _response_parts, _response),
)
_CODES = {kind: (code, pack) for code, (kind, pack, _) in enumerate(_EXTENSIONS)}


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _SAME or (kind is int and -(2**63) <= value < 2**64):
        return value
    if kind is list:
        return [_plain(one) for one in value]
    if kind is dict:
        return {_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, HttpResponseBase) and not value.streaming:
        kind = HttpResponse
    if kind not in _CODES:
        raise TypeError(f"a cached value cannot hold a {kind.__module__}.{kind.__qualname__}: store plain data")
    code, pack = _CODES[kind]
    return msgspec.msgpack.Ext(code, _encoder.encode(pack(value)))


def _key(key: Any) -> Any:
    if type(key) in _SAME or type(key) is int:
        return key
    raise TypeError(f"a cached dict's key cannot be a {type(key).__qualname__}")


def _revive(code: int, packed: memoryview) -> Any:
    return _EXTENSIONS[code][2](_decoder.decode(packed))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_revive)


def encode(value: Any) -> bytes:
    """Raises TypeError for what is not plain data."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return b"%d" % value
    return _PACKED + _encoder.encode(_plain(value))


def decode(stored: bytes) -> Any:
    """Raises ValueError for bytes that this module did not write."""
    return _decoder.decode(stored[1:]) if stored[:1] == _PACKED else int(stored)
