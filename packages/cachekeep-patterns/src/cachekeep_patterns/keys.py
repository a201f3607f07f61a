"""Cache keys from call arguments. Pure."""

from __future__ import annotations

import hashlib
import inspect
import string
from collections.abc import Callable
from typing import Any

import msgspec

from cachekeep_patterns.errors import UncacheableArgument

MAX_KEY_BYTES = 200  # Memcached takes 250, namespace included
_encode = msgspec.json.Encoder(order="deterministic").encode


def safe(key: str) -> str:
    """``key``, or its digest if it is long or holds what Memcached's text protocol cannot carry (spaces, control characters)."""
    if len(key) <= MAX_KEY_BYTES and key.isascii() and key.isprintable() and " " not in key:
        return key
    return f"{_clean(key[:40])}~{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"


def _clean(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() and c != " " else "_" for c in text)


def canonical(value: Any) -> str:
    """One text per value: 1, "1" and True differ, dict order does not matter.

    Raises `UncacheableArgument` for objects without a stable form (a repr with an address in it would never hit).
    """
    if type(value) is str:
        return value if value.isidentifier() and value not in ("true", "false", "null") else _encode(value).decode()
    if type(value) is int:
        return str(value)
    try:
        return _encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise UncacheableArgument(f"no key can be built from {type(value).__name__}: {error}") from error


class KeyBuilder:
    """The key of a call. ``template`` names arguments (`"user:{user_id}"`) or is a function of them; without one, the function's
    qualified name and every argument count, so `f(1, b=2)` and `f(a=1, b=2)` share a key.

    ``skip`` names arguments that do not change the result (a session, a logger; `self` must be skipped or be encodable).
    """

    def __init__(
        self, function: Callable[..., Any], template: str | Callable[..., str] | None = None, skip: tuple[str, ...] = ()
    ) -> None:
        self._signature = inspect.signature(function)
        self._names = [p.name for p in self._signature.parameters.values()]
        self._plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in self._signature.parameters.values())
        self._skip = frozenset(skip)
        unknown = self._skip - set(self._names)
        if unknown:
            raise ValueError(f"{function.__qualname__} has no argument {', '.join(sorted(unknown))}")
        self._prefix = f"{function.__module__}.{function.__qualname__}".replace(".<locals>", "")
        self._function = template if callable(template) else None
        self._parts = self._split(template) if isinstance(template, str) else None

    def _split(self, template: str) -> list[tuple[str, str | None]]:
        parts = []
        for literal, field, spec, conversion in string.Formatter().parse(template):
            if field is not None and (field not in self._names or spec or conversion):
                raise ValueError(f"key template {template!r} names {field!r}, which is not an argument")
            parts.append((literal, field))
        return parts

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs and self._plain and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if self._function is not None:
            return safe(self._function(*args, **kwargs))
        values = self.bind(args, kwargs)
        if self._parts is not None:
            return safe("".join(t if name is None else t + canonical(values[name]) for t, name in self._parts))
        return safe(":".join([self._prefix, *(canonical(v) for n, v in values.items() if n not in self._skip)]))
