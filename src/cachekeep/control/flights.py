"""Effects in flight: what has been begun on which node, until when, and what failed and rests before it is tried again.

Nothing that safety rests on: a keeper that starts anew knows of none, looks and goes on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cachekeep.clock import Clock
from cachekeep.model import Effect, Failure, Flight, overtakes, subjects

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 0.05, 5.0


@dataclass
class _Record:
    """One effect on one cache. It is kept while it flies, and after a failure until it has worked
    or nobody asks for it any more."""

    because: str
    began_at: float
    deadline_at: float
    flies: bool = True
    overtaken: bool = False
    """What ends whatever its subject does has been begun since: how it comes out means nothing."""
    failures: int = 0
    failing_since: float = 0.0
    problem: str = ""
    rests_until: float = 0.0


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
        record = records.setdefault(effect, _Record(because, now, now + deadline_seconds, failing_since=now))
        record.because, record.began_at, record.deadline_at, record.flies, record.overtaken = (
            because,
            now,
            now + deadline_seconds,
            True,
            False,
        )

    def end(self, uid: str, effect: Effect, problem: str | None) -> None:
        """It has worked, or failed for this reason."""
        record = self._caches[uid].get(effect)
        if record is None:  # its cache has been forgotten meanwhile
            return
        if problem is None or record.overtaken:
            del self._caches[uid][effect]
            return
        record.flies, record.problem = False, problem
        record.rests_until = self._clock.monotonic() + min(FIRST_REST_SECONDS * 2**record.failures, LONGEST_REST_SECONDS)
        record.failures += 1

    def seen(self, uid: str) -> tuple[tuple[Flight, ...], tuple[Failure, ...]]:
        """What flies, and what has failed, those among it that are being tried again."""
        now, records = self._clock.monotonic(), self._caches[uid]
        for effect in [e for e, r in records.items() if not r.flies and now > r.rests_until + LONGEST_REST_SECONDS]:
            del records[effect]  # nobody has asked for it any more
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
        """Subject → why the last effect on it failed."""
        return {subjects(e)[0]: r.problem for e, r in self._caches[uid].items() if r.failures}

    def rest_seconds(self, uid: str) -> float | None:
        """Until the next of those that rest may be tried; None when none does."""
        now = self._clock.monotonic()
        resting = [r.rests_until - now for r in self._caches[uid].values() if not r.flies and r.rests_until > now]
        return min(resting, default=None)

    def hasten(self) -> None:
        """Let nothing rest any longer: what kept it from working may be gone."""
        for records in self._caches.values():
            for record in records.values():
                record.rests_until = 0.0

    def forget(self, uid: str) -> None:
        """Nobody asks for this cache any more."""
        self._caches.pop(uid, None)
