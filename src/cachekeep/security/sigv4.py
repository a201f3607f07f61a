"""AWS Signature Version 4: verified in headers and in presigned URLs; made for requests of our own.

Pure: the time and the secrets are given. Rules: IAM User Guide, "AWS Signature Version 4 for API requests" and "Troubleshoot
Signature Version 4".
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import quote, unquote, unquote_plus

from cachekeep.errors import CachekeepError

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TERMINATOR: Final = "aws4_request"
SKEW: Final = dt.timedelta(minutes=15)
PRESIGNED_SECONDS_MAX: Final = 7 * 24 * 3600
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
SIGNED_HEADERS_MAX: Final = 64
_DATE_LENGTH_MAX: Final = 64

_TIME_FORM: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_SPACES: Final = re.compile(" +")
# What decides the meaning of a request must be under its signature.
_ALWAYS_SIGNED: Final = frozenset({"x-amz-target", "x-amz-security-token", "x-amz-date"})


Reason = Literal["unsigned", "incomplete", "unknown", "mismatch", "expired"]


class SignatureRefused(CachekeepError):
    """A request is not believed to be its sender's. The message is AWS's."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What is known of one access key. ``arn`` is empty where only the store knows whose it is. ``temporary``: it
    needs a session token, which whoever opens that judges. ``session_token`` is set where it is known beforehand, for keys that are
    good until ``expires_at``."""

    secret_key: str = field(repr=False)
    arn: str
    account: str
    session_token: str | None = field(default=None, repr=False)
    expires_at: dt.datetime | None = None
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of its signature, not yet believed."""

    access_key: str
    date: str
    region: str
    service: str
    terminator: str
    signed_headers: tuple[str, ...]
    signature: str
    signed_at: str
    session_token: str | None
    presigned_seconds: int | None
    """None when the signature is in the headers."""

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/{self.terminator}"


def read_claim(query: str, headers: Mapping[str, str]) -> Claim | None:
    """The request's signature claim, or None when it makes none. ``headers`` has lower-case names, ``query`` is raw.

    Raises SignatureRefused when the claim is malformed.
    """
    authorization = headers.get("authorization")
    if authorization is not None:
        return _claim_of_header(authorization, headers)
    if "X-Amz-Signature=" in query or "X-Amz-Credential=" in query:
        return _claim_of_query(query)
    return None


def verify(
    claim: Claim | None,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secret_of: Callable[[str], AccessKey | None],
    now: dt.datetime,
) -> AccessKey:
    """The secret whose owner signed this very request. ``path`` and ``query`` are raw, as on the request line.

    Raises SignatureRefused.
    """
    claim, secret = plausible(claim, headers, secret_of=secret_of, now=now)
    request = canonical_request(claim, method, path, query, headers, _payload_hash(claim, query, headers, body))
    if not hmac.compare_digest(_signature(claim, secret.secret_key, request).encode(), claim.signature.encode()):
        raise _mismatch(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
        )
    if not claim.session_token if secret.temporary else not _same_token(secret.session_token, claim.session_token):
        raise SignatureRefused("unknown", "The security token included in the request is invalid.")
    if secret.expires_at is not None and now >= secret.expires_at:
        raise SignatureRefused("expired", "The security token included in the request is expired")
    return secret


def plausible(
    claim: Claim | None, headers: Mapping[str, str], *, secret_of: Callable[[str], AccessKey | None], now: dt.datetime
) -> tuple[Claim, AccessKey]:
    """What the head of a request alone says: whether its body is worth reading. Raises SignatureRefused."""
    if claim is None:
        raise SignatureRefused("unsigned", "Request is missing Authentication Token")
    if claim.terminator != TERMINATOR:
        raise _mismatch(f"Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{claim.terminator}'.")
    if claim.date != claim.signed_at[:8]:
        raise _mismatch(
            f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
            f"'{claim.date}' != '{claim.signed_at[:8]}', from '{claim.signed_at}'."
        )
    _check_signed_headers(claim, headers)
    _check_time(claim, now)
    secret = secret_of(claim.access_key)
    if secret is None:
        raise SignatureRefused("unknown", "The security token included in the request is invalid.")
    return claim, secret


