"""One grammar for keys: what a name is called on the server, and what a call's arguments are called in a name. Pure, injective.

On the server (`Namespace`)::

    shop:user:7        key `user:7` of namespace `shop`: plain text stands as it is
    shop:#users        tag `users`; a key that begins with # is written otherwise, so no key is a tag
    shop:##            what everything hangs on, for `clear`
    shop:~3f…:user_7   what the servers cannot carry (blanks, control characters, beyond ASCII, long) or what begins with # or ~
    user:7             key `user:7` without a namespace: the server's whole key space, which it shares with everybody

The first colon ends a namespace, so colons in its name are written %3A. Beyond ASCII or long, it is a digest as well. All together
fit in the 250 bytes that Memcached takes.

In a template (`"user:{user_id}"`) texts, whole numbers and UUIDs are what an f-string makes of them, so that
`invalidate(f"user:{user_id}")` means the same. Everything else is *marked*: ~ and a text that tells its type. So is what would be
mistaken for another argument: a text in the place of an argument that is annotated as a number; in an unannotated place, a text
that spells a whole number; before the last place, what holds the character that ends it (`%3A` for a colon).
"""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import fractions
import hashlib
import inspect
import ipaddress
import pathlib
import re
import string
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import msgspec

from cachekeep_patterns.errors import UncacheableArgument
from cachekeep_patterns.fields import fields_of

MAX_BODY_BYTES = 200  # of a key without its namespace
MAX_NAMESPACE_BYTES = 48
_text = msgspec.json.Encoder().encode


def _plain(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isascii() and text.isprintable() and " " not in text and text[0] not in "#~"


def safe(name: str) -> str:
    """``name`` as it stands on the server, without the namespace."""
    if not isinstance(name, str):
        raise TypeError(f"keys and tags are text, not {type(name).__name__}")
    if _plain(name, MAX_BODY_BYTES):
        return name
    return f"~{_digest(name, b'name')}:{''.join(c if c.isascii() and c.isprintable() and c != ' ' else '_' for c in name[:40])}"


def _digest(name: str, purpose: bytes) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=20, person=purpose).hexdigest()


class Namespace:
    """Names on the server of the keys and tags of one cache."""

    __slots__ = ("everything", "prefix")

    def __init__(self, name: str) -> None:
        escaped = name.replace("%", "%25").replace(":", "%3A")
        held = escaped if not name or _plain(escaped, MAX_NAMESPACE_BYTES) else f"~{_digest(name, b'namespace')}"
        self.prefix = f"{held}:" if name else ""
        self.everything = f"{self.prefix}##"

    def key(self, name: str) -> str:
        return self.prefix + safe(name)

    def tag(self, name: str) -> str:
        return f"{self.prefix}#{safe(name)}"

    def tags(self, names: typing.Iterable[str]) -> list[str]:
        """Raises TypeError for one text, which would be read as a tag per letter."""
        if isinstance(names, (str, bytes)):
            raise TypeError(f"tags are a list of texts: tags=[{names!r}]")
        return [self.tag(name) for name in names]


# --------------------------------------------------------------------------- arguments

_QUALIFIED = (decimal.Decimal, fractions.Fraction, complex, pathlib.PurePath, zoneinfo.ZoneInfo, re.Pattern)
_ADDRESSES = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)


