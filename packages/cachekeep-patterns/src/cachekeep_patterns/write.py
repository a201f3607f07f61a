"""Writing to a database and its cache so that a failure between the two never leaves an old value in the cache for good.

Before the database is touched, a *barrier* takes the place of each key: readers go to the database and nothing is filled in. After
the commit the barrier is lowered, with the new value if we were the only writer, with nothing if we were not (two commits may have
happened in either order). A writer that dies leaves barriers that lapse by themselves. So (decision 0012):

=====================================  ==================================================================================
what fails                             what is in the cache, and what readers get
=====================================  ==================================================================================
cache, before the commit               ``strict``: CacheDown, the database is not touched. Otherwise the write goes on, and if the
                                       cache cannot be reached afterwards either: `Outcome.UNREACHED`
database refuses                       nothing; the next reader loads. The error is yours
connection lost while committing       the barrier stays and lapses: readers get the database's truth, whichever it is
process dies anywhere in between       the same
cache, after the commit                the same; `Outcome.LAPSING`
=====================================  ==================================================================================

`UNREACHED` is the only outcome in which an old value can be served, until its lifetime ends. The outbox (outbox.py) closes it:
there the need to invalidate is committed with the data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cachekeep_patterns import barriers
from cachekeep_patterns.aside import Aside, Request
from cachekeep_patterns.entry import new_mark
from cachekeep_patterns.errors import CacheDown


class Outcome(Enum):
    PENDING = "the write has not ended"
    PUBLISHED = "the new value is in the cache (or another writer came in between and the key is empty)"
    INVALIDATED = "the keys are empty; the next reader loads"
    LAPSING = "the cache could not be asked after the write; the keys stay empty until the barrier lapses"
    UNREACHED = "the cache could not be asked at all; it may serve the old value until its lifetime ends"


# In the names of exceptions, of drivers, clients and the standard library alike: it may have been done and not been told.
_UNTOLD = re.compile("Operational|Interface|Internal|Connect|Timeout|TimedOut|Network|Disconnect|Unavailable|Closed|Broken")


def certainly_undone(error: BaseException) -> bool:
    """Whether ``error`` tells that the database did not commit. Lost connections, timeouts and being killed do not tell, neither by
    themselves nor as the cause of another error."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if getattr(one, "connection_invalidated", False) or not isinstance(one, Exception) or isinstance(one, OSError):
            return False
        if any(_UNTOLD.search(kind.__name__) for kind in type(one).__mro__):
            return False
        todo += [one.__cause__, one.__context__, getattr(one, "orig", None), *getattr(one, "exceptions", ())]
    return True


@dataclass
class Write:
    """A write under way. ``publish`` what readers should get; without it the keys are left empty (write-around)."""

    aside: Aside
    request: Callable[[str], Request]
    keys: Sequence[str]
    lease_seconds: float
    strict: bool
    outcome: Outcome = Outcome.PENDING
    _values: dict[str, Any] = field(default_factory=dict)
    _writer: bytes = field(default_factory=new_mark)
    _raised: bool = False
    _release: Callable[[], None] | None = None

    def publish(self, key: str, value: Any) -> None:
        """The value of ``key`` (one that this write was opened for) once the write succeeds."""
        full = self.request(key)
        if full.key not in self.keys:
            raise ValueError(f"this write was not opened for {key!r}")
        self._values[full.key] = (full, value)

    async def begin(self) -> Write:
        try:
            await barriers.raise_barriers(self.aside, self.keys, self._writer, self.lease_seconds)
        except CacheDown:
            if self.strict:
                raise
        else:
            self._raised = True
            self._release = barriers.hold_barriers(self.aside, self.keys, self._writer, self.lease_seconds)
        return self

    async def end(self, error: BaseException | None) -> None:
        if self._release is not None:
            self._release()
        if error is not None and not certainly_undone(error):
            self.outcome = Outcome.LAPSING if self._raised else Outcome.UNREACHED
            return
        try:
            if self._raised:
                publish = {} if error is not None else await self._encoded()
                await barriers.lower_barriers(self.aside, self.keys, self._writer, publish)
                self.outcome = Outcome.PUBLISHED if publish else Outcome.INVALIDATED
            else:
                await self.aside.invalidate(self.keys)
                self.outcome = Outcome.INVALIDATED
        except CacheDown:
            self.outcome = Outcome.LAPSING if self._raised else Outcome.UNREACHED

    async def _encoded(self) -> dict[str, tuple[bytes, float]]:
        entries = {}
        for key, (request, value) in self._values.items():
            tags = await self.aside.tag_versions(request.tags) if request.tags else []
            fill = self.aside.fill(request, value, 0.0, tags)
            if fill.raw is not None:
                entries[key] = fill.raw, fill.seconds
        return entries