def sign(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    access_key: str,
    secret_key: str,
    region: str,
    service: str,
    now: dt.datetime,
) -> dict[str, str]:
    """The headers that a request needs beside ``headers`` (lower-case names, ``host`` among them) to be believed."""
    at = _basic(now)
    held = {**headers, "x-amz-date": at}
    claim = Claim(access_key, at[:8], region, service, TERMINATOR, tuple(sorted(held)), "", at, None, None)
    request = canonical_request(claim, method, path, "", held, hashlib.sha256(body).hexdigest())
    signature = _signature(claim, secret_key, request)
    signed = ";".join(claim.signed_headers)
    credential = f"{access_key}/{claim.scope}"
    return {
        "x-amz-date": at,
        "authorization": f"{ALGORITHM} Credential={credential}, SignedHeaders={signed}, Signature={signature}",
    }


def _signature(claim: Claim, secret_key: str, request: str) -> str:
    digest = hashlib.sha256(request.encode()).hexdigest()
    to_sign = f"{ALGORITHM}\n{claim.signed_at}\n{claim.scope}\n{digest}"
    return hmac.digest(_signing_key(secret_key, claim.date, claim.region, claim.service), to_sign.encode(), "sha256").hex()


def canonical_request(claim: Claim, method: str, path: str, query: str, headers: Mapping[str, str], payload_hash: str) -> str:
    """The text that the client hashed and signed."""
    lines = [method.upper(), _canonical_path(path), _canonical_query(query) if query else ""]
    lines += [f"{name}:{_SPACES.sub(' ', headers[name].strip())}" for name in claim.signed_headers]
    lines += ["", ";".join(claim.signed_headers), payload_hash]
    return "\n".join(lines)


# ------------------------------------------------------------------ claims


def _incomplete(text: str) -> SignatureRefused:
    return SignatureRefused("incomplete", text)


def _mismatch(text: str) -> SignatureRefused:
    return SignatureRefused("mismatch", text)


def _claim_of_header(authorization: str, headers: Mapping[str, str]) -> Claim:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        raise _incomplete(f"Unsupported AWS 'algorithm': '{algorithm[:40]}', only {ALGORITHM} is supported.")
    parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    for name in ("Credential", "Signature", "SignedHeaders"):
        if not parts.get(name):
            raise _incomplete(f"Authorization header requires '{name}' parameter.")
    signed_at = headers.get("x-amz-date") or _time_of_date_header(headers.get("date"))
    if signed_at is None:
        raise _incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    return _claim(
        parts["Credential"],
        parts["SignedHeaders"],
        parts["Signature"],
        signed_at,
        headers.get("x-amz-security-token"),
        None,
    )


def _claim_of_query(query: str) -> Claim:
    parts = {name: value for name, value in map(_pair, query.split("&")) if name.startswith("X-Amz-")}
    for name in ("Algorithm", "Credential", "SignedHeaders", "Signature", "Date", "Expires"):
        if not parts.get(f"X-Amz-{name}"):
            raise _incomplete(f"AWS query-string parameters must include 'X-Amz-{name}'.")
    if parts["X-Amz-Algorithm"] != ALGORITHM:
        raise _incomplete(f"Unsupported AWS 'algorithm', only {ALGORITHM} is supported.")
    seconds = parts["X-Amz-Expires"]
    if not re.fullmatch(r"[0-9]{1,7}", seconds) or not 1 <= int(seconds) <= PRESIGNED_SECONDS_MAX:
        raise _incomplete(f"X-Amz-Expires must be between 1 and {PRESIGNED_SECONDS_MAX} seconds.")
    return _claim(
        parts["X-Amz-Credential"],
        parts["X-Amz-SignedHeaders"],
        parts["X-Amz-Signature"],
        parts["X-Amz-Date"],
        parts.get("X-Amz-Security-Token"),
        int(seconds),
    )


def _claim(
    credential: str, signed_headers: str, signature: str, signed_at: str, token: str | None, presigned_seconds: int | None
) -> Claim:
    scope = credential.rsplit("/", 4)
    if len(scope) != 5 or not all(scope):
        raise _incomplete("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.")
    if not _TIME_FORM.fullmatch(signed_at):
        raise _incomplete("Date must be in ISO-8601 'basic format'.")
    access_key, date, region, service, terminator = scope
    headers = tuple(signed_headers.lower().split(";", SIGNED_HEADERS_MAX))
    if len(headers) > SIGNED_HEADERS_MAX or len(set(headers)) < len(headers):
        raise _incomplete(f"SignedHeaders must name at most {SIGNED_HEADERS_MAX} headers, each of them once.")
    return Claim(access_key, date, region, service, terminator, headers, signature, signed_at, token, presigned_seconds)


