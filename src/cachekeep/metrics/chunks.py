"""How points lie on the disk: those of one series and one stretch of time as one blob. Pure.

Most series stand still or move by small whole numbers, so numbers are kept as differences of whole numbers (of tenths, hundredths …
where all of them are such), then deflated. What comes out is what went in, to the last bit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from cachekeep.metrics.datum import Datum

Slots = Mapping[int, Datum]
"""Slot in the chunk → what is in it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[int], list[float], list[tuple[int, Datum]]]).decode
_SINGLE, _SETS, _VALUES = 0, 1, 2
_RAW: Final = 15
_DIGITS_MAX: Final = 6
_WHOLE_MAX: Final = 1 << 53


def pack_minute(told: Mapping[int, Datum]) -> bytes:
    """What one teller told in one minute, by series; kept so for an hour."""
    plain = {id: datum.total for id, datum in told.items() if _form([datum]) == _SINGLE}
    rest = {id: datum for id, datum in told.items() if id not in plain}
    return zlib.compress(_encode((list(plain), list(plain.values()), list(rest.items()))), 1)


def unpack_minute(blob: bytes) -> dict[int, Datum]:
    """What was packed. Raises ValueError where it is damaged."""
    try:
        ids, totals, rest = _decode(zlib.decompress(blob))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"a stored minute of metrics is damaged: {error}") from None
    return {id: Datum(1.0, total, total, total) for id, total in zip(ids, totals, strict=True)} | dict(rest)


def pack(slots: Slots) -> bytes:
    """A blob of at least one datum."""
    places = sorted(slots)
    data = [slots[place] for place in places]
    out = bytearray()
    form = _form(data)
    out.append(form)
    _numbers(out, [float(place) for place in places])
    _numbers(out, [d.total for d in data])
    if form != _SINGLE:
        for column in ([d.count for d in data], [d.low for d in data], [d.high for d in data]):
            _numbers(out, column)
    if form == _VALUES:
        _numbers(out, [float(len(d.values)) for d in data])
        pairs = [pair for d in data for pair in d.values]
        _numbers(out, [value for value, _ in pairs])
        _numbers(out, [count for _, count in pairs])
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflate.compress(bytes(out)) + deflate.flush()


def unpack(blob: bytes) -> dict[int, Datum]:
    """What was packed. Raises ValueError where it is damaged."""
    try:
        return _unpacked(zlib.decompress(blob, -15))
    except (zlib.error, struct.error, IndexError) as error:
        raise ValueError(f"a stored stretch of a metric is damaged: {error}") from None


def _unpacked(text: bytes) -> dict[int, Datum]:
    form, at = text[0], 1
    places, at = _read(text, at)
    totals, at = _read(text, at)
    if form == _SINGLE:
        known = {total: Datum(1.0, total, total, total) for total in set(totals)}
        return {int(place): known[total] for place, total in zip(places, totals, strict=True)}
    counts, at = _read(text, at)
    lows, at = _read(text, at)
    highs, at = _read(text, at)
    kept: Iterator[tuple[tuple[float, float], ...]] = iter([()] * len(places))
    if form == _VALUES:
        lengths, at = _read(text, at)
        values, at = _read(text, at)
        times, at = _read(text, at)
        pairs = list(zip(values, times, strict=True))
        ends = [int(sum(lengths[: i + 1])) for i in range(len(lengths))]
        kept = iter([tuple(pairs[end - int(length) : end]) for end, length in zip(ends, lengths, strict=True)])
    columns = zip(places, counts, totals, lows, highs, kept, strict=True)
    return {int(place): Datum(count, total, low, high, values) for place, count, total, low, high, values in columns}


def _form(data: Sequence[Datum]) -> int:
    if any(d.values for d in data):
        return _VALUES
    return _SINGLE if all(d.count == 1 and d.low == d.high == d.total for d in data) else _SETS


def _numbers(out: bytearray, column: Sequence[float]) -> None:
    """How many, how they are kept, then they."""
    _varint(out, len(column))
    for digits in range(_DIGITS_MAX + 1):
        scale = 10**digits
        whole = [round(number * scale) if abs(number) < _WHOLE_MAX / scale else None for number in column]
        if all(w is not None and w / scale == number for w, number in zip(whole, column, strict=True)):
            out.append(digits)
            before = 0
            for w in whole:
                assert w is not None
                step = w - before
                _varint(out, step << 1 if step >= 0 else (-step << 1) - 1)
                before = w
            return
        if None in whole:
            break
    out.append(_RAW)
    out += struct.pack(f"<{len(column)}d", *column)


def _read(text: bytes, at: int) -> tuple[list[float], int]:
    length, at = _read_varint(text, at)
    kind, at = text[at], at + 1
    if kind == _RAW:
        return list(struct.unpack_from(f"<{length}d", text, at)), at + 8 * length
    scale, before, column = 10**kind, 0, []
    for _ in range(length):
        code = text[at]  # most steps are of one byte
        if code < 0x80:
            at += 1
        else:
            code, at = _read_varint(text, at)
        if code:
            before += code >> 1 if not code & 1 else -((code + 1) >> 1)
        column.append(before / scale)
    return column, at


def _varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _read_varint(text: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = text[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
