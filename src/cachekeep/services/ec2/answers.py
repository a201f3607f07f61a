"""How EC2 answers: rows picked by id and by filter, page by page; and the dry run that every operation has."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, Params
from cachekeep.services.core.operation import Handler
from cachekeep.services.core.paging import PageRule
from cachekeep.services.core.parameters import Effect
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

Shape = dict[str, Any]
MEANT: Final = Effect("those that are meant")
PAGES: Final = PageRule("NextToken", "MaxResults", 5, 1000, 1000)


class Picked(msgspec.Struct, frozen=True):
    """How the rows of one Describe may be picked."""

    result: str
    picks: Mapping[str, tuple[str, str]]
    """Parameter → (member that it picks by, error code for one that does not exist)."""
    filters: Mapping[str, str]
    """Filter's name → where its values are in a row: ``IpPermissions.IpRanges.CidrIp``."""
    pages: PageRule = PAGES
    unknown: str = "{} does not exist"
    """What is said of one that does not exist."""
    tagged: bool = False
    """Whether rows have ``Tags`` to be picked by."""


def listed(picked: Picked, rows: Sequence[Shape], params: Params) -> Mapping[str, Any]:
    """A page of those that a request picks. Raises ApiError."""
    for parameter, (member, code) in picked.picks.items():
        if asked := params.get(parameter):
            known = {row[member] for row in rows}
            if unknown := [name for name in asked if name not in known]:
                raise ApiError(code, picked.unknown.format(", ".join(unknown)))
            rows = [row for row in rows if row[member] in asked]
    for each in params.get("Filters", ()):
        name = each.get("Name", "")
        if name not in picked.filters and not (picked.tagged and (name == "tag-key" or name.startswith("tag:"))):
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
        values = each.get("Values", ())
        rows = [row for row in rows if any(fnmatchcase(text, value) for text in _told(picked, row, name) for value in values)]
    numbered = [(f"{index:06}", row) for index, row in enumerate(rows)]
    return paging.page(numbered, params, lambda each: each[0], lambda each: each[1], picked.result, picked.pages)


def _told(picked: Picked, row: Shape, name: str) -> list[str]:
    """What a row says where a filter looks."""
    if name in picked.filters:
        return [_text(value) for value in _inside(row, picked.filters[name].split("."))]
    if name == "tag-key":
        return [tag["Key"] for tag in row["Tags"]]
    return [tag["Value"] for tag in row["Tags"] if tag["Key"] == name.removeprefix("tag:")]


def _inside(value: Any, path: Sequence[str]) -> Iterable[Any]:
    if isinstance(value, list):
        return [found for each in value for found in _inside(each, path)]
    if not path:
        return [value]
    return _inside(value[path[0]], path[1:]) if path[0] in value else []


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def dry(handler: Handler) -> Handler:
    """The operation, or with ``DryRun`` no more than the word that it would be done, by whoever gets so far."""

    @functools.wraps(handler)
    async def answer(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        if call.params.get("DryRun"):
            raise ApiError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", status=412)
        return await handler(call, tx, context)

    return answer
