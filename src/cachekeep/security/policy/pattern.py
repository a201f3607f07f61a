"""Texts with wildcards and variables: what stands in actions, resources and conditions.

``*`` stands for any characters, ``?`` for one, ``${aws:username}`` for the value of a key of the request, ``${aws:username, 'x'}``
for ``x`` where it has none, and ``${*}``, ``${?}``, ``${$}`` for these characters themselves [IAM User Guide, "IAM policy elements:
Variables and tags"]. What a variable brings along is taken literally: a user cannot be named ``*`` to be let in everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

import msgspec

from cachekeep.security.policy.keys import has_many, kind_of

Values = Mapping[str, Sequence[str]]
"""The keys of a request, in lower case, and what each has."""


class Variable(msgspec.Struct, frozen=True):
    """``${key, 'default'}``."""

    key: str
    default: str | None = None


class Wild(msgspec.Struct, frozen=True):
    """``*`` or ``?``."""

    char: Literal["*", "?"]


ANY: Final = Wild("*")
Part = str | Variable | Wild
Pattern = tuple[Part, ...]
_TOKEN: Final = re.compile(r"\$\{([^}]*)\}|([*?])")
_VARIABLE: Final = re.compile(r"([^,\s']+)(?:\s*,\s*'([^']*)')?")


class BadVariable(Exception):
    """``${…}`` that means nothing."""


def read(text: str, *, variables: bool, wildcards: bool = True) -> Pattern:
    """Take a text apart. Without ``variables`` (policies of 2008) a ``$`` is just one. Raises ``BadVariable``."""
    parts: list[Part] = []
    end = 0
    for token in _TOKEN.finditer(text):
        if (token[2] and not wildcards) or (token[1] is not None and not variables):
            continue
        parts.append(text[end : token.start()])
        if token[2]:
            parts.append(ANY if token[2] == "*" else Wild("?"))
        else:
            parts.append(_variable(token[1]))
        end = token.end()
    return _joined([*parts, text[end:]])


def _variable(inside: str) -> Part:
    if inside in ("*", "?", "$"):
        return inside
    name = _VARIABLE.fullmatch(inside.strip())
    if name is None or kind_of(name[1]) is None:
        raise BadVariable(f"${{{inside}}}")
    return Variable(name[1].lower(), name[2])


def _joined(parts: Sequence[Part]) -> Pattern:
    """The same with literal neighbours in one piece, and no empty ones."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def split(pattern: Pattern, limit: int) -> list[Pattern]:
    """Parts between literal colons, the last with what is left over: the colon in a variable's name is none."""
    rows: list[list[Part]] = [[]]
    for part in pattern:
        if not isinstance(part, str):
            rows[-1].append(part)
            continue
        first, *others = part.split(":", limit - len(rows))
        rows[-1].append(first)
        rows.extend([other] for other in others)
    return [_joined(row) for row in rows]


def resolve(pattern: Pattern, values: Values) -> Pattern | None:
    """With variables replaced; None where one has no value, or several: then it matches nothing."""
    if not any(isinstance(part, Variable) for part in pattern):
        return pattern
    parts: list[Part] = []
    for part in pattern:
        if isinstance(part, Variable):
            found = values.get(part.key, ())
            if len(found) == 1 and not has_many(part.key):
                parts.append(found[0])
            elif not found and part.default is not None:
                parts.append(part.default)
            else:
                return None
        else:
            parts.append(part)
    return _joined(parts)


def matches(pattern: Pattern, text: str, values: Values, fold: Callable[[str], str] = str) -> bool:
    """Whether the whole text is what the pattern says. ``fold`` makes differences of case go away."""
    resolved = resolve(pattern, values)
    return resolved is not None and _glob(resolved, fold)(fold(text))


@lru_cache(maxsize=16384)
def _glob(pattern: Pattern, fold: Callable[[str], str]) -> Callable[[str], bool]:
    """What compares. Time grows with pattern times text at the most: no pattern makes it search long."""
    pieces: list[list[str | None]] = [[]]
    for part in pattern:
        if part == ANY:
            pieces.append([])
        else:
            pieces[-1] += fold(part) if isinstance(part, str) else [None]
    head, *others = [_piece(piece) for piece in pieces]
    if not others:
        return lambda text: len(text) == head.size and head.at(text, 0)
    *middle, tail = others
    least = head.size + sum(piece.size for piece in others)

    def compare(text: str) -> bool:
        last = len(text) - tail.size
        if len(text) < least or not head.at(text, 0) or not tail.at(text, last):
            return False
        at = head.size
        for piece in middle:
            at = piece.find(text, at, last)
            if at < 0:
                return False
            at += piece.size
        return True

    return compare


class _Piece(msgspec.Struct, frozen=True):
    """What stands between two ``*``: some characters, of which some may be any."""

    size: int
    literals: tuple[tuple[int, str], ...]

    def at(self, text: str, start: int) -> bool:
        return all(text.startswith(literal, start + offset) for offset, literal in self.literals)

    def find(self, text: str, start: int, stop: int) -> int:
        """The first place from ``start`` on at which it fits before ``stop``; -1 for none."""
        if len(self.literals) == 1 and len(self.literals[0][1]) == self.size:
            return text.find(self.literals[0][1], start, stop)
        return next((at for at in range(start, stop - self.size + 1) if self.at(text, at)), -1)


def _piece(chars: Sequence[str | None]) -> _Piece:
    literals: list[tuple[int, str]] = []
    for offset, char in enumerate(chars):
        if char is None:
            continue
        if literals and offset and chars[offset - 1] is not None:
            literals[-1] = (literals[-1][0], literals[-1][1] + char)
        else:
            literals.append((offset, char))
    return _Piece(len(chars), tuple(literals))
