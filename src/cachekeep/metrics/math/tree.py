"""Expressions as trees [CloudWatch, "Using metric math": syntax, functions and operators]."""

from __future__ import annotations

import math
import re
from typing import Final, Literal

import msgspec

Operator = Literal["+", "-", "*", "/", "^", "==", "!=", "<=", ">=", "<", ">", "AND", "OR"]


class Invalid(ValueError):
    """The expression is none, in words for who wrote it."""


class Number(msgspec.Struct, frozen=True):
    value: float


class Text(msgspec.Struct, frozen=True):
    value: str


class Name(msgspec.Struct, frozen=True):
    """Another query's id, or a word that a function knows, such as ``REPEAT``."""

    value: str


class Combined(msgspec.Struct, frozen=True):
    operator: Operator
    left: Expression
    right: Expression


class Applied(msgspec.Struct, frozen=True):
    function: str
    arguments: tuple[Expression, ...]


class Several(msgspec.Struct, frozen=True):
    """``[m1, m2]``"""

    items: tuple[Expression, ...]


Expression = Number | Text | Name | Combined | Applied | Several

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<sign>==|!=|<=|>=|&&|\|\||[-+*/^<>(),\[\]]))"
)
_LEVELS: Final[tuple[tuple[str, ...], ...]] = (
    ("OR", "||"),
    ("AND", "&&"),
    ("==", "!=", "<=", ">=", "<", ">"),
    ("+", "-"),
    ("*", "/"),
)
"""What binds least comes first."""
_DEPTH_MAX: Final = 64
_OPERATORS_MAX: Final = 500
"""So many metrics a request has at the most, and they may be added up."""


def parse(text: str) -> Expression:
    """Raises Invalid."""
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Invalid(f"unexpected {text[at:].strip()[:20]!r}")
        tokens.append(next((kind, value) for kind, value in found.groupdict().items() if value is not None))
        at = found.end()
    reader = _Reader(tokens)
    whole = reader.level(0)
    if reader.at < len(tokens):
        raise Invalid(f"unexpected {tokens[reader.at][1]!r}")
    return whole


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens, self.at, self._depth, self._operators = tokens, 0, 0, 0

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self.at] if self.at < len(self._tokens) else ("end", "the end")

    def _take(self, sign: str) -> None:
        if self._peek()[1] != sign or self._peek()[0] == "text":
            raise Invalid(f"expected {sign!r} before {self._peek()[1]!r}")
        self.at += 1

    def level(self, number: int) -> Expression:
        if number == len(_LEVELS):
            return self._unary()
        left = self.level(number + 1)
        while True:
            kind, value = self._peek()
            operator = value.upper() if kind == "word" else value
            if kind not in ("word", "sign") or operator not in _LEVELS[number]:
                return left
            self.at += 1
            self._operators += 1
            if self._operators > _OPERATORS_MAX:
                raise Invalid(f"it has more than {_OPERATORS_MAX} operators")
            left = Combined(_plain(operator), left, self.level(number + 1))

    def _unary(self) -> Expression:
        if self._peek() in (("sign", "-"), ("sign", "+")):
            sign = self._peek()[1]
            self.at += 1
            inner = self._deeper(self._unary)
            return inner if sign == "+" else Combined("*", Number(-1.0), inner)
        base = self._leaf()
        if self._peek() == ("sign", "^"):
            self.at += 1
            return Combined("^", base, self._deeper(self._unary))
        return base

    def _leaf(self) -> Expression:
        kind, value = self._peek()
        self.at += 1
        match kind:
            case "number":
                if not math.isfinite(number := float(value)):
                    raise Invalid(f"{value[:20]} is too large")
                return Number(number)
            case "text":
                return Text(re.sub(r"\\(.)", r"\1", value[1:-1]))
            case "word" if self._peek() == ("sign", "("):
                self.at += 1
                return Applied(value.upper(), self._items(")"))
            case "word":
                return Name(value)
        if value == "(":
            inner = self._deeper(lambda: self.level(0))
            self._take(")")
            return inner
        if value == "[":
            return Several(self._items("]"))
        raise Invalid(f"unexpected {value!r}")

    def _items(self, end: str) -> tuple[Expression, ...]:
        items: list[Expression] = []
        while self._peek() != ("sign", end):
            items.append(self._deeper(lambda: self.level(0)))
            if self._peek() != ("sign", ","):
                break
            self.at += 1
        self._take(end)
        return tuple(items)

    def _deeper(self, read: object) -> Expression:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise Invalid("it is nested too deeply")
        found: Expression = read()  # type: ignore[operator]
        self._depth -= 1
        return found


def _plain(operator: str) -> Operator:
    plain: Operator = {"&&": "AND", "||": "OR"}.get(operator, operator)  # type: ignore[assignment]
    return plain


def names(expression: Expression) -> frozenset[str]:
    """Ids that it may refer to."""
    match expression:
        case Name(value):
            return frozenset({value})
        case Combined(_, left, right):
            return names(left) | names(right)
        case Applied(_, items) | Several(items):
            return frozenset().union(*map(names, items))
    return frozenset()
