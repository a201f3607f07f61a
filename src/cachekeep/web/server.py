"""ASGI: raw requests to the gateway, ``/_cachekeep/…`` to the desk, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError
from cachekeep.security import sigv4
from cachekeep.services.desk import NAME
from cachekeep.web.desk import Desk
from cachekeep.wire import faults
from cachekeep.wire.caller import Principal, read_claim, signer
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import BODY_BYTES_MAX, Call, Gateway
from cachekeep.wire.http import HttpRequest, HttpResponse

log = logging.getLogger("cachekeep.web")

_DRAINED_BYTES_MAX: Final = 8 << 20
"""How much of a body that is too large is still read (and dropped), so that its sender gets to read the answer."""
PREFIX: Final = "/_cachekeep/"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Gone(Exception):
    """The client has hung up."""


class Web:
    """The ASGI application. ``/_cachekeep/health`` is open to everybody; the rest of the desk needs a signature by the root key.

    ``body_seconds`` is for the whole body, however it trickles in.
    """

    def __init__(
        self,
        gateway: Gateway,
        desk: Desk,
        *,
        credentials: Callable[[str], sigv4.AccessKey | None],
        clock: Clock,
        body_seconds: float = 20.0,
    ) -> None:
        self._gateway, self._desk, self._credentials, self._clock = gateway, desk, credentials, clock
        self._body_seconds = body_seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._respond(scope, receive)
        except _Gone:
            return
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    async def _respond(self, scope: Message, receive: Receive) -> HttpResponse:
        try:
            async with asyncio.timeout(self._body_seconds):
                body, whole = await _read(receive)
        except TimeoutError:
            error = ApiError("RequestTimeout", f"The body did not arrive within {self._body_seconds:g} seconds.", status=408)
            status, headers, text = faults.write(faults.resolve(error, None), "query", None, self._clock.new_id())
            return HttpResponse(status, {**headers, "connection": "close"}, text)
        request = _request(scope, body)
        if request.path.startswith(PREFIX):
            return await self._at_desk(request)
        if request.path == "/" and request.method in ("GET", "HEAD") and not request.query and not _signed(request):
            return HttpResponse(200, {"content-type": "text/plain; charset=utf-8"}, self._desk.greeting().encode())
        response = await self._gateway.handle(request)
        return response if whole else HttpResponse(response.status, {**response.headers, "connection": "close"}, response.body)

    async def _at_desk(self, request: HttpRequest) -> HttpResponse:
        name = request.path.removeprefix(PREFIX)
        try:
            if name == "health":
                return _json(200, self._desk.health())
            claim = read_claim(request)
            if claim is not None and claim.service != NAME:
                raise ApiError("SignatureDoesNotMatch", f"Credential should be scoped to the service {NAME}.", status=403)
            principal = signer(request, claim, self._credentials, self._clock.now())
            if request.method != "POST":
                raise ApiError("MethodNotAllowed", "Send a POST.", status=405)
            return _json(200, await self._desk.answer(self._call(name, request, principal)))
        except ApiError as error:
            return _json(error.status, {"code": error.code, "message": error.message})
        except CachekeepError as error:
            return _json(503, {"code": type(error).__name__, "message": str(error)})
        except Exception:
            log.exception("%s failed", request.path)
            return _json(500, {"code": "InternalFailure", "message": "An internal error occurred; the log has it."})

    def _call(self, name: str, request: HttpRequest, principal: Principal) -> Call:
        """Raises ApiError InvalidParameterValue."""
        try:
            params = msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ApiError("InvalidParameterValue", str(error)) from None
        return Call(NAME, name, params, principal, "", self._clock.new_id(), self._clock.now(), request.client)


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json", "cache-control": "no-store"}, msgspec.json.encode(value))


def _signed(request: HttpRequest) -> bool:
    return "authorization" in request.headers


def _request(scope: Message, body: bytes) -> HttpRequest:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    client = scope.get("client")
    return HttpRequest(
        scope["method"],
        scope["raw_path"].decode("latin-1"),
        scope["query_string"].decode("latin-1"),
        headers,
        body,
        client[0] if client else None,
    )


async def _read(receive: Receive) -> tuple[bytes, bool]:
    """The body, and whether that is all of it: of one that is too large there is one byte more than allowed."""
    chunks: list[bytes] = []
    size = dropped = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        chunk: bytes = message.get("body", b"")
        kept = chunk[: BODY_BYTES_MAX + 1 - size]
        if kept:
            chunks.append(kept)
        size += len(kept)
        dropped += len(chunk) - len(kept)
        if not message.get("more_body", False):
            return b"".join(chunks), dropped == 0
        if dropped > _DRAINED_BYTES_MAX:
            return b"".join(chunks), False
