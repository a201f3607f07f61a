"""Who sent a request: its signature, believed or refused in AWS's words."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from cachekeep.audit.record import Identity
from cachekeep.security import sigv4
from cachekeep.security.sigv4 import AccessKey, Claim, Reason, SignatureRefused
from cachekeep.wire.faults import ApiError
from cachekeep.wire.http import HttpRequest

_FAULTS: Final[Mapping[Reason, tuple[str, int]]] = {
    "unsigned": ("MissingAuthenticationToken", 403),
    "incomplete": ("IncompleteSignature", 400),
    "unknown": ("InvalidClientTokenId", 403),
    "mismatch": ("SignatureDoesNotMatch", 403),
    "expired": ("ExpiredToken", 403),
}
"""Error codes and statuses: "Common error types" of the query APIs."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. ``access_key`` is empty for an unsigned request under ``auth="open"``."""

    access_key: str
    arn: str
    account: str
    session_token: str = field(default="", repr=False)
    """Of temporary credentials; what it says is for the services to find out."""


@dataclass(slots=True)
class Seen:
    """What has come out of a call on its way to its handler, for who records it: who asked, and which resources it was about."""

    identity: Identity | None = None
    resources: tuple[str, ...] = ()


def read_claim(request: HttpRequest) -> Claim | None:
    """The request's signature claim, or None when it makes none. Raises ApiError ``IncompleteSignature`` for a malformed one."""
    try:
        return sigv4.read_claim(request.query, request.headers)
    except SignatureRefused as refused:
        raise fault_of(refused) from None


def plausible(head: HttpRequest, secret_of: Callable[[str], AccessKey | None], now: dt.datetime) -> bool:
    """Whether a request may be its sender's, by its head alone: if not, its body changes nothing."""
    try:
        sigv4.plausible(sigv4.read_claim(head.query, head.headers), head.headers, secret_of=secret_of, now=now)
    except SignatureRefused:
        return False
    return True


def foreign(head: HttpRequest) -> ApiError | None:
    """The refusal of a request that a web page elsewhere sends by a browser of this machine: where no signature is asked
    for, it is the stranger to fear. None: it is no such request.

    It names itself (``Origin`` [RFC 6454], ``Sec-Fetch-Site`` [W3C Fetch Metadata]), or came by a name of its own that was
    made to lead here (``Host``).
    """
    host = head.headers.get("host", "")
    if host and not _leads_here(f"//{host}"):
        what = "a Host that is not this machine's own"
    elif (origin := head.headers.get("origin")) is not None and (not _leads_here(origin) or urlsplit(origin).netloc != host):
        what = "the Origin of another site"
    elif head.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        what = "a browser's word that another site sends it (Sec-Fetch-Site)"
    else:
        return None
    text = f"The request has {what}, and this endpoint takes unsigned requests (--auth open) from programs of this machine only."
    return ApiError("AccessDenied", text, status=403)


def _leads_here(url: str) -> bool:
    """Whether the host of a URL is a loopback address or ``localhost``, which no DNS answer turns into another [RFC 6761]."""
    try:
        name = (urlsplit(url).hostname or "").removesuffix(".")
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def signer(request: HttpRequest, claim: Claim | None, secret_of: Callable[[str], AccessKey | None], now: dt.datetime) -> Principal:
    """Whoever signed this very request. Raises ApiError with a code of ``_FAULTS``."""
    try:
        secret = sigv4.verify(
            claim,
            request.method,
            request.path,
            request.query,
            request.headers,
            request.body,
            secret_of=secret_of,
            now=now,
        )
    except SignatureRefused as refused:
        raise fault_of(refused) from None
    token = claim.session_token if claim and secret.temporary else None
    return Principal(claim.access_key if claim else "", secret.arn, secret.account, token or "")


def fault_of(refused: SignatureRefused) -> ApiError:
    """A refused signature on the wire."""
    code, status = _FAULTS[refused.reason]
    return ApiError(code, str(refused), status=status)
