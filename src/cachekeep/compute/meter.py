"""Asks nodes how they are: all that an engine counts. Over lines of its own, so that a node that is slow to tell holds up nobody
who keeps it alive."""

from __future__ import annotations

import asyncio

from cachekeep.clock import Clock
from cachekeep.compute.contract import Target
from cachekeep.compute.line import LineLost, Reply, ReplyError, good, resp, text
from cachekeep.compute.lines import Lines
from cachekeep.engines.replies import info
from cachekeep.model.sample import Sample
from cachekeep.model.traits import traits

_HISTOGRAMS_SINCE = 7
_INFO = ("INFO", "all")
_ASK_REDIS = resp(_INFO)
_ASK_REDIS_7 = resp(_INFO, ("LATENCY", "HISTOGRAM"))
_ASK_MEMCACHED = b"stats\r\n"


class Meter:
    """One line to each node that was asked, kept until ``keep_only`` says otherwise."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines = Lines(clock, lambda key: None, None)
        self._asked: dict[tuple[str, str], Target] = {}

    async def sample(self, target: Target, *, deadline_seconds: float) -> Sample | None:
        """What the node says; None: nothing in time."""
        self._asked[target.key] = target
        kept = self._lines.kept(target)
        try:
            async with asyncio.timeout(deadline_seconds):
                try:
                    return await self._sample(target)
                except LineLost:
                    if kept is None:
                        raise
                    return await self._sample(target)  # a line may be closed; is the engine there?
        except TimeoutError:
            self._lines.hang_up(target.key)
        except (LineLost, ReplyError):
            pass
        return None

    async def _sample(self, target: Target) -> Sample:
        """Raises LineLost, or ReplyError in the engine's words."""
        line = await self._lines.open(target)
        if traits(target.engine).speaks == "memcached":
            (reply,) = good(await line.ask(_ASK_MEMCACHED, 1))
            return Sample(at=self._clock.moment(), fields=_stats(reply))
        if int(target.version.partition(".")[0]) < _HISTOGRAMS_SINCE:
            (reply,) = good(await line.ask(_ASK_REDIS, 1))
            return Sample(at=self._clock.moment(), fields=_info(reply))
        reply, histograms = good(await line.ask(_ASK_REDIS_7, 2))
        return Sample(at=self._clock.moment(), fields=_info(reply), durations=_durations(histograms))

    def keep_only(self, targets: set[tuple[str, str]]) -> None:
        """Close the lines to all others."""
        for key in [key for key in self._asked if key not in targets]:
            del self._asked[key]
            self._lines.forget(key)

    async def aclose(self) -> None:
        await self._lines.aclose()


def _info(reply: Reply) -> dict[str, str]:
    return info(reply) if isinstance(reply, bytes) else {}


def _stats(reply: Reply) -> dict[str, str]:
    """Lines such as ``STAT curr_items 3``."""
    rows = reply.decode(errors="replace").splitlines() if isinstance(reply, bytes) else []
    words = (row.split(" ", 2) for row in rows)
    return {word[1]: word[2] for word in words if len(word) == 3 and word[0] == "STAT"}


def _durations(reply: Reply) -> dict[str, tuple[tuple[int, int], ...]]:
    """``LATENCY HISTOGRAM``: command, then ``calls``, how many, ``histogram_usec``, and bounds each with how many took no
    longer."""
    found = {}
    rows = reply if isinstance(reply, list) else []
    for command, told in zip(rows[::2], rows[1::2], strict=False):
        if isinstance(told, list) and len(told) == 4 and isinstance(told[3], list):
            numbers = [int(number) for number in told[3]]
            found[text(command)] = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return found
