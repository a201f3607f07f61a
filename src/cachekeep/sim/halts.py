"""Control planes that are halted (SIGSTOP) and go on later (SIGCONT) with whatever they knew, or are killed meanwhile.

A coroutine is stepped by its task, and a step of a halted process does not come: it is held back until the process goes on.
Deadlines pass all the while, so what has timed out is cancelled first thing, as in a real event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
import weakref
from collections.abc import Coroutine, Generator
from typing import Any


class Process:
    """The tasks of one control plane: those begun by ``run``, and those that they begin."""

    def __init__(self) -> None:
        self._runs = asyncio.Event()
        self._runs.set()
        self.killed = False
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def run(self, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin its main task."""
        context = contextvars.copy_context()
        context.run(_OF.set, self)
        return asyncio.get_running_loop().create_task(main, context=context)

    @property
    def halted(self) -> bool:
        return not self._runs.is_set()

    def halt(self) -> None:
        """SIGSTOP."""
        self._runs.clear()

    def go_on(self) -> None:
        """SIGCONT."""
        self._runs.set()

    async def kill(self) -> None:
        """SIGKILL: none of its tasks takes another step but to end."""
        self.killed = True
        for task in list(self._tasks):
            task.cancel()
        self.go_on()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def adopt(self, task: asyncio.Task[Any], main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Count a task among its own."""
        self._tasks.add(task)
        task.add_done_callback(lambda _: main.close())  # it may have been cancelled before its first step
        return task

    async def steps(self, main: Coroutine[Any, Any, Any]) -> Any:
        """What ``main`` does, while the process runs."""
        return await self._steps(main)

    @types.coroutine
    def _steps(self, inner: Coroutine[Any, Any, Any]) -> Generator[Any, None, Any]:
        thrown: BaseException | None = None
        while True:
            try:
                awaited = inner.send(None) if thrown is None else inner.throw(thrown)
            except StopIteration as end:
                return end.value
            thrown = None
            try:
                yield awaited
            except BaseException as error:
                thrown = error
            while self.halted:
                try:
                    yield from self._runs.wait()
                except asyncio.CancelledError as error:
                    thrown = error


_OF: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def factory(loop: asyncio.AbstractEventLoop, main: Any, **options: Any) -> asyncio.Task[Any]:
    """Of tasks: one that is begun by a process's is that process's."""
    context: contextvars.Context | None = options.get("context")
    process = context.get(_OF) if context is not None else _OF.get()
    if process is None:
        return asyncio.Task(main, loop=loop, **options)
    return process.adopt(asyncio.Task(process.steps(main), loop=loop, **options), main)


def outside() -> contextvars.Context:
    """For tasks of the world, whoever begins them."""
    context = contextvars.copy_context()
    context.run(_OF.set, None)
    return context
