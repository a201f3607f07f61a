"""The door: one HTTP request in, one HTTP response out. Route, verify, parse, validate, dispatch, serialise."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from cachekeep.clock import Clock
from cachekeep.security import sigv4
from cachekeep.wire import faults, query
from cachekeep.wire.audit import Auditor, Recording
from cachekeep.wire.caller import Principal, Seen, foreign, plausible, read_claim, signer
from cachekeep.wire.codec import Codec, codec
from cachekeep.wire.faults import ApiError, Malformed
from cachekeep.wire.http import HttpRequest, HttpResponse
from cachekeep.wire.model import OperationShape, Protocol, ServiceEntry, catalogue
from cachekeep.wire.validate import malformed

BODY_BYTES_MAX: Final = 1 << 20

_log = logging.getLogger(__name__)
_VERSION: Final = re.compile(rb"(?:^|&)Version=([0-9-]{10})(?:&|$)")
_GLANCED_BYTES: Final = 1024
_SMITHY_PATH: Final = re.compile(r"/service/([A-Za-z0-9_.]{1,100})/operation/([A-Za-z0-9_]{1,100})/?")


@dataclass(frozen=True, slots=True)
class Call:
    """One verified, parsed and validated request. ``params`` has the model's names and Python values."""

    service: str
    operation: str
    params: Mapping[str, Any]
    principal: Principal
    region: str
    request_id: str
    received_at: dt.datetime
    source_ip: str | None
    seen: Seen = field(default_factory=Seen, compare=False)
    encrypted: bool = False
    """It came by TLS."""


