"""Retries with full jitter, bounded by time and not by number: during a failover nobody knows how many tries it takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from valkey.asyncio.retry import Retry as AsyncRetry
from valkey.backoff import NoBackoff
from valkey.exceptions import BusyLoadingError, ConnectionError, ReadOnlyError, TimeoutError
from valkey.retry import Retry

T = TypeVar("T")

# READONLY: the node we talk to was demoted; connecting again finds the new primary behind the same address.
RETRIED: list[type[Exception]] = [ConnectionError, TimeoutError, ReadOnlyError, BusyLoadingError]


def pause_seconds(failures: int, base_seconds: float, cap_seconds: float) -> float:
    """Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter")."""
    return random.uniform(0.0, min(cap_seconds, base_seconds * 2.0 ** min(failures, 20)))


class _Tries:
    """The tries of one call: until ``deadline_seconds`` have passed since the first failure."""

    def __init__(self, of: DeadlineRetry | AsyncDeadlineRetry) -> None:
        self._of, self._until, self._failures = of, 0.0, 0

    def pause_after(self, error: BaseException) -> float:
        """Seconds to wait before the next. Raises ``error`` when there is to be none."""
        self._failures += 1
        self._until = self._until or time.monotonic() + self._of.deadline_seconds
        pause = pause_seconds(self._failures, self._of.base_seconds, self._of.cap_seconds)
        if time.monotonic() + pause >= self._until:
            raise error
        return pause


class DeadlineRetry(Retry):
    """Try again until ``deadline_seconds`` have passed since the first failure. A try under way is not cut short: a call may last
    for the deadline and one socket timeout.

    A command whose reply was lost is sent again: INCR may count twice. ``deadline_seconds=0`` turns that off.
    """

    def __init__(self, deadline_seconds: float, base_seconds: float = 0.005, cap_seconds: float = 0.25) -> None:
        super().__init__(NoBackoff(), 0, (*RETRIED, OSError))
        self.deadline_seconds, self.base_seconds, self.cap_seconds = deadline_seconds, base_seconds, cap_seconds

    def __deepcopy__(self, _memo: Any) -> DeadlineRetry:
        return self  # no state between calls; valkey-py copies it for every connection

    def call_with_retry(self, do: Callable[[], T], fail: Callable[[Exception], Any]) -> T:
        tries = _Tries(self)
        while True:
            try:
                return do()
            except self._supported_errors as error:
                fail(error)
                time.sleep(tries.pause_after(error))


class AsyncDeadlineRetry(AsyncRetry):
    """The same for asyncio."""

    def __init__(self, deadline_seconds: float, base_seconds: float = 0.005, cap_seconds: float = 0.25) -> None:
        super().__init__(NoBackoff(), 0, cast(Any, (*RETRIED, OSError)))  # OSError: as connecting raises it
        self.deadline_seconds, self.base_seconds, self.cap_seconds = deadline_seconds, base_seconds, cap_seconds

    def __deepcopy__(self, _memo: Any) -> AsyncDeadlineRetry:
        return self

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], fail: Callable[[Any], Any]) -> T:
        tries = _Tries(self)
        while True:
            try:
                return await do()
            except self._supported_errors as error:
                await fail(error)
                await asyncio.sleep(tries.pause_after(error))
