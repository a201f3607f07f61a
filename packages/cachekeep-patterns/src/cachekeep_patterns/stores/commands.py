"""A Valkey or Redis client reduced to what we need of it, and scripts over it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

Command = tuple[Any, ...]


class Asks(Protocol):
    """Raw commands in, raw replies out."""

    refused: tuple[type[BaseException], ...]

    async def __call__(self, *command: Any) -> Any: ...


class Commands(Asks, Protocol):
    """A client reduced to what we need of it."""

    down: tuple[type[BaseException], ...]
    cluster: bool
    lags: bool

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        """Pipelined, each on its own (not a transaction). The first error is raised after all were sent."""
        ...


class Script:
    """A server-side script, sent by digest. Only the keys it names are touched (cluster)."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, commands: Asks, keys: Sequence[str], *args: Any) -> Any:
        try:
            return await commands("EVALSHA", self.digest, len(keys), *keys, *args)
        except commands.refused as error:
            if not _unknown_script(error):
                raise
        return await commands("EVAL", self.text, len(keys), *keys, *args)


def _unknown_script(error: BaseException) -> bool:
    return type(error).__name__ == "NoScriptError" or "NOSCRIPT" in str(error).upper().replace("NO SCRIPT", "NOSCRIPT")


def ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
