"""Real requests through a real ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import valkey
import valkey.asyncio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cachekeep_patterns.contrib.starlette import SessionMiddleware
from cachekeep_patterns.sessions import (
    AsyncSessionStore,
    Cookie,
    SessionHeadersSent,
    SessionNotLoaded,
    SessionTooLarge,
    Signer,
)
from patterns_rig.session_engines import Engine

KEY, NEW_KEY = "k" * 32, "n" * 32


class Gate:
    """Holds requests after they have loaded their session, until all are there."""

    def __init__(self) -> None:
        self.parties = 1
        self.arrived = 0
        self.open = asyncio.Event()

    async def meet(self) -> None:
        self.arrived += 1
        if self.arrived >= self.parties:
            self.open.set()
        await self.open.wait()


def application(store: AsyncSessionStore, gate: Gate, **options: Any) -> Any:
    async def read(request: Request) -> Response:
        return JSONResponse(dict(request.session))

    async def write(request: Request) -> Response:
        request.session[request.path_params["name"]] = request.path_params["value"]
        return PlainTextResponse("ok")

    async def race(request: Request) -> Response:
        dict(request.session)
        await gate.meet()
        request.session[request.path_params["name"]] = 1
        return PlainTextResponse("ok")

    async def login(request: Request) -> Response:
        request.session.login(request.path_params["user"])  # type: ignore[attr-defined]
        return PlainTextResponse("ok")

    async def logout(request: Request) -> Response:
        request.session.clear()
        return PlainTextResponse("ok")

    async def public(request: Request) -> Response:
        return PlainTextResponse("ok", headers={"Cache-Control": "public, max-age=60"})

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            for number in range(3):
                request.session["streamed"] = number
                yield str(number)

        return StreamingResponse(body(), headers={"Vary": "Accept"})

    async def background(request: Request) -> Response:
        async def task() -> None:
            request.session["background"] = True

        return PlainTextResponse("ok", background=BackgroundTask(task))

    async def fail(request: Request) -> Response:
        request.session["failed"] = True
        raise RuntimeError("on purpose")

    async def lazy(request: Request) -> Response:
        await request.session.load()  # type: ignore[attr-defined]
        return JSONResponse(dict(request.session))

    async def big(request: Request) -> Response:
        request.session["big"] = "x" * 100_000
        return PlainTextResponse("ok")

    async def socket(websocket: WebSocket) -> None:
        websocket.session["socket"] = 0
        await websocket.accept()
        async for text in websocket.iter_text():
            websocket.session["socket"] = text
            await websocket.session.save()  # type: ignore[attr-defined]
            await websocket.send_text(f"saved {text}")

    app = Starlette(
        routes=[
            Route("/", read),
            Route("/write/{name}/{value}", write),
            Route("/race/{name}", race),
            Route("/login/{user}", login),
            Route("/logout", logout),
            Route("/public", public),
            Route("/stream", stream),
            Route("/background", background),
            Route("/fail", fail),
            Route("/lazy", lazy),
            Route("/big", big),
            WebSocketRoute("/socket", socket),
        ]
    )
    return SessionMiddleware(app, store=store, **{"keys": [KEY], "cookie": Cookie(secure=False), **options})


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def browser(async_store: AsyncSessionStore, gate: Gate) -> Callable[..., httpx.AsyncClient]:
    def make(**options: Any) -> httpx.AsyncClient:
        app = application(async_store, gate, **options)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a.test")

    return make


Browser = Callable[..., httpx.AsyncClient]


async def test_a_cookie_is_set_once_and_only_when_there_is_something_to_keep(browser: Browser) -> None:
    web = browser()
    assert "set-cookie" not in (await web.get("/")).headers
    first = await web.get("/write/a/1")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "SameSite=Lax" in first.headers["set-cookie"]
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["vary"] == "Cookie"
    second = await web.get("/write/a/2")
    assert "set-cookie" not in second.headers
    assert "cache-control" not in second.headers
    assert (await web.get("/")).json() == {"a": "2"}


async def test_a_response_that_did_not_look_at_the_session_does_not_vary(browser: Browser) -> None:
    web = browser()
    await web.get("/write/a/1")
    response = await web.get("/public")
    assert "vary" not in response.headers
    assert response.headers["cache-control"] == "public, max-age=60"


async def test_two_concurrent_requests_changing_different_keys_both_survive(browser: Browser, gate: Gate) -> None:
    web = browser()
    await web.get("/write/start/1")
    gate.parties = 2
    await asyncio.gather(web.get("/race/a"), web.get("/race/b"))
    assert (await web.get("/")).json() == {"start": "1", "a": 1, "b": 1}


async def test_twenty_concurrent_requests(browser: Browser, gate: Gate) -> None:
    web = browser()
    await web.get("/write/start/1")
    gate.parties = 20
    await asyncio.gather(*(web.get(f"/race/k{number}") for number in range(20)))
    assert len((await web.get("/")).json()) == 21


async def test_a_logout_wins_against_a_request_that_ends_later(browser: Browser, gate: Gate) -> None:
    web = browser()
    await web.get("/write/start/1")
    cookie = web.cookies["session"]
    gate.parties = 2
    late = asyncio.create_task(web.get("/race/late"))
    while gate.arrived < 1:
        await asyncio.sleep(0)
    out = await web.get("/logout")
    assert "Max-Age=0" in out.headers["set-cookie"]
    await gate.meet()
    assert "set-cookie" not in (await late).headers
    for value in (cookie, ""):
        web.cookies.clear()
        web.cookies.set("session", value)
        assert (await web.get("/")).json() == {}


async def test_login_changes_the_cookie_and_the_old_one_is_worthless(browser: Browser) -> None:
    web = browser()
    await web.get("/write/cart/1")
    planted = web.cookies["session"]
    await web.get("/login/ada")
    assert web.cookies["session"] != planted
    assert (await web.get("/")).json() == {"cart": "1"}
    thief = browser()
    thief.cookies.set("session", planted)
    assert (await thief.get("/")).json() == {}
    # A straggler with the old cookie must not overwrite the new cookie in the browser.
    assert "set-cookie" not in (await thief.get("/write/x/1")).headers


async def test_a_request_in_flight_does_not_bring_the_old_cookie_back(browser: Browser, gate: Gate) -> None:
    web = browser()
    await web.get("/write/a/1")
    gate.parties = 2
    late = asyncio.create_task(web.get("/race/late"))
    while gate.arrived < 1:
        await asyncio.sleep(0)
    await web.get("/login/ada")
    await gate.meet()
    assert "set-cookie" not in (await late).headers
    assert (await web.get("/")).json() == {"a": "1", "late": 1}


@pytest.mark.parametrize("end", ["", "x", ".", ".AAAA"])
async def test_a_tampered_cookie_costs_no_call_and_reads_nothing(browser: Browser, client: valkey.Valkey, end: str) -> None:
    web = browser()
    await web.get("/write/a/1")
    signed = web.cookies["session"]
    thief = browser()
    for forged in (signed[:-1] + ("A" if signed[-1] != "A" else "B"), signed.partition(".")[0] + end, "x" + signed):
        thief.cookies.set("session", forged)
        calls = client.info("stats")["total_commands_processed"]
        assert (await thief.get("/")).json() == {}
        assert client.info("stats")["total_commands_processed"] == calls + 1


async def test_a_new_key_signs_and_the_old_one_still_counts(browser: Browser) -> None:
    web = browser()
    await web.get("/write/a/1")
    old = web.cookies["session"]
    rotated = browser(keys=[NEW_KEY, KEY])
    rotated.cookies.set("session", old)
    response = await rotated.get("/")
    assert response.json() == {"a": "1"}
    fresh = response.cookies["session"]
    assert fresh.partition(".")[0] == old.partition(".")[0]
    later = browser(keys=[NEW_KEY])
    later.cookies.set("session", fresh)
    response = await later.get("/")
    assert response.json() == {"a": "1"}
    assert "set-cookie" not in response.headers
    later.cookies.clear()
    later.cookies.set("session", old)
    assert (await later.get("/")).json() == {}


async def test_a_session_that_is_lost_is_not_signed_again(browser: Browser, gate: Gate) -> None:
    web = browser()
    await web.get("/write/a/1")
    rotated = browser(keys=[NEW_KEY, KEY])
    rotated.cookies.update(web.cookies)
    gate.parties = 2
    late = asyncio.create_task(rotated.get("/race/late"))
    while gate.arrived < 1:
        await asyncio.sleep(0)
    await web.get("/logout")
    await gate.meet()
    assert "set-cookie" not in (await late).headers


async def test_a_planted_second_cookie_does_not_shadow_ours(browser: Browser) -> None:
    web = browser()
    await web.get("/write/a/1")
    good = web.cookies["session"]
    tossed = browser()
    response = await tossed.get("/", headers={"cookie": f"session=planted; session={good}"})
    assert response.json() == {"a": "1"}


async def test_streams_and_background_tasks_are_saved_at_their_end(browser: Browser) -> None:
    web = browser()
    await web.get("/write/a/1")
    response = await web.get("/stream")
    assert (response.text, response.headers["vary"]) == ("012", "Accept")
    await web.get("/background")
    assert (await web.get("/")).json() == {"a": "1", "streamed": 2, "background": True}


async def test_a_session_that_begins_after_the_headers_is_an_error(browser: Browser, client: valkey.Valkey) -> None:
    with pytest.raises(SessionHeadersSent):
        await browser().get("/stream")
    assert client.dbsize() == 0


async def test_a_request_that_fails_saves_nothing(browser: Browser) -> None:
    web = browser()
    await web.get("/write/a/1")
    with pytest.raises(RuntimeError, match="on purpose"):
        await web.get("/fail")
    assert (await web.get("/")).json() == {"a": "1"}


async def test_too_large_a_session_fails_before_the_response(browser: Browser) -> None:
    with pytest.raises(SessionTooLarge):
        await browser().get("/big")


async def test_a_lazy_session_costs_nothing_until_it_is_loaded(browser: Browser, client: valkey.Valkey) -> None:
    web = browser()
    await web.get("/write/a/1")
    lazy = browser(lazy=True)
    lazy.cookies.update(web.cookies)
    calls = client.info("stats")["total_commands_processed"]
    await lazy.get("/public")
    assert client.info("stats")["total_commands_processed"] == calls + 1
    assert (await lazy.get("/lazy")).json() == {"a": "1"}
    with pytest.raises(SessionNotLoaded):
        await lazy.get("/")


async def test_a_websocket_has_the_session(server: Engine, async_store: AsyncSessionStore, gate: Gate) -> None:
    """Spoken to as a server would, so that each message's effect can be looked at in between."""
    app = application(async_store, gate)
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {
        "type": "websocket", "path": "/socket", "headers": [], "query_string": b"", "subprotocols": [],
        "scheme": "ws", "root_path": "",
    }  # fmt: skip
    running = asyncio.create_task(app(scope, inbox.get, outbox.put))
    await inbox.put({"type": "websocket.connect"})
    accept = await outbox.get()
    cookie = dict(accept["headers"])[b"set-cookie"].decode().partition(";")[0].partition("=")[2]
    verified = Signer(KEY, "session").verify(cookie)
    assert verified is not None
    assert dict(await async_store.load(verified[0])) == {"socket": 0}
    await inbox.put({"type": "websocket.receive", "text": "one"})
    assert (await outbox.get())["text"] == "saved one"
    assert dict(await async_store.load(verified[0])) == {"socket": "one"}
    await inbox.put({"type": "websocket.disconnect", "code": 1000})
    await running
