"""Single values between text and Python. Every ``parse_*`` raises Malformed."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from cachekeep.wire.faults import Malformed

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_LENGTH_MAX: Final = 400
"""Characters of a number or a time: a double without an exponent has 309 digits before its point."""
_A_TIME: Final = "a timestamp such as 2026-01-31T12:00:00Z"
_NAMED_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_WIDTHS: Final = {"integer": 31, "long": 63}


def check_integer(value: int, type_name: str) -> int:
    """``value`` if it fits ``integer`` (32 bits) or ``long`` (64 bits)."""
    bound = 1 << _WIDTHS[type_name]
    if not -bound <= value < bound:
        raise Malformed(f"a {_WIDTHS[type_name] + 1}-bit integer")
    return value


def check_text(text: str) -> str:
    """``text`` if it can be stored and written back: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        raise Malformed("text without NUL characters")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise Malformed("Unicode text")
    return text


def parse_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise Malformed("an integer")
    return check_integer(int(text), "integer")


def parse_long(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise Malformed("an integer")
    return check_integer(int(text), "long")


def parse_float(text: str) -> float:
    if text in _NAMED_FLOATS:
        return _NAMED_FLOATS[text]
    if len(text) > _LENGTH_MAX or not _DECIMAL.fullmatch(text):
        raise Malformed("a number")
    return float(text)


def parse_boolean(text: str) -> bool:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
    raise Malformed("true or false")


def parse_blob(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("base64") from None


def parse_timestamp(text: str) -> dt.datetime:
    """ISO 8601, seconds since 1970, or RFC 822; UTC where no zone is said."""
    if len(text) > _LENGTH_MAX:
        raise Malformed(_A_TIME)
    if _DECIMAL.fullmatch(text):
        return from_epoch_seconds(float(text))
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            raise Malformed(_A_TIME) from None
    try:
        return when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)
    except OverflowError:
        raise Malformed("a timestamp between the years 1 and 9999") from None


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def from_epoch_seconds(seconds: float) -> dt.datetime:
    """UTC time of a Unix timestamp, to the millisecond (Smithy's precision)."""
    try:
        return _EPOCH + dt.timedelta(milliseconds=round(seconds * 1000))
    except (OverflowError, ValueError):
        raise Malformed("a timestamp between the years 1 and 9999") from None


def iso8601(when: dt.datetime) -> str:
    """``2026-01-31T12:00:00.000Z``, as ElastiCache writes it. A time without a zone is taken as UTC."""
    if when.tzinfo is not None and when.tzinfo is not dt.UTC:
        when = when.astimezone(dt.UTC)
    return f"{when.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def epoch_seconds(when: dt.datetime) -> float:
    """Seconds since 1970, to the millisecond."""
    return round((when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp(), 3)


def float_text(value: float) -> str:
    return repr(value) if math.isfinite(value) else named_float(value)


def named_float(value: float) -> str:
    """NaN and the infinities as Smithy spells them."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


FROM_TEXT: Final[Mapping[str, Callable[[str], Any]]] = {
    "string": check_text,
    "integer": parse_integer,
    "long": parse_long,
    "float": parse_float,
    "double": parse_float,
    "boolean": parse_boolean,
    "timestamp": parse_timestamp,
    "blob": parse_blob,
}
