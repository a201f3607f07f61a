"""Records looked for, the newest first, so many bytes at a time: a page may be short and still have a next one."""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cachekeep.audit.record import Recorded, read
from cachekeep.audit.segments import Place, backwards

READ_BYTES_MAX: Final = 4 << 20
"""Of a page: whoever looks for what is not there reads everything, but in many requests."""
KEPT_DAYS: Final = 90
"""LookupEvents answers for the last 90 days."""

Places = tuple[Place | None, ...]
"""Of each directory: what begins before this has not been looked at; None: nothing has."""


class Page(NamedTuple):
    """``more``: where the next page begins; None: there is none."""

    found: Sequence[tuple[Recorded, bytes]]
    more: Places | None


def look(
    directories: Sequence[Path], places: Places, start: dt.datetime, end: dt.datetime, wanted: Callable[[Recorded], bool], most: int
) -> Page:
    """Records with ``start <= time <= end``. Blocks. Raises ``OSError``."""
    found: list[tuple[Recorded, bytes]] = []
    now, left = list(places), READ_BYTES_MAX
    streams = [_of(number, directory, place) for number, (directory, place) in enumerate(zip(directories, places, strict=True))]
    for number, place, record, text in heapq.merge(*streams, key=lambda row: row[2].event_time, reverse=True):
        if record.event_time < start:
            return Page(found, None)
        if len(found) == most or left < 0:
            return Page(found, tuple(now))
        now[number] = place
        left -= len(text)
        if record.event_time <= end and wanted(record):
            found.append((record, text))
    return Page(found, None)


def _of(number: int, directory: Path, place: Place | None) -> Iterator[tuple[int, Place, Recorded, bytes]]:
    for at, text in backwards(directory, place):
        record = read(text)
        if record is not None:
            yield number, at, record, text


class _Token(msgspec.Struct, array_like=True):
    places: list[tuple[int, int] | None]


def token(places: Places) -> str:
    """What stands for the places in an answer."""
    return msgspec.json.encode(_Token([place and (place.segment, place.offset) for place in places])).hex()


def places_of(text: str, count: int) -> Places:
    """Raises ``ValueError`` for what is no token."""
    try:
        read_token = msgspec.json.decode(bytes.fromhex(text), type=_Token)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    if len(read_token.places) != count or any(place and min(place) < 0 for place in read_token.places):
        raise ValueError("other directories")
    return tuple(place and Place(*place) for place in read_token.places)
