"""What a request may hold: each bound keeps the work that one of them makes in proportion to its size, and small for strangers."""

from __future__ import annotations

import cbor2
import pytest
from tests.wire.conftest import Endpoint, form, signed, unsigned
from tests.wire.test_sigv4 import refused, with_header

from cachekeep.security.sigv4 import SIGNED_HEADERS_MAX
from cachekeep.wire import query, rpc, scalars
from cachekeep.wire.faults import Malformed
from cachekeep.wire.http import HttpRequest
from cachekeep.wire.validate import matches


def _signing(names: list[str]) -> HttpRequest:
    request = signed(form("sts", "GetCallerIdentity"), service="sts")
    before, _, after = request.headers["authorization"].partition("SignedHeaders=")
    return with_header(request, "authorization", f"{before}SignedHeaders={';'.join(names)},{after.partition(',')[2]}")


@pytest.mark.parametrize(
    "names",
    [["host"] * 2, ["host", "HOST"], ["host", *[f"h{n}" for n in range(SIGNED_HEADERS_MAX)]]],
    ids=["twice", "case", "many"],
)
def test_each_signed_header_is_named_once_and_there_are_not_many(names: list[str]) -> None:
    assert refused(_signing(names))[:2] == ("IncompleteSignature", 400)


@pytest.mark.parametrize("type_name", ["integer", "long", "float", "double", "timestamp", "boolean"])
@pytest.mark.parametrize("text", ["1" * 11_000, "1" * 1_000_000, "." + "1" * 401, " " * 1_000_000, "2026-01-01T" + "0" * 500])
def test_numbers_times_and_flags_are_short(type_name: str, text: str) -> None:
    with pytest.raises(Malformed):
        scalars.FROM_TEXT[type_name](text)


def test_the_longest_number_that_anybody_writes_is_read() -> None:
    assert scalars.parse_float(f"{1.7e308:.1f}") == 1.7e308
    assert scalars.parse_float("1.") == scalars.parse_float("1") == scalars.parse_float("+1.0") == 1.0


def test_a_date_header_of_any_length_is_refused_in_a_moment() -> None:
    request = signed(form("sts", "GetCallerIdentity"), service="sts")
    long = with_header(with_header(request, "x-amz-date", None), "date", "Mon, " + "0 " * 30_000)
    assert refused(long)[:2] == ("IncompleteSignature", 400)


def test_a_cbor_body_has_not_more_items_than_a_form_has_fields() -> None:
    assert rpc.decode_cbor(cbor2.dumps([0] * (rpc.ITEMS_MAX - 1))) == [0] * (rpc.ITEMS_MAX - 1)
    for items in ([0] * rpc.ITEMS_MAX, [[]] * rpc.ITEMS_MAX, {str(n): 0 for n in range(rpc.ITEMS_MAX // 2)}):
        with pytest.raises(Malformed, match="at most"):
            rpc.decode_cbor(cbor2.dumps(items))


@pytest.mark.parametrize("protocol", ["query", "ec2", "json", "cbor"])
def test_what_a_stranger_sends_is_not_parsed(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("parsed")

    for module, name in ((query, "fields"), (rpc, "decode_json"), (rpc, "decode_cbor")):
        monkeypatch.setattr(module, name, parsed)
    headers, path, body = {"host": "x"}, "/", b"Action=DescribeVpcs&Version=2016-11-15&" + b"a=b&" * 1000
    if protocol == "query":
        body = form("elasticache", "DescribeCacheClusters")
    elif protocol == "json":
        headers["x-amz-target"] = "GraniteServiceVersion20100801.ListMetrics"
    elif protocol == "cbor":
        path = "/service/GraniteServiceVersion20100801/operation/ListMetrics"
    answer = endpoint.send(HttpRequest("POST", path, headers=headers, body=body))
    assert answer.status == (400 if protocol in ("json", "cbor") else 403)
    forms = {"query": b"<ErrorResponse", "ec2": b"<Response><Errors>", "json": b"__type", "cbor": b"__type"}
    assert forms[protocol] in answer.body
    assert b"MissingAuthenticationToken" in answer.body or b"MissingAuthenticationToken" in str(answer.headers).encode()


def test_who_cannot_be_believed_is_known_by_the_head_alone(endpoint: Endpoint) -> None:
    good = signed(form("sts", "GetCallerIdentity"), service="sts")
    head = HttpRequest(good.method, good.path, good.query, good.headers)
    assert endpoint.gateway.expects(head)
    assert not endpoint.gateway.expects(HttpRequest("POST", headers={"host": "x"}))
    assert not endpoint.gateway.expects(unsigned(b""))
    nobody = good.headers["authorization"].replace("Credential=", "Credential=X")
    assert not endpoint.gateway.expects(with_header(head, "authorization", nobody))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\r\n\t]*", "a b\t€\U0001f600", "\x00"),
        (r"\p{Print}+", "my policy~", "tab\t"),
        (r"[\p{L}\p{N}_]+", "Größe_1", "a-b"),
    ],
)
def test_javas_patterns_mean_in_python_what_they_mean_there(pattern: str, good: str, bad: str) -> None:
    assert matches(pattern, good)
    assert not matches(pattern, bad)
