"""Access keys that are issued to users: told by themselves from any that are not, and with secrets that are stored nowhere.

A key's id ends with a check that only this installation can make, and its secret is derived from its id. What both are made with
is in a file of the data directory, mode 0600. So a database, its backups and its server's administrators hold no secret of
anybody, and a request with an id that was never issued is refused without asking the database. Whether a key that was issued is
still good, and whose it is, only the database knows.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from cachekeep.errors import Unusable
from cachekeep.security.keys import read_once
from cachekeep.security.sigv4 import AccessKey

FILE: Final = "access-keys.secret"
_ID: Final = re.compile(r"AKIA[A-Z2-7]{16}")
_MASTER_BYTES: Final = 32


class Issuer:
    """Makes access keys for one account, and knows its own."""

    def __init__(self, master: bytes, account: str) -> None:
        self._master, self._account = master, account

    def issue(self) -> tuple[str, str]:
        """A new access key: id and secret."""
        chance = _letters(secrets.token_bytes(5))
        access_key = f"AKIA{chance}{self._check(chance)}"
        return access_key, self._secret(access_key)

    def known(self, access_key: str) -> AccessKey | None:
        """A key that was issued here at some time; None for any other. Its ``arn`` is empty: ask whose it is now."""
        if not _ID.fullmatch(access_key) or not hmac.compare_digest(self._check(access_key[4:12]), access_key[12:]):
            return None
        return AccessKey(self._secret(access_key), "", self._account)

    def _check(self, chance: str) -> str:
        return _letters(self._derived("id", chance)[:5])

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
