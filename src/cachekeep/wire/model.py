"""Service models: AWS's own descriptions of operations and shapes, vendored in ``models/`` and read on first use.

Read here rather than through ``botocore.model``: half a page does it, importing botocore at run time costs more time and memory
than all models together, and the tests that hold botocore against this code then compare two independent readings.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

Protocol = Literal["query", "ec2", "json", "smithy-rpc-v2-cbor"]


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """What routing needs to know of a service without loading its model."""

    name: str
    signing_name: str
    api_version: str
    target_prefix: str | None
    protocols: tuple[Protocol, ...]


class Shape:
    """One shape: its type, its parts and its constraints."""

    def __init__(self, service: ServiceModel, name: str, raw: Mapping[str, Any]) -> None:
        self._service = service
        self._raw = raw
        self.name = name
        self.type: str = raw["type"]
        self.required: tuple[str, ...] = tuple(raw.get("required", ()))
        self.minimum: int | None = raw.get("min")
        self.maximum: int | None = raw.get("max")
        self.pattern: str | None = raw.get("pattern")
        self.enum: tuple[str, ...] = tuple(raw.get("enum", ()))
        self.sensitive: bool = raw.get("sensitive", False)

    def __repr__(self) -> str:
        return f"<Shape {self._service.name}.{self.name} {self.type}>"

    @cached_property
    def members(self) -> Mapping[str, MemberShape]:
        """Of a structure: name → member, in the model's order."""
        return {name: MemberShape(self._service, ref) for name, ref in self._raw.get("members", {}).items()}

    @cached_property
    def item(self) -> MemberShape:
        """Of a list: its element."""
        return MemberShape(self._service, self._raw["member"])

    @cached_property
    def key(self) -> MemberShape:
        """Of a map."""
        return MemberShape(self._service, self._raw["key"])

    @cached_property
    def value(self) -> MemberShape:
        """Of a map."""
        return MemberShape(self._service, self._raw["value"])


class MemberShape:
    """A reference to a shape, with the names it has on the wire there."""

    __slots__ = ("_service", "query_name", "shape_name", "wire_name")

    def __init__(self, service: ServiceModel, ref: Mapping[str, Any]) -> None:
        self._service = service
        self.shape_name: str = ref["shape"]
        target = service.raw["shapes"][self.shape_name]
        self.wire_name: str | None = ref.get("locationName", target.get("locationName"))
        self.query_name: str | None = ref.get("queryName")

    @property
    def shape(self) -> Shape:
        return self._service.shape(self.shape_name)


@dataclass(frozen=True, slots=True)
class OperationShape:
    """One operation. ``result_wrapper`` is the XML element around the output, None where the output is empty by the model."""

    name: str
    input: Shape | None
    output: Shape | None
    result_wrapper: str | None


@dataclass(frozen=True, slots=True)
class FaultShape:
    """A modelled error: ``code`` on the query wire, ``name`` on the others, and its HTTP status."""

    name: str
    code: str
    status: int
    sender: bool


class ServiceModel:
    """One service. Shapes and operations are made when first asked for."""

    def __init__(self, name: str, raw: Mapping[str, Any]) -> None:
        self.name = name
        self.raw = raw
        metadata = raw["metadata"]
        self.api_version: str = metadata["apiVersion"]
        self.xml_namespace: str = metadata.get("xmlNamespace", "")
        self.json_version: str = metadata.get("jsonVersion", "1.1")
        self.protocols: tuple[Protocol, ...] = tuple(metadata["protocols"])
        self.query_compatible: bool = "awsQueryCompatible" in metadata
        self._shapes: dict[str, Shape] = {}
        self._operations: dict[str, OperationShape] = {}

    @property
    def operation_names(self) -> tuple[str, ...]:
        return tuple(self.raw["operations"])

    def shape(self, name: str) -> Shape:
        """Raises KeyError."""
        shape = self._shapes.get(name)
        if shape is None:
            shape = self._shapes[name] = Shape(self, name, self.raw["shapes"][name])
        return shape

    def operation(self, name: str) -> OperationShape:
        """Raises KeyError."""
        operation = self._operations.get(name)
        if operation is None:
            raw = self.raw["operations"][name]
            put, got = raw.get("input"), raw.get("output")
            operation = self._operations[name] = OperationShape(
                name,
                self.shape(put["shape"]) if put else None,
                self.shape(got["shape"]) if got else None,
                got.get("resultWrapper", f"{name}Result") if got else None,
            )
        return operation

    @cached_property
    def faults(self) -> Mapping[str, FaultShape]:
        """Every modelled error, found by its shape's name and by its wire code. Names go before codes."""
        by_name: dict[str, FaultShape] = {}
        by_code: dict[str, FaultShape] = {}
        for name, raw in self.raw["shapes"].items():
            if raw.get("exception"):
                error = raw.get("error", {})
                status = error.get("httpStatusCode", 500 if raw.get("fault") else 400)
                fault = FaultShape(name, error.get("code", name), status, status < 500)
                by_name[name] = fault
                by_code.setdefault(fault.code, fault)
        return by_code | by_name


@cache
def catalogue() -> Mapping[str, ServiceEntry]:
    """Every vendored service by name."""
    index = json.loads(files(__package__).joinpath("models/index.json").read_text())
    return {
        name: ServiceEntry(name, raw["signing_name"], raw["api_version"], raw["target_prefix"], tuple(raw["protocols"]))
        for name, raw in index["services"].items()
    }


@cache
def service_model(name: str) -> ServiceModel:
    """The model of a vendored service, loaded once. Raises KeyError for a service that is not vendored."""
    if name not in catalogue():
        raise KeyError(name)
    packed = files(__package__).joinpath("models", name, "service-2.json.gz").read_bytes()
    return ServiceModel(name, json.loads(gzip.decompress(packed)))