def canonical(value: Any) -> str:
    """One text per value and type: 1, 1.0, "1" and True differ, a list and a tuple do, the order of a dict does not matter.

    Raises `UncacheableArgument` for what has no stable text (a repr with an address in it would never hit).
    """
    kind = type(value)
    if kind is int or value is None or kind is bool or kind is float:
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{_name(kind)}.{value.name or canonical(value.value)}"
    if isinstance(value, str):
        try:
            return _text(str(value)).decode()
        except UnicodeEncodeError:  # lone surrogates
            return ascii(str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"bytes({base64.b64encode(bytes(value)).decode()})"
    if isinstance(value, datetime.datetime):
        zone = "" if value.tzinfo is None else f",{canonical_zone(value.tzinfo)}"
        return f"datetime({value.isoformat()}{zone}{',1' if value.fold else ''})"
    if isinstance(value, (datetime.date, datetime.time)):
        return f"{kind.__name__}({value.isoformat()})"
    if isinstance(value, datetime.timedelta):
        return f"timedelta({value.days},{value.seconds},{value.microseconds})"
    if isinstance(value, uuid.UUID):
        return f"UUID({value})"
    if isinstance(value, (*_QUALIFIED, *_ADDRESSES)):
        return f"{kind.__name__}({_text(str(value)).decode()})"
    if kind in (list, tuple):
        left, right = "[]" if kind is list else "()"
        return f"{left}{','.join(map(canonical, value))}{right}"
    if kind in (set, frozenset):
        return f"set{{{','.join(sorted(map(canonical, value)))}}}"
    if isinstance(value, dict):
        named = "" if kind is dict else _name(kind)
        return f"{named}{{{','.join(sorted(f'{canonical(k)}:{canonical(v)}' for k, v in value.items()))}}}"
    if isinstance(value, type) or (isinstance(value, types.FunctionType) and "<" not in value.__qualname__):
        return f"{value.__module__}.{value.__qualname__}"
    fields = fields_of(value)
    if fields is not None:
        return f"{_name(kind)}({','.join(f'{name}={canonical(one)}' for name, one in fields)})"
    raise UncacheableArgument(f"no key can be built from {kind.__name__}: give key= a template or a function, or name it in skip=")


def canonical_zone(zone: datetime.tzinfo) -> str:
    return getattr(zone, "key", None) or str(zone)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# --------------------------------------------------------------------------- calls

_VERBATIM: tuple[type, ...] = (str, int, uuid.UUID, datetime.date)
_WHOLE = re.compile(r"-?\d+", re.ASCII)


class _Place:
    """One field of a template: which value goes there and which of its texts stand as they are."""

    def __init__(self, path: list[str], annotation: Any, end: str) -> None:
        self.argument, self.attributes, self.end = path[0], path[1:], end
        self.only = annotation if annotation in _VERBATIM and not self.attributes else None

    def text(self, value: Any) -> str:
        for name in self.attributes:
            value = getattr(value, name)
        kind = type(value)
        if kind is self.only or (self.only is None and (kind is str or kind is int or kind is uuid.UUID)):
            text = str(value)
            as_it_is = kind is not str or self.only is str or not _WHOLE.fullmatch(text)
            if as_it_is and text[:1] != "~" and (not self.end or self.end not in text):
                return text
        marked = canonical(value)
        if self.end:
            marked = marked.replace("%", "%25").replace(self.end, f"%{ord(self.end):02X}")
        return f"~{marked}"


class KeyBuilder:
    """The key of a call. ``template`` names arguments and their attributes (`"user:{user_id}"`, `"{self.id}:{page}"`) or is a
    function of them; without one, the function's qualified name and every argument count, so `f(1, b=2)` and `f(a=1, b=2)` share.

    ``skip`` names arguments that do not change the result (a session, a logger; `self` must be skipped or have a text).
    """

    def __init__(
        self, function: Callable[..., Any], template: str | Callable[..., str] | None = None, skip: tuple[str, ...] = ()
    ) -> None:
        if isinstance(skip, str):
            raise TypeError(f"skip is a tuple of argument names: skip=({skip!r},)")
        self._signature = inspect.signature(function)
        self._names = [p.name for p in self._signature.parameters.values()]
        self._plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in self._signature.parameters.values())
        self._skip = frozenset(skip)
        unknown = self._skip - set(self._names)
        if unknown:
            raise ValueError(f"{function.__qualname__} has no argument {', '.join(sorted(unknown))}")
        if template is None and "<lambda>" in function.__qualname__:
            raise ValueError("all lambdas have the same name: give key= a template or a function")
        self.prefix = f"{function.__module__}.{function.__qualname__}".replace(".<locals>", "")
        self._function = template if callable(template) else None
        self._parts = self._split(function, template) if isinstance(template, str) else None

    def _split(self, function: Callable[..., Any], template: str) -> list[tuple[str, _Place | None]]:
        given = list(string.Formatter().parse(template))
        last = max((at for at, (_, field, _, _) in enumerate(given) if field is not None), default=-1)
        parts: list[tuple[str, _Place | None]] = []
        for at, (literal, field, spec, conversion) in enumerate(given):
            place = None
            if field is not None:
                path = field.split(".")
                if path[0] not in self._names or spec or conversion or not all(part.isidentifier() for part in path):
                    raise ValueError(f"key template {template!r} names {field!r}, which is not an argument or an attribute of one")
                end = "" if at == last else given[at + 1][0][:1]
                if at != last and (not end or end.isalnum() or end in "%~"):
                    raise ValueError(f"key template {template!r}: put a sign such as : between {{{field}}} and what follows")
                place = _Place(path, _annotation(function, path[0]), end)
            parts.append((literal, place))
        return parts

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs and self._plain and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if self._function is not None:
            made = self._function(*args, **kwargs)
            if not isinstance(made, str):
                raise TypeError(f"the function given as key= answered {type(made).__name__}, keys are text")
            return made
        values = self.bind(args, kwargs)
        if self._parts is not None:
            return "".join(t if place is None else t + place.text(values[place.argument]) for t, place in self._parts)
        return f"{self.prefix}({','.join(canonical(v) for n, v in values.items() if n not in self._skip)})"


def _annotation(function: Callable[..., Any], argument: str) -> Any:
    """The class that an argument is annotated with, None apart; None where that cannot be told."""
    try:
        hint = typing.get_type_hints(function).get(argument)
    except Exception:  # a name that is there for type checkers only
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [one for one in typing.get_args(hint) if one is not type(None)]
        return others[0] if len(others) == 1 else None
    return hint
