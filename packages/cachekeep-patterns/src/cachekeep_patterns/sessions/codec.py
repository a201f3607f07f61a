"""How one field's value becomes bytes: MessagePack with or without extensions, or JSON, by msgspec; never pickle.

The first byte of a stored value names its codec, so a deployment may change the codec and still read
what it wrote before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..codecs import Encrypted, Raw
from ..errors import Uncodable
from ..exact import Exact, Extension
from .errors import SessionCannotDecode, SessionCannotEncode

Seal = Callable[[bytes, str], bytes]


@dataclass(frozen=True)
class Codec:
    """`tag` is one byte; `encode` and `decode` work on the bytes behind it.

    `encode` must give equal bytes for equal values: by them a session sees what changed. What differs each time, as an
    encryption's does, is put around them by `seal` and taken off by `unseal`; both are told the session and field that
    the bytes are for. `alone`: fields of other codecs are not read.
    """

    tag: bytes
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    seal: Seal | None = None
    unseal: Seal | None = None
    alone: bool = False


MSGPACK = Codec(b"m", msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode)
"""Keeps bytes and aware datetimes. Tuples and sets come back as lists."""

JSON = Codec(b"j", msgspec.json.Encoder().encode, msgspec.json.Decoder().decode)
"""Readable with a plain client. Bytes, datetimes and UUIDs come back as strings."""


def _markup() -> tuple[Extension, ...]:
    """Of Jinja's safe texts, where there are any."""
    try:
        from markupsafe import Markup
    except ImportError:
        return ()
    return (Extension(14, Markup, lambda value: str.__str__(value) + "", Markup),)


_exact = Exact(*_markup())
EXACT = Codec(b"x", lambda value: _exact.encode(value, ""), lambda data: _exact.decode(data, ""))
"""What comes out equals what went in and is of its types (tuples, sets, Decimal, UUID, dates with their zones, Markup),
or it is refused."""

_KNOWN = {codec.tag: codec for codec in (EXACT, MSGPACK, JSON)}


def encrypted(secrets: Mapping[str, bytes], *, inner: Codec = EXACT, read_plain: bool = False) -> Codec:
    """AES-GCM around `inner`, bound to session and field: a stored value cannot be read, altered or moved.

    `secrets`: short name to 32 bytes; the first encrypts, all decrypt: put a new one in front to rotate.
    `read_plain`: also read what was stored before encryption was switched on (and what somebody who can write to the
    cache puts there). Field names, users and times are stored as they are. Needs the extra `encryption`.
    """
    cipher = Encrypted(Raw(), secrets)
    return Codec(b"e", inner.encode, inner.decode, cipher.encode, cipher.decode, alone=not read_plain)


def encode_field(codec: Codec, name: str, value: Any) -> bytes:
    """The value before it is sealed. Raises SessionCannotEncode, which names the field and never the value."""
    try:
        return codec.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, Uncodable) as error:
        raise SessionCannotEncode(
            f"session field {name!r} holds a {type(value).__name__} that cannot be stored: {error}"
        ) from error


def seal_field(codec: Codec, handle: str, name: str, encoded: bytes) -> bytes:
    """What is stored."""
    return codec.tag + (encoded if codec.seal is None else codec.seal(encoded, f"{handle}:{name}"))


def codec_of(codec: Codec, name: str, stored: bytes) -> Codec:
    """The codec that wrote `stored`; `codec` is the policy's own, tried before the known ones. Raises SessionCannotDecode."""
    tag = stored[:1]
    chosen = codec if tag == codec.tag else None if codec.alone else _KNOWN.get(tag)
    if chosen is None:
        raise SessionCannotDecode(f"session field {name!r} was written by an unknown codec {tag!r}")
    return chosen


def decode_field(codec: Codec, handle: str, name: str, stored: bytes) -> Any:
    """`codec`: the one that wrote it. Raises SessionCannotDecode."""
    try:
        encoded = stored[1:]
        return codec.decode(encoded if codec.unseal is None else codec.unseal(encoded, f"{handle}:{name}"))
    except (msgspec.DecodeError, ValueError, Uncodable) as error:
        raise SessionCannotDecode(f"session field {name!r} is damaged, or under a secret that is not known here") from error
