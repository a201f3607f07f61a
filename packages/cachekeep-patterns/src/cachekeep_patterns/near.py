"""A near cache: values in this process's memory, kept right by the server (client-side caching, RESP3 `CLIENT TRACKING`).

A hit is a dict lookup and one comparison of the clock. It is right within ``max_stale_seconds``, whatever happens:

* One tracking connection per primary hears of every change under our prefix (`BCAST`). Broadcasting never forgets a key, so there
  is no "my own write used up the notice of your write" (the trap of the default mode with NOLOOP).
* The connection asks PING over and over. Replies and notices share one ordered stream, so a PONG proves that every notice sent
  before it has arrived: memory is trusted until *the moment that PING was sent* plus ``max_stale_seconds``. A hung server, a cut
  cable, a paused process: trust runs out by itself.
* When the connection is lost, everything is dropped at once.
* A value read while a notice for its key came in is not kept (`ticket`, `keep`).
* Within one process nobody goes back: of two answers that overlapped nobody can tell which is newer, so unless they are the same
  entry neither stays (`keep`, `answered`).
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cachekeep_patterns import forks
from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.tinylfu import TinyLfu


class _Miss:
    def __repr__(self) -> str:
        return "MISS"

    def __bool__(self) -> bool:
        return False


MISS: Final[Any] = _Miss()
_BUCKETS = 4096
_MOST_ASKED = 1024
_SLOT_BYTES = 300  # dict entry, tuple, key object: what one kept value costs beside its own bytes, measured on CPython 3.11


class NearCache:
    """Bounded memory in front of a `Cache`. Values are shared, not copied: treat what you get as read-only.

    ``client``             a valkey-py or redis-py client, single or cluster, blocking or async: its address and credentials
                           are used, on connections of our own (a daemon thread reads them)
    ``prefix``             only keys that begin so are tracked; None: those of the namespace of the `Cache` it is given to
    ``max_entries``        and ``max_bytes`` (of stored size, an estimate): what is seldom asked for goes first (tinylfu.py)
    ``max_age_seconds``    however fresh, ask the server again after this; bounds what even a fenced-off primary could hide
    ``max_stale_seconds``  the bound on staleness described above; the heartbeat runs three times as often
    """

    def __init__(
        self,
        client: Any,
        *,
        prefix: str | None = None,
        max_entries: int = 10_000,
        max_bytes: int = 64_000_000,
        max_age_seconds: float = 60.0,
        max_stale_seconds: float = 1.0,
    ) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.max_age_seconds, self.max_stale_seconds = max_age_seconds, max_stale_seconds
        self.trusted_until = 0.0
        self._slots: dict[str, tuple[Any, float, int, tuple[str, ...], bytes]] = {}
        self._by_tag: dict[str, set[str]] = {}
        self._worth = TinyLfu(max_entries)
        self._asked: collections.deque[str] = collections.deque(maxlen=_MOST_ASKED)
        self._bytes = 0
        self._generation = 0
        self._changes = [0] * _BUCKETS
        self._answers = [0] * _BUCKETS
        self._keeping = threading.Lock()
        self.flushes = 0
        self._client = client
        self._tracker: Any = None
        self.prefix = prefix
        forks.renew_in_children(self)

    def forked(self) -> None:
        """The thread that heard of changes stayed with the parent."""
        self._keeping = threading.Lock()
        self._tracker, self.trusted_until = None, 0.0
        self.flush()

    # ------------------------------------------------------------------ the hot path

    def peek(self, key: str, monotonic: Callable[[], float] = time.monotonic) -> Any:
        """The value, or MISS."""
        slot = self._slots.get(key)
        if slot is not None:
            now = monotonic()
            if now < slot[1] and now < self.trusted_until:
                self._asked.append(key)  # counted by the next `keep`, under its lock
                return slot[0]
        return MISS

    # ------------------------------------------------------------------ filling

    def track(self, prefix: str) -> None:
        """What begins with ``prefix`` is going to be kept here. Raises ValueError if that would not be heard of."""
        if self.prefix is None:
            self.prefix = prefix
        if not prefix.startswith(self.prefix):
            raise ValueError(
                f"this NearCache hears of changes below {self.prefix!r}, not below {prefix!r}: give each namespace one of its own"
            )

    def ticket(self, key: str, tags: Sequence[str] = ()) -> tuple[int, ...]:
        """Take one before asking the server; `keep` refuses the answer if the key or one of its tags changed, or others were
        answered, in between.
        """
        if self._tracker is None:
            self.start()
        return self._state(key, tags)

    def _state(self, key: str, tags: Sequence[str]) -> tuple[int, ...]:
        bucket = hash(key) % _BUCKETS
        of_tags = [self._changes[hash(tag) % _BUCKETS] for tag in tags]
        return (self._generation, self._changes[bucket], self._answers[bucket], *of_tags)

    def keep(
        self,
        key: str,
        ticket: object,
        value: Any,
        mark: bytes,
        size_bytes: int,
        fresh_seconds: float,
        tags: tuple[str, ...] = (),
    ) -> None:
        """The server answered ``value``, an entry known by its ``mark``; keep it if that is right."""
        now = time.monotonic()
        cost = size_bytes + len(key) + _SLOT_BYTES
        bucket = hash(key) % _BUCKETS
        with self._keeping:
            undisturbed = ticket == self._state(key, tags)
            self._answers[bucket] += 1
            while self._asked:
                self._worth.touch(self._asked.popleft())
            slot = self._slots.get(key)
            if slot is not None and slot[4] == mark and now < slot[1]:
                return
            self._remove(key)
            if not undisturbed or fresh_seconds <= 0 or now >= self.trusted_until or cost > self.max_bytes:
                return
            self._slots[key] = (value, now + min(fresh_seconds, self.max_age_seconds), cost, tags, mark)
            self._bytes += cost
            self._worth.add(key)
            for tag in tags:
                self._by_tag.setdefault(tag, set()).add(key)
            while len(self._slots) > self.max_entries or self._bytes > self.max_bytes:
                self._remove(self._worth.victim())

    def _remove(self, key: str) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._bytes -= slot[2]
            self._worth.remove(key)
            for tag in slot[3]:
                dependents = self._by_tag.get(tag)
                if dependents is not None:
                    dependents.discard(key)
                    if not dependents:
                        del self._by_tag[tag]

    def answered(self, key: str) -> None:
        """Somebody was given a value that is not kept here: from a load."""
        with self._keeping:
            self._answers[hash(key) % _BUCKETS] += 1
            self._remove(key)

    # ------------------------------------------------------------------ dropping

    def drop(self, key: str) -> None:
        """The key changed, or is about to."""
        with self._keeping:
            self._changes[hash(key) % _BUCKETS] += 1
            self._remove(key)
            for dependent in self._by_tag.pop(key, ()):
                self._changes[hash(dependent) % _BUCKETS] += 1
                self._remove(dependent)

    def flush(self) -> None:
        with self._keeping:
            self._generation += 1
            self.flushes += 1
            self._slots = {}
            self._by_tag = {}
            self._worth.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    # ------------------------------------------------------------------ the tracker's life

    def start(self) -> None:
        """Begin tracking (done by the first use). Needs Valkey, or Redis 6 or later."""
        from cachekeep_patterns.tracking import Tracker

        with self._keeping:
            self.prefix = self.prefix or ""
            if self._tracker is None:
                self._tracker = Tracker(self, self._client)
        self._tracker.start()

    def wait_trusted(self, timeout_seconds: float = 5.0) -> None:
        """Until tracking stands. Raises CacheDown after ``timeout_seconds``."""
        self.start()
        until = time.monotonic() + timeout_seconds
        while time.monotonic() >= self.trusted_until:
            if time.monotonic() > until:
                raise CacheDown(f"no tracking connection within {timeout_seconds} s: {self._tracker.trouble}")
            time.sleep(0.002)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None
        self.trusted_until = 0.0
        self.flush()

    def __enter__(self) -> NearCache:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.close()
