"""What KMS encrypts: AES-256-GCM, with the key's id and the number of its backing key in front, so that Decrypt need not be told.

``1 | id (16 bytes) | number (4) | nonce (12) | ciphertext and tag``. The encryption context and what is in front are authenticated.
"""

from __future__ import annotations

import json
import secrets
import struct
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HEAD: Final = struct.Struct(">B16sI")
_FORM: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


class Head(NamedTuple):
    """By which key, and which of its backing keys."""

    key: str
    number: int


def head_of(blob: bytes) -> Head | None:
    """None for what was not encrypted here."""
    if len(blob) < _HEAD.size + _NONCE_BYTES + _TAG_BYTES or blob[0] != _FORM:
        return None
    _, key, number = _HEAD.unpack_from(blob)
    return Head(str(uuid.UUID(bytes=key)), number)


def encrypt(head: Head, backing: bytes, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    front = _HEAD.pack(_FORM, uuid.UUID(head.key).bytes, head.number)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return front + nonce + AESGCM(backing).encrypt(nonce, plaintext, _bound(front, context))


def decrypt(backing: bytes, blob: bytes, context: Mapping[str, str]) -> bytes | None:
    """None where it was altered, or the context is another."""
    front, nonce = blob[: _HEAD.size], blob[_HEAD.size : _HEAD.size + _NONCE_BYTES]
    try:
        return AESGCM(backing).decrypt(nonce, blob[_HEAD.size + _NONCE_BYTES :], _bound(front, context))
    except InvalidTag:
        return None


def _bound(front: bytes, context: Mapping[str, str]) -> bytes:
    return front + json.dumps(dict(context), sort_keys=True).encode()
