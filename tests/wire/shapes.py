"""Values for a botocore shape: one with every member set, and a Hypothesis strategy for many."""

from __future__ import annotations

import datetime as dt
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from hypothesis import strategies as st

DEPTH_MAX = 6
# XML carries no control characters; the wire refuses NUL on the way in.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=12)
TEXT |= st.sampled_from(["", " ", "a&b<c>\"'", "x\r\ny\tz", "a=b&c=%41+%2B", "ünïcödé 🔑", "0", "true", "]]>"])


@cache
def botocore_model(service: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def _usable(shape: Shape, *, empty_lost: bool) -> bool:
    """A structure without members leaves no trace in a form body."""
    return not (empty_lost and shape.type_name == "structure" and not shape.members)


def full(shape: Shape, *, empty_lost: bool = False, depth: int = 0) -> Any:
    """A value with every member set; of a union, its first."""
    match shape.type_name:
        case "structure":
            members = {name: member for name, member in shape.members.items() if _usable(member, empty_lost=empty_lost)}
            if depth > DEPTH_MAX:
                members = {name: m for name, m in members.items() if m.type_name not in ("structure", "list", "map")}
            if shape.is_tagged_union:
                members = dict(list(members.items())[:1])
            return {name: full(member, empty_lost=empty_lost, depth=depth + 1) for name, member in members.items()}
        case "list":
            return [full(shape.member, empty_lost=empty_lost, depth=depth + 1) for _ in range(2)]
        case "map":
            return {"key one": full(shape.value, empty_lost=empty_lost, depth=depth + 1)}
        case "string":
            return f"{shape.name} & <{depth}>"
        case "integer" | "long":
            return 40 + depth
        case "float" | "double":
            return 0.5 + depth
        case "boolean":
            return depth % 2 == 0
        case "timestamp":
            return dt.datetime(2026, 1, 31, 12, 0, depth, tzinfo=dt.UTC)
        case "blob":
            return b"\x00\xff" * depth + b"blob"
    raise AssertionError(shape)


def values(shape: Shape, *, empty_lost: bool, whole_seconds: bool, infinite: bool = True, depth: int = 0) -> st.SearchStrategy[Any]:
    """``empty_lost``: empty structures, maps and lists leave no trace in this direction, so make none.

    ``infinite``: floats may be infinite.
    """

    def below(inner: Shape) -> st.SearchStrategy[Any]:
        return values(inner, empty_lost=empty_lost, whole_seconds=whole_seconds, infinite=infinite, depth=depth + 1)

    minimum = 1 if empty_lost else 0
    match shape.type_name:
        case "structure":
            names = [name for name, member in shape.members.items() if _usable(member, empty_lost=empty_lost)]
            if depth > DEPTH_MAX:
                names = [n for n in names if shape.members[n].type_name not in ("structure", "list", "map")]
            if not names:
                return st.just({})
            low, high = (1, 1) if shape.is_tagged_union else (minimum, 6)
            chosen = st.lists(st.sampled_from(names), unique=True, min_size=low, max_size=high)
            return chosen.flatmap(lambda picked: st.fixed_dictionaries({n: below(shape.members[n]) for n in picked}))
        case "list":
            return st.lists(below(shape.member), min_size=minimum, max_size=3)
        case "map":
            return st.dictionaries(below(shape.key), below(shape.value), min_size=minimum, max_size=3)
        case "integer":
            return st.integers(-(1 << 31), (1 << 31) - 1)
        case "long":
            return st.integers(-(1 << 63), (1 << 63) - 1)
        case "float":
            return st.floats(allow_nan=False, allow_infinity=infinite, width=32)
        case "double":
            return st.floats(allow_nan=False, allow_infinity=infinite)
        case "boolean":
            return st.booleans()
        case "timestamp":
            grain = 1000 if whole_seconds else 1
            moments = st.integers(0, 4_000_000_000_000 // grain).map(lambda n: n * grain)
            start = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
            return moments.map(lambda milliseconds: start + dt.timedelta(milliseconds=milliseconds))
        case "blob":
            return st.binary(max_size=20)
    return TEXT
