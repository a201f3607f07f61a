"""A gateway over a toy dispatch that remembers its calls, and requests as botocore makes and signs them."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from cachekeep.clock import SystemClock
from cachekeep.security.sigv4 import AccessKey
from cachekeep.wire.gateway import Call, Gateway
from cachekeep.wire.http import HttpRequest, HttpResponse
from cachekeep.wire.model import catalogue

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
ACCOUNT, REGION = "000000000000", "us-east-1"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
HOST = "127.0.0.1:8379"


def everything(service: str, operation: str) -> bool:
    return True


class Endpoint:
    """A gateway whose answers the test chooses; ``calls`` are what reached dispatch."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[Call] = []
        self.answer: Callable[[Call], Mapping[str, Any]] = lambda call: {}
        secrets = {KEY: AccessKey(SECRET, ROOT, ACCOUNT)} | options.pop("secrets", {})
        settings = {"auth": "enforce", "served": everything, "clock": SystemClock(), "region": REGION, "account": ACCOUNT}
        self.gateway = Gateway(credentials=secrets.get, dispatch=self._dispatch, **(settings | options))

    async def _dispatch(self, call: Call) -> Mapping[str, Any]:
        self.calls.append(call)
        return self.answer(call)

    def send(self, request: HttpRequest) -> HttpResponse:
        return asyncio.run(self.gateway.handle(request))


def version_of(service: str) -> str:
    return catalogue()[service].api_version


def form(service: str, action: str, **params: str) -> bytes:
    return urlencode({"Action": action, "Version": version_of(service), **params}).encode()


def signed(
    body: bytes = b"",
    *,
    service: str = "elasticache",
    method: str = "POST",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    credentials: Credentials | None = None,
    region: str = REGION,
) -> HttpRequest:
    """A request signed in its headers by botocore."""
    base = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Host": HOST} | dict(headers or {})
    request = AWSRequest(method=method, url=f"http://{HOST}{path}", data=body, headers=base)
    SigV4Auth(credentials or Credentials(KEY, SECRET), catalogue()[service].signing_name, region).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    lower = {name.lower(): value for name, value in request.headers.items()}
    return HttpRequest(method, parts.path, parts.query, lower, body, "127.0.0.1")


def presigned(
    query: str, *, service: str = "elasticache", expires: int = 900, credentials: Credentials | None = None
) -> HttpRequest:
    """A GET presigned by botocore."""
    request = AWSRequest(method="GET", url=f"http://{HOST}/?{query}", headers={"Host": HOST})
    signer = SigV4QueryAuth(credentials or Credentials(KEY, SECRET), catalogue()[service].signing_name, REGION, expires=expires)
    signer.add_auth(request)
    parts = urlsplit(request.url)
    return HttpRequest("GET", parts.path, parts.query, {"host": HOST}, b"", "127.0.0.1")


def unsigned(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/",
    query: str = "",
    headers: Mapping[str, str] | None = None,
) -> HttpRequest:
    return HttpRequest(method, path, query, {"host": HOST} | dict(headers or {}), body, "127.0.0.1")


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
