"""The JSON 1.0/1.1 and Smithy RPC v2 CBOR protocols: plain trees in and out, read and written by shape."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import cbor2

from cachekeep.wire import scalars
from cachekeep.wire.faults import Malformed
from cachekeep.wire.model import OperationShape, Shape

Form = Literal["json", "cbor"]
Convert = Callable[[Any], Any]

# ------------------------------------------------------------------ bytes to trees


def decode_json(body: bytes) -> Any:
    """Raises Malformed. An empty body is an empty object."""
    if not body:
        return {}
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("JSON") from None


def decode_cbor(body: bytes) -> Any:
    """Raises Malformed. Only what RPC v2 allows: no tag but 1 (a time), so nothing in a request can make objects of its choice."""
    if not body:
        return {}
    value, end = _Cbor(body).item(0, 0)
    if end != len(body):
        raise Malformed("one CBOR item")
    return value


ITEMS_MAX: Final = 20_000
"""What a request is read from at most, as of form fields (``query.FIELDS_MAX``)."""
_CBOR_DEPTH_MAX: Final = 64
_CBOR_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}
_CBOR_SIMPLE: Final[Mapping[int, bool | None]] = {20: False, 21: True, 22: None, 23: None}
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF


class _Cbor:
    """One body, item by item (RFC 8949, section 3)."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._left = ITEMS_MAX

    def item(self, at: int, depth: int) -> tuple[Any, int]:
        """The item that begins at ``at``, and where the next one begins."""
        body = self._body
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"at most {ITEMS_MAX} CBOR items")
        if at >= len(body) or depth > _CBOR_DEPTH_MAX:
            raise Malformed("CBOR")
        major, info = body[at] >> 5, body[at] & 31
        at += 1
        if major == 7:
            if info in _CBOR_SIMPLE:
                return _CBOR_SIMPLE[info], at
            form = _CBOR_FLOATS.get(info)
            if form is None or at + struct.calcsize(form) > len(body):
                raise Malformed("CBOR")
            return struct.unpack_from(form, body, at)[0], at + struct.calcsize(form)
        size: int | None
        if info < 24:
            size = info
        elif info < 28:
            width = 1 << (info - 24)
            if at + width > len(body):
                raise Malformed("CBOR")
            size, at = int.from_bytes(body[at : at + width], "big"), at + width
        elif info == _INDEFINITE and major in (2, 3, 4, 5):
            size = None
        else:
            raise Malformed("CBOR")
        match major, size:
            case 0, int():
                return size, at
            case 1, int():
                return -1 - size, at
            case 6, int():
                value, at = self.item(at, depth + 1)
                if size != 1 or isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise Malformed("CBOR without tags other than 1")
                return scalars.from_epoch_seconds(value), at
            case ((2 | 3), int()):
                if at + size > len(body):
                    raise Malformed("CBOR")
                return _cbor_text(body[at : at + size], major), at + size
            case ((2 | 3), _):
                chunks = []
                while not self._breaks(at):
                    if body[at] >> 5 != major or body[at] & 31 == _INDEFINITE:
                        raise Malformed("CBOR")
                    chunk, at = self.item(at, depth + 1)
                    chunks.append(chunk)
                return ("" if major == 3 else b"").join(chunks), at + 1
            case _:
                return self._container(at, depth + 1, major, size)

    def _container(self, at: int, depth: int, major: int, size: int | None) -> tuple[Any, int]:
        items: list[Any] = []
        if size is None:
            while not self._breaks(at):
                item, at = self.item(at, depth)
                items.append(item)
            at += 1
            if major == 5 and len(items) % 2:
                raise Malformed("CBOR")
        else:
            for _ in range(size if major == 4 else 2 * size):  # a size that is a lie ends at the end of the body
                item, at = self.item(at, depth)
                items.append(item)
        if major == 4:
            return items, at
        keys = items[::2]
        if not all(isinstance(key, str) for key in keys):
            raise Malformed("CBOR maps with text keys")
        return dict(zip(keys, items[1::2], strict=True)), at

    def _breaks(self, at: int) -> bool:
        if at >= len(self._body):
            raise Malformed("CBOR")
        return self._body[at] == _BREAK


def _cbor_text(raw: bytes, major: int) -> str | bytes:
    if major == 2:
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed("UTF-8 text") from None


# ------------------------------------------------------------------ trees to parameters


def _read_string(value: Any) -> str:
    if not isinstance(value, str):
        raise Malformed("a string")
    return scalars.check_text(value)


