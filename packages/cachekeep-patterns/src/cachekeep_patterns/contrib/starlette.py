"""Sessions for Starlette, FastAPI and any other ASGI application: a pure ASGI middleware.

    app.add_middleware(SessionMiddleware, store=AsyncSessionStore(client), keys=[SECRET])

`request.session` is then a `Session`. It is saved when the response starts, so the client's next request sees it;
what changes while the body streams, in a background task or in a websocket is saved at the end. A request that
fails (an exception, or a status of 500 and above) saves nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NoReturn

from ..sessions import (
    AsyncSessionStore,
    Cookie,
    Saved,
    Session,
    SessionHeadersSent,
    SessionNotLoaded,
    Signer,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEAD_MESSAGES = ("http.response.start", "websocket.accept", "websocket.http.response.start")

log = logging.getLogger(__name__)


class AsgiSession(Session):
    """A session that an application can load and save by itself."""

    def __init__(self, store: AsyncSessionStore, session_id: str | None) -> None:
        super().__init__()
        self._store = store
        self._arrived_id = session_id

    async def load(self) -> None:
        """Load it, if that has not happened: the first thing to do in a lazy application that needs a session."""
        if self.before_access is not None:
            await self._store.load(self._arrived_id, into=self)
            self.before_access = None

    async def save(self) -> Saved:
        """Save now: in a websocket, or before a long stream. Only sessions whose cookie is out can be new no more."""
        return await self._store.save(self)


class SessionMiddleware:
    """`keys` sign the cookie; the first signs, all are accepted. `cookie` says how it is set.

    A request without a valid cookie costs no call. With `lazy`, one with a cookie costs none either until the
    application says `await request.session.load()`; using the session before that raises SessionNotLoaded.
    """

    def __init__(
        self,
        app: Application,
        *,
        store: AsyncSessionStore,
        keys: Sequence[str | bytes] | str | bytes,
        cookie: Cookie | None = None,
        lazy: bool = False,
    ) -> None:
        self._app = app
        self._store = store
        self._cookie = cookie or Cookie()
        self._signer = Signer(keys, self._cookie.name)
        self._lazy = lazy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        arrived_id, signed_by_newest = self._arrived(scope)
        session = AsgiSession(self._store, arrived_id)
        if arrived_id is not None:
            session.before_access = _not_loaded
            if not self._lazy:
                await session.load()
        scope["session"] = session
        headers_sent = failed = False

        async def send_with_session(message: Message) -> None:
            nonlocal headers_sent, failed
            if not headers_sent and message["type"] in _HEAD_MESSAGES:
                failed = message.get("status", 200) >= 500
            if not (headers_sent or failed) and message["type"] in _HEAD_MESSAGES:
                await self._finish(session)
                headers = list(message.get("headers", ()))
                self._add_headers(headers, session, arrived_id, signed_by_newest)
                message = {**message, "headers": headers}
                headers_sent = True
            await send(message)

        await self._app(scope, receive, send_with_session)
        if headers_sent and not failed:
            if session.needs_cookie:
                await self._store.delete(arrived_id if session.new else None)
                raise SessionHeadersSent("a session began or was rotated after the response's headers were sent")
            await self._finish(session)

    def _arrived(self, scope: Scope) -> tuple[str | None, bool]:
        for name, value in scope["headers"]:
            if name == b"cookie":
                for candidate in self._cookie.values(value.decode("latin-1")):
                    if (verified := self._signer.verify(candidate)) is not None:
                        return verified
        return None, True

    async def _finish(self, session: Session) -> None:
        if session.before_access is not None:
            return
        if await self._store.save(session) is Saved.GONE:
            log.info("a session ended or was rotated while a request of it ran; its changes were dropped")

    def _add_headers(self, headers: list[tuple[bytes, bytes]], session: Session, arrived_id: str | None, newest: bool) -> None:
        line = None
        if session.ended:
            line = self._cookie.clear()
        elif session.id is not None and not session.lost and (session.id != arrived_id or not newest):
            line = self._cookie.set(self._signer.sign(session.id))
        if line is not None:
            headers.append((b"set-cookie", line.encode("latin-1")))
            # A cache between here and the client must not hand one client's cookie to another.
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
        if session.accessed or line is not None:
            _vary_on_cookie(headers)


def _vary_on_cookie(headers: list[tuple[bytes, bytes]]) -> None:
    for at, (name, value) in enumerate(headers):
        if name.lower() == b"vary":
            fields = {field.strip().lower() for field in value.split(b",")}
            if not fields & {b"cookie", b"*"}:
                headers[at] = (name, value + b", Cookie")
            return
    headers.append((b"vary", b"Cookie"))


def _not_loaded() -> NoReturn:
    raise SessionNotLoaded("await request.session.load() before using it")
