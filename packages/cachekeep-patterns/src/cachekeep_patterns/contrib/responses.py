"""Whole responses in a cache: which may be kept and for how long (RFC 9111), and who has them already (RFC 9110, ETag). Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Headers = list[tuple[str, str]]
_DIRECTIVE = re.compile(r'([a-z-]+)\s*(?:=\s*"?([^",]*)"?)?')
_OF_304 = frozenset({"cache-control", "content-location", "date", "etag", "expires", "last-modified", "vary"})


@dataclass(frozen=True, slots=True)
class Kept:
    """A response as it is kept. ``kept_at``: seconds since 1970, for the Age header."""

    status: int
    headers: Headers
    body: bytes
    seconds: float
    kept_at: float

    def pack(self) -> list[object]:
        return [self.status, [list(one) for one in self.headers], self.body, self.seconds, self.kept_at]

    @classmethod
    def unpack(cls, packed: Sequence[object]) -> Kept:
        status, headers, body, seconds, kept_at = packed
        return cls(status, [(name, value) for name, value in headers], body, seconds, kept_at)  # type: ignore[arg-type,attr-defined]


def directives(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of Cache-Control, in lower case."""
    said = ",".join(value for name, value in headers if name.lower() == "cache-control").lower()
    return dict(_DIRECTIVE.findall(said))


def may_ask(headers: Headers) -> bool:
    """Whether a GET with these headers may be answered from a cache that all clients share."""
    names = {name.lower() for name, _ in headers}
    return not names & {"authorization", "range"} and not directives(headers).keys() & {"no-store", "no-cache"}


def seconds_to_keep(status: int, headers: Headers, vary: Iterable[str]) -> float:
    """For how long a response may be kept for everybody; 0 unless it says so itself: `s-maxage`, or `public` and `max-age`.

    Not if it sets a cookie, has another status than 200, or varies on what is not in ``vary`` (then also: on `Cookie`).
    """
    said = directives(headers)
    names = {name.lower() for name, _ in headers}
    varies = {one.strip().lower() for name, value in headers if name.lower() == "vary" for one in value.split(",")}
    if status != 200 or "set-cookie" in names or said.keys() & {"no-store", "private", "no-cache"}:
        return 0.0
    if not varies <= {one.lower() for one in vary}:
        return 0.0
    age = said.get("s-maxage") or (said.get("max-age") if "public" in said else None)
    return float(age) if age is not None and age.isdecimal() else 0.0


def with_etag(headers: Headers, body: bytes) -> Headers:
    if any(name.lower() == "etag" for name, _ in headers):
        return headers
    return [*headers, ("etag", f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"')]


def is_known(if_none_match: str | None, headers: Headers) -> bool:
    """Whether a client that sent ``If-None-Match`` has this response already (weak comparison)."""
    etag = next((value for name, value in headers if name.lower() == "etag"), None)
    if if_none_match is None or etag is None:
        return False
    bare = etag.removeprefix("W/")
    return if_none_match.strip() == "*" or bare in [one.strip().removeprefix("W/") for one in if_none_match.split(",")]


def headers_of_304(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() in _OF_304]
