"""Values to bytes and back. Never pickle: whoever can write to the cache could then run code in every reader."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from cachekeep_patterns.errors import Uncodable
from cachekeep_patterns.exact import Exact
from cachekeep_patterns.fields import fields_of


class Codec(Protocol):
    """Raises `Uncodable` both ways. ``key`` is what the value is stored under: an encrypting codec binds it in."""

    def encode(self, value: Any, key: str) -> bytes: ...
    def decode(self, data: bytes, key: str) -> Any: ...


@runtime_checkable
class Typed(Protocol):
    """A codec that decodes better to a type that it knows."""

    def typed(self, type: Any) -> Codec:
        """The same for values of ``type``. Raises TypeError if it cannot decode to that."""
        ...


class Msgspec:
    """JSON or msgpack by msgspec: builtins, dataclasses, Structs, attrs and pydantic classes, dates, UUIDs, decimals. Given
    ``type``, decodes to it; a decorated function gives its annotation.
    """

    __slots__ = ("_decode", "_encode", "_format", "_known")
    _decode: Callable[[bytes], Any]
    _encode: Callable[[Any], bytes]

    def __init__(self, type: Any = Any, *, format: str = "json") -> None:
        if format == "json":
            self._encode = msgspec.json.Encoder(enc_hook=_to_plain).encode
            self._decode = msgspec.json.Decoder(type, dec_hook=_to_model).decode
        elif format == "msgpack":
            self._encode = msgspec.msgpack.Encoder(enc_hook=_to_plain).encode
            self._decode = msgspec.msgpack.Decoder(type, dec_hook=_to_model).decode
        else:
            raise ValueError("format is json or msgpack")
        self._format, self._known = format, type is not Any

    def typed(self, type: Any) -> Codec:
        return self if self._known else Msgspec(type, format=self._format)

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


def _to_plain(value: Any) -> Any:
    dump = getattr(type(value), "model_dump", None)  # pydantic's
    if dump is None:
        raise TypeError(f"objects of type {type(value).__qualname__} are not supported")
    return dump(value, mode="json", round_trip=True)


def _to_model(kind: type, plain: Any) -> Any:
    validate = getattr(kind, "model_validate_json", None)
    if validate is None:
        raise TypeError(f"objects of type {kind.__qualname__} are not supported")
    return validate(msgspec.json.encode(plain))


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

    def typed(self, type: Any) -> Codec:
        inner = typed(self.inner, type)
        return Compressed(inner, above_bytes=self.above_bytes, level=self.level, max_bytes=self.max_bytes)

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
        self.inner, self._secrets = inner, dict(secrets)
        self._ciphers = {name.encode(): AESGCM(secret) for name, secret in secrets.items()}
        self._first = next(iter(self._ciphers))

    def typed(self, type: Any) -> Codec:
        return Encrypted(typed(self.inner, type), self._secrets)

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


class Versioned:
    """Another codec's bytes, of one version of what they mean: those of another version do not decode, and are loaded anew."""

    def __init__(self, inner: Codec, version: int | str) -> None:
        self.inner, self._version = inner, version
        self._mark = f"{type(version).__name__[0]}{version}\0".encode()

    def typed(self, type: Any) -> Codec:
        return Versioned(typed(self.inner, type), self._version)

    def encode(self, value: Any, key: str) -> bytes:
        return self._mark + self.inner.encode(value, key)

    def decode(self, data: bytes, key: str) -> Any:
        if not data.startswith(self._mark):
            raise Uncodable(f"stored bytes are not of version {self._version}")
        return self.inner.decode(data[len(self._mark) :], key)


def typed(codec: Codec, type: Any) -> Codec:
    """``codec`` for values of ``type``, as far as it can make a difference. Raises TypeError if it cannot decode to that."""
    return codec.typed(type) if isinstance(codec, Typed) else codec


def difference(one: Any, other: Any, at: str = "it") -> str | None:
    """How ``other``, which came back, is not just what ``one`` is, in value and in type; None if it is."""
    kind = type(one)
    if kind is not type(other):
        return f"{at}: {kind.__qualname__} comes back as {type(other).__qualname__}"
    if kind in _COMPARED:
        return None if one == other or one != one else f"{at}: {kind.__qualname__} comes back as another"
    if kind in (list, tuple):
        if len(one) != len(other):
            return f"{at}: {len(one)} become {len(other)}"
        pairs = ((f"{at}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, dict):
        if len(one) != len(other):
            return f"{at}: {len(one)} keys become {len(other)}"
        if any(type(a) is not type(b) or a != b for a, b in zip(one, other, strict=True)):
            return f"{at}: keys come back as others"
        pairs = ((f"{at}[{key!r:.40}]", value, other[key]) for key, value in one.items())
    elif kind is decimal.Decimal:
        return None if str(one) == str(other) else f"{at}: Decimal comes back as another"
    elif kind in (datetime.datetime, datetime.time):
        same = one.isoformat() == other.isoformat() and one.fold == other.fold and _zone(one.tzinfo) == _zone(other.tzinfo)
        return None if same else f"{at}: {kind.__qualname__} comes back in another zone"
    elif kind in (set, frozenset):
        same = one == other and sorted(type(a).__name__ for a in one) == sorted(type(a).__name__ for a in other)
        return None if same else f"{at}: {kind.__qualname__} comes back as another"
    else:
        fields, others = fields_of(one), fields_of(other)
        if fields is None or others is None:
            return None if one == other else f"{at}: {kind.__qualname__} comes back as another"
        if len(fields) != len(others):
            return f"{at}: fields of {kind.__qualname__} are lost"
        pairs = ((f"{at}.{name}", a, b) for (name, a), (_, b) in zip(fields, others, strict=True))
    return next((found for found in (difference(a, b, place) for place, a, b in pairs) if found), None)


def _zone(zone: datetime.tzinfo | None) -> str | None:
    """The name of one with rules; None for a fixed offset, whatever class it is of: the text of the time says that."""
    return getattr(zone, "key", None)


_COMPARED = frozenset((str, int, bool, float, bytes, type(None)))


def codec_for(codec: Codec | str, type: Any = Any) -> Codec:
    """``json`` and ``msgpack`` (msgspec), ``exact`` (plain data of any built-in type, exact.py), ``plain-json`` (standard library),
    ``raw``, or a codec of your own.
    """
    if not isinstance(codec, str):
        return codec
    if codec in ("json", "msgpack"):
        return Msgspec(type, format=codec)
    if codec == "exact":
        return Exact()
    if codec == "plain-json":
        return Json()
    if codec == "raw":
        return Raw()
    raise ValueError(f"no codec named {codec!r}: json, msgpack, exact, plain-json, raw, or an object with encode and decode")
