"""Whole responses, cached for everybody or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import flask
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cachekeep_patterns import AsyncCache, Cache, connect, connect_async
from cachekeep_patterns.contrib.asgi_cache import ResponseCacheMiddleware
from cachekeep_patterns.contrib.flask_cache import cached_response
from cachekeep_patterns.contrib.responses import is_known, seconds_to_keep
from patterns_rig.servers import Server

PUBLIC = {"cache-control": "public, max-age=60"}


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (200, [("Cache-Control", "public, max-age=60")], 60),
        (200, [("Cache-Control", "max-age=60, s-maxage=5")], 5),
        (200, [("Cache-Control", "max-age=60")], 0),  # for the client alone, perhaps
        (200, [("Cache-Control", "public, max-age=60, no-store")], 0),
        (200, [("Cache-Control", "private, max-age=60")], 0),
        (200, [("Cache-Control", "public, max-age=60"), ("Set-Cookie", "a=1")], 0),
        (200, [("Cache-Control", "public, max-age=60"), ("Vary", "Cookie")], 0),
        (200, [("Cache-Control", "public, max-age=60"), ("Vary", "*")], 0),
        (200, [("Cache-Control", "public, max-age=60"), ("Vary", "Accept")], 60),
        (404, [("Cache-Control", "public, max-age=60")], 0),
        (200, [], 0),
    ],
)
def test_what_may_be_kept(status: int, headers: list[tuple[str, str]], seconds: float) -> None:
    assert seconds_to_keep(status, headers, ["accept"]) == seconds


def test_who_has_it_already() -> None:
    headers = [("ETag", 'W/"a"')]
    assert [is_known(asked, headers) for asked in ('"a"', 'W/"a"', '"b", "a"', "*", '"b"', None)] == [True] * 4 + [False] * 2


class Site:
    def __init__(self, server: Server, **options: Any) -> None:
        self.made: list[str] = []
        self.cache = AsyncCache(connect_async(f"valkey://127.0.0.1:{server.port}"), namespace="pages")
        app = Starlette(routes=[Route("/{name}", self.page)])
        app.add_middleware(ResponseCacheMiddleware, cache=self.cache, tags=lambda scope: [scope["path"]], **options)
        self.web = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def page(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.made.append(name)
        body = f"{name} {request.url.query} {len(self.made)}"
        await asyncio.sleep(0.02)
        if name == "stream":
            return StreamingResponse(iter([b"a", b"b"]), headers={"cache-control": "no-store"})
        if name == "mine":
            response = PlainTextResponse(body, headers=PUBLIC)
            response.set_cookie("who", body)
            return response
        return PlainTextResponse(body, headers=PUBLIC if name != "plain" else {})


async def test_a_page_is_made_once_and_then_known_by_its_etag(server: Server) -> None:
    site = Site(server)
    answers = await asyncio.gather(*(site.web.get("/page?a=1") for _ in range(20)))
    assert {answer.text for answer in answers} == {"page a=1 1"}
    first = answers[0]
    again = await site.web.get("/page?a=1", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["cache-control"] == PUBLIC["cache-control"]
    assert (await site.web.get("/page?a=2")).text == "page a=2 2"
    assert (await site.web.get("/page?a=1", headers={"accept-language": "de"})).text == "page a=1 3"
    await site.cache.invalidate(tags=["/page"])
    assert (await site.web.get("/page?a=1")).text == "page a=1 4"
    assert (await site.web.post("/page")).status_code == 405


async def test_what_is_for_one_client_goes_to_no_other(server: Server) -> None:
    site = Site(server)
    for name in ("mine", "plain"):
        answers = await asyncio.gather(*(site.web.get(f"/{name}") for _ in range(8)))
        assert len({answer.text for answer in answers}) == 8
    assert (await site.web.get("/stream")).text == "ab"
    for headers in ({"authorization": "x"}, {"cache-control": "no-cache"}):
        texts = [(await site.web.get("/page", headers=headers)).text for _ in range(2)]
        assert texts[0] != texts[1]


async def test_a_large_page_goes_through(server: Server) -> None:
    site = Site(server, max_bytes=3)
    assert [(await site.web.get("/page")).text for _ in range(2)] == ["page  1", "page  2"]


def test_flask_views(server: Server) -> None:
    cache = Cache(connect(f"valkey://127.0.0.1:{server.port}"), namespace="pages")
    app = flask.Flask("shop")
    app.config["SECRET_KEY"] = "k" * 32
    made: list[str] = []

    @app.get("/page")
    @cached_response(cache, seconds=60, vary=["Accept-Language"], tags=["pages"])
    def page() -> str:
        made.append("page")
        return f"page {len(made)} {flask.request.args}"

    @app.get("/mine")
    @cached_response(cache, seconds=60)
    def mine() -> str:
        made.append("mine")
        flask.session["n"] = flask.session.get("n", 0) + 1
        return f"mine {len(made)}"

    @app.get("/bad")
    @cached_response(cache, seconds=60)
    def bad() -> tuple[str, int]:
        made.append("bad")
        return f"bad {len(made)}", 404

    web = app.test_client()
    first, second = web.get("/page?a=1"), web.get("/page?a=1")
    assert first.text == second.text
    assert first.headers["Vary"] == "Accept-Language"
    assert web.get("/page?a=1", headers={"If-None-Match": second.headers["ETag"]}).status_code == 304
    assert web.get("/page?a=2").text != first.text
    assert web.get("/page?a=1", headers={"Accept-Language": "de"}).text != first.text
    cache.invalidate(tags=["pages"])
    assert web.get("/page?a=1").text != first.text
    assert web.get("/mine").text != web.get("/mine").text
    assert web.get("/bad").text != web.get("/bad").text
