"""What objects of classes with declared fields consist of: dataclasses, msgspec's, attrs', pydantic's, named tuples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec


def fields_of(value: Any) -> list[tuple[str, Any]] | None:
    """What an object of a class with declared fields consists of; None for any other."""
    kind = type(value)
    if dataclasses.is_dataclass(value):
        names: Iterable[str] = [field.name for field in dataclasses.fields(value)]
    elif isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    elif hasattr(kind, "model_fields"):
        return list(value)  # pydantic's: what was allowed beyond the fields, too
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        names = kind._fields
    else:
        return None
    return [(name, getattr(value, name)) for name in names]
