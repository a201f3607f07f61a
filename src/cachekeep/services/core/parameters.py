"""What each parameter of an operation does. Declared once beside the handlers, enforced before any handler runs, and printed in
docs/reference/parameters.md: whatever is not declared is refused, so that nothing is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from cachekeep.services.core.context import Params, combination_error, unsupported, value_error
from cachekeep.wire.model import Shape


class Effect(msgspec.Struct, frozen=True):
    """It does something, in a few words."""

    does: str


class Moot(msgspec.Struct, frozen=True):
    """It chooses among, or adds to, what there is none of here: every value gets the same true answer."""

    why: str


class NotYet(msgspec.Struct, frozen=True):
    """It has no effect: who asks for one is refused."""

    what: str
    off: tuple[bool | int | str, ...] = ()
    """The values that ask for nothing, as clients such as Terraform always send them."""

    def check(self, name: str, value: Any) -> None:
        """Raises ApiError InvalidParameterCombination."""
        if value not in self.off:
            raise unsupported(f"{self.what} ({name})")


class Never(msgspec.Struct, frozen=True):
    """AWS itself refuses it, with these words (``InvalidParameterValue``)."""

    words: str


Declared = Mapping[str, Effect | Moot | NotYet | Never]
"""By a parameter's path, such as ``Tags.Key``; where one operation means something else by it, by ``CreateUser:Engine``."""


def of(declared: Declared, operation: str, path: str) -> Effect | Moot | NotYet | Never | None:
    """What is declared of a parameter."""
    return declared.get(f"{operation}:{path}") or declared.get(path)


def check(declared: Declared, operation: str, params: Params, above: str = "") -> None:
    """Let pass what has an effect or asks for none. Raises ApiError InvalidParameterCombination or InvalidParameterValue."""
    for name, value in params.items():
        path = above + name
        match of(declared, operation, path):
            case None:
                raise combination_error(f"The parameter {path} is not supported by this version of Cachekeep; nothing was changed.")
            case NotYet() as not_yet:
                not_yet.check(path, value)
            case Never(words):
                raise value_error(words)
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, Mapping) and _has_members(declared, operation, path):
                check(declared, operation, below, f"{path}.")


def _has_members(declared: Declared, operation: str, path: str) -> bool:
    """Whether it is a structure: the keys of a map are the user's own."""
    inside = f"{path}.", f"{operation}:{path}."
    return any(each.startswith(inside) for each in declared)


def listed(declared: Declared, operation: str, shape: Shape | None, above: str = "") -> Iterator[tuple[str, Shape, bool]]:
    """Every parameter of an operation by the model: path, shape, and whether it is required. What is within one that is refused
    whole is not listed."""
    for name, member in shape.members.items() if shape else ():
        path = above + name
        yield path, member.shape, name in (shape.required if shape else ())
        inner = member.shape.item.shape if member.shape.type == "list" else member.shape
        if inner.type == "structure" and not isinstance(of(declared, operation, path), NotYet | Never):
            yield from listed(declared, operation, inner, f"{path}.")