Served = Mapping[str, Container[str]] | Callable[[str, str], bool]
Dispatch = Callable[[Call], Awaitable[Mapping[str, Any]]]
Identify = Callable[[Call], Awaitable[None]]
"""Fills in who is asking (``Call.seen``), for what is refused before it is dispatched."""


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a request wants to go, as far as it could be made out."""

    protocol: Protocol
    entry: ServiceEntry | None = None
    action: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    refusal: ApiError | None = None


class Gateway:
    """Speaks AWS on one side and ``dispatch`` on the other.

    ``served`` says which operations exist: a mapping of service to operation names, or a predicate. ``credentials`` finds an access
    key's secret. ``auth="open"`` takes every request that no foreign page sends as the account's root, signed or not. Any region
    may stand in a signature's scope; ``region`` is the one that this endpoint is. ``auditor`` records every call; ``changes`` says
    which operations are changes, and must not be done where that cannot be recorded.
    """

    def __init__(
        self,
        *,
        served: Served,
        credentials: Callable[[str], sigv4.AccessKey | None],
        clock: Clock,
        auth: Literal["enforce", "open"],
        region: str,
        account: str,
        dispatch: Dispatch,
        auditor: Auditor | None = None,
        changes: Callable[[str, str], bool] = lambda service, operation: False,
        identify: Identify | None = None,
    ) -> None:
        self._served = served
        self._credentials = credentials
        self._clock = clock
        self._auth = auth
        self._region = region
        self._account = account
        self._dispatch = dispatch
        self._auditor, self._changes, self._identify = auditor, changes, identify

    def expects(self, head: HttpRequest) -> bool:
        """Whether the body of a request matters: its sender may be believed as soon as it is there. ``head`` has no body."""
        if self._auth == "open":
            return foreign(head) is None
        return plausible(head, self._credentials, self._clock.now())

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Never raises (but for cancellation); what goes wrong becomes a fault of the request's protocol."""
        heard = Recording(request, self._clock.new_id(), self._clock.now(), self._region)
        route = _Route("query")
        try:
            claim, claim_error = _read_claim(request)
            heard.access_key = claim.access_key if claim else ""
            route = _form(request, claim)
            heard.service = route.entry.name if route.entry else ""
            if len(request.body) > BODY_BYTES_MAX:
                raise _too_large()
            heard.principal = self._authenticate(request, claim, claim_error, heard.at)
            heard.request = request = _inflated(request)  # what a stranger sends is neither inflated nor parsed
            route = _route(request, claim)
            heard.service, heard.operation = route.entry.name if route.entry else "", route.action or ""
            response = await self._answer(route, heard, heard.principal)
        except ApiError as error:
            response = self._refused(error, route, heard)
        except asyncio.CancelledError:
            if self._auditor is not None:
                self._auditor.let_go(heard)
            raise
        except Exception:
            _log.exception("request %s failed: %s %s", heard.request_id, route.entry and route.entry.name, route.action)
            text = f"An internal error occurred; the log has it under request id {heard.request_id}."
            response = self._refused(ApiError("InternalFailure", text, status=500), route, heard)
        return await self._recorded(response, route, heard)

    def _refused(self, error: ApiError, route: _Route, heard: Recording) -> HttpResponse:
        heard.error = (error.code, error.message)
        return _refuse(error, route, heard.request_id)

    async def _recorded(self, response: HttpResponse, route: _Route, heard: Recording) -> HttpResponse:
        """The response, when the call is recorded; or that a change could not be."""
        if self._auditor is None:
            return response
        try:
            if heard.error is not None and heard.principal is not None and heard.seen.identity is None and self._identify:
                await self._identify(self._call(heard, heard.principal))
            await self._auditor.tell(heard)
        except ApiError as error:
            return _refuse(error, route, heard.request_id)
        return response

    async def _answer(self, route: _Route, heard: Recording, principal: Principal) -> HttpResponse:
        if route.refusal is not None:
            raise route.refusal
        if route.entry is None or route.action is None:
            raise ApiError(
                "MissingAction",
                "This is the endpoint of the AWS API: send a signed POST with an Action, or an X-Amz-Target header. "
                "Any AWS SDK does that when its endpoint URL is this address.",
            )
        service = codec(route.entry.name)
        operation = self._operation(service, route)
        heard.service, heard.operation = service.model.name, operation.name
        heard.input, heard.output = operation.input, operation.output
        heard.reads = not self._changes(heard.service, heard.operation)
        try:
            if route.protocol in ("query", "ec2"):
                heard.params = service.read_query(operation, list(route.pairs))
            else:
                heard.params = service.read_rpc(operation, route.protocol, heard.request.body)
        except Malformed as error:
            raise malformed(error, service.model.name, query=route.protocol in ("query", "ec2")) from None
        service.validator.check(operation, heard.params)
        if self._auditor is not None and not heard.reads:
            self._auditor.admit()
        heard.result = await self._dispatch(self._call(heard, principal))
        headers, body = service.write(operation, route.protocol, heard.result, heard.request_id)
        return HttpResponse(200, headers | {"x-amzn-requestid": heard.request_id}, body)

    def _call(self, heard: Recording, principal: Principal) -> Call:
        return Call(
            heard.service,
            heard.operation,
            heard.params or {},
            principal,
            self._region,
            heard.request_id,
            heard.at,
            heard.request.client,
            heard.seen,
            heard.request.encrypted,
        )

    def _authenticate(
        self, request: HttpRequest, claim: sigv4.Claim | None, claim_error: ApiError | None, now: dt.datetime
    ) -> Principal:
        if self._auth == "open":
            if (refusal := foreign(request)) is not None:
                raise refusal
            known = self._credentials(claim.access_key) if claim else None
            arn = (known and known.arn) or f"arn:aws:iam::{self._account}:root"
            return Principal(claim.access_key if claim else "", arn, known.account if known else self._account)
        if claim_error is not None:
            raise claim_error
        return signer(request, claim, self._credentials, now)

    def _operation(self, service: Codec, route: _Route) -> OperationShape:
        model, action = service.model, route.action or ""
        try:
            operation = model.operation(action)
        except KeyError:
            text = f"Could not find operation {action[:100]} for version {model.api_version}"
            raise ApiError("InvalidAction", text) from None
        if not self._is_served(model.name, operation.name):
            text = f"{model.name}:{operation.name} is not supported by Cachekeep yet: nothing was changed."
            raise ApiError("UnsupportedOperation", text)
        return operation

    def _is_served(self, service: str, operation: str) -> bool:
        if callable(self._served):
            return self._served(service, operation)
        return operation in self._served.get(service, ())


def _too_large() -> ApiError:
    return ApiError("RequestEntityTooLarge", f"The request has more than {BODY_BYTES_MAX} bytes.", status=413)


def _inflated(request: HttpRequest) -> HttpRequest:
    """With its body as it was before it was compressed, as SDKs do with large ones [Smithy, ``requestCompression``]."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return request
    if encoding != "gzip":
        raise ApiError("UnsupportedMediaType", f"The content encoding {encoding[:20]} is not understood: send gzip.", status=415)
    inflate = zlib.decompressobj(wbits=31)
    try:
        body = inflate.decompress(request.body, BODY_BYTES_MAX + 1)
    except zlib.error:
        body = b""
    if len(body) > BODY_BYTES_MAX:
        raise _too_large()
    if not inflate.eof:
        raise ApiError("SerializationException", "The body is not the gzip that its Content-Encoding says it is.")
    return replace(request, body=body)


# ------------------------------------------------------------------ routing


@cache
def _by_signing_name() -> Mapping[str, ServiceEntry]:
    return {entry.signing_name: entry for entry in catalogue().values()}


@cache
def _by_version() -> Mapping[str, ServiceEntry]:
    """API versions tell services apart; a test holds them unique."""
    return {entry.api_version: entry for entry in catalogue().values()}


@cache
def _by_target() -> Mapping[str, ServiceEntry]:
    return {entry.target_prefix: entry for entry in catalogue().values() if entry.target_prefix}


def _read_claim(request: HttpRequest) -> tuple[sigv4.Claim | None, ApiError | None]:
    """The signature claim, or why there is none: a broken one must not keep the error from having its protocol's form."""
    try:
        return read_claim(request), None
    except ApiError as error:
        return None, error


