"""Clients of this host that speak to a process which is gone, behind a cut that keeps the kernel's own word from them.

They would wait for as long as their read, connect and retry timeouts are, and cluster clients dial any node that they know. So
their connections are ended for them, and each dial that has no answer, until whoever dials there gets one: the cut is healed, or
was none. Needs root and ss; without, nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from cachekeep.compute.local import sockets

_ANSWER_SECONDS = 0.2
"""A host that can be reached accepts or refuses sooner by far; so long a dial to one that cannot goes on at least."""
_AT_ONCE_SECONDS = 0.02
"""In which a dial is answered on this machine unless packets are dropped."""
_LATER_SECONDS = 1.0
"""So long after an end that the kernel told by itself those are looked for who did not hear it. Connections of the whole
machine are read for that, and nobody is to wait for it while another node takes over."""
_log = logging.getLogger(__name__)


def lacks() -> tuple[str, ...]:
    """What is not done here, in a sentence."""
    why = sockets.unable()
    return (
        (f"Clients of a node that is cut off wait for their own timeouts: their connections can be ended by {why}.",) if why else ()
    )


class Clients:
    """Those of all endpoints of one driver."""

    def __init__(self) -> None:
        self._tasks: dict[sockets.SocketAddress, asyncio.Task[None]] = {}

    def let_go(self, address: str, port: int) -> None:
        """The process at this endpoint has ended. Returns at once."""
        if (before := self._tasks.pop((address, port), None)) is not None:
            before.cancel()
        self._tasks = {at: task for at, task in self._tasks.items() if not task.done()}
        self._tasks[address, port] = asyncio.get_running_loop().create_task(_let_go(address, port))

    async def aclose(self) -> None:
        """Leave them alone."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _let_go(address: str, port: int) -> None:
    try:
        if await _answers(address, port, _AT_ONCE_SECONDS):
            await asyncio.sleep(_LATER_SECONDS)
        if sockets.unable() is not None:
            return
        await asyncio.to_thread(sockets.disconnect, address, port)
        while not await _answers(address, port, _ANSWER_SECONDS):
            await asyncio.to_thread(sockets.refuse_dials, address, port)
    except OSError as error:
        _log.warning("clients of %s:%d may wait for their own timeouts: %s", address, port, error)


async def _answers(address: str, port: int, seconds: float) -> bool:
    """Whether whoever dials there is told something, be it a refusal. Takes so many seconds if not."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return False
    except ConnectionAbortedError:  # somebody ends dials as we do
        await asyncio.sleep(seconds)
        return False
    except OSError:
        return True
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
