"""Loads under way in this process: what each loads, which of them runs inside which, and which waits for which."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cachekeep_patterns import forks
from cachekeep_patterns.errors import RecursiveLoad
from cachekeep_patterns.ports import Latch

UNENCODED: Any = object()


@dataclass(slots=True, eq=False)
class Flight:
    """One load in this process, and everybody who waits for it."""

    key: str
    owner: object  # the cache, for two may have the same key
    done: Latch
    began: int = -1  # tick at which the loader (or the look that found the value) was last started
    confirmed: bool = False  # the cache accepted the value after everybody who waits had arrived
    value: Any = None
    payload: Any = UNENCODED  # the value's bytes (None: no value), of which each who waits gets an object of his own
    error: BaseException | None = None
    orphaned: bool = False  # its caller was cancelled: what its loader then raises is about him
    waiters: int = 0
    stop: Callable[[], object] | None = None
    loading: bool = False
    waits_for: list[Flight] = field(default_factory=list)
    generation: int = field(default_factory=lambda: forks.generation)

    def leave(self, stop: Callable[[], object]) -> None:
        """Its caller was cancelled. ``stop`` ends the load, at once or when nobody waits any more."""
        self.orphaned, self.stop = True, stop
        self.nobody_waits()

    def nobody_waits(self) -> None:
        if not self.waiters and self.stop is not None:
            self.stop()

    def own_copy(self, decode: Callable[[bytes], Any]) -> Any:
        """The value, for one who waited: nobody else holds the same object, as far as it can be copied."""
        if self.payload is None:
            return None
        if self.payload is not UNENCODED:
            return decode(self.payload)
        with contextlib.suppress(Exception):
            return copy.deepcopy(self.value)
        return self.value


def twin(error: BaseException) -> BaseException:
    """The same error for another thread: raising adds to an exception's traceback and context."""
    with contextlib.suppress(Exception):
        other = type(error).__new__(type(error), *error.args)
        other.args = error.args
        other.__dict__.update(error.__dict__)
        other.__cause__ = error
        return other
    return error


# --------------------------------------------------------------------------- loads inside loads

_chain: ContextVar[tuple[Flight, ...]] = ContextVar("cachekeep_patterns_loads", default=())


def chain() -> list[Flight]:
    """The loads that this caller runs in, the outermost first."""
    return [one for one in _chain.get() if one.loading and one.generation == forks.generation]


@contextlib.contextmanager
def inside(flights: Iterable[Flight]) -> Iterator[None]:
    """The block loads these."""
    flights = tuple(flights)
    for flight in flights:
        flight.loading = True
    token = _chain.set((*chain(), *flights))
    try:
        yield
    finally:
        for flight in flights:
            flight.loading = False
        _chain.reset(token)


def outside() -> None:
    """The rest of this context (a thread's or a task's) is nobody's load."""
    _chain.set(())


class _Waits:
    """Which waits for which, over all caches of this process."""

    def __init__(self) -> None:
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self.changing = threading.Lock()
        self.claims: dict[bytes, Flight] = {}


_waits = _Waits()


def hold_claim(mark: bytes, flight: Flight) -> Callable[[], object]:
    """``flight`` loads under this claim, until the returned function is called."""
    _waits.claims[mark] = flight
    return lambda: _waits.claims.pop(mark, None)


def claimant(mark: bytes) -> Flight | None:
    """Who in this process loads under a claim."""
    return _waits.claims.get(mark)


def check_not_within(owner: object, key: str) -> None:
    """Raises RecursiveLoad if the caller is inside a load of just that."""
    for one in _chain.get():
        if one.key == key and one.owner is owner and one.loading and one.generation == forks.generation:
            raise RecursiveLoad(f"{key}: its loader asks for it, directly or through others: {_path(chain(), key)}")


@contextlib.contextmanager
def waiting_for(flight: Flight | None) -> Iterator[None]:
    """The block waits for ``flight``. Raises RecursiveLoad if that waits, also through others, for a load we are in."""
    mine = chain() if flight is not None else []
    if flight is None or not mine:
        yield
        return
    with _waits.changing:
        seen: set[Flight] = set()
        todo = [flight]
        while todo:
            one = todo.pop()
            if one in mine:
                raise RecursiveLoad(f"{flight.key}: who loads it waits for a load that asks for it: {_path(mine, flight.key)}")
            if one not in seen:
                seen.add(one)
                todo += one.waits_for
        for one in mine:
            one.waits_for.append(flight)
    try:
        yield
    finally:
        with _waits.changing:
            for one in mine:
                one.waits_for.remove(flight)


def _path(flights: Iterable[Flight], key: str) -> str:
    return " -> ".join([*(one.key for one in flights), key])
