"""How one field's value becomes bytes: MessagePack or JSON by msgspec, never pickle.

The first byte of a stored value names its codec, so a deployment may change the codec and still read
what it wrote before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from .errors import SessionCannotDecode, SessionCannotEncode


@dataclass(frozen=True)
class Codec:
    """`tag` is one byte; `encode` and `decode` work on the bytes behind it."""

    tag: bytes
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


MSGPACK = Codec(b"m", msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode)
"""Keeps bytes and aware datetimes. Tuples and sets come back as lists."""

JSON = Codec(b"j", msgspec.json.Encoder().encode, msgspec.json.Decoder().decode)
"""Readable with a plain client. Bytes, datetimes and UUIDs come back as strings."""

_KNOWN = {codec.tag: codec for codec in (MSGPACK, JSON)}


def encode_field(codec: Codec, name: str, value: Any) -> bytes:
    """Raises SessionCannotEncode, which names the field and never the value."""
    try:
        return codec.tag + codec.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SessionCannotEncode(
            f"session field {name!r} holds a {type(value).__name__} that cannot be stored: {error}"
        ) from error


def decode_field(codec: Codec, name: str, stored: bytes) -> Any:
    """Raises SessionCannotDecode. `codec` is the policy's own, tried before the known ones."""
    tag = stored[:1]
    chosen = codec if tag == codec.tag else _KNOWN.get(tag)
    if chosen is None:
        raise SessionCannotDecode(f"session field {name!r} was written by an unknown codec {tag!r}")
    try:
        return chosen.decode(stored[1:])
    except (msgspec.DecodeError, ValueError) as error:
        raise SessionCannotDecode(f"session field {name!r} is damaged") from error
