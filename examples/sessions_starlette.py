"""A little shop with server-side sessions, in Starlette.

    SESSION_CACHE=valkey://127.0.0.1:6379 SESSION_KEY=... uvicorn examples.sessions_starlette:app

SESSION_CACHE is the primary endpoint of a cache (add ?... as valkey-py reads it; SESSION_CLUSTER=1 for cluster mode).
Without SESSION_KEY a key is drawn at the start, and a restart ends all sessions. Plain HTTP on localhost only: behind
TLS take the default Cookie, which is Secure.
"""

from __future__ import annotations

import html
import os
import secrets
from urllib.parse import parse_qs

import valkey.asyncio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cachekeep_patterns.contrib.starlette import SessionMiddleware
from cachekeep_patterns.sessions import AsyncSessionStore, Cookie, Policy

kind = valkey.asyncio.ValkeyCluster if os.environ.get("SESSION_CLUSTER") else valkey.asyncio.Valkey
client = kind.from_url(os.environ.get("SESSION_CACHE", "valkey://127.0.0.1:6379"), socket_timeout=1)
sessions = AsyncSessionStore(client, Policy(idle_seconds=3600, max_age_seconds=7 * 24 * 3600))

PAGE = """<!doctype html><meta charset="utf-8"><title>Shop</title>
<p id="user">{user}</p>
<ul id="cart">{cart}</ul>
<form method="post" action="/add"><input name="item"><button id="add">Add</button></form>
<form method="post" action="/login"><input name="user"><button id="login">Log in</button></form>
<form method="post" action="/logout"><button id="logout">Log out</button></form>
<form method="post" action="/logout-everywhere"><button id="everywhere">Log out everywhere</button></form>
<p><span id="devices">{devices}</span> open sessions</p>"""


async def shop(request: Request) -> Response:
    session = request.session
    user = session.user
    return HTMLResponse(
        PAGE.format(
            user=html.escape(user or "nobody"),
            # One field per item: two tabs that add different items at once both succeed.
            cart="".join(f"<li>{html.escape(name[5:])}</li>" for name in sorted(session) if name.startswith("item:")),
            devices=len(await sessions.sessions_of(user)) if user else 0,
        )
    )


async def add(request: Request) -> Response:
    request.session[f"item:{await field(request, 'item')}"] = 1
    return RedirectResponse("/", 303)


async def login(request: Request) -> Response:
    # A real shop asks for a password here.
    request.session.login(await field(request, "user"))
    return RedirectResponse("/", 303)


async def logout(request: Request) -> Response:
    request.session.logout()
    return RedirectResponse("/", 303)


async def logout_everywhere(request: Request) -> Response:
    if request.session.user:
        await sessions.logout_everywhere(request.session.user)
    request.session.logout()
    return RedirectResponse("/", 303)


async def field(request: Request, name: str) -> str:
    values = parse_qs((await request.body()).decode()).get(name)  # leaves empty ones out
    if not values:
        raise HTTPException(400, f"{name} is empty")
    return values[0]


app = Starlette(
    routes=[
        Route("/", shop),
        Route("/add", add, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/logout-everywhere", logout_everywhere, methods=["POST"]),
    ],
    middleware=[
        Middleware(
            SessionMiddleware,
            store=sessions,
            keys=os.environ.get("SESSION_KEY") or secrets.token_hex(32),
            cookie=Cookie(secure=False),
        )
    ],
)
