"""The HTTP server before the gateway: raw requests, limits, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from tests.wire.conftest import KEY, SECRET, Endpoint, form, signed

from cachekeep.clock import SystemClock
from cachekeep.security.sigv4 import AccessKey
from cachekeep.web import listener
from cachekeep.web.protocol import HEAD_BYTES_MAX, HEADERS_MAX, DeadlineProtocol
from cachekeep.web.server import Web
from cachekeep.web.thread import across, serve
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import BODY_BYTES_MAX, Call
from cachekeep.wire.http import HttpRequest


class Patient(DeadlineProtocol):
    head_seconds = 60.0
    peer_connections_max = 100


class Hasty(DeadlineProtocol):
    head_seconds = 0.3


class Threaded(uvicorn.Server):
    """Signals are the main thread's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ToyDesk:
    """Stands where the desk stands; remembers what got through to it."""

    def __init__(self) -> None:
        self.asked: list[Call] = []

    def health(self) -> dict[str, Any]:
        return {"ok": True}

    def greeting(self) -> str:
        return "hello"

    async def answer(self, call: Call) -> dict[str, Any]:
        self.asked.append(call)
        if call.operation == "wrong":
            raise ApiError("NotFound", "no such thing", status=404)
        return {"call": call.operation}


async def _scrape(_: None) -> str:
    return "redis_up 1\n"


