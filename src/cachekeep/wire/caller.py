"""Who sent a request: its signature, believed or refused in AWS's words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

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
    return Principal(claim.access_key if claim else "", secret.arn, secret.account)


def fault_of(refused: SignatureRefused) -> ApiError:
    """A refused signature on the wire."""
    code, status = _FAULTS[refused.reason]
    return ApiError(code, str(refused), status=status)
