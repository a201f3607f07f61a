"""Whatever is thrown at the door, it answers below 500, in well-formed XML, JSON or CBOR, and nothing is logged as a failure."""

from __future__ import annotations

import json
import logging
import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import quote

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.wire.conftest import Endpoint, signed

from cachekeep.wire.codec import codec
from cachekeep.wire.http import HttpRequest
from cachekeep.wire.model import catalogue

hard = settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
ENDPOINT = Endpoint(auth="open")
STRICT = Endpoint()
CHOICES = [(name, operation) for name in catalogue() for operation in codec(name).model.operation_names]
HEADER = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=60)
WORDS = st.sampled_from(
    [
        "member",
        "entry",
        "key",
        "value",
        "Tags",
        "1",
        "2",
        "0",
        "-1",
        "999999999",
        "9999999999",
        "Key",
        "Value",
        "Filter",
        "Values",
        "Name",
        "item",
        "٣",
        "Action",
        "Version",
    ]
)
ODD = st.sampled_from(
    ["", "\0", "\ud800", "nan", "inf", "1e999", "-0", "1_0", "٣", "9" * 5000, "true", "0000-00-00", "9999-12-31T23:59:59-23:59",
     "a" * 3000, "\uffff", "🔑", "00010101T000000Z", "Mon, 99 Foo 2026", "1e308", "\r\n", "]]>", "%", "=="]
)  # fmt: skip


def survives(request: HttpRequest, *endpoints: Endpoint) -> None:
    for endpoint in endpoints or (ENDPOINT, STRICT):
        response = endpoint.send(request)
        assert response.status < 500, response
        assert b"Traceback" not in response.body
        kind = response.headers["content-type"]
        if "xml" in kind:
            ET.fromstring(response.body)
        elif "json" in kind:
            json.loads(response.body)
        else:
            cbor2.loads(response.body)
        assert all(text.isprintable() and text.isascii() for text in response.headers.values())


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Any:
    with caplog.at_level(logging.WARNING):
        yield
    assert not caplog.records


@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "ſ", ""]) | HEADER,
    st.text(max_size=30).map("/".__add__),
    st.text(st.characters(min_codepoint=1, max_codepoint=0x3FF), max_size=60),
    st.dictionaries(
        st.sampled_from(["host", "authorization", "x-amz-date", "x-amz-target", "content-type", "x-amz-content-sha256", "date"]),
        HEADER,
    ),
    st.binary(max_size=200),
)
@hard
def test_any_bytes(method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> None:
    survives(HttpRequest(method, path, query, headers, body))


@given(
    HEADER | st.just("AWS4-HMAC-SHA256"),
    st.lists(st.sampled_from(["Credential", "SignedHeaders", "Signature"]), max_size=4),
    st.lists(HEADER | st.sampled_from(["AKIDEXAMPLE/20260131/r/elasticache/aws4_request", "host;x-amz-date", ";"]), min_size=4),
    st.sampled_from(["20260131T120000Z", "20269999T999999Z", "٢٠٢٦٠١٣١T120000Z"]),
)
@hard
def test_any_authorization(algorithm: str, names: list[str], texts: list[str], date: str) -> None:
    claim = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=False))
    survives(HttpRequest("POST", headers={"host": "localhost", "authorization": f"{algorithm} {claim}", "x-amz-date": date}))
    query = "&".join(f"X-Amz-{name}={quote(text)}" for name, text in zip(names, texts, strict=False))
    query += f"&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=9&X-Amz-Date={quote(date)}&X-Amz-Signature=0"
    survives(HttpRequest("GET", query=query, headers={"host": "localhost"}))