class Server:
    def __init__(self, protocol: type[DeadlineProtocol] = Patient, body_seconds: float = 60.0, most: int | None = None) -> None:
        self.endpoint = Endpoint()
        self.endpoint.answer = lambda call: {"Account": "000000000000", "Arn": "a", "UserId": "u"}
        self.desk = ToyDesk()
        root = AccessKey(SECRET, "arn:aws:iam::000000000000:root", "000000000000")
        desk: Any = self.desk
        self.web = web = Web(
            self.endpoint.gateway,
            desk,
            ask=desk.answer,
            credentials={KEY: root}.get,
            clock=SystemClock(),
            scrape=("token", _scrape),
            body_seconds=body_seconds,
        )
        config = uvicorn.Config(
            web, http=protocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1, limit_concurrency=most
        )
        self.uvicorn = uvicorn.Server(config)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve([self.socket])))

    def send(self, request: HttpRequest, path: str | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(request.method, path or request.path, request.body, dict(request.headers))
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(Server()) as made:
        yield made


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """Only who sends nothing is to be too slow for it."""
    with served(Server(Hasty, body_seconds=0.5)) as made:
        yield made


@contextlib.contextmanager
def served(made: Server) -> Iterator[Server]:
    made.thread.start()
    try:
        yield made
    finally:
        made.uvicorn.should_exit = True
        made.thread.join()


def read_all(s: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := s.recv(65536):
            found += more
    return found


def test_a_signed_request_gets_through_as_it_was_sent(server: Server) -> None:
    status, body, headers = server.send(signed(form("sts", "GetCallerIdentity"), service="sts"))
    assert (status, b"<Arn>a</Arn>" in body) == (200, True)
    assert headers["x-amzn-requestid"]
    assert server.endpoint.calls[-1].operation == "GetCallerIdentity"


def test_the_signature_covers_the_path_and_query_undecoded(server: Server) -> None:
    request = signed(form("sts", "GetCallerIdentity"), service="sts", path="/a%2Fb/?x=%2F&y=a%20b")
    assert server.send(request, "/a%2Fb/?x=%2F&y=a%20b")[0] == 200
    assert server.send(request, "/a/b/?x=%2F&y=a%20b")[0] == 403


def test_a_body_that_is_too_large_is_refused_in_aws_words(server: Server) -> None:
    calls = len(server.endpoint.calls)
    status, body, _ = server.send(signed(b"x" * (BODY_BYTES_MAX + 100_000), service="sts"))
    assert (status, b"<Code>RequestEntityTooLarge</Code>" in body) == (413, True)
    assert len(server.endpoint.calls) == calls


def test_an_endless_body_is_not_read_to_its_end(server: Server) -> None:
    with server.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(2000):
                s.sendall(b"x" * 65536)


def test_headers_drop_by_drop_end_the_connection(hasty: Server) -> None:
    with hasty.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
        assert read_all(s) == b""
    with hasty.connect() as s:
        assert read_all(s) == b"", "nor may a connection say nothing at all"


def test_a_body_drop_by_drop_is_told_so(hasty: Server) -> None:
    with hasty.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        said = read_all(s)
    assert said.startswith(b"HTTP/1.1 408")
    assert b"<Code>RequestTimeout</Code>" in said


def test_too_many_headers_are_refused(server: Server) -> None:
    with server.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(OSError):
            for _ in range(HEAD_BYTES_MAX // 1000 + 2):
                s.sendall(b"A: " + b"b" * 1000 + b"\r\n")
        assert read_all(s).startswith(b"HTTP/1.1 400")


def test_a_flood_of_headers_is_refused(server: Server) -> None:
    with server.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * HEADERS_MAX + b"\r\n")
        assert read_all(s).startswith(b"HTTP/1.1 400")


def test_repeated_headers_are_one_with_a_comma(server: Server) -> None:
    request = signed(form("sts", "GetCallerIdentity"), service="sts", headers={"x-two": "a,b"})
    head = [f"{name}: {value}" for name, value in request.headers.items() if name != "x-two"]
    lines = ["POST / HTTP/1.1", *head, f"content-length: {len(request.body)}", "x-two: a", "x-two: b", "connection: close", "", ""]
    with server.connect() as s:
        s.sendall("\r\n".join(lines).encode() + request.body)
        assert read_all(s).startswith(b"HTTP/1.1 200")


def test_a_stranger_is_shown_out_and_who_is_believed_may_stay(server: Server) -> None:
    stranger = HttpRequest("POST", body=form("sts", "GetCallerIdentity"))
    status, body, headers = server.send(stranger)
    assert (status, b"MissingAuthenticationToken" in body, headers["connection"]) == (403, True, "close")
    assert server.send(signed(form("sts", "GetCallerIdentity"), service="sts"))[2]["connection"] is None


def test_of_what_a_stranger_sends_nothing_is_kept(server: Server, hasty: Server) -> None:
    """The service is still named by what comes first: its refusals have a form of their own."""
    status, body, _ = server.send(
        HttpRequest("POST", body=b"Action=DescribeVpcs&Version=2016-11-15&" + b"x" * (BODY_BYTES_MAX - 100))
    )
    assert (status, b"<Response><Errors>" in body) == (403, True)
    held = hasty.web._bodies.held_bytes
    with hasty.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 800_000)
        assert hasty.web._bodies.held_bytes == held
        assert b"RequestTimeout" in read_all(s)


def test_one_address_has_a_part_of_all_connections(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(Patient.peer_connections_max):
            stack.enter_context(server.connect())
        assert server.connect().recv(1) == b"", "it is closed at once"
    request = signed(form("sts", "GetCallerIdentity"), service="sts")
    while True:  # until the others are seen to have gone
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert server.send(request)[0] == 200
            break


def test_all_addresses_together_have_a_part_of_what_the_process_may_open() -> None:
    with served(Server(most=20)) as server, contextlib.ExitStack() as stack:
        for last in range(20):
            address = ("127.9.0.1", 0) if last % 2 else ("127.9.0.2", 0)
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=address))
        late = stack.enter_context(
            socket.create_connection(("127.0.0.1", server.port), timeout=10, source_address=("127.9.0.3", 0))
        )
        assert late.recv(1) == b"", "it is closed at once"


async def test_a_connection_that_takes_the_last_files_is_closed_before_it_shakes_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = listener.listen("127.0.0.1", 0, here_only=True, encrypted=True)
    async with await asyncio.start_server(never, sock=made, ssl=tls):
        monkeypatch.setattr(listener, "FILES_SHARE", 0.0)
        refused, writer = await asyncio.open_connection(*made.getsockname())
        assert await asyncio.wait_for(refused.read(1), 30) == b""
        writer.close()