def _read_integer(type_name: str) -> Convert:
    def read(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Malformed("an integer")
        return scalars.check_integer(value, type_name)

    return read


def _read_float(value: Any) -> float:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return scalars.parse_float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Malformed("a number")
    try:
        return float(value)
    except OverflowError:
        raise Malformed("a 64-bit number") from None


def _read_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed("true or false")
    return value


def _read_timestamp(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, str):
        return scalars.parse_timestamp(value)
    return scalars.from_epoch_seconds(_read_float(value))


def _read_blob(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Malformed("base64")
    return scalars.parse_blob(value)


_READERS: Final[Mapping[str, Convert]] = {
    "string": _read_string,
    "integer": _read_integer("integer"),
    "long": _read_integer("long"),
    "float": _read_float,
    "double": _read_float,
    "boolean": _read_boolean,
    "timestamp": _read_timestamp,
    "blob": _read_blob,
}


class RpcReader:
    """Reads decoded trees by shape. ``null`` is unset; unknown names are passed over."""

    def __init__(self) -> None:
        self._readers: dict[str, Convert] = {}

    def read(self, operation: OperationShape, root: Any) -> dict[str, Any]:
        """The parameters. Raises Malformed."""
        if not isinstance(root, dict):
            raise Malformed("an object")
        return self._reader(operation.input)(root) if operation.input is not None else {}

    def _reader(self, shape: Shape) -> Convert:
        name = shape.name
        reader = self._readers.get(name)
        if reader is None:
            self._readers[name] = lambda value: self._readers[name](value)
            reader = self._readers[name] = self._build(shape)
        return reader

    def _build(self, shape: Shape) -> Convert:
        if shape.type == "structure":
            return self._structure(shape)
        if shape.type == "list":
            item = self._reader(shape.item.shape)

            def items(value: Any) -> list[Any]:
                if not isinstance(value, list):
                    raise Malformed("a list")
                return [_at(str(index), item, below) for index, below in enumerate(value, 1)]

            return items
        if shape.type == "map":
            key, below_of = self._reader(shape.key.shape), self._reader(shape.value.shape)

            def entries(value: Any) -> dict[Any, Any]:
                if not isinstance(value, dict):
                    raise Malformed("an object")
                return {key(name): _at(name, below_of, below) for name, below in value.items() if below is not None}

            return entries
        return _READERS[shape.type]

    def _structure(self, shape: Shape) -> Convert:
        known = {member.wire_name or name: (name, self._reader(member.shape)) for name, member in shape.members.items()}

        def structure(value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                raise Malformed("an object")
            result = {}
            for alias, below in value.items():
                if below is not None and alias in known:
                    name, read = known[alias]
                    result[name] = _at(name, read, below)
            return result

        return structure


def _at(name: str, read: Convert, value: Any) -> Any:
    try:
        return read(value)
    except Malformed as error:
        raise error.inside(name) from None


# ------------------------------------------------------------------ results to bytes


def _same(value: Any) -> Any:
    return value


def _json_float(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else scalars.named_float(value)


_WRITERS: Final[Mapping[Form, Mapping[str, Convert]]] = {
    "json": {
        "float": _json_float,
        "double": _json_float,
        "timestamp": scalars.epoch_seconds,
        "blob": lambda value: base64.b64encode(value).decode(),
    },
    "cbor": {
        "float": float,
        "double": float,
        "timestamp": lambda value: cbor2.CBORTag(1, scalars.epoch_seconds(value)),
    },
}


class RpcWriter:
    """Writes the answers of one service's operations in one form."""

    def __init__(self, form: Form) -> None:
        self._form: Form = form
        self._writers: dict[str, Convert] = {}

    def write(self, operation: OperationShape, result: Mapping[str, Any]) -> bytes:
        """The body. Raises TypeError when ``result`` has a name that the output shape does not have."""
        if operation.output is not None:
            tree = self._writer(operation.output)(result)
        elif result:
            raise TypeError(f"{operation.name} has no output, got {sorted(result)}")
        else:
            tree = {}
        return json.dumps(tree, separators=(",", ":")).encode() if self._form == "json" else cbor2.dumps(tree)

    def _writer(self, shape: Shape) -> Convert:
        name = shape.name
        writer = self._writers.get(name)
        if writer is None:
            self._writers[name] = lambda value: self._writers[name](value)
            writer = self._writers[name] = self._build(shape)
        return writer

    def _build(self, shape: Shape) -> Convert:
        if shape.type == "structure":
            known = {name: (member.wire_name or name, self._writer(member.shape)) for name, member in shape.members.items()}

            def structure(value: Mapping[str, Any]) -> dict[str, Any]:
                result = {}
                for name, below in value.items():
                    if below is not None:
                        try:
                            wire_name, write = known[name]
                        except KeyError:
                            raise TypeError(f"{shape.name} has no member {name}") from None
                        result[wire_name] = write(below)
                return result

            return structure
        if shape.type == "list":
            item = self._writer(shape.item.shape)
            return lambda value: [item(below) for below in value]
        if shape.type == "map":
            below_of = self._writer(shape.value.shape)
            return lambda value: {name: below_of(below) for name, below in value.items()}
        return _WRITERS[self._form].get(shape.type, _same)
