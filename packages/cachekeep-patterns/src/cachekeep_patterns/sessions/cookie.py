"""The Set-Cookie line (RFC 6265, and its revision 6265bis for prefixes and SameSite)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_ATTRIBUTE = re.compile(r"[\x20-\x3a\x3c-\x7e]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Cookie:
    """How the session cookie is set. The defaults are the strict ones; loosen them knowingly.

    `max_age_seconds` None makes a cookie that lasts until the browser closes. The cookie is sent only when the
    id changes, so a lasting one should have the session's absolute maximum age here; sliding expiry is the
    server's business. Raises ValueError for combinations that browsers reject or ignore.
    """

    name: str = "session"
    path: str = "/"
    domain: str | None = None
    secure: bool = True
    http_only: bool = True
    same_site: Literal["strict", "lax", "none"] = "lax"
    max_age_seconds: int | None = None

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a cookie name")
        if not _ATTRIBUTE.fullmatch(self.path) or not _ATTRIBUTE.fullmatch(self.domain or ""):
            raise ValueError("a cookie's path and domain hold printable ASCII without ';'")
        if self.same_site not in ("strict", "lax", "none"):
            raise ValueError(f"same_site must be strict, lax or none, not {self.same_site!r}")
        if self.same_site == "none" and not self.secure:
            raise ValueError("SameSite=None needs Secure")
        if self.name.startswith(("__Secure-", "__Host-")) and not self.secure:
            raise ValueError(f"{self.name} needs Secure")
        if self.name.startswith("__Host-") and (self.path != "/" or self.domain is not None):
            raise ValueError(f"{self.name} needs path / and no domain")

    def set(self, value: str) -> str:
        return self._line(value, self.max_age_seconds)

    def clear(self) -> str:
        return self._line("", 0)

    def _line(self, value: str, max_age_seconds: int | None) -> str:
        parts = [f"{self.name}={value}", f"Path={self.path}"]
        if max_age_seconds is not None:
            parts.append(f"Max-Age={max_age_seconds}")
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if self.secure:
            parts.append("Secure")
        if self.http_only:
            parts.append("HttpOnly")
        parts.append(f"SameSite={self.same_site.capitalize()}")
        return "; ".join(parts)

    def values(self, cookie_header: str) -> Iterator[str]:
        """Every value under this name: a sibling host may have planted a second one (cookie tossing)."""
        for part in cookie_header.split(";"):
            name, equals, value = part.strip().partition("=")
            if equals and name == self.name:
                yield value.strip().strip('"')