@given(st.data())
@hard
def test_any_form(data: st.DataObject) -> None:
    service, action = data.draw(st.sampled_from(CHOICES))
    model = codec(service).model
    shape = model.operation(action).input
    members = list(shape.members) if shape else []
    part = WORDS | st.text(max_size=4) | (st.sampled_from(members) if members else WORDS)
    names = st.lists(part, min_size=1, max_size=5).map(".".join)
    pairs = data.draw(st.lists(st.tuples(names, ODD | st.text(max_size=8)), max_size=12))
    body = "&".join(
        f"{quote(name, errors='surrogatepass')}={quote(text, errors='surrogatepass')}"
        for name, text in [("Action", action), ("Version", model.api_version), *pairs]
    )
    survives(HttpRequest("POST", headers={"host": "localhost"}, body=body.encode()), ENDPOINT)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.data())
@hard
def test_any_tree(data: st.DataObject) -> None:
    service, action = data.draw(st.sampled_from([c for c in CHOICES if c[0] in ("kms", "cloudwatch")]))
    model = codec(service).model
    shape = model.operation(action).input
    members = list(shape.members) if shape else []
    keys = st.sampled_from(members) if members else WORDS
    tree = data.draw(st.dictionaries(keys, TREES, max_size=6) | TREES)
    prefix = catalogue()[service].target_prefix
    headers = {"host": "localhost", "x-amz-target": f"{prefix}.{action}"}
    survives(HttpRequest("POST", headers=headers, body=json.dumps(tree).encode()), ENDPOINT)
    if service == "cloudwatch":
        path = f"/service/{prefix}/operation/{action}"
        clean = json.loads(json.dumps(tree, ensure_ascii=False).encode(errors="replace"))
        survives(HttpRequest("POST", path, headers={"host": "localhost"}, body=cbor2.dumps(clean)), ENDPOINT)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda tail: b"\xa1\x6aAlarmNames" + tail))
@hard
def test_any_cbor(body: bytes) -> None:
    path = "/service/GraniteServiceVersion20100801/operation/DescribeAlarms"
    survives(HttpRequest("POST", path, headers={"host": "localhost"}, body=body), ENDPOINT)


@pytest.mark.parametrize(
    ("path", "target", "body"),
    [
        ("/", "TrentService.ListKeys", b"[" * 500_000),
        ("/", "TrentService.ListKeys", b'{"Limit":' + b"9" * 10_000 + b"}"),
        ("/service/GraniteServiceVersion20100801/operation/DescribeAlarms", "", b"\x81" * 500_000),
        ("/service/GraniteServiceVersion20100801/operation/DescribeAlarms", "", b"\x9b" + b"\xff" * 8),
        ("/service/GraniteServiceVersion20100801/operation/DescribeAlarms", "", b"\x5b" + b"\xff" * 8),
        ("/service/GraniteServiceVersion20100801/operation/DescribeAlarms", "", b"\xc1" * 100),
        ("/service/GraniteServiceVersion20100801/operation/DescribeAlarms", "", b"\xd9\x01\x02" + b"\x80"),
        ("/", "", b"Action=DescribeEvents&Version=2015-02-02&" + b"a." * 400_000 + b"=1"),
        ("/", "", b"Action=DescribeEvents&Version=2015-02-02" + b"&a=1" * 200_000),
        ("/", "", b"Action=CreateUser&Version=2010-05-08&UserName=" + b"a" * 900_000),
        ("/", "", b"Action=CreateUser&Version=2015-02-02&UserId=a&AccessString=" + b"%20" * 100_000),
    ],
    ids=range(11),
)
def test_floods(path: str, target: str, body: bytes) -> None:
    headers = {"host": "localhost"} | ({"x-amz-target": target} if target else {})
    survives(HttpRequest("POST", path, headers=headers, body=body), ENDPOINT)


def test_the_fuzz_reaches_dispatch() -> None:
    """The fuzz would prove nothing if every request were turned away at the door."""
    test_any_form()
    assert len({call.operation for call in ENDPOINT.calls}) > 10


def test_signed_garbage_too() -> None:
    for body in (b"\0", b"Action", b"Action=&Version=", b"Action=%00&Version=2015-02-02", b"\xff" * 100):
        survives(signed(body), STRICT)
