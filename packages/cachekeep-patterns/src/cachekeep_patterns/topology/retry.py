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
        until, failures = 0.0, 0
        while True:
            try:
                return do()
            except self._supported_errors as error:
                failures += 1
                until = until or time.monotonic() + self.deadline_seconds
                fail(error)
                pause = pause_seconds(failures, self.base_seconds, self.cap_seconds)
                if time.monotonic() + pause >= until:
                    raise
                time.sleep(pause)


class AsyncDeadlineRetry(AsyncRetry):
    """The same for asyncio."""

    def __init__(self, deadline_seconds: float, base_seconds: float = 0.005, cap_seconds: float = 0.25) -> None:
        super().__init__(NoBackoff(), 0, cast(Any, (*RETRIED, OSError)))  # OSError: as connecting raises it
        self.deadline_seconds, self.base_seconds, self.cap_seconds = deadline_seconds, base_seconds, cap_seconds

    def __deepcopy__(self, _memo: Any) -> AsyncDeadlineRetry:
        return self

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], fail: Callable[[Any], Any]) -> T:
        until, failures = 0.0, 0
        while True:
            try:
                return await do()
            except self._supported_errors as error:
                failures += 1
                until = until or time.monotonic() + self.deadline_seconds
                await fail(error)
                pause = pause_seconds(failures, self.base_seconds, self.cap_seconds)
                if time.monotonic() + pause >= until:
                    raise
                await asyncio.sleep(pause)
