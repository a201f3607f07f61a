"""Requests are answered in a thread with an event loop of its own, so that none of them stalls what keeps caches alive.

There a request is received, believed, parsed and its answer written. What it asks for crosses over to the loop that everything else
lives in, and only of callers that are believed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from socket import socket
from typing import Final, TypeVar

import uvicorn

A = TypeVar("A")
B = TypeVar("B")

_TURN_SECONDS: Final = 0.0005
"""So soon a thread that computes lets the other one on (CPython takes 5 ms by default, and a failover has many short turns)."""


def across(loop: asyncio.AbstractEventLoop, ask: Callable[[A], Awaitable[B]]) -> Callable[[A], Awaitable[B]]:
    """``ask`` on ``loop``, to be called from another one. It is cancelled with its caller."""

    async def asked(question: A) -> B:
        return await ask(question)

    async def crossing(question: A) -> B:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(question), loop))

    return crossing


async def serve(server: uvicorn.Server, listener: socket) -> None:
    """Answer requests in a thread until ``server.should_exit`` is set."""
    sys.setswitchinterval(_TURN_SECONDS)
    await asyncio.to_thread(_run, type(asyncio.get_running_loop()), server, listener)


def _run(new_loop: Callable[[], asyncio.AbstractEventLoop], server: uvicorn.Server, listener: socket) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(server.serve(sockets=[listener]))
