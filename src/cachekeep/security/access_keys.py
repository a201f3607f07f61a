"""Access keys that are issued to users: told by themselves from any that are not, and with secrets that are stored nowhere.

A key's id ends with a check that only this installation can make, and its secret is derived from its id. What both are made with
is in a file of the data directory, mode 0600. So a database, its backups and its server's administrators hold no secret of
anybody, and a request with an id that was never issued is refused without asking the database. Whether a key that was issued is
still good, and whose it is, only the database knows.

Temporary credentials are made likewise, and what they stand for is in their token, which nobody else can make or read.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cachekeep.errors import Unusable
from cachekeep.model import IamSession
from cachekeep.security.keys import read_once
from cachekeep.security.sigv4 import AccessKey

FILE: Final = "access-keys.secret"
_ID: Final = re.compile(r"(AKIA|ASIA)[A-Z2-7]{16}")
_TEMPORARY: Final = "ASIA"
_NONCE_BYTES: Final = 12
_MASTER_BYTES: Final = 32


class Issuer:
    """Makes access keys for one account, and knows its own."""

    def __init__(self, master: bytes, account: str) -> None:
        self._master, self._account = master, account
        self._tokens = AESGCM(self._derived("token", ""))

    def issue(self) -> tuple[str, str]:
        """A new access key: id and secret."""
        return self._issue("AKIA")

    def _issue(self, prefix: str) -> tuple[str, str]:
        chance = _letters(secrets.token_bytes(5))
        access_key = f"{prefix}{chance}{self._check(prefix, chance)}"
        return access_key, self._secret(access_key)

    def issue_session(self, session: IamSession) -> tuple[str, str, str]:
        """Temporary credentials: id, secret, and the token that holds the session, sealed and bound to the id."""
        access_key, secret = self._issue(_TEMPORARY)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        box = self._tokens.encrypt(nonce, msgspec.json.encode(session), access_key.encode())
        return access_key, secret, base64.b64encode(nonce + box).decode()

    def session_of(self, access_key: str, token: str) -> IamSession | None:
        """The session that a token holds; None where it was not issued here with that id."""
        try:
            content = base64.b64decode(token, validate=True)
            opened = self._tokens.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], access_key.encode())
        except (InvalidTag, ValueError):
            return None
        if base64.b64encode(content).decode() != token:
            return None  # the same with other padding
        return msgspec.json.decode(opened, type=IamSession)

    def known(self, access_key: str) -> AccessKey | None:
        """A key that was issued here at some time; None for any other. Its ``arn`` is empty: ask whose it is now."""
        if not _ID.fullmatch(access_key):
            return None
        prefix, chance, check = access_key[:4], access_key[4:12], access_key[12:]
        if not hmac.compare_digest(self._check(prefix, chance), check):
            return None
        return AccessKey(self._secret(access_key), "", self._account, temporary=prefix == _TEMPORARY)

    def _check(self, prefix: str, chance: str) -> str:
        return _letters(self._derived("id" if prefix != _TEMPORARY else "temporary id", chance)[:5])

    def _secret(self, access_key: str) -> str:
        return base64.b64encode(self._derived("secret", access_key)[:30]).decode()

    def _derived(self, use: str, text: str) -> bytes:
        return hmac.digest(self._master, f"{self._account} {use} {text}".encode(), "sha256")


class Credentials:
    """What finds the secret of any access key that may be good: the root's, and those that were issued."""

    def __init__(self, root_id: str, root: AccessKey, issuer: Issuer) -> None:
        self._root_id, self._root, self._issuer = root_id, root, issuer

    def __call__(self, access_key: str) -> AccessKey | None:
        return self._root if access_key == self._root_id else self._issuer.known(access_key)


def _letters(five: bytes) -> str:
    return base64.b32encode(five).decode()


def load_or_make(data_dir: Path, account: str) -> Issuer:
    """The issuer of a data directory. Raises ``Unusable``."""
    path = data_dir / FILE
    text = read_once(path, lambda: secrets.token_hex(_MASTER_BYTES).encode()).strip()
    if len(text) != 2 * _MASTER_BYTES:
        raise Unusable(f"{path} is damaged. It was left as it is; move it away, and users have to be given new access keys.")
    return Issuer(text, account)