def _time_of_date_header(text: str | None) -> str | None:
    if text is None or _TIME_FORM.fullmatch(text):
        return text
    if len(text) > _DATE_LENGTH_MAX:
        return None
    from email.utils import parsedate_to_datetime  # rare: every current SDK sends X-Amz-Date

    try:
        return parsedate_to_datetime(text).astimezone(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _check_signed_headers(claim: Claim, headers: Mapping[str, str]) -> None:
    signed = set(claim.signed_headers)
    if "host" not in signed:
        raise _mismatch("'Host' must be a 'SignedHeader' in the AWS Authorization.")
    if missing := [name for name in claim.signed_headers if name not in headers]:
        raise _mismatch(f"The signed header '{missing[0][:80]}' is not in the request.")
    if unsigned := sorted(name for name in _ALWAYS_SIGNED - signed if name in headers):
        raise _mismatch(f"'{unsigned[0]}' must be a 'SignedHeader' in the AWS Authorization.")


def _check_time(claim: Claim, now: dt.datetime) -> None:
    try:
        signed_at = dt.datetime.strptime(claim.signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    except ValueError:
        raise _incomplete("Date must be in ISO-8601 'basic format'.") from None
    if claim.presigned_seconds is None:
        good_for, reason = SKEW, "15 min."
    else:
        good_for, reason = dt.timedelta(seconds=claim.presigned_seconds), f"{claim.presigned_seconds} s."
    earliest, latest = now - good_for, now + SKEW
    if signed_at < earliest:
        raise _mismatch(f"Signature expired: {claim.signed_at} is now earlier than {_basic(earliest)} ({_basic(now)} - {reason})")
    if signed_at > latest:
        raise _mismatch(
            f"Signature not yet current: {claim.signed_at} is still later than {_basic(latest)} ({_basic(now)} + 15 min.)"
        )


def _basic(when: dt.datetime) -> str:
    return when.astimezone(dt.UTC).strftime("%Y%m%dT%H%M%SZ")


def _same_token(known: str | None, sent: str | None) -> bool:
    return hmac.compare_digest((known or "").encode(), (sent or "").encode(errors="replace"))


# ------------------------------------------------------------------ canonical parts


def _payload_hash(claim: Claim, query: str, headers: Mapping[str, str], body: bytes) -> str:
    """The body's hash as it stands in the canonical request; a hash that the client declares must be the body's."""
    declared = headers.get("x-amz-content-sha256")
    if claim.presigned_seconds is not None and declared is None:
        declared = next((value for name, value in map(_pair, query.split("&")) if name == "X-Amz-Content-Sha256"), None)
    if declared == UNSIGNED_PAYLOAD:
        return declared
    actual = hashlib.sha256(body).hexdigest()
    if declared is not None and not hmac.compare_digest(declared.encode(errors="replace"), actual.encode()):
        raise _mismatch("The provided 'x-amz-content-sha256' header does not match what was computed.")
    return actual


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return unquote_plus(name), unquote_plus(value)


def _canonical_path(path: str) -> str:
    """Dot segments resolved (RFC 3986 section 5.2.4, with repeated slashes made one), then encoded a second time."""
    if path in ("", "/"):
        return "/"
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    tail = "/" if kept and path.endswith("/") else ""
    return quote("/" + "/".join(kept) + tail, safe="/~")


def _canonical_query(query: str) -> str:
    pairs = []
    for piece in query.split("&"):
        if piece:
            name, _, value = piece.replace("+", "%20").partition("=")
            name = quote(unquote(name, errors="surrogateescape"), safe="-_.~", errors="surrogateescape")
            if name != "X-Amz-Signature":
                pairs.append((name, quote(unquote(value, errors="surrogateescape"), safe="-_.~", errors="surrogateescape")))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


@lru_cache(maxsize=256)
def _signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, service, TERMINATOR):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
