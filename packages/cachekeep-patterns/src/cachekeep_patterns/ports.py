"""The two ways to wait: blocking threads, or an event loop.

Everything in this library that talks to a server is written once, as `async def`. A `Port` supplies the few verbs that wait. Under
`Threads` every verb blocks and returns, so a coroutine never suspends and `run` drives it to its end in one step; under `Loop` the
same coroutine is awaited in the ordinary way. (The same trick as in edgedb-python; decision 0010.)
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cachekeep_patterns import forks

T = TypeVar("T")
AT_ONCE, WAITING = 16, 1024
"""How much runs in the background, and how much may wait to."""
Beat = Callable[[], Coroutine[Any, Any, bool]]
"""Renews a lease; False if that is lost."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose waits all block (`Threads`), without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        value: T = finished.value
        return value
    coroutine.close()
    raise RuntimeError("a loader or client given to the blocking API wants an event loop; use the Async class")


class Latch(Protocol):
    """Opens once; whoever waits goes on."""

    def open(self) -> None: ...
    async def passed(self, timeout_seconds: float | None = None) -> bool: ...


class Turnstile(Protocol):
    """At most so many inside at once."""

    async def enter(self, timeout_seconds: float) -> bool: ...
    def leave(self) -> None: ...


class Port(Protocol):
    blocking: bool

    async def sleep(self, seconds: float) -> None: ...
    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The user's own function, plain or (under `Loop`) async."""

    def latch(self) -> Latch: ...
    def turnstile(self, places: int) -> Turnstile: ...
    def spawn(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        """In the background, with the caller's context variables; False if too much is waiting there already."""
        ...

    async def see_through(self, work: Coroutine[Any, Any, T], leave: Callable[[Callable[[], object]], None]) -> T:
        """To the end, even if the caller is cancelled meanwhile. Then ``leave`` is told, and given what would stop the work."""
        ...

    def every(self, seconds: float, beat: Beat) -> Callable[[], None]:
        """Call `beat` again and again until it answers False or the returned function is called."""


# --------------------------------------------------------------------------- threads


class _ThreadLatch:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    async def passed(self, timeout_seconds: float | None = None) -> bool:
        return self._event.wait(timeout_seconds)


class _ThreadTurnstile:
    def __init__(self, places: int) -> None:
        self._places = threading.Semaphore(places)

    async def enter(self, timeout_seconds: float) -> bool:
        return self._places.acquire(timeout=timeout_seconds)

    def leave(self) -> None:
        self._places.release()


@dataclass(slots=True, eq=False)
class _Lease:
    """One that is held in this process, to be renewed by ``beat`` every so many ``seconds``; next when it is ``due``."""

    seconds: float
    beat: Beat
    due: float
    stopped: bool = False


class _Pulse:
    """Beats for every lease held in this process, each when it is due. A forked child holds none.

    A beat that hangs, because its server does, holds up no other: whoever takes one leaves another thread waiting for the next.
    """

    LINGER_SECONDS = 1.0

    def __init__(self) -> None:
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self._waiting: set[_Lease] = set()  # all that are not being renewed at this moment
        self._changed = threading.Condition()
        self._watched = False  # whether a thread waits for the next that is due,
        self._wakes = 0.0  # and when it looks by itself

    def add(self, seconds: float, beat: Beat) -> Callable[[], None]:
        lease = _Lease(seconds, beat, time.monotonic() + seconds)
        with self._changed:
            self._wait_for(lease)
            if not self._watched:
                self._watch()

        def stop() -> None:
            with self._changed:
                lease.stopped = True
                self._waiting.discard(lease)

        return stop

    def _wait_for(self, lease: _Lease) -> None:
        self._waiting.add(lease)
        if lease.due < self._wakes:
            self._changed.notify()

    def _watch(self) -> None:
        threading.Thread(target=self._run, name="cachekeep-pulse", daemon=True).start()
        self._watched = True

    def _run(self) -> None:
        while lease := self._next():
            lease.due = time.monotonic() + lease.seconds
            goes_on = True  # an error is no answer: the next beat may get through
            with contextlib.suppress(Exception):
                goes_on = run(lease.beat())
            with self._changed:
                if goes_on and not lease.stopped:
                    self._wait_for(lease)
                if self._watched:
                    return
                self._watched = True

    def _next(self) -> _Lease | None:
        """The next that is due, once it is; None if nothing is held any more."""
        with self._changed:
            while True:
                now = time.monotonic()
                first = min(self._waiting, key=lambda lease: lease.due, default=None)
                if first is not None and first.due <= now:
                    self._waiting.remove(first)
                    self._watched = False
                    if self._waiting:
                        with contextlib.suppress(RuntimeError):  # no thread to be had: the others wait for this beat
                            self._watch()
                    return first
                self._wakes = now + self.LINGER_SECONDS if first is None else first.due
                if not self._changed.wait(self._wakes - now) and not self._waiting:
                    self._watched = False
                    return None


class Threads:
    """Blocking: every verb returns only when it is done."""

    blocking = True
    _pulse = _Pulse()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - never runs on an event loop

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"{function!r} is async; use AsyncCache for async loaders")
        return result

    def latch(self) -> Latch:
        return _ThreadLatch()

    def turnstile(self, places: int) -> Turnstile:
        return _ThreadTurnstile(places)

    def __init__(self) -> None:
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self._waiting: collections.deque[Callable[[], object]] = collections.deque()
        self._workers = threading.Semaphore(AT_ONCE)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        if len(self._waiting) >= WAITING:
            return False
        context = contextvars.copy_context()
        self._waiting.append(lambda: context.run(run, work()))
        if self._workers.acquire(blocking=False):
            try:
                threading.Thread(
                    target=self._work, args=(self._waiting, self._workers), name="cachekeep-refresh", daemon=True
                ).start()
            except RuntimeError:  # no thread to be had: a worker that is there takes it, or the next that comes
                self._workers.release()
        return True

    @staticmethod
    def _work(waiting: collections.deque[Callable[[], object]], workers: threading.Semaphore) -> None:
        while True:
            while waiting:
                with contextlib.suppress(Exception):
                    waiting.popleft()()
            workers.release()
            if not waiting or not workers.acquire(blocking=False):  # what came in between must not be left lying
                return

    async def see_through(self, work: Coroutine[Any, Any, T], leave: Callable[[Callable[[], object]], None]) -> T:
        return await work

    def every(self, seconds: float, beat: Beat) -> Callable[[], None]:
        return self._pulse.add(seconds, beat)


