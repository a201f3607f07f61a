"""The query and EC2 protocols: form-encoded requests in, XML out. (Smithy: AWS query and AWS EC2 query protocols.)

Readers and writers are built once per shape as closures, so that answering walks the data and not the model.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from cachekeep.wire import scalars
from cachekeep.wire.faults import Malformed, xml_text
from cachekeep.wire.model import MemberShape, OperationShape, ServiceModel, Shape

Node = str | dict[str, Any]
Reader = Callable[[Node], Any]
Writer = Callable[[Any], str]

FIELDS_MAX: Final = 20_000
DEPTH_MAX: Final = 32

# ------------------------------------------------------------------ reading


def fields(text: bytes | str) -> list[tuple[str, str]]:
    """The pairs of a form body or query string. Raises Malformed for what is not UTF-8 and for floods of fields."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return parse_qsl(decoded, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except UnicodeDecodeError:
        raise Malformed("UTF-8 text") from None
    except ValueError:
        raise Malformed(f"at most {FIELDS_MAX} parameters") from None


def tree(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """``A.B.1=x`` as nested dictionaries. A name that is both a value and a prefix keeps its value under the empty name."""
    root: dict[str, Any] = {}
    for name, value in pairs:
        if not name:
            continue
        if "." not in name:
            node, last = root, name
        else:
            *parents, last = name.split(".", DEPTH_MAX + 1)
            if len(parents) > DEPTH_MAX:
                raise Malformed(f"names of at most {DEPTH_MAX} levels").inside(name[:80])
            if not (last and all(parents)):
                continue  # ``A..1``: no parameter has such a name, and the empty name is taken
            node = root
            for parent in parents:
                below = node.get(parent)
                if not isinstance(below, dict):
                    below = node[parent] = {} if below is None else {"": below}
                node = below
        if isinstance(node.get(last), dict):
            node[last][""] = value
        else:
            node[last] = value
    return root


class QueryReader:
    """Reads the parameters of one service's operations out of a ``tree``.

    - Lists are found under the model's item name, ``member``, or directly (``X.1``); any other single wrapper is accepted too,
      since item names vary from one operation to the next.
    - **Empty means unset** for the operation's own members (clients send ``EngineVersion=`` for "not given"), and for every
      empty number, time and flag; an empty text deeper down (a tag's value) is kept. An empty list parameter is ``[]``.
    - Names that the model does not know are passed over, as AWS does.
    """

    def __init__(self, *, ec2: bool) -> None:
        self._ec2 = ec2
        self._readers: dict[str, Reader] = {}
        self._inputs: dict[str, Reader] = {}

    def read(self, operation: OperationShape, root: dict[str, Any]) -> dict[str, Any]:
        """The parameters, by the model's names. Raises Malformed."""
        if operation.input is None:
            return {}
        read = self._inputs.get(operation.name)
        if read is None:
            read = self._inputs[operation.name] = self._structure(operation.input, empty_text_is_unset=True)
        result: dict[str, Any] = read(root)
        return result

    def _reader(self, shape: Shape) -> Reader:
        reader = self._readers.get(shape.name)
        if reader is None:
            name = shape.name
            self._readers[name] = lambda node: self._readers[name](node)  # for shapes that contain themselves
            reader = self._readers[name] = self._build(shape)
        return reader

    def _build(self, shape: Shape) -> Reader:
        match shape.type:
            case "structure":
                return self._structure(shape)
            case "list":
                return self._list(shape)
            case "map":
                return self._map(shape)
        parse = scalars.FROM_TEXT[shape.type]

        def scalar(node: Node) -> Any:
            if isinstance(node, str):
                return parse(node)
            if "" in node:
                return parse(node[""])
            raise Malformed("a single value")

        return scalar

    def _structure(self, shape: Shape, *, empty_text_is_unset: bool = False) -> Reader:
        known: dict[str, tuple[str, Reader, bool]] = {}
        for name, member in shape.members.items():
            target = member.shape
            unset_if_empty = target.type not in ("list", "string") or (empty_text_is_unset and target.type == "string")
            entry = (name, self._reader(target), unset_if_empty)
            for alias in reversed(self._aliases(name, member)):
                known[alias] = entry

        def structure(node: Node) -> dict[str, Any]:
            if isinstance(node, str):
                if node:
                    raise Malformed("a structure")
                return {}
            result = {}
            for alias, below in node.items():
                entry = known.get(alias)
                if entry is None:
                    continue
                name, read, unset_if_empty = entry
                if below == "" and unset_if_empty:
                    continue
                try:
                    result[name] = read(below)
                except Malformed as error:
                    raise error.inside(name) from None
            return result

        return structure

    def _aliases(self, name: str, member: MemberShape) -> list[str]:
        """The names a member may be sent under, the protocol's own first."""
        wire = member.wire_name
        if wire and self._ec2:
            wire = wire[:1].upper() + wire[1:]
        return [alias for alias in (member.query_name, wire, name, name[:1].upper() + name[1:]) if alias]

    def _list(self, shape: Shape) -> Reader:
        read = self._reader(shape.item.shape)
        wrappers = [name for name in (shape.item.wire_name, "member", shape.item.shape_name) if name]

        def unwrap(node: dict[str, Any]) -> dict[str, Any]:
            for name in wrappers:
                if name in node:
                    below = node[name]
                    return below if isinstance(below, dict) else {"1": below} if below else {}
            if len(node) == 1:
                only = next(iter(node.values()))
                if isinstance(only, dict) and all(_is_index(key) for key in only):
                    return only
            return node

        def items(node: Node) -> list[Any]:
            if isinstance(node, str):
                if node:
                    raise Malformed("a list (Name.member.1=…)")
                return []
            if not any(_is_index(key) for key in node):
                node = unwrap(node)
            result = []
            for key in sorted((key for key in node if key), key=_index):
                try:
                    result.append(read(node[key]))
                except Malformed as error:
                    raise error.inside(key) from None
            return result

        return items

    def _map(self, shape: Shape) -> Reader:
        read_key, read_value = self._reader(shape.key.shape), self._reader(shape.value.shape)
        key_name, value_name = shape.key.wire_name or "key", shape.value.wire_name or "value"

        def entries(node: Node) -> dict[Any, Any]:
            if isinstance(node, str):
                if node:
                    raise Malformed("a map (Name.entry.1.key=…)")
                return {}
            node = node.get("entry", node)
            if isinstance(node, str):
                return {}
            result = {}
            for index in sorted((key for key in node if key), key=_index):
                entry = node[index]
                try:
                    if not isinstance(entry, dict) or key_name not in entry:
                        raise Malformed(f"a {key_name} and a {value_name}")
                    result[read_key(entry[key_name])] = read_value(entry.get(value_name, ""))
                except Malformed as error:
                    raise error.inside(index) from None
            return result

        return entries


def _is_index(text: str) -> bool:
    return len(text) <= 9 and text.isascii() and text.isdigit()


def _index(text: str) -> int:
    if not _is_index(text):
        raise Malformed("list indexes 1, 2, 3 …").inside(text[:80])
    return int(text)


# ------------------------------------------------------------------ writing

_REQUEST_ID: Final = "{request id}"
_SPECIAL: Final = re.compile("[&<>\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


_TO_TEXT: Final[Mapping[str, Callable[[Any], str]]] = {
    "float": scalars.float_text,
    "double": scalars.float_text,
    "timestamp": scalars.iso8601,
    "blob": lambda value: base64.b64encode(value).decode(),
}


class XmlWriter:
    """Writes the answers of one service's operations."""

    def __init__(self, model: ServiceModel, *, ec2: bool) -> None:
        self._ec2 = ec2
        namespace = model.xml_namespace
        self._namespace = namespace if namespace.endswith("/") else f"{namespace}/"
        self._writers: dict[tuple[str, str], Writer] = {}
        self._answers: dict[str, tuple[str, Writer | None, str]] = {}

    def write(self, operation: OperationShape, result: Mapping[str, Any], request_id: str) -> bytes:
        """The whole document. Raises TypeError when ``result`` has a name that the output shape does not have."""
        head, content, tail = self._answers.get(operation.name) or self._frame(operation)
        if content is None and result:
            raise TypeError(f"{operation.name} has no output, got {sorted(result)}")
        head, tail = head.replace(_REQUEST_ID, request_id), tail.replace(_REQUEST_ID, request_id)
        return f"{head}{content(result) if content else ''}{tail}".encode()

    def _frame(self, operation: OperationShape) -> tuple[str, Writer | None, str]:
        """What stands before, in, and after the output; the id's place is in the first or the last."""
        root = f"{operation.name}Response"
        head, tail = f'<{root} xmlns="{self._namespace}">', f"</{root}>"
        content = self._members(operation.output) if operation.output is not None else None
        if self._ec2:
            head = f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<requestId>{_REQUEST_ID}</requestId>'
            tail = tail if content else f"<return>true</return>{tail}"
        else:
            tail = f"<ResponseMetadata><RequestId>{_REQUEST_ID}</RequestId></ResponseMetadata>{tail}"
            if content:
                wrapper = operation.result_wrapper
                head, tail = f"{head}<{wrapper}>", f"</{wrapper}>{tail}"
        frame = self._answers[operation.name] = (head, content, tail)
        return frame

    def _element(self, name: str, shape: Shape) -> Writer:
        """The writer of ``<name>…</name>``."""
        at = (name, shape.name)
        writer = self._writers.get(at)
        if writer is None:
            self._writers[at] = lambda value: self._writers[at](value)  # for shapes that contain themselves
            writer = self._writers[at] = self._build(name, shape)
        return writer

    def _build(self, name: str, shape: Shape) -> Writer:
        begin, end = f"<{name}>", f"</{name}>"
        match shape.type:
            case "string":
                special = _SPECIAL.search
                return lambda value: f"{begin}{xml_text(value) if special(value) else value}{end}"
            case "boolean":
                true, false = f"{begin}true{end}", f"{begin}false{end}"
                return lambda value: true if value else false
            case "integer" | "long":
                return lambda value: f"{begin}{int(value)}{end}"
            case "structure":
                content = self._members(shape)
            case "list":
                content = self._items(shape)
            case "map":
                content = self._entries(shape)
            case other:
                content = _TO_TEXT[other]
        return lambda value: f"{begin}{content(value)}{end}"

    def _members(self, shape: Shape) -> Writer:
        """The writer of what is inside a structure. Texts, which are most of every answer, are written on the spot."""
        known: dict[str, tuple[str, str, Writer | None]] = {}
        for name, member in shape.members.items():
            tag, target = member.wire_name or name, member.shape
            if target.type == "string":
                known[name] = (f"<{tag}>", f"</{tag}>", None)
            else:
                known[name] = ("", "", self._element(tag, target))
        names, special = known.keys(), _SPECIAL.search

        def members(value: Mapping[str, Any]) -> str:
            if not value.keys() <= names:  # a mistake of ours, never dropped silently
                raise TypeError(f"{shape.name} has no member {', '.join(sorted(value.keys() - names))}")
            pieces = []
            for name, below in value.items():
                if below is not None:
                    begin, end, write = known[name]
                    if write is not None:
                        pieces.append(write(below))
                    elif special(below):
                        pieces.append(f"{begin}{xml_text(below)}{end}")
                    else:
                        pieces.append(f"{begin}{below}{end}")
            return "".join(pieces)

        return members

    def _items(self, shape: Shape) -> Writer:
        item = self._element(shape.item.wire_name or "member", shape.item.shape)
        return lambda value: "".join([item(below) for below in value])

    def _entries(self, shape: Shape) -> Writer:
        key = self._element(shape.key.wire_name or "key", shape.key.shape)
        below_of = self._element(shape.value.wire_name or "value", shape.value.shape)
        return lambda value: "".join([f"<entry>{key(name)}{below_of(below)}</entry>" for name, below in value.items()])
