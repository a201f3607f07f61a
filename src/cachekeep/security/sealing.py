"""Secrets in the store are sealed: AES-256-GCM under a root key, which is a file of its own and never in the store.

A sealed text is ``v1.<key id>.<nonce and ciphertext, base64url>``. Whose it is, and for what, is authenticated with it (additional
data), so that nobody who can write in the store can put one secret in another's place.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cachekeep.engines.users import credential_of
from cachekeep.errors import Unsealable, Unusable
from cachekeep.model import Cache, Credential, Secret

FILE: Final = "sealing.key"
"""In the data directory, unless another is given."""
_VERSION: Final = "v1"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class Sealing:
    """Seals and opens by one root key. ``key`` None: it is lost, or has not been made yet."""

    def __init__(self, key: bytes | None, *, path: Path | None = None) -> None:
        self.path = path
        self._use(key)

    def _use(self, key: bytes | None) -> None:
        self._cipher = AESGCM(key) if key is not None else None
        self.id = hashlib.sha256(b"cachekeep root key " + key).hexdigest()[:16] if key is not None else ""
        """Of the key, and nothing that tells of it; empty: there is none."""
        self._opened: dict[tuple[str, str], Secret] = {}

    def make(self) -> None:
        """Make the key where there is none. Raises ``Unusable`` where it cannot be kept."""
        if self._cipher is None and self.path is not None:
            self._use(_make(self.path))

    def seal(self, secret: Secret, *, owner: str, purpose: str) -> str:
        """Raises ``Unsealable`` without a key."""
        if self._cipher is None:
            raise Unsealable(f"nothing can be kept as a secret: {self._lost}")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        box = self._cipher.encrypt(nonce, secret.value.encode(), _bound(owner, purpose))
        return f"{_VERSION}.{self.id}.{base64.urlsafe_b64encode(nonce + box).decode()}"

    def open(self, sealed: str, *, owner: str, purpose: str) -> Secret:
        """Raises ``Unsealable`` if this key did not seal it, or not for this owner and purpose."""
        bound = _bound(owner, purpose)
        found = self._opened.get((sealed, bound.decode()))
        if found is None:
            found = self._opened[sealed, bound.decode()] = self._open(sealed, bound)
        return found

    def _open(self, sealed: str, bound: bytes) -> Secret:
        version, _, rest = sealed.partition(".")
        by, _, box = rest.partition(".")
        if version != _VERSION:
            raise Unsealable("its password was sealed by a newer Cachekeep. It was left as it is: upgrade Cachekeep")
        if self._cipher is None or by != self.id:
            raise Unsealable(f"its password was sealed by the root key {by}, and {self._lost}")
        try:
            content = base64.urlsafe_b64decode(box)
            return Secret(self._cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], bound).decode())
        except (InvalidTag, binascii.Error, ValueError):
            raise Unsealable(
                "its sealed password is damaged, or another's was put in its place. It was left as it is: restore the database "
                "from a backup"
            ) from None

    @property
    def _lost(self) -> str:
        here = f"{self.path} holds the root key {self.id}" if self.id else f"{self.path} is not there"
        return (
            f"{here}. Nodes go on as they are, and nothing was changed: bring that key back from a backup, or give the file that "
            "it is in with --root-key, and start again"
        )

    def opens(self, credential: Credential) -> bool:
        """Whether it was sealed by this key."""
        return bool(self.id) and credential.sealed.split(".")[1:2] == [self.id]

    # -- passwords of caches

    def credential(self, uid: str, serial: int, secret: Secret) -> Credential:
        """A password of a cache, as it is kept. Raises ``Unsealable``."""
        return credential_of(serial, secret, self.seal(secret, owner=uid, purpose=_password(serial)))

    def password_of(self, cache: Cache) -> Secret:
        """By which a cache's nodes are spoken to now; empty for an engine without users. Raises ``Unsealable``."""
        if not cache.credentials:
            return Secret("")
        now = cache.credentials[0]
        try:
            return self.open(now.sealed, owner=cache.uid, purpose=_password(now.serial))
        except Unsealable as error:
            raise Unsealable(f"{cache.name} cannot be looked after: {error}") from None


def _password(serial: int) -> str:
    return f"password {serial}"


def _bound(owner: str, purpose: str) -> bytes:
    return f"{owner}/{purpose}".encode()


def load(path: Path, *, given: bool) -> Sealing:
    """The key in ``path``; one that is not there is made when it is first needed, unless the file was ``given``.

    Raises ``Unusable`` if it cannot be read, is no key, or others may read it.
    """
    try:
        seen = path.stat()
        text = path.read_text()
    except FileNotFoundError:
        if given:
            raise Unusable(
                f"{path}, given with --root-key, is not there. Nothing was started, and nothing was made in its place: give the "
                "file that sealed what is stored, or make one for a new installation "
                f"(umask 077; openssl rand -hex {_KEY_BYTES} > {path})."
            ) from None
        return Sealing(None, path=path)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"the root key {path} cannot be read: {error}. Nothing was started.") from None
    if not stat.S_ISREG(seen.st_mode) or seen.st_mode & 0o077 or seen.st_uid not in (0, os.geteuid()):
        raise Unusable(
            f"the root key {path} could be read or changed by others. Nothing was started: `chmod 600 {path}`, have it be a file "
            "of yours, and if anybody may have read it, rotate the credentials of all caches (cachekeep rotate-credentials)."
        )
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise Unusable(
            f"{path} is no root key: it must hold {2 * _KEY_BYTES} hexadecimal digits. It was left as it is: bring it back from a "
            "backup."
        )
    return Sealing(key, path=path)


def _make(path: Path) -> bytes:
    """Written in full under another name, then linked: it is there whole or not at all, and never replaces one that is there."""
    key = secrets.token_bytes(_KEY_BYTES)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(key.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return bytes.fromhex(path.read_text())
    except (OSError, ValueError) as error:
        raise Unusable(f"a root key cannot be kept in {path}: {error}. Nothing was sealed by it.") from error
