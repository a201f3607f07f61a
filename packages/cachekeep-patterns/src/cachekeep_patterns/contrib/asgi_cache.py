"""Responses of Starlette, FastAPI and any other ASGI application, cached: a pure ASGI middleware.

    app.add_middleware(ResponseCacheMiddleware, cache=AsyncCache(client, namespace="pages"))

A response is kept if it says so (`Cache-Control: public, max-age=60`, or `s-maxage`), sets no cookie and varies on nothing but
``vary``. One request makes it while others wait, as for any value. Kept responses have an ETag, and who sends it back gets a 304.
Everything else goes through untouched, streams too. Put it inside of what compresses or adds cookies, or outside, and let ``vary``
know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..cache import AsyncCache
from ..exact import Exact
from ..keys import canonical
from ..policy import Policy
from .responses import Headers, Kept, headers_of_304, is_known, may_ask, seconds_to_keep, with_etag
from .starlette import Application, Message, Receive, Scope, Send

_POLICY = Policy(missing_seconds=0, jitter=0, lifetime=lambda packed: 0.0 if packed is None else packed[3])


class _Taker:
    """Takes a response that may be kept; lets any other through as it comes."""

    def __init__(self, send: Send, vary: Sequence[str], max_bytes: int) -> None:
        self._send, self._vary, self._max_bytes = send, vary, max_bytes
        self._start: Message | None = None
        self._body = bytearray()
        self._seconds = 0.0
        self.kept: Kept | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._seconds = seconds_to_keep(message["status"], _decoded(message.get("headers", ())), self._vary)
            if self._seconds:
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            more = message.get("more_body", False)
            if not more and len(self._body) <= self._max_bytes:
                body = bytes(self._body)
                headers = with_etag(_decoded(self._start.get("headers", ())), body)
                self.kept = Kept(self._start["status"], headers, body, self._seconds, time.time())
            elif len(self._body) > self._max_bytes:
                start, self._start = self._start, None
                await self._send(start)
                await self._send({**message, "body": bytes(self._body)})
            return
        await self._send(message)


class ResponseCacheMiddleware:
    """``vary``: the request's headers that answers differ by. ``tags``: a function of the ASGI scope that answers the tags a
    response hangs on, to be invalidated by them."""

    def __init__(
        self,
        app: Application,
        *,
        cache: AsyncCache,
        vary: Sequence[str] = ("accept", "accept-encoding", "accept-language"),
        max_bytes: int = 1_000_000,
        tags: Callable[[Scope], Sequence[str]] | None = None,
    ) -> None:
        self._app, self._cache, self._max_bytes, self._tags = app, cache, max_bytes, tags
        self._vary = [one.lower() for one in vary]
        self._codec = Exact()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _decoded(scope.get("headers", ())) if scope["type"] == "http" else []
        if scope["type"] != "http" or scope["method"] != "GET" or not may_ask(headers):
            await self._app(scope, receive, send)
            return
        taker: _Taker | None = None

        async def load() -> list[object] | None:
            nonlocal taker
            taker = _Taker(send, self._vary, self._max_bytes)
            await self._app(scope, receive, taker.send)
            return None if taker.kept is None else taker.kept.pack()

        tags = self._tags(scope) if self._tags is not None else ()
        packed: Any = await self._cache.get(self._key(scope, headers), load, policy=_POLICY, codec=self._codec, tags=tags)
        if packed is not None:
            await _answer(Kept.unpack(packed), headers, send)
        elif taker is None:  # another request's answer was for that one alone
            await self._app(scope, receive, send)

    def _key(self, scope: Scope, headers: Headers) -> str:
        told = {name.lower(): value for name, value in headers}
        path = scope.get("root_path", ""), scope["path"], scope.get("query_string", b"")
        return "page:" + canonical((scope.get("scheme"), told.get("host"), *path, *(told.get(name) for name in self._vary)))


def _decoded(headers: Any) -> Headers:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


async def _answer(kept: Kept, asked: Headers, send: Send) -> None:
    known = is_known(next((value for name, value in asked if name.lower() == "if-none-match"), None), kept.headers)
    headers = headers_of_304(kept.headers) if known else kept.headers
    headers = [*headers, ("age", str(max(0, int(time.time() - kept.kept_at))))]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": 304 if known else kept.status, "headers": encoded})
    await send({"type": "http.response.body", "body": b"" if known else kept.body})
