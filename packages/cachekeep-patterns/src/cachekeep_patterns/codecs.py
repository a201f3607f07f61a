"""Values to bytes and back. Never pickle: whoever can write to the cache could then run code in every reader."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from cachekeep_patterns.errors import Uncodable


class Codec(Protocol):
    """Raises `Uncodable` both ways. ``key`` is what the value is stored under: an encrypting codec binds it in."""

    def encode(self, value: Any, key: str) -> bytes: ...
    def decode(self, data: bytes, key: str) -> Any: ...


class Msgspec:
    """JSON or msgpack by msgspec: builtins, dataclasses, Structs, dates, UUIDs, decimals. Given ``type``, decodes to it."""

    __slots__ = ("_decode", "_encode")
    _decode: Callable[[bytes], Any]
    _encode: Callable[[Any], bytes]

    def __init__(self, type: Any = Any, *, format: str = "json") -> None:
        if format == "json":
            self._encode = msgspec.json.Encoder().encode
            self._decode = msgspec.json.Decoder(type).decode
        elif format == "msgpack":
            self._encode = msgspec.msgpack.Encoder().encode
            self._decode = msgspec.msgpack.Decoder(type).decode
        else:
            raise ValueError("format is json or msgpack")

    def encode(self, value: Any, key: str) -> bytes:
        try:
            return self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise Uncodable(f"{type(value).__name__} cannot be encoded: {error}") from error

    def decode(self, data: bytes, key: str) -> Any:
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Uncodable(f"stored bytes do not decode: {error}") from error


class Json:
    """The standard library's JSON, for readers and writers in other languages that expect exactly that."""

    def encode(self, value: Any, key: str) -> bytes:
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Uncodable(f"{type(value).__name__} cannot be encoded: {error}") from error

    def decode(self, data: bytes, key: str) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise Uncodable(f"stored bytes do not decode: {error}") from error


class Raw:
    """Bytes as they are."""

    def encode(self, value: Any, key: str) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise Uncodable(f"the raw codec takes bytes, not {type(value).__name__}")
        return bytes(value)

    def decode(self, data: bytes, key: str) -> Any:
        return data


class Compressed:
    """Another codec's bytes, through zlib when they are ``above_bytes`` and get smaller.
    Decoding refuses more than ``max_bytes``."""

    def __init__(self, inner: Codec, *, above_bytes: int = 1024, level: int = 3, max_bytes: int = 64_000_000) -> None:
        self.inner, self.above_bytes, self.level, self.max_bytes = inner, above_bytes, level, max_bytes

    def encode(self, value: Any, key: str) -> bytes:
        plain = self.inner.encode(value, key)
        if len(plain) > self.above_bytes:
            small = zlib.compress(plain, self.level)
            if len(small) < len(plain):
                return b"\x01" + small
        return b"\x00" + plain

    def decode(self, data: bytes, key: str) -> Any:
        if data[:1] == b"\x00":
            return self.inner.decode(data[1:], key)
        if data[:1] != b"\x01":
            raise Uncodable("stored bytes were not written by the compressing codec")
        unpack = zlib.decompressobj()
        try:
            plain = unpack.decompress(data[1:], self.max_bytes)
        except zlib.error as error:
            raise Uncodable(f"stored bytes do not decompress: {error}") from error
        if not unpack.eof:
            raise Uncodable(f"stored bytes are cut short or grow beyond {self.max_bytes} bytes")
        return self.inner.decode(plain, key)


class Encrypted:
    """Another codec's bytes under AES-256-GCM (needs `cryptography`). The cache key is authenticated with them, so a value
    cannot be moved to another key.

    ``secrets`` maps a short name to 32 bytes; the first one encrypts, all decrypt: rotate by putting a new one in front.
    """

    def __init__(self, inner: Codec, secrets: Mapping[str, bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not secrets or any(len(secret) != 32 or not 0 < len(name.encode()) < 256 for name, secret in secrets.items()):
            raise ValueError("give at least one secret, each of 32 bytes under a short name")
        self.inner = inner
        self._ciphers = {name.encode(): AESGCM(secret) for name, secret in secrets.items()}
        self._first = next(iter(self._ciphers))

    def encode(self, value: Any, key: str) -> bytes:
        nonce = os.urandom(12)
        sealed = self._ciphers[self._first].encrypt(nonce, self.inner.encode(value, key), key.encode())
        return b"".join((bytes([len(self._first)]), self._first, nonce, sealed))

    def decode(self, data: bytes, key: str) -> Any:
        from cryptography.exceptions import InvalidTag

        size = data[0] if data else 0
        name, nonce, sealed = data[1 : 1 + size], data[1 + size : 13 + size], data[13 + size :]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise Uncodable("stored bytes are under a secret that is not known here")
        try:
            plain = cipher.decrypt(nonce, sealed, key.encode())
        except (InvalidTag, ValueError) as error:
            raise Uncodable("stored bytes fail authentication: wrong secret, moved or altered") from error
        return self.inner.decode(plain, key)


def codec_for(codec: Codec | str, type: Any = Any) -> Codec:
    """``json`` and ``msgpack`` (msgspec), ``plain-json`` (standard library), ``raw``, or a codec of your own."""
    if not isinstance(codec, str):
        return codec
    if codec in ("json", "msgpack"):
        return Msgspec(type, format=codec)
    if codec == "plain-json":
        return Json()
    if codec == "raw":
        return Raw()
    raise ValueError(f"no codec named {codec!r}: json, msgpack, plain-json, raw, or an object with encode and decode")
