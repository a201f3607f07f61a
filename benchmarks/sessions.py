"""Session stores side by side: what a request pays, and what the store gets wrong.

    python -m benchmarks.sessions [--races 50] [--requests 2000]

Every store runs behind a real application of its framework, over the same engine, which this starts itself. A *race*
is two requests of one user that have both read the session before either is answered, each setting a field of its
own: a field that is missing afterwards is a lost update. A *revival* is a session that can be used again because a
request that was under way at the logout was answered after it. Stores whose package is not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from http.cookies import SimpleCookie
from typing import Any

import valkey
import valkey.asyncio

from cachekeep_patterns.sessions import AsyncSessionStore, Cookie, SessionStore

KEY = "benchmark-key-of-a-good-length-0123456789"
SESSION = {"user": 42, "name": "Ada Lovelace", "cart": [1, 2, 3], "theme": "dark", "seen": "2024-02-29"}


_TURNS = 10


@dataclass(frozen=True)
class SessionRow:
    """One store. Times are whole requests, in microseconds, of one client without concurrency."""

    store: str
    read_microseconds: float
    change_microseconds: float
    bytes_per_session: int
    races: int
    lost_updates: int
    revivals: int

    @property
    def correct(self) -> bool:
        return self.lost_updates == self.revivals == 0


class Application:
    """One framework's application, spoken to without a network: a path and a cookie in, the cookie out."""

    name: str

    def request(self, path: str, cookie: str = "") -> str:
        """Returns the cookie to send next."""
        raise NotImplementedError

    def read(self, cookie: str) -> dict[str, Any]:
        raise NotImplementedError

    def both(self, first: str, second: str, cookie: str, between: str = "") -> None:
        """Two requests that overlap; with `between`, the first is held until that has been answered."""
        raise NotImplementedError


def _next_cookie(headers: Sequence[tuple[str, str]], cookie: str) -> str:
    for name, value in headers:
        if name.lower() == "set-cookie":
            (morsel,) = SimpleCookie(value).values()
            return f"{morsel.key}={morsel.coded_value}"
    return cookie


class Asgi(Application):
    def __init__(self, name: str, wrap: Callable[[Any], Any]) -> None:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route

        self.name = name
        self.seen: dict[str, Any] = {}
        self.waiting: asyncio.Event | None = None
        self.gate: asyncio.Event | None = None

        async def fill(request: Request) -> Response:
            request.session.update(SESSION)
            return Response()

        async def look(request: Request) -> Response:
            return JSONResponse(request.session["user"])

        async def everything(request: Request) -> Response:
            self.seen = dict(request.session)
            return Response()

        async def change(request: Request) -> Response:
            request.session["count"] = request.session.get("count", 0) + 1
            return Response()

        async def hold(request: Request) -> Response:
            dict(request.session)
            assert self.waiting is not None
            assert self.gate is not None
            self.waiting.set()
            await self.gate.wait()
            request.session[request.path_params["field"]] = 1
            return Response()

        async def put(request: Request) -> Response:
            dict(request.session)
            assert self.waiting is not None
            await self.waiting.wait()
            request.session[request.path_params["field"]] = 1
            return Response()

        async def leave(request: Request) -> Response:
            request.session.clear()
            return Response()

        handlers = (fill, look, everything, change, leave)
        routes = [Route(f"/{handler.__name__}", handler) for handler in handlers]
        routes += [Route("/hold/{field}", hold), Route("/put/{field}", put)]
        self.app = wrap(Starlette(routes=routes))
        self.loop = asyncio.new_event_loop()

    async def _call(self, path: str, cookie: str) -> str:
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "headers": [(b"cookie", cookie.encode())] if cookie else [], "scheme": "http",
            "server": ("a.test", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip
        headers: list[tuple[str, str]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200, message
                headers.extend((name.decode(), value.decode()) for name, value in message["headers"])

        await self.app(scope, receive, send)
        return _next_cookie(headers, cookie)

    def request(self, path: str, cookie: str = "") -> str:
        return self.loop.run_until_complete(self._call(path, cookie))

    def read(self, cookie: str) -> dict[str, Any]:
        self.seen = {}
        self.request("/everything", cookie)
        return self.seen

    def both(self, first: str, second: str, cookie: str, between: str = "") -> None:
        async def run() -> None:
            self.waiting, self.gate = asyncio.Event(), asyncio.Event()
            held = asyncio.create_task(self._call(f"/hold/{first}", cookie))
            await self.waiting.wait()
            await self._call(between or f"/put/{second}", cookie)
            self.gate.set()
            await held

        self.loop.run_until_complete(run())


class Wsgi(Application):
    def __init__(self, name: str, install: Callable[[Any], None]) -> None:
        import flask

        self.name = name
        self.app = flask.Flask("benchmark")
        self.app.config["SECRET_KEY"] = KEY
        install(self.app)
        self.seen: dict[str, Any] = {}
        self.waiting, self.gate = threading.Event(), threading.Event()

        def fill() -> str:
            flask.session.update(SESSION)
            return ""

        def look() -> str:
            return str(flask.session["user"])

        def everything() -> str:
            self.seen = dict(flask.session)
            return ""

        def change() -> str:
            flask.session["count"] = flask.session.get("count", 0) + 1
            return ""

        def hold(field: str) -> str:
            dict(flask.session)
            self.waiting.set()
            assert self.gate.wait(30)
            flask.session[field] = 1
            return ""

        def put(field: str) -> str:
            flask.session[field] = 1
            return ""

        def leave() -> str:
            flask.session.clear()
            return ""

        for handler in (fill, look, everything, change, leave):
            self.app.add_url_rule(f"/{handler.__name__}", view_func=handler)
        self.app.add_url_rule("/hold/<field>", view_func=hold)
        self.app.add_url_rule("/put/<field>", view_func=put)

    def request(self, path: str, cookie: str = "") -> str:
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "a.test", "SERVER_PORT": "80",
            "wsgi.url_scheme": "http", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_COOKIE": cookie,
        }  # fmt: skip
        headers: list[tuple[str, str]] = []

        def start(status: str, given: list[tuple[str, str]], *_: Any) -> None:
            assert status.startswith("200"), status
            headers.extend(given)

        body: Any = self.app(environ, start)
        b"".join(body)
        body.close()
        return _next_cookie(headers, cookie)

    def read(self, cookie: str) -> dict[str, Any]:
        self.seen = {}
        self.request("/everything", cookie)
        return self.seen

    def both(self, first: str, second: str, cookie: str, between: str = "") -> None:
        self.waiting.clear()
        self.gate.clear()
        held = threading.Thread(target=self.request, args=(f"/hold/{first}", cookie))
        held.start()
        assert self.waiting.wait(30)
        self.request(between or f"/put/{second}", cookie)
        self.gate.set()
        held.join()


def _starlette_ours(port: int) -> Application:
    from cachekeep_patterns.contrib.starlette import SessionMiddleware

    store = AsyncSessionStore(valkey.asyncio.Valkey(port=port))
    cookie = Cookie(secure=False)
    return Asgi("cachekeep (Starlette)", lambda app: SessionMiddleware(app, store=store, keys=KEY, cookie=cookie))


def _starsessions(port: int) -> Application:
    import redis.asyncio
    from starsessions import SessionAutoloadMiddleware, SessionMiddleware
    from starsessions.stores.redis import RedisStore

    store = RedisStore(connection=redis.asyncio.Redis(port=port))
    return Asgi(
        "starsessions (Starlette)",
        lambda app: SessionMiddleware(
            SessionAutoloadMiddleware(app), store=store, cookie_https_only=False, lifetime=3600, rolling=True
        ),
    )


def _flask_ours(port: int) -> Application:
    from cachekeep_patterns.contrib.flask import ServerSessions

    def install(app: Any) -> None:
        app.session_interface = ServerSessions(SessionStore(valkey.Valkey(port=port)))

    return Wsgi("cachekeep (Flask)", install)


def _flask_session(port: int) -> Application:
    import flask_session
    import redis

    def install(app: Any) -> None:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis(port=port))
        flask_session.Session(app)

    return Wsgi("Flask-Session (Flask)", install)


