"""What the gateway takes and gives: HTTP as plain values, so that any server can carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole.

    ``path`` and ``query`` are raw, as on the request line (signatures cover the undecoded text); ``query`` has no ``?``.
    ``headers`` has lower-case names; a repeated header's values are joined by a comma. ``client`` is the peer's address;
    ``encrypted``: it came by TLS.
    """

    method: str
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str | None = None
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One response; the server in front adds ``Content-Length`` and ``Date``."""

    status: int
    headers: Mapping[str, str]
    body: bytes
