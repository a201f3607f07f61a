"""Signatures made by botocore are believed; the same request with any part changed is not."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from dataclasses import replace
from email.utils import format_datetime
from urllib.parse import quote

import pytest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.wire.conftest import ACCOUNT, KEY, REGION, ROOT, SECRET, form, presigned, signed, unsigned

from cachekeep.security.sigv4 import AccessKey, SignatureRefused, canonical_request, read_claim, sign, verify
from cachekeep.wire.caller import fault_of
from cachekeep.wire.http import HttpRequest

TEMPORARY = Credentials("ASIATEMPORARY", "temporary secret", "the/session+token=")
NOW = dt.datetime.now(dt.UTC)
SECRETS = {
    KEY: AccessKey(SECRET, ROOT, ACCOUNT),
    "ASIATEMPORARY": AccessKey(
        "temporary secret", ROOT, ACCOUNT, "the/session+token=", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    ),
}
BODY = form("elasticache", "DescribeCacheClusters", CacheClusterId="a b+c")
QUERY = "Action=DescribeCacheClusters&Version=2015-02-02&CacheClusterId=a%20b%2Bc%7E&Empty="


def check(request: HttpRequest, *, later: dt.timedelta = dt.timedelta()) -> AccessKey:
    return verify(
        read_claim(request.query, request.headers),
        request.method,
        request.path,
        request.query,
        request.headers,
        request.body,
        secret_of=SECRETS.get,
        now=dt.datetime.now(dt.UTC) + later,
    )


def refused(request: HttpRequest, *, later: dt.timedelta = dt.timedelta()) -> tuple[str, int, str]:
    with pytest.raises(SignatureRefused) as caught:
        check(request, later=later)
    fault = fault_of(caught.value)
    return fault.code, fault.status, fault.message


def with_header(request: HttpRequest, name: str, value: str | None) -> HttpRequest:
    headers = {key: text for key, text in request.headers.items() if key != name}
    return replace(request, headers=headers if value is None else headers | {name: value})


def test_good_signatures_are_believed() -> None:
    for request in (
        signed(BODY),
        signed(BODY, credentials=TEMPORARY),
        signed(BODY, region="eu-central-1"),
        signed(b"{}", service="kms", headers={"X-Amz-Target": "TrentService.ListKeys", "X-Amz-Meta": "  a   b "}),
        signed(b"\xa0", service="cloudwatch", path="/service/GraniteServiceVersion20100801/operation/DescribeAlarms"),
        signed(b"", method="GET", path="/?b=2&a=1&a=0&c=%20%2F~"),
        signed(b"", method="GET", path="/a//b/../c%20d/"),
        presigned(QUERY),
        presigned(QUERY, credentials=TEMPORARY),
    ):
        assert check(request).arn == ROOT


def test_requests_of_our_own_are_signed_as_botocore_signs_them() -> None:
    theirs = signed(BODY)
    headers = {name: theirs.headers[name] for name in ("host", "content-type")}
    at = dt.datetime.strptime(theirs.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    ours = sign("POST", "/", headers, BODY, access_key=KEY, secret_key=SECRET, region=REGION, service="elasticache", now=at)
    assert ours["authorization"] == theirs.headers["authorization"]
    assert check(replace(theirs, headers=headers | ours)).arn == ROOT


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=5)), max_size=4),
    st.lists(st.text(max_size=5), max_size=4),
    st.binary(max_size=50),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_any_request_that_botocore_signs(pairs: list[tuple[str, str]], path: list[str], body: bytes) -> None:
    def plain(text: str) -> str:
        return quote(text, safe="", errors="replace")

    # In a header signature botocore signs a query string as it stands, so it must stand encoded.
    query = "&".join(f"{plain(name)}={plain(value)}" for name, value in sorted(pairs))
    check(signed(body, path="/" + "/".join(map(plain, path)) + (f"?{query}" if query else "")))
    check(presigned("&".join(f"{plain(name)}={plain(value)}" for name, value in dict(pairs).items()) or "a=b"))


def test_tampering_is_seen_in_header_signatures() -> None:
    good = signed(BODY, headers={"X-Amz-Target": "A.B"})
    check(good)
    authorization, date = good.headers["authorization"], good.headers["x-amz-date"]
    flipped = authorization[:-1] + ("0" if authorization[-1] != "0" else "1")
    for name, bad in {
        "method": replace(good, method="PUT"),
        "path": replace(good, path="/x"),
        "query": replace(good, query="a=b"),
        "body": replace(good, body=BODY + b"&X=1"),
        "host": with_header(good, "host", "elsewhere"),
        "target": with_header(good, "x-amz-target", "A.C"),
        "date": with_header(good, "x-amz-date", date[:-2] + ("8Z" if date[-2] == "9" else "9Z")),
        "content type": with_header(good, "content-type", "text/plain"),
        "missing header": with_header(good, "content-type", None),
        "signature": with_header(good, "authorization", flipped),
        "region": with_header(good, "authorization", authorization.replace("us-east-1", "us-west-1")),
        "service": with_header(good, "authorization", authorization.replace("/elasticache/", "/iam/")),
        "terminator": with_header(good, "authorization", authorization.replace("aws4_request", "aws5_request")),
        "scope date": with_header(good, "authorization", authorization.replace(f"{KEY}/20", f"{KEY}/19")),
        "body hash": with_header(good, "x-amz-content-sha256", "0" * 64),
        "unsigned payload": with_header(good, "x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        "not ASCII": with_header(good, "authorization", authorization[:-1] + "é"),
    }.items():
        assert refused(bad)[:2] == ("SignatureDoesNotMatch", 403), name


def test_tampering_is_seen_in_presigned_urls() -> None:
    good = presigned(QUERY)
    check(good)
    for bad in (
        replace(good, method="POST"),
        replace(good, path="/x"),
        replace(good, query=good.query.replace("CacheClusterId=a", "CacheClusterId=b")),
        replace(good, query=good.query + "&More=1"),
        replace(good, query=good.query.replace("X-Amz-Expires=900", "X-Amz-Expires=9000")),
        replace(good, body=b"Action=DeleteCacheCluster"),
        with_header(good, "host", "elsewhere"),
        with_header(good, "x-amz-target", "TrentService.ListKeys"),
    ):
        assert refused(bad)[:2] == ("SignatureDoesNotMatch", 403)


def test_what_decides_the_meaning_must_be_signed() -> None:
    added = with_header(signed(b"{}", service="kms"), "x-amz-target", "TrentService.ScheduleKeyDeletion")
    assert refused(added)[2] == "'x-amz-target' must be a 'SignedHeader' in the AWS Authorization."
    good = signed(BODY)
    hostless = with_header(good, "authorization", good.headers["authorization"].replace("content-type;host;", "content-type;"))
    assert refused(hostless)[2] == "'Host' must be a 'SignedHeader' in the AWS Authorization."


def test_a_declared_body_hash() -> None:
    honest = signed(BODY, headers={"X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest()})
    check(honest)
    assert refused(replace(honest, body=b"other"))[0] == "SignatureDoesNotMatch"
    waived = signed(BODY, headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    check(replace(waived, body=b"other"))
    streamed = signed(BODY, headers={"X-Amz-Content-SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"})
    assert refused(streamed)[0] == "SignatureDoesNotMatch"


@pytest.mark.parametrize("sign", [1, -1])
def test_clocks_may_differ_by_fifteen_minutes(sign: int) -> None:
    request = signed(BODY)
    check(request, later=sign * dt.timedelta(minutes=14, seconds=50))
    code, status, message = refused(request, later=sign * dt.timedelta(minutes=15, seconds=10))
    assert (code, status) == ("SignatureDoesNotMatch", 403)
    assert message.startswith("Signature expired: " if sign > 0 else "Signature not yet current: ")


def test_presigned_urls_expire_when_they_say() -> None:
    request = presigned(QUERY, expires=60)
    check(request, later=dt.timedelta(seconds=50))
    assert refused(request, later=dt.timedelta(seconds=70))[2].startswith("Signature expired: ")
    check(presigned(QUERY, expires=3600), later=dt.timedelta(minutes=50))
    assert refused(presigned(QUERY, expires=8 * 24 * 3600))[:2] == ("IncompleteSignature", 400)


def test_session_tokens() -> None:
    good = signed(BODY, credentials=TEMPORARY)
    check(good)
    for bad in (
        signed(BODY, credentials=Credentials("ASIATEMPORARY", "temporary secret")),
        signed(BODY, credentials=Credentials("ASIATEMPORARY", "temporary secret", "another")),
        signed(BODY, credentials=Credentials(KEY, SECRET, "uncalled for")),
        presigned(QUERY, credentials=Credentials("ASIATEMPORARY", "temporary secret", "another")),
    ):
        assert refused(bad)[:2] == ("InvalidClientTokenId", 403)


def test_expired_temporary_keys() -> None:
    request = presigned(QUERY, credentials=TEMPORARY, expires=7200)
    assert refused(request, later=dt.timedelta(minutes=61))[:2] == ("ExpiredToken", 403)


def test_who_are_you() -> None:
    assert refused(signed(BODY, credentials=Credentials("AKIDNOBODY", "x")))[:2] == ("InvalidClientTokenId", 403)
    assert refused(signed(BODY, credentials=Credentials(KEY, "wrong")))[:2] == ("SignatureDoesNotMatch", 403)
    assert refused(unsigned(BODY))[:2] == ("MissingAuthenticationToken", 403)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "AWS4-HMAC-SHA256",
        "AWS AKID:sig",
        "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=////, SignedHeaders=host, Signature=0",
        "AWS4-ECDSA-P256-SHA256 Credential=a/1/r/s/aws4_request, SignedHeaders=host, Signature=0",
    ],
)
def test_broken_claims(authorization: str) -> None:
    request = unsigned(BODY, headers={"authorization": authorization, "x-amz-date": "20260131T120000Z"})
    assert refused(request)[:2] == ("IncompleteSignature", 400)


@pytest.mark.parametrize("date", ["20260131", "2026-01-31T12:00:00Z", "20269931T120000Z", None])
def test_broken_dates(date: str | None) -> None:
    request = with_header(signed(BODY), "x-amz-date", date)
    authorization = request.headers["authorization"]
    scope_date = authorization.partition(f"{KEY}/")[2][:8]
    headers = dict(request.headers) | {"authorization": authorization.replace(scope_date, (date or scope_date)[:8])}
    assert refused(replace(request, headers=headers))[1] in (400, 403)


def test_the_date_header_will_do() -> None:
    request = signed(BODY, headers={"Date": format_datetime(dt.datetime.now(dt.UTC), usegmt=True)})
    assert "x-amz-date" not in request.headers
    check(request)


def test_the_scopes_date_is_the_day_of_signing() -> None:
    """A key derived for one day must not sign on another, however rightly."""
    good = signed(BODY)
    claim = read_claim(good.query, good.headers)
    assert claim is not None
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).strftime("%Y%m%d")
    canonical = canonical_request(claim, "POST", "/", "", good.headers, hashlib.sha256(BODY).hexdigest())
    key = f"AWS4{SECRET}".encode()
    for part in (yesterday, "us-east-1", "elasticache", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    scope = f"{yesterday}/us-east-1/elasticache/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{claim.signed_at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = good.headers["authorization"].replace(claim.signature, signature).replace(claim.scope, scope)
    code, _, message = refused(with_header(good, "authorization", authorization))
    assert code == "SignatureDoesNotMatch"
    assert message.startswith("Date in Credential scope does not match")


def test_secrets_have_no_text_form() -> None:
    assert SECRET not in repr(SECRETS[KEY])
    assert "session+token" not in repr(SECRETS["ASIATEMPORARY"])
