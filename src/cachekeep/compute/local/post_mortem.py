"""How a process ended, and what it said last."""

from __future__ import annotations

import asyncio
import signal

from cachekeep.clock import Clock
from cachekeep.compute.local import proc
from cachekeep.compute.local.alive import Alive
from cachekeep.compute.local.ledger import Ledger, Record
from cachekeep.compute.local.limits import Limiter
from cachekeep.compute.local.output import Outputs

LATER_SECONDS = 0.05
"""By then a failover that begins with the end of a process is through with what its clients wait for."""


class PostMortems:
    """Of the processes of one driver."""

    def __init__(self, ledger: Ledger, outputs: Outputs, limiter: Limiter, clock: Clock) -> None:
        self._ledger, self._outputs, self._limiter, self._clock = ledger, outputs, limiter, clock

    def of(self, held: Alive, how: proc.Ending) -> str:
        """Why it ended, and its last words. Reads a few files."""
        record = self._ledger.get(held.key) or Record()
        killed = how.status in (None, -signal.SIGKILL)  # one of its children may have been killed before, and not it
        starved = killed and self._limiter.memory_kills(record.cgroups) > record.memory_kills
        cause = "was killed for want of memory" if starved else str(how)
        said = self._ledger.last_words(held.key, self._outputs.said(held.key), lines=1 if held.expected else 3)
        return f"{cause}: {said}" if said else cause

    async def later(self, held: Alive, how: proc.Ending) -> None:
        """Note them in its record, in a moment, unless another process has been started in its place."""
        await self._clock.sleep(LATER_SECONDS)
        problem = await asyncio.to_thread(self.of, held, how)
        record = self._ledger.get(held.key)
        if record is not None and not record.pid and record.started_ticks == held.started_ticks:
            self._ledger.note(held.key, problem=problem)
