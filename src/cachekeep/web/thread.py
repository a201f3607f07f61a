"""Requests are answered in a thread with an event loop of its own, so that none of them stalls what keeps caches alive.

There a request is received, believed, parsed and its answer written. What it asks for crosses over to the loop that everything else
lives in, and only of callers that are believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from socket import socket
from typing import Final, TypeVar

import uvicorn

from cachekeep.web.listener import FILES_SHARE
from cachekeep.web.protocol import DeadlineProtocol
from cachekeep.web.server import Web

A = TypeVar("A")
B = TypeVar("B")

_CONNECTIONS_MAX: Final = 4000
_LAST_ANSWERS_SECONDS: Final = 3
_TURN_SECONDS: Final = 0.0005
"""So soon a thread that computes lets the other one on (CPython takes 5 ms by default, and a failover has many short turns)."""


def across(loop: asyncio.AbstractEventLoop, ask: Callable[[A], Awaitable[B]]) -> Callable[[A], Awaitable[B]]:
    """``ask`` on ``loop``, to be called from another one. It is cancelled with its caller."""

    async def asked(question: A) -> B:
        return await ask(question)

    async def crossing(question: A) -> B:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(question), loop))

    return crossing


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers: ``App`` says when it is over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def answering(web: Web, tls: ssl.SSLContext | None) -> uvicorn.Server:
    """What answers requests, once it is served."""
    config = uvicorn.Config(
        web,
        http=DeadlineProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=1024,
        limit_concurrency=min(_CONNECTIONS_MAX, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * FILES_SHARE)),
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    config.load()
    config.ssl = tls
    return _Server(config)


async def serve(server: uvicorn.Server, listener: socket) -> None:
    """Answer requests in a thread until ``server.should_exit`` is set."""
    sys.setswitchinterval(_TURN_SECONDS)
    await asyncio.to_thread(_run, type(asyncio.get_running_loop()), server, listener)


def _run(new_loop: Callable[[], asyncio.AbstractEventLoop], server: uvicorn.Server, listener: socket) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(server.serve(sockets=[listener]))
