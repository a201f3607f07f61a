"""``SEARCH``: which metrics an expression asks for [CloudWatch, "Search expression syntax"]."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from cachekeep.metrics.math.tree import Invalid


class Candidate(msgspec.Struct, frozen=True):
    """A metric that might be meant."""

    namespace: str
    metric: str
    dimensions: Mapping[str, str]


Chosen = Callable[[Candidate], bool]

_SCHEMA: Final = re.compile(r"\s*\{([^}]*)\}")
_DEPTH_MAX: Final = 64
_WORD: Final = re.compile(r"\s*(?:(?P<sign>[()=])|(?P<quoted>\"(?:[^\"\\]|\\.)*\")|(?P<word>[^\s()=\"]+))")
_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def search(text: str) -> Chosen:
    """Raises Invalid."""
    schema, rest = _schema(text)
    words, at = [], 0
    rest = rest.strip()
    while at < len(rest):
        found = _WORD.match(rest, at)
        if found is None:
            raise Invalid(f"SEARCH does not understand {rest[at : at + 20]!r}")
        words.append(next((kind, value) for kind, value in found.groupdict().items() if value is not None))
        at = found.end()
    reader = _Terms(words)
    chosen = reader.either() if words else (lambda candidate: True)
    if reader.at < len(words):
        raise Invalid(f"SEARCH does not understand {words[reader.at][1]!r}")
    return lambda candidate: schema(candidate) and chosen(candidate)


def _schema(text: str) -> tuple[Chosen, str]:
    found = _SCHEMA.match(text)
    if found is None:
        return (lambda candidate: True), text
    namespace, *dimensions = [part.strip().strip('"') for part in found[1].split(",")]
    wanted = frozenset(dimensions)
    return (lambda c: c.namespace == namespace and frozenset(c.dimensions) == wanted), text[found.end() :]


class _Terms:
    def __init__(self, words: list[tuple[str, str]]) -> None:
        self._words, self.at, self._depth = words, 0, 0

    def _peek(self) -> tuple[str, str]:
        return self._words[self.at] if self.at < len(self._words) else ("end", "the end")

    def either(self) -> Chosen:
        chosen = [self._all()]
        while self._peek() == ("word", "OR"):
            self.at += 1
            chosen.append(self._all())
        return chosen[0] if len(chosen) == 1 else lambda candidate: any(each(candidate) for each in chosen)

    def _all(self) -> Chosen:
        chosen = [self._one()]
        while self._peek()[0] != "end" and self._peek() not in (("word", "OR"), ("sign", ")")):
            if self._peek() == ("word", "AND"):
                self.at += 1
            chosen.append(self._one())
        return chosen[0] if len(chosen) == 1 else lambda candidate: all(each(candidate) for each in chosen)

    def _one(self) -> Chosen:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise Invalid("SEARCH is nested too deeply")
        chosen = self._within()
        self._depth -= 1
        return chosen

    def _within(self) -> Chosen:
        kind, value = self._peek()
        self.at += 1
        if (kind, value) == ("word", "NOT"):
            inner = self._one()
            return lambda candidate: not inner(candidate)
        if (kind, value) == ("sign", "("):
            inner = self.either()
            if self._peek() != ("sign", ")"):
                raise Invalid("SEARCH misses a closing parenthesis")
            self.at += 1
            return inner
        if kind not in ("word", "quoted"):
            raise Invalid(f"SEARCH does not understand {value!r}")
        if self._peek() == ("sign", "="):
            self.at += 1
            return self._property(_unquoted(value))
        return _anywhere(kind, _unquoted(value))

    def _property(self, name: str) -> Chosen:
        kind, value = self._peek()
        self.at += 1
        if (kind, value) == ("sign", "("):
            options = []
            while self._peek() != ("sign", ")"):
                if self._peek()[0] == "end":
                    raise Invalid("SEARCH misses a closing parenthesis")
                if self._peek() != ("word", "OR"):
                    options.append(_fits(*self._peek()))
                self.at += 1
            self.at += 1
            return lambda candidate: any(fits(_of(candidate, name)) for fits in options)
        fits = _fits(kind, value)
        return lambda candidate: fits(_of(candidate, name))


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _of(candidate: Candidate, name: str) -> str | None:
    match name:
        case "MetricName":
            return candidate.metric
        case "Namespace":
            return candidate.namespace
    return candidate.dimensions.get(name.removeprefix(":aws."))


def _fits(kind: str, value: str) -> Callable[[str | None], bool]:
    """What is quoted is meant as it is; else its parts are looked for."""
    if kind not in ("word", "quoted"):
        raise Invalid(f"SEARCH does not understand {value!r}")
    if kind == "quoted":
        exact = _unquoted(value)
        return lambda text: text == exact
    return lambda text: text is not None and _parts(value) <= _parts(text)


def _anywhere(kind: str, value: str) -> Chosen:
    fits = _fits(kind, f'"{value}"' if kind == "quoted" else value)

    def chosen(candidate: Candidate) -> bool:
        texts = (candidate.namespace, candidate.metric, *candidate.dimensions, *candidate.dimensions.values())
        if kind == "quoted":
            return any(fits(text) for text in texts)
        return _parts(value) <= frozenset().union(*map(_parts, texts))

    return chosen


def _parts(text: str) -> frozenset[str]:
    """``EngineCPUUtilization`` has the parts engine, cpu and utilization, and is one itself."""
    words = re.findall(r"[A-Za-z0-9]+", text)
    return frozenset(part.lower() for word in words for part in (word, *_PARTS.findall(word)))
