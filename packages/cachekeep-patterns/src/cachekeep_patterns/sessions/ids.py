"""Session ids, and the signature that a cookie carries around one.

An id is a *handle*, which names the record and never changes, and a *token*, which proves the right to it and
changes at every rotation. Both are 128 random bits (OWASP Session Management asks for 64 bits of entropy). The
record keeps a digest of the token only: a snapshot of the cache, or a look at it, yields no usable cookie.
Because the handle stays, a rotation is one atomic change of one key, in cluster mode too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

_SHAPE = re.compile(r"[A-Za-z0-9_-]{44}", re.ASCII)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


@dataclass(frozen=True)
class SessionId:
    """`handle` and `token`: 22 URL-safe characters each. `str(id)` is what a client holds."""

    handle: str
    token: str

    @classmethod
    def new(cls) -> SessionId:
        return cls(_text(secrets.token_bytes(16)), _text(secrets.token_bytes(16)))

    @classmethod
    def parse(cls, text: str | None) -> SessionId | None:
        """None for anything that this module did not make."""
        if text is None or not _SHAPE.fullmatch(text):
            return None
        return cls(text[:22], text[22:])

    def rotated(self) -> SessionId:
        """The same record under a new token."""
        return SessionId(self.handle, _text(secrets.token_bytes(16)))

    @property
    def digest(self) -> bytes:
        """What the record keeps of the token."""
        return hashlib.sha256(self.token.encode("ascii")).digest()

    def __str__(self) -> str:
        return self.handle + self.token

    def __repr__(self) -> str:
        return f"SessionId({self.handle}…)"


class Signer:
    """Signs ids with HMAC-SHA-256 under the first key and accepts every key: put a new key in front to rotate.

    `keys` are secrets of at least 16 bytes, or, with `short_keys`, as short as a framework lets them be. `purpose`
    separates cookies that share a key (the cookie's name).
    Raises ValueError for no key or a short one.
    """

    def __init__(self, keys: Sequence[str | bytes] | str | bytes, purpose: str = "session", *, short_keys: bool = False) -> None:
        if isinstance(keys, str | bytes):
            keys = [keys]
        secrets_ = [key.encode() if isinstance(key, str) else key for key in keys]
        if not secrets_ or any(len(key) < (1 if short_keys else 16) for key in secrets_):
            raise ValueError("a session signer needs at least one key, each of at least 16 bytes")
        context = b"cachekeep.session\0" + purpose.encode()
        self._keys = [hmac.digest(key, context, "sha256") for key in secrets_]

    def sign(self, session_id: str) -> str:
        return f"{session_id}.{_text(hmac.digest(self._keys[0], session_id.encode(), 'sha256'))}"

    def verify(self, signed: str) -> tuple[str, bool] | None:
        """The id and whether the newest key signed it; None if no key did."""
        session_id, dot, signature = signed.rpartition(".")
        if not dot or not signed.isascii():
            return None
        for age, key in enumerate(self._keys):
            expected = _text(hmac.digest(key, session_id.encode(), "sha256"))
            if hmac.compare_digest(expected, signature):
                return session_id, age == 0
        return None