# --------------------------------------------------------------------------- event loop


class _LoopLatch:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def open(self) -> None:
        self._event.set()

    async def passed(self, timeout_seconds: float | None = None) -> bool:
        if timeout_seconds is None:
            return await self._event.wait()
        try:
            return await asyncio.wait_for(self._event.wait(), timeout_seconds)
        except asyncio.TimeoutError:  # another class before Python 3.11
            return False


class _LoopTurnstile:
    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)

    async def enter(self, timeout_seconds: float) -> bool:
        if not self._places.locked():
            return await self._places.acquire()
        try:
            return await asyncio.wait_for(self._places.acquire(), timeout_seconds)
        except asyncio.TimeoutError:
            return False

    def leave(self) -> None:
        self._places.release()


class Loop:
    """One event loop. Background work is held here, so that it is not collected half done."""

    blocking = False

    def __init__(self) -> None:
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spawned = 0
        self._workers = asyncio.Semaphore(AT_ONCE)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    def latch(self) -> Latch:
        return _LoopLatch()

    def turnstile(self, places: int) -> Turnstile:
        return _LoopTurnstile(places)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody may be left to await it

    def spawn(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        if self._spawned >= WAITING:
            return False
        self._spawned += 1
        self._keep(self._work(work))
        return True

    async def _work(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            async with self._workers:
                await work()
        finally:
            self._spawned -= 1

    async def see_through(self, work: Coroutine[Any, Any, T], leave: Callable[[Callable[[], object]], None]) -> T:
        task = self._keep(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                leave(task.cancel)
            raise

    def every(self, seconds: float, beat: Beat) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        stopped = False
        handle: asyncio.TimerHandle

        async def turn() -> None:
            nonlocal handle
            due = loop.time() + seconds
            goes_on = True  # an error is no answer: the next beat may get through
            with contextlib.suppress(Exception):
                goes_on = await beat()
            if goes_on and not stopped:
                handle = loop.call_at(due, fire)

        def fire() -> None:
            self._keep(turn())

        def stop() -> None:
            nonlocal stopped
            stopped = True
            handle.cancel()

        handle = loop.call_later(seconds, fire)
        return stop


@contextmanager
def blocking_context(enter: Coroutine[Any, Any, T], leave: Callable[[T, bool], Awaitable[Any]]) -> Iterator[T]:
    """A `with` block out of two coroutines; `leave` learns whether the block succeeded."""
    value = run(enter)
    try:
        yield value
    except BaseException:
        run(_as_coroutine(leave(value, False)))
        raise
    run(_as_coroutine(leave(value, True)))


@asynccontextmanager
async def loop_context(enter: Coroutine[Any, Any, T], leave: Callable[[T, bool], Awaitable[Any]]) -> AsyncIterator[T]:
    """An `async with` block out of two coroutines."""
    value = await enter
    try:
        yield value
    except BaseException:
        await leave(value, False)
        raise
    await leave(value, True)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
