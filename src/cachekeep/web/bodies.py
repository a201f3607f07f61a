"""Bodies as they arrive: how much of one is kept, and how much memory all of them may take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

FREE_BYTES: Final = 16 << 10
"""So much of each body is held without asking. An ordinary request has less."""
_ALL_BYTES_MAX: Final = 32 << 20
_PEER_BYTES_MAX: Final = 16 << 20
_DRAINED_BYTES_MAX: Final = 8 << 20
"""How much of a body that is too large is still read (and dropped), so that its sender gets to read the answer."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Gone(Exception):
    """The client has hung up."""


class Bodies:
    """What the bodies of all requests hold. One that finds no room is not read on until another is done with."""

    def __init__(self, *, all_bytes_max: int = _ALL_BYTES_MAX, peer_bytes_max: int = _PEER_BYTES_MAX) -> None:
        self._all_bytes_max, self._peer_bytes_max = all_bytes_max, peer_bytes_max
        self._held: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def held_bytes(self) -> int:
        """Beyond what is free."""
        return self._held.total()

    async def take(self, peer: str, count: int) -> None:
        """Wait until ``count`` more bytes of a peer may be held."""
        while self.held_bytes + count > self._all_bytes_max or self._held[peer] + count > self._peer_bytes_max:
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        self._held[peer] += count

    def give_back(self, peer: str, count: int) -> None:
        self._held[peer] -= count
        if not self._held[peer]:
            del self._held[peer]
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)


class Body:
    """The body of one request of a peer, of which at most ``most`` bytes are kept. What it holds it holds until ``done``."""

    def __init__(self, bodies: Bodies, peer: str, most: int) -> None:
        self._bodies, self._peer, self._most = bodies, peer, most
        self._taken = 0

    async def read(self, receive: Receive) -> tuple[bytes, bool]:
        """What is kept, and whether that is all of it. Raises Gone."""
        chunks: list[bytes] = []
        size = dropped = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            chunk: bytes = message.get("body", b"")
            kept = chunk[: self._most - size]
            if kept:
                size += len(kept)
                more = max(0, size - FREE_BYTES) - self._taken
                if more > 0:
                    await self._bodies.take(self._peer, more)
                    self._taken += more
                chunks.append(kept)
            dropped += len(chunk) - len(kept)
            if not message.get("more_body", False):
                return b"".join(chunks), dropped == 0
            if dropped > _DRAINED_BYTES_MAX:
                return b"".join(chunks), False

    def done(self) -> None:
        """It is held no longer."""
        if self._taken:
            self._bodies.give_back(self._peer, self._taken)
            self._taken = 0
