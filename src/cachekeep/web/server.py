"""ASGI: raw requests to the gateway, ``/_cachekeep/…`` to the desk, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError
from cachekeep.metrics.prometheus import CONTENT_TYPE
from cachekeep.security import sigv4
from cachekeep.services.desk import NAME
from cachekeep.web.bodies import Bodies, Body, Gone, Message, Receive
from cachekeep.web.desk import Desk
from cachekeep.wire import faults
from cachekeep.wire.audit import Auditor, Recording
from cachekeep.wire.caller import read_claim, signer
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import BODY_BYTES_MAX, Call, Gateway
from cachekeep.wire.http import HttpRequest, HttpResponse

log = logging.getLogger("cachekeep.web")

_GLANCED_BYTES: Final = 1024
"""So much is kept of a body that changes nothing: it may name the service, by which the form of the refusal goes."""
PREFIX: Final = "/_cachekeep/"

Send = Callable[[Message], Awaitable[None]]


class Web:
    """The ASGI application. ``/_cachekeep/health`` is open to everybody; the rest of the desk needs a signature by the root key.

    ``ask`` takes a call to the desk's ``answer``. ``scrape``: the token for ``/metrics``, and what tells them. ``body_seconds``
    is for the whole body, however it trickles in.
    """

    def __init__(
        self,
        gateway: Gateway,
        desk: Desk,
        *,
        ask: Callable[[Call], Awaitable[Mapping[str, Any]]],
        credentials: Callable[[str], sigv4.AccessKey | None],
        clock: Clock,
        auditor: Auditor | None = None,
        changes: Callable[[str, str], bool] = lambda service, operation: False,
        scrape: tuple[str, Callable[[None], Awaitable[str]]] | None = None,
        body_seconds: float = 20.0,
    ) -> None:
        self._gateway, self._desk, self._ask = gateway, desk, ask
        self._credentials, self._clock = credentials, clock
        self._auditor, self._changes = auditor, changes
        self._scrape = scrape
        self._body_seconds = body_seconds
        self._bodies = Bodies()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._respond(scope, receive)
        except Gone:
            return
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    async def _respond(self, scope: Message, receive: Receive) -> HttpResponse:
        head = _request(scope, b"")
        matters = self._gateway.expects(head)
        body = Body(self._bodies, head.client or "", BODY_BYTES_MAX + 1 if matters else _GLANCED_BYTES)
        try:
            async with asyncio.timeout(self._body_seconds):
                content, whole = await body.read(receive)
            response = await self._answer(dataclasses.replace(head, body=content))
        except TimeoutError:
            error = ApiError("RequestTimeout", f"The body did not arrive within {self._body_seconds:g} seconds.", status=408)
            status, headers, text = faults.write(faults.resolve(error, None), "query", None, self._clock.new_id())
            response, whole = HttpResponse(status, headers, text), False
        finally:
            body.done()
        if whole and (matters or response.status < 400):
            return response
        return HttpResponse(response.status, {**response.headers, "connection": "close"}, response.body)

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if request.path.startswith(PREFIX):
            return await self._at_desk(request)
        if request.path == "/metrics" and request.method in ("GET", "HEAD") and self._scrape is not None:
            return await _scraped(request, *self._scrape)
        if request.path == "/" and request.method in ("GET", "HEAD") and not request.query and not _signed(request):
            return HttpResponse(200, {"content-type": "text/plain; charset=utf-8"}, self._desk.greeting().encode())
        return await self._gateway.handle(request)

    async def _at_desk(self, request: HttpRequest) -> HttpResponse:
        name = request.path.removeprefix(PREFIX)
        if name == "health":
            return _json(200, self._desk.health())
        heard = Recording(request, self._clock.new_id(), self._clock.now(), "", service=NAME, operation=name[:100])
        response = await self._asked(name, request, heard)
        try:
            if self._auditor is not None:
                await self._auditor.tell(heard)
        except ApiError as error:
            return _fault(error)
        return response

    async def _asked(self, name: str, request: HttpRequest, heard: Recording) -> HttpResponse:
        try:
            claim = read_claim(request)
            heard.access_key = claim.access_key if claim else ""
            if claim is not None and claim.service != NAME:
                raise ApiError("SignatureDoesNotMatch", f"Credential should be scoped to the service {NAME}.", status=403)
            heard.principal = signer(request, claim, self._credentials, self._clock.now())
            if request.method != "POST":
                raise ApiError("MethodNotAllowed", "Send a POST.", status=405)
            call = self._call(name, request, heard)
            heard.reads = not self._changes(NAME, name)
            if self._auditor is not None and not heard.reads:
                self._auditor.admit()
            return _json(200, await self._ask(call))
        except ApiError as error:
            heard.error = (error.code, error.message)
            return _fault(error)
        except CachekeepError as error:
            heard.error = (type(error).__name__, str(error))
            return _json(503, {"code": type(error).__name__, "message": str(error)})
        except Exception:
            log.exception("%s failed", request.path)
            heard.error = ("InternalFailure", "An internal error occurred; the log has it.")
            return _json(500, {"code": "InternalFailure", "message": "An internal error occurred; the log has it."})

    def _call(self, name: str, request: HttpRequest, heard: Recording) -> Call:
        """Raises ApiError InvalidParameterValue."""
        try:
            heard.params = msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ApiError("InvalidParameterValue", str(error)) from None
        assert heard.principal is not None
        return Call(NAME, name, heard.params, heard.principal, "", heard.request_id, heard.at, request.client, heard.seen)


def _fault(error: ApiError) -> HttpResponse:
    return _json(error.status, {"code": error.code, "message": error.message})


async def _scraped(request: HttpRequest, token: str, tell: Callable[[None], Awaitable[str]]) -> HttpResponse:
    """What all nodes say, for whoever has the token (RFC 6750)."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        hint = "`cachekeep prometheus-config` says where the token is.\n"
        return HttpResponse(401, {"www-authenticate": "Bearer", "content-type": "text/plain"}, hint.encode())
    try:
        return HttpResponse(200, {"content-type": CONTENT_TYPE, "cache-control": "no-store"}, (await tell(None)).encode())
    except CachekeepError as error:
        return HttpResponse(503, {"content-type": "text/plain; charset=utf-8"}, f"{error}\n".encode())


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json", "cache-control": "no-store"}, msgspec.json.encode(value))


def _signed(request: HttpRequest) -> bool:
    return "authorization" in request.headers


def _request(scope: Message, body: bytes) -> HttpRequest:
    values: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        values.setdefault(name, []).append(value)
    headers = {name.decode("latin-1"): b",".join(given).decode("latin-1") for name, given in values.items()}
    client = scope.get("client")
    return HttpRequest(
        scope["method"],
        scope["raw_path"].decode("latin-1"),
        scope["query_string"].decode("latin-1"),
        headers,
        body,
        client[0] if client else None,
        scope["scheme"] == "https",
    )