async def test_a_request_that_computes_does_not_hold_up_what_keeps_caches() -> None:
    """The request is answered only when the loop of everything else, which it would stall on a shared one, has gone on."""
    went_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert went_on.wait(10)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        web = Threaded(uvicorn.Config(app, lifespan="off", log_config=None))
        serving = asyncio.create_task(serve(web, listener))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        went_on.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        writer.close()
        web.should_exit = True
        await serving


async def test_what_crosses_is_asked_where_everything_else_lives_and_cancelled_with_who_asks() -> None:
    here, begun, cancelled = asyncio.get_running_loop(), threading.Event(), asyncio.Event()

    async def answer(question: str) -> str:
        assert asyncio.get_running_loop() is here
        if question == "slow":
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        if question == "wrong":
            raise ApiError("NotFound", "no such thing")
        return question.upper()

    ask = across(here, answer)

    async def elsewhere() -> None:
        assert asyncio.get_running_loop() is not here
        assert await ask("a") == "A"
        with pytest.raises(ApiError, match="no such thing"):
            await ask("wrong")
        slow = asyncio.create_task(ask("slow"))
        assert await asyncio.to_thread(begun.wait, 60)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow

    await asyncio.to_thread(asyncio.run, elsewhere())
    await asyncio.wait_for(cancelled.wait(), 60)


def test_a_browser_is_greeted(server: Server) -> None:
    assert server.send(HttpRequest("GET"))[:2] == (200, b"hello")
    status, body, headers = server.send(HttpRequest("HEAD"))
    assert (status, body, headers["content-length"]) == (200, b"", "5")


def test_health_is_open_and_the_rest_of_the_desk_is_not(server: Server) -> None:
    status, body, _ = server.send(HttpRequest("GET", "/_cachekeep/health"))
    assert (status, json.loads(body)) == (200, {"ok": True})
    assert server.send(HttpRequest("POST", "/_cachekeep/status"))[0] == 403
    assert not server.desk.asked


def test_the_desk_takes_only_signatures_of_its_own_scope(server: Server) -> None:
    other = signed(b"{}", service="sts", path="/_cachekeep/status")
    assert server.send(other)[0] == 403
    assert not server.desk.asked
    assert server.send(_for_desk("status", b"{}"))[:2] == (200, b'{"call":"status"}')
    assert server.send(_for_desk("wrong"))[0] == 404
    assert server.send(_for_desk("status", b"not JSON"))[0] == 400
    assert [(c.service, c.operation, c.params, c.principal.arn) for c in server.desk.asked] == [
        ("cachekeep", "status", {}, "arn:aws:iam::000000000000:root"),
        ("cachekeep", "wrong", {}, "arn:aws:iam::000000000000:root"),
    ]


def _for_desk(call: str, body: bytes = b"") -> HttpRequest:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("POST", f"http://127.0.0.1:8379/_cachekeep/{call}", data=body, headers={"Host": "127.0.0.1:8379"})
    SigV4Auth(Credentials(KEY, SECRET), "cachekeep", "us-east-1").add_auth(request)
    return HttpRequest("POST", f"/_cachekeep/{call}", headers=dict(request.headers.items()), body=body)


def test_garbage_gets_no_trace(server: Server) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        with server.connect() as s:
            s.sendall(garbage)
            said = read_all(s)
        assert said.startswith(b"HTTP/1.1 400"), said
        assert b"Traceback" not in said


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer tok", "Basic token", "Bearer tokenx"])
def test_metrics_are_for_whoever_has_the_token(server: Server, given: str) -> None:
    status, body, headers = server.send(HttpRequest("GET", "/metrics", headers={"authorization": given} if given else {}))
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert b"redis_up" not in body
    status, body, headers = server.send(HttpRequest("GET", "/metrics", headers={"authorization": "Bearer token"}))
    assert (status, body) == (200, b"redis_up 1\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
