"""Effects in flight: what has been begun on which node, until when, and what failed and rests before it is tried again.

Nothing that safety rests on: a keeper that starts anew knows of none, looks and goes on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cachekeep.clock import Clock
from cachekeep.model import Effect, Failure, Flight, Start, overtakes, subjects

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 0.05, 5.0
STEADY_SECONDS = 0.3
"""A process that has to be started again sooner has ended as soon as it was there: its start counts as failed, whatever it said."""
_ENDS_AT_ONCE = "its process ends as soon as it has started"


@dataclass
class _Record:
    """One effect on one cache. It is kept while it flies, and after a failure until it has worked or nobody asks for it any more;
    a start also for a while after it has worked."""

    because: str
    began_at: float
    deadline_at: float
    failing_since: float
    flies: bool = True
    overtaken: bool = False
    """What ends whatever its subject does has been begun since: how it comes out means nothing."""
    failures: int = 0
    problem: str = ""
    rests_until: float = 0.0
    worked_at: float | None = None
    """Of a start that said so."""

    def rest_from(self, now: float) -> None:
        """Longer with each failure in a row."""
        rest = min(FIRST_REST_SECONDS * 2 ** (self.failures - 1), LONGEST_REST_SECONDS) if self.failures else 0.0
        self.rests_until = now + rest

    @property
    def steady_at(self) -> float | None:
        """When a start that has worked will have lasted."""
        return None if self.worked_at is None else max(self.worked_at, self.rests_until) + STEADY_SECONDS

    def steady(self, now: float) -> bool:
        """It has worked, and that has lasted."""
        return self.steady_at is not None and now >= self.steady_at


class Flights:
    """Of all caches, by uid."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._caches: defaultdict[str, dict[Effect, _Record]] = defaultdict(dict)

    def begin(self, uid: str, effect: Effect, because: str, *, deadline_seconds: float) -> None:
        """It flies from now on, and has failed in ``deadline_seconds``."""
        now, records = self._clock.monotonic(), self._caches[uid]
        for other, record in records.items():
            record.overtaken = record.overtaken or overtakes(effect, other)
        before = records.get(effect)
        record = _Record(because, now, now + deadline_seconds, failing_since=now)
        if before is not None and not before.steady(now):
            record.failures, record.problem, record.failing_since = before.failures, before.problem, before.failing_since
            if before.worked_at is not None:
                record.failures, record.problem = record.failures + 1, _ENDS_AT_ONCE
        records[effect] = record

    def end(self, uid: str, effect: Effect, problem: str | None) -> None:
        """It has worked, or failed for this reason."""
        record = self._caches[uid].get(effect)
        if record is None:  # its cache has been forgotten meanwhile
            return
        now = self._clock.monotonic()
        if record.overtaken or (problem is None and not isinstance(effect, Start)):
            del self._caches[uid][effect]
            return
        record.flies = False
        if problem is None:
            record.worked_at = now
            if record.problem != _ENDS_AT_ONCE:  # what kept it from starting is over
                record.failures, record.problem = 0, ""
        else:
            record.problem, record.failures = problem, record.failures + 1
        record.rest_from(now)

    def seen(self, uid: str) -> tuple[tuple[Flight, ...], tuple[Failure, ...]]:
        """What flies, and what has failed, those among it that are being tried again."""
        now, records = self._clock.monotonic(), self._caches[uid]
        for effect, record in list(records.items()):
            if not record.flies and (record.steady(now) or now > record.rests_until + LONGEST_REST_SECONDS):
                del records[effect]  # it has worked, or nobody has asked for it any more
        flights = tuple(
            Flight(effect=e, because=r.because, since_seconds=now - r.began_at, left_seconds=r.deadline_at - now)
            for e, r in records.items()
            if r.flies
        )
        failures = tuple(
            Failure(
                effect=e,
                problem=r.problem,
                since_seconds=now - r.failing_since,
                again_seconds=0.0 if r.flies else max(0.0, r.rests_until - now),
            )
            for e, r in records.items()
            if r.failures and not r.overtaken
        )
        return flights, failures

    def problems(self, uid: str) -> dict[str, str]:
        """Subject → why the last effect on it failed. Of a process that ended the driver knows more."""
        failed = {e: r.problem for e, r in self._caches[uid].items() if r.failures and not r.overtaken}
        return {subjects(e)[0]: problem for e, problem in failed.items() if problem != _ENDS_AT_ONCE}

    def rest_seconds(self, uid: str) -> float | None:
        """Until something may be tried again, or has not failed any more; None when there is nothing of that kind."""
        now, failed = self._clock.monotonic(), [r for r in self._caches[uid].values() if not r.flies and r.failures]
        moments = [at for r in failed for at in (r.rests_until, r.steady_at) if at is not None and at > now]
        return min(moments) - now if moments else None

    def hasten(self) -> None:
        """Let nothing rest any longer: what kept it from working may be gone."""
        now = self._clock.monotonic()
        for record in (r for records in self._caches.values() for r in records.values()):
            record.rests_until = min(record.rests_until, now)

    def forget(self, uid: str) -> None:
        """Nobody asks for this cache any more."""
        self._caches.pop(uid, None)
