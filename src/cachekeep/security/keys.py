"""The root key: made once, kept in the data directory, read by the server and by ``cachekeep env``."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cachekeep.errors import Unusable
from cachekeep.security.private import refuse_shared

FILE: Final = "credentials.json"
_ID_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class RootKey(msgspec.Struct, frozen=True, kw_only=True):
    """An access key of the account's root, in the form of AWS's: SDKs and their log filters know it for what it is."""

    access_key: str
    secret_key: str
    created_at: dt.datetime

    def __repr__(self) -> str:
        return f"RootKey({self.access_key}, …)"

    __str__ = __repr__


def load_or_make(data_dir: Path) -> RootKey:
    """The root key of a data directory, made when there is none; two that make it at once get the same one. Raises ``Unusable``."""
    path = data_dir / FILE
    try:
        return msgspec.json.decode(read_once(path, _new), type=RootKey)
    except msgspec.MsgspecError as error:
        raise Unusable(
            f"{path} is damaged: {error}. It was left as it is; move it away, and the next start makes a new key."
        ) from error


def read_once(path: Path, new: Callable[[], bytes]) -> bytes:
    """What is in a file of secrets of the data directory, mode 0600, made when there is none.

    Raises ``Unusable`` when it cannot be read or written, or where others may write in the directory.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_shared(path.parent)
        if not path.exists():
            _make(path, new())
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path} of the data directory cannot be used: {error.strerror}. Choose another with --data-dir.") from error


def _new() -> bytes:
    key = RootKey(
        access_key="AKIA" + "".join(secrets.choice(_ID_LETTERS) for _ in range(16)),
        secret_key=base64.b64encode(secrets.token_bytes(30)).decode(),
        created_at=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )
    return msgspec.json.format(msgspec.json.encode(key), indent=2)


def _make(path: Path, content: bytes) -> None:
    """Written in full under another name, then linked: it is there whole or not at all, and never replaces one that is there."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