_MAKERS: tuple[tuple[str, Callable[[int], Application]], ...] = (
    ("starlette", _starlette_ours),
    ("starsessions", _starsessions),
    ("flask", _flask_ours),
    ("flask_session", _flask_session),
)


@contextmanager
def _engine() -> Iterator[int]:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise SystemExit("needs valkey-server or redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = valkey.Valkey(port=port)
            for _ in range(1000):
                try:
                    client.ping()
                    break
                except valkey.exceptions.ConnectionError:
                    time.sleep(0.01)
            yield port
        finally:
            process.kill()
            process.wait()


def _median_microseconds(act: Callable[[], object], times: int) -> float:
    for _ in range(min(50, times)):
        act()
    taken = []
    for _ in range(times):
        began = time.perf_counter_ns()
        act()
        taken.append(time.perf_counter_ns() - began)
    return statistics.median(taken) / 1000


def _wrongs(app: Application, races: int) -> tuple[int, int]:
    lost = revivals = 0
    for _ in range(races):
        cookie = app.request("/fill")
        app.both("a", "b", cookie)
        after = app.read(cookie)
        lost += ("a" not in after) + ("b" not in after)
        cookie = app.request("/fill")
        app.both("late", "", cookie, between="/leave")
        revivals += bool(app.read(cookie))
    return lost, revivals


def rows(races: int = 50, requests: int = 2000) -> list[SessionRow]:
    """Run it all: some ten seconds. The stores take turns, and each time is the best turn's median, so that a busy
    machine slows one row no more than another.
    """
    with _engine() as port:
        client = valkey.Valkey(port=port)
        apps = [make(port) for package, make in _MAKERS if importlib.util.find_spec(package) is not None]
        memory = []
        for app in apps:
            client.flushall()
            app.request("/fill")
            keys: Any = client.keys("*")
            memory.append(sum(int(client.execute_command("MEMORY", "USAGE", key)) for key in keys))
        client.flushall()
        cookies = [app.request("/fill") for app in apps]
        times: list[list[list[float]]] = [[[], []] for _ in apps]
        for _ in range(_TURNS):
            for app, cookie, (reads, changes) in zip(apps, cookies, times, strict=True):
                reads.append(_median_microseconds(lambda: app.request("/look", cookie), requests // _TURNS))  # noqa: B023
                changes.append(_median_microseconds(lambda: app.request("/change", cookie), requests // _TURNS))  # noqa: B023
        return [
            SessionRow(app.name, round(min(reads), 1), round(min(changes), 1), size, races, *_wrongs(app, races))
            for app, size, (reads, changes) in zip(apps, memory, times, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    titles = tuple(field.name for field in fields(SessionRow))
    found = rows(options.races, options.requests)
    table = [titles, *(tuple(map(str, astuple(row))) for row in found)]
    widths = [max(len(line[at]) for line in table) for at in range(len(titles))]
    for line, verdict in zip(table, ["", *("" if row.correct else "WRONG" for row in found)], strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), verdict)


if __name__ == "__main__":
    main()
