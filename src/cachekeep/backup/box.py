"""How bytes lie in a vault: compressed, sealed in chunks, and recognised as whole. Pure but for the salt.

A box is ``MAGIC``, a salt, and chunks; each chunk is its length (32 bits, big endian) and that many bytes. A chunk is a zstd frame
of at most ``CHUNK_BYTES``, sealed with AES-256-GCM. The nonce is a counter (88 bits) and a flag that only the last chunk has
(Hoang, Reyhanitabar, Rogaway, Vizár, "Online authenticated-encryption", STREAM, as https://age-encryption.org/v1 uses it): so
chunks cannot be left out, repeated, put in another order or cut off. Its key comes from the data key by HKDF-SHA-256 (RFC 5869)
with the salt, so a data key may seal many boxes. What it is, and which snapshot it belongs to, is authenticated with each chunk:
a box that was put in another's place does not open.
"""

from __future__ import annotations

import json
import secrets
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cachekeep.errors import Damaged

MAGIC: Final = b"CKBOX\0\0\1"
KEY_BYTES: Final = 32
CHUNK_BYTES: Final = 1 << 20
_SALT_BYTES, _LENGTH_BYTES, _COUNTER_BYTES, _TAG_BYTES = 16, 4, 11, 16
_LEVEL: Final = 1
_SEALED_BYTES_MAX: Final = CHUNK_BYTES + (CHUNK_BYTES >> 8) + 64 + _TAG_BYTES
"""zstd makes nothing longer than this (ZSTD_COMPRESSBOUND, zstd.h)."""


class Packer:
    """Makes one box: ``head``, then what ``add`` and at last ``finish`` return. ``whose``: what is authenticated with it."""

    def __init__(self, data_key: bytes, whose: tuple[str, ...]) -> None:
        salt = secrets.token_bytes(_SALT_BYTES)
        self.head = MAGIC + salt
        self._cipher, self._bound, self._count = _cipher(data_key, salt, whose), _bound(whose), 0
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._held = bytearray()

    def add(self, data: bytes) -> bytes:
        """What is to be stored by now. The last chunk is held back: only ``finish`` knows that it is."""
        self._held += data
        full = max(len(self._held) - 1, 0) // CHUNK_BYTES * CHUNK_BYTES
        made = [self._seal(self._held[at : at + CHUNK_BYTES], final=False) for at in range(0, full, CHUNK_BYTES)]
        del self._held[:full]
        return b"".join(made)

    def finish(self) -> bytes:
        return self._seal(self._held, final=True)

    def _seal(self, plain: bytes | bytearray, *, final: bool) -> bytes:
        sealed = self._cipher.encrypt(_nonce(self._count, final), self._zstd.compress(plain), self._bound)
        self._count += 1
        return len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed


class Unpacker:
    """Opens one box, given its bytes in pieces of any size. Raises ``Damaged`` before it returns anything that was not put in."""

    def __init__(self, data_key: bytes, whose: tuple[str, ...]) -> None:
        self._data_key, self._whose = data_key, whose
        self._cipher: AESGCM | None = None
        self._zstd = zstandard.ZstdDecompressor()
        self._count, self._held, self._ended = 0, bytearray(), False

    def add(self, data: bytes) -> bytes:
        """What has become readable."""
        self._held += data
        if self._cipher is None:
            if len(self._held) < len(MAGIC) + _SALT_BYTES:
                return b""
            salt = bytes(self._held[len(MAGIC) : len(MAGIC) + _SALT_BYTES])
            if not self._held.startswith(MAGIC):
                raise Damaged("it does not begin as everything in a vault does, or a newer Cachekeep wrote it")
            self._cipher = _cipher(self._data_key, salt, self._whose)
            del self._held[: len(MAGIC) + _SALT_BYTES]
        opened, at = [], 0
        while len(self._held) - at >= _LENGTH_BYTES:
            length = int.from_bytes(self._held[at : at + _LENGTH_BYTES], "big")
            if not _TAG_BYTES < length <= _SEALED_BYTES_MAX or self._ended:
                raise self._damaged()
            end = at + _LENGTH_BYTES + length
            if len(self._held) < end:
                break
            opened.append(self._open(bytes(self._held[at + _LENGTH_BYTES : end])))
            at = end
        del self._held[:at]
        return b"".join(opened)

    def finish(self) -> None:
        """There are no more bytes. Raises ``Damaged`` if that was not all."""
        if not self._ended or self._held:
            raise Damaged(f"it is cut off in or behind chunk {self._count}")

    def _open(self, sealed: bytes) -> bytes:
        assert self._cipher is not None
        for final in (False, True):
            try:
                frame = self._cipher.decrypt(_nonce(self._count, final), sealed, _bound(self._whose))
                plain = self._zstd.decompress(frame, max_output_size=CHUNK_BYTES)
            except InvalidTag:
                continue
            except zstandard.ZstdError:
                raise self._damaged() from None
            self._count, self._ended = self._count + 1, final
            return plain
        raise self._damaged()

    def _damaged(self) -> Damaged:
        return Damaged(f"chunk {self._count} is not as it was stored, or another's bytes were put in its place")


def _nonce(count: int, final: bool) -> bytes:
    return count.to_bytes(_COUNTER_BYTES, "big") + bytes([final])


def _bound(whose: tuple[str, ...]) -> bytes:
    return json.dumps(whose).encode()


def _cipher(data_key: bytes, salt: bytes, whose: tuple[str, ...]) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"cachekeep box " + _bound(whose)).derive(data_key))