def _form(request: HttpRequest, claim: sigv4.Claim | None) -> _Route:
    """The protocol and the service, as far as they can be made out without parsing what was sent: for a refusal's form."""
    if smithy := _SMITHY_PATH.fullmatch(request.path):
        return _Route("smithy-rpc-v2-cbor", _by_target().get(smithy[1]))
    if target := request.headers.get("x-amz-target"):
        return _Route("json", _by_target().get(target.rpartition(".")[0]))
    version = _VERSION.search(request.body[:_GLANCED_BYTES]) or _VERSION.search(request.query[:_GLANCED_BYTES].encode())
    entry = _by_signing_name().get(claim.service) if claim else _by_version().get(version[1].decode()) if version else None
    return _Route("ec2" if entry and "ec2" in entry.protocols else "query", entry)


def _route(request: HttpRequest, claim: sigv4.Claim | None) -> _Route:
    """Protocol, service and action. The signature's scope names the service first, then the target, the path or the version."""
    target = request.headers.get("x-amz-target")
    smithy = _SMITHY_PATH.fullmatch(request.path)
    if smithy:
        route = _Route("smithy-rpc-v2-cbor", _by_target().get(smithy[1]), smithy[2])
    elif target is not None:
        prefix, _, action = target.rpartition(".")
        route = _Route("json", _by_target().get(prefix), action)
    elif request.method in ("GET", "HEAD", "POST"):
        route = _route_query(request)
    else:
        text = f"The method {request.method[:20]} is not used by this API: send a POST."
        return _Route("query", refusal=ApiError("MethodNotAllowed", text, status=405))
    if claim is not None:
        route = _scoped(route, claim)
    elif route.entry is None and route.action and not route.refusal:
        named = target or (smithy and smithy[1]) or "no Version"
        route = replace(route, refusal=_unknown_service(str(named)))
    if route.entry and route.protocol == "query" and "ec2" in route.entry.protocols:
        route = replace(route, protocol="ec2")
    if route.entry and route.protocol not in route.entry.protocols and not route.refusal:
        text = f"{route.entry.name} does not speak the protocol {route.protocol}"
        route = replace(route, refusal=ApiError("InvalidAction", text))
    return route


def _route_query(request: HttpRequest) -> _Route:
    try:
        pairs = query.fields(request.query) if request.query else []
        if request.body and request.method == "POST":
            pairs += query.fields(request.body)
    except Malformed as error:
        text = f"The query string or form body is malformed: expected {error.expected}."
        return _Route("query", refusal=ApiError("MalformedQueryString", text))
    named = dict(pairs)
    entry = _by_version().get(named.get("Version", ""))
    return _Route("query", entry, named.get("Action") or None, tuple(pairs))


def _scoped(route: _Route, claim: sigv4.Claim) -> _Route:
    """The route with its service taken from the signature's scope; a target or version of another service is refused."""
    scoped = _by_signing_name().get(claim.service)
    if scoped is None:
        return replace(route, entry=None, refusal=_unknown_service(claim.service))
    if route.entry is not None and route.entry is not scoped:
        text = f"Could not find operation {(route.action or '')[:100]} of {route.entry.name} in {scoped.name}"
        return replace(route, entry=scoped, refusal=route.refusal or ApiError("InvalidAction", text))
    return replace(route, entry=scoped)


def _unknown_service(name: str) -> ApiError:
    served = ", ".join(catalogue())
    return ApiError("UnknownService", f"The service '{name[:100]}' is not part of Cachekeep, which serves {served}.")


def _refuse(error: ApiError, route: _Route, request_id: str) -> HttpResponse:
    model = codec(route.entry.name).model if route.entry else None
    fault = faults.resolve(error, model)
    status, headers, body = faults.write(fault, route.protocol, model, request_id)
    return HttpResponse(status, headers | {"x-amzn-requestid": request_id}, body)
