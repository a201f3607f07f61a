"""What works beside the API for as long as a control plane serves: the keeper, and whoever is put beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Protocol


class Worker(Protocol):
    """One of the control plane's own tasks. What only one control plane at a time may do is done under a lease of the store."""

    async def run(self) -> None:
        """Work until cancelled. What passes by itself is the worker's own affair: whatever ends it ends the control plane."""

    def hasten(self) -> None:
        """Try again at once whatever failed: what it lacked (an engine that is not installed) may be there now."""


@contextlib.asynccontextmanager
async def at_work(workers: Iterable[Worker]) -> AsyncIterator[set[asyncio.Task[None]]]:
    """All of them run, each as a task, until the end of the block; then they are cancelled. Raises what ended one before that."""
    tasks = {asyncio.create_task(worker.run(), name=type(worker).__name__.lower()) for worker in workers}
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
