"""Pages: ``Marker`` and ``MaxRecords`` (or ``NextToken`` and ``MaxResults``), one rule for every list of the API.

A marker is the last key that was given, wrapped so that nobody is tempted to read it. Keys are unique and sorted: a page follows on
whatever was added or removed meanwhile, and the last page has no marker.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from cachekeep.services.core.context import Params, value_error

T = TypeVar("T")
_PREFIX: Final = b"cachekeep:"


class PageRule(msgspec.Struct, frozen=True):
    """The names and bounds of an operation's paging; the default is ElastiCache's usual one."""

    marker: str = "Marker"
    size: str = "MaxRecords"
    least: int = 20
    most: int = 100
    default: int = 100


USUAL: Final = PageRule()


def wrap(key: str) -> str:
    """The marker that stands for a key."""
    return base64.urlsafe_b64encode(_PREFIX + key.encode()).decode().rstrip("=")


def start(params: Params, rule: PageRule = USUAL) -> tuple[str | None, int]:
    """The key after which the page begins, and its size. Raises ApiError InvalidParameterValue."""
    size = params.get(rule.size, rule.default)
    if not rule.least <= size <= rule.most:
        raise value_error(f"Invalid value {size} for {rule.size}: it must be between {rule.least} and {rule.most}.")
    marker = params.get(rule.marker)
    if not marker:
        return None, size
    try:
        text = base64.b64decode(marker + "=" * (-len(marker) % 4), altchars=b"-_", validate=True)
        if not text.startswith(_PREFIX):
            raise ValueError
        return text.removeprefix(_PREFIX).decode(), size
    except (ValueError, binascii.Error):
        raise value_error(f"The {rule.marker} is not one that this endpoint has given.") from None


def finish(rows: Sequence[T], size: int, key: Callable[[T], str], rule: PageRule = USUAL) -> tuple[Sequence[T], dict[str, str]]:
    """The page and its marker, if any, from up to ``size`` + 1 rows that were fetched."""
    if len(rows) <= size:
        return rows, {}
    return rows[:size], {rule.marker: wrap(key(rows[size - 1]))}


def page(
    rows: Iterable[T], params: Params, key: Callable[[T], str], shape: Callable[[T], Any], name: str, rule: PageRule = USUAL
) -> Mapping[str, Any]:
    """A whole answer from rows that are all at hand, in the order of their keys."""
    after, size = start(params, rule)
    rest = sorted((row for row in rows if after is None or key(row) > after), key=key)
    shown, marker = finish(rest, size, key, rule)
    return {name: [shape(row) for row in shown], **marker}
