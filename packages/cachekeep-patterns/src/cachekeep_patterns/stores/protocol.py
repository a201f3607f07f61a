"""The door between the patterns and a cache server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Store(Protocol):
    """``down`` are the errors that mean "could not be asked" (they open the breaker);
    ``refused`` those that mean "asked, and no"."""

    quick: Callable[[str], Any] | None  # `read` without a wrapper (plain or async, as the client is), for the hot path
    quick_many: Callable[[Sequence[str]], Any] | None  # `read_many` alike
    down: tuple[type[BaseException], ...]
    refused: tuple[type[BaseException], ...]
    lags: bool  # whether `read` may be answered by a replica, so that what was read may be older than what is known to be there

    async def read(self, key: str) -> bytes | None: ...

    async def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The first key is read before or together with the others: an entry must not be older than the tags it is judged by."""
        ...

    async def swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        """Put ``new`` in place if what is there begins with ``expected`` (None: nothing there). ``new=None`` deletes."""
        ...

    async def relabel(self, key: str, expected: bytes, header: bytes, ttl_seconds: float) -> bool:
        """Exchange the header alone; value and expiry stay as they are."""
        ...

    async def swap_many(self, swaps: Sequence[tuple[str, bytes | None, bytes | None, float]]) -> list[bool]: ...

    async def clock(self) -> tuple[float, float] | None:
        """(seconds since 1970 by the server's clock, by how many that may be wrong); None if it cannot tell. Never raises."""
        ...

    async def drop(self, keys: Sequence[str]) -> None:
        """Delete each key, unless a barrier stands there: that is tainted and stays."""
        ...

    async def raise_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        """Put ``writer`` among the writers of each key's barrier, made where there is none. Done twice it is done once.
        ``now``: the server's time, as far as it is known here; for servers that cannot tell it themselves."""
        ...

    async def renew_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        """A later deadline for ``writer`` wherever it still has a part."""
        ...

    async def lower_barriers(
        self, keys: Sequence[str], writer: bytes, now: float, publish: Mapping[str, tuple[bytes, float]]
    ) -> None:
        """``writer`` is done; ``publish`` (entry, time to live) goes in where it was the only one."""
        ...
