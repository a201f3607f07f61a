"""botocore as the other half, for every operation of every model and protocol: its requests read, our answers read by it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import botocore
import cbor2
import pytest
from botocore.model import OperationModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.wire.shapes import botocore_model, full, values

from cachekeep.wire import query
from cachekeep.wire.codec import codec
from cachekeep.wire.model import Protocol, catalogue
from cachekeep.wire.rpc import decode_cbor

EVERY = [
    pytest.param(service, protocol, name, id=f"{service}-{protocol}-{name}")
    for service, entry in catalogue().items()
    for protocol in entry.protocols
    for name in codec(service).model.operation_names
]
quick = settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)


def sent(protocol: Protocol, operation: OperationModel, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` as our codec reads them from the request that botocore makes."""
    request = create_serializer(protocol, include_validation=False).serialize_to_request(params, operation)
    ours = codec(operation.service_model.service_name)
    if protocol in ("query", "ec2"):
        pairs = query.fields(urlencode(request["body"]).encode())
        assert dict(pairs)["Action"] == operation.name
        return ours.read_query(ours.model.operation(operation.name), pairs)
    return ours.read_rpc(ours.model.operation(operation.name), protocol, request["body"])


def answered(protocol: Protocol, operation: OperationModel, result: dict[str, Any]) -> dict[str, Any]:
    """``result`` as botocore reads it from the answer that our codec writes."""
    ours = codec(operation.service_model.service_name)
    headers, body = ours.write(ours.model.operation(operation.name), protocol, result, "the-request-id")
    headers["x-amzn-requestid"] = "the-request-id"
    response = {"status_code": 200, "headers": headers, "body": body}
    parsed = create_parser(protocol).parse(response, operation.output_shape)
    metadata = parsed.pop("ResponseMetadata")
    if operation.output_shape is not None or protocol != "smithy-rpc-v2-cbor":  # there, botocore looks at no header
        assert metadata["RequestId"] == "the-request-id"
    return parsed


def without_empty_texts(params: dict[str, Any]) -> dict[str, Any]:
    """Empty means unset, for an operation's own parameters."""
    return {name: value for name, value in params.items() if value != ""}


@pytest.mark.parametrize(("service", "protocol", "name"), EVERY)
def test_every_member_survives(service: str, protocol: Protocol, name: str) -> None:
    operation = botocore_model(service).operation_model(name)
    if operation.input_shape is not None:
        params = full(operation.input_shape, empty_lost=protocol in ("query", "ec2"))
        assert sent(protocol, operation, params) == params
    result = full(operation.output_shape) if operation.output_shape is not None else {}
    assert answered(protocol, operation, result) == result


@pytest.mark.parametrize(("service", "protocol", "name"), EVERY)
def test_any_request_is_read_as_it_was_meant(service: str, protocol: Protocol, name: str) -> None:
    operation = botocore_model(service).operation_model(name)
    if operation.input_shape is None:
        return
    form = protocol in ("query", "ec2")

    @quick
    @given(values(operation.input_shape, empty_lost=form, whole_seconds=True))
    def check(params: dict[str, Any]) -> None:
        assert sent(protocol, operation, params) == (without_empty_texts(params) if form else params)

    check()


@pytest.mark.parametrize(("service", "protocol", "name"), EVERY)
def test_any_answer_is_read_as_it_was_meant(service: str, protocol: Protocol, name: str) -> None:
    operation = botocore_model(service).operation_model(name)
    if operation.output_shape is None:
        assert answered(protocol, operation, {}) == {}
        return
    infinite = protocol != "json"  # botocore leaves JSON's "Infinity" a string

    @quick
    @given(values(operation.output_shape, empty_lost=False, whole_seconds=False, infinite=infinite))
    def check(result: dict[str, Any]) -> None:
        assert answered(protocol, operation, result) == result

    check()


@pytest.mark.parametrize("service", list(catalogue()))
def test_the_models_use_only_what_the_codec_knows(service: str) -> None:
    """A new botocore may bring traits that this codec would silently ignore."""
    raw = codec(service).model.raw
    known = {"type", "members", "member", "key", "value", "required", "enum", "min", "max", "pattern", "sensitive"}
    known |= {"exception", "error", "fault", "synthetic", "wrapper", "box", "union", "xmlOrder", "deprecated"}
    known |= {"locationName"}
    assert not {trait for shape in raw["shapes"].values() for trait in shape} - known
    refs = [ref for shape in raw["shapes"].values() for ref in shape.get("members", {}).values()]
    refs += [shape[part] for shape in raw["shapes"].values() for part in ("member", "key", "value") if part in shape]
    known_refs = {"shape", "locationName", "queryName", "box", "deprecated", "deprecatedSince", "idempotencyToken"}
    assert not {trait for ref in refs for trait in ref} - known_refs
    assert {(op["http"]["method"], op["http"]["requestUri"]) for op in raw["operations"].values()} == {("POST", "/")}


def test_versions_and_names_tell_the_services_apart() -> None:
    entries = list(catalogue().values())
    for one in ("api_version", "signing_name"):
        assert len({getattr(entry, one) for entry in entries}) == len(entries)


def test_the_vendored_models_are_those_of_their_botocore() -> None:
    """Shapes and operations as botocore has them, but for the prose; skipped when another botocore is installed."""
    index = json.loads(files("cachekeep.wire").joinpath("models/index.json").read_text())
    if index["botocore"] != botocore.__version__:
        pytest.skip(f"models are of botocore {index['botocore']}, {botocore.__version__} is installed")
    for service in catalogue():
        theirs, ours = botocore_model(service), codec(service).model
        for name in ours.operation_names:
            output = theirs.operation_model(name).output_shape
            assert (ours.operation(name).output is None) == (output is None)
        for name in ours.raw["shapes"]:
            shape, mine = theirs.shape_for(name), ours.shape(name)
            assert list(mine.members) == list(getattr(shape, "members", {}))
            assert mine.required == tuple(shape.metadata.get("required", ()))
            assert mine.enum == tuple(shape.metadata.get("enum", ()))


LEAVES = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary() | st.floats(allow_nan=False)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(TREES)
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
def test_cbor_is_read_as_cbor2_writes_it(tree: object) -> None:
    assert decode_cbor(cbor2.dumps(tree)) == tree
