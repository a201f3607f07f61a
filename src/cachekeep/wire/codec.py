"""One service's readers, writers and validator, made on first use and kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

from cachekeep.wire.model import OperationShape, Protocol, ServiceModel, service_model
from cachekeep.wire.query import QueryReader, XmlWriter, tree
from cachekeep.wire.rpc import RpcReader, RpcWriter, decode_cbor, decode_json
from cachekeep.wire.validate import Validator


class Codec:
    """Bytes to parameters and results to bytes, for every protocol that the service speaks."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model
        ec2 = "ec2" in model.protocols
        self._query = QueryReader(ec2=ec2)
        self._xml = XmlWriter(model, ec2=ec2)
        self._rpc = RpcReader()
        self._json, self._cbor = RpcWriter("json"), RpcWriter("cbor")

    @cached_property
    def validator(self) -> Validator:
        return Validator(self.model.name)

    def read_query(self, operation: OperationShape, pairs: list[tuple[str, str]]) -> dict[str, Any]:
        """Parameters out of form pairs. Raises Malformed."""
        return self._query.read(operation, tree(pairs))

    def read_rpc(self, operation: OperationShape, protocol: Protocol, body: bytes) -> dict[str, Any]:
        """Parameters out of a JSON or CBOR body. Raises Malformed."""
        return self._rpc.read(operation, decode_json(body) if protocol == "json" else decode_cbor(body))

    def write(
        self, operation: OperationShape, protocol: Protocol, result: Mapping[str, Any], request_id: str
    ) -> tuple[dict[str, str], bytes]:
        """Headers and body. Raises TypeError when ``result`` is not of the operation's output shape."""
        if protocol in ("query", "ec2"):
            return {"content-type": "text/xml;charset=UTF-8"}, self._xml.write(operation, result, request_id)
        if protocol == "json":
            return {"content-type": f"application/x-amz-json-{self.model.json_version}"}, self._json.write(operation, result)
        headers = {"content-type": "application/cbor", "smithy-protocol": "rpc-v2-cbor"}
        return headers, self._cbor.write(operation, result)


@cache
def codec(service: str) -> Codec:
    """The codec of a vendored service. Raises KeyError."""
    return Codec(service_model(service))
