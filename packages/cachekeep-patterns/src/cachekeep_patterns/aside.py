"""Cache-aside, the whole of it. Written once; `Cache` and `AsyncCache` (cache.py) are its two faces.

A get: `get` (a hit ends here) → `_miss` (one flight per key in this process) → `_obtain` (one claim per key among all processes) →
`_load_and_fill`. Several keys at once: many.py.

What is promised, and why it holds (decision 0011):

* One load per expiry: only the holder of the claim loads; it renews the claim while it loads; its death lets the claim lapse.
* Nothing loaded before an invalidation is served to who comes after it, and, where every writer raises barriers (write.py), no
  caller gets a value older than one read before through the same key: a fill swaps the claim for the value, so it is refused if
  anything (an invalidation, a write's barrier) replaced the claim; and a load's result is given only to callers who arrived before
  the load began, unless its fill was accepted, which proves that nothing happened in between.
* The cache is never needed: if it cannot be asked, loads go on, still one per key and at most ``max_loads`` at once here.
* A miss answers what a hit would: a value that its bytes do not give back is not stored (``strict``), or is what they give back.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachekeep_patterns import entry as entries
from cachekeep_patterns import flights, forks
from cachekeep_patterns.clock import ServerClock
from cachekeep_patterns.codecs import Codec, difference
from cachekeep_patterns.entry import Entry, Verdict, judge, parse
from cachekeep_patterns.errors import CacheDown, LoadTimeout, Overloaded, Uncodable
from cachekeep_patterns.flights import UNENCODED, Flight
from cachekeep_patterns.near import MISS, NearCache
from cachekeep_patterns.observe import Counters, Reports, advice_for
from cachekeep_patterns.policy import Breaker, Policy
from cachekeep_patterns.ports import Port, Turnstile
from cachekeep_patterns.stores.protocol import Store

Loader = Callable[[], Any]

TAG_SECONDS = 30 * 86_400.0  # a tag that outlives its entries; if it goes early, they only count as old
POLL_SECONDS = (0.005, 0.05)
UNASKED: Any = object()


@dataclass(slots=True)
class Sight:
    """What was seen at a key, with the present versions of the tags it hangs on."""

    entry: Entry | None
    tags: list[bytes | None]


@dataclass(slots=True)
class Fill:
    """What a loaded value is to callers and to the cache."""

    value: Any  # as a hit would give it
    payload: bytes | None  # None: no value; UNENCODED: it has no bytes
    raw: bytes | None  # the entry to store, None: nothing
    seconds: float  # its time to live


@dataclass(slots=True)
class Request:
    """One key being asked for."""

    key: str
    load: Loader
    policy: Policy
    codec: Codec
    tags: tuple[str, ...] = ()
    arrived: int = 0

    def decode(self, payload: bytes) -> Any:
        return self.codec.decode(payload, self.key)


@dataclass(eq=False)
class Aside:
    store: Store
    port: Port
    near: NearCache | None
    breaker: Breaker
    counters: Counters
    reports: Reports
    max_loads: int
    load_wait_seconds: float
    strict: bool = True
    clock: ServerClock = field(default_factory=ServerClock)
    ticks: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._hit = self.counters.add["hits"]
        self.trouble = (*self.store.down, *self.store.refused)
        self.forked()
        forks.renew_in_children(self)

    def forked(self) -> None:
        self.flights: dict[str, Flight] = {}
        self._refreshing: set[str] = set()
        self.loads: Turnstile = self.port.turnstile(self.max_loads)

    def now(self) -> float:
        return self.clock.now()

    # ------------------------------------------------------------------ reading

    def fresh(self, found: Any, codec: Codec, key: str) -> Any:
        """The value in ``found`` (what is at the key, or a list of that and of what is at its tags) if it is plain and fresh, else
        MISS. The hot path: most gets end here.
        """
        now = time.monotonic()
        if now < self.clock.due:
            payload = None
            if type(found) is bytes:
                payload = entries.fresh_payload(found, now + self.clock.offset)
            elif type(found) is list:
                payload = entries.fresh_tagged_payload(found[0], found[1:], now + self.clock.offset)
            if payload is not None:
                try:
                    value = codec.decode(payload, key)
                except Uncodable:
                    return MISS  # counted and replaced in `get`
                self._hit()
                return value
        return MISS

    async def get(self, request: Request, known: Any = UNASKED) -> Any:
        """``known``: what the caller found at the key (bytes, None, a list of that and of what is at its tags, or the error of
        asking), ``request.arrived`` taken before.
        """
        ticket = self.near.ticket(request.key, request.tags) if self.near is not None and not self.store.lags else None
        sight: Sight | None
        try:
            if known is UNASKED:
                request.arrived = next(self.ticks)
                sight = await self.look(request)
            elif isinstance(known, BaseException):
                raise self._down(known, request.key)
            else:
                self.breaker.succeeded()
                await self.keep_time()
                raw, *tags = known if type(known) is list else [known]
                sight = Sight(parse(raw), tags)
        except CacheDown:
            sight = None
        if sight is not None:
            served = self.serve(request, sight)
            if served is not MISS:
                if ticket is not None:
                    self.keep_near(request, sight, ticket, served)
                return served
        self.counters.add["misses"]()
        value = await self.miss(request, sight)
        if self.near is not None:
            self.near.answered(request.key)
        return value

    async def keep_time(self) -> None:
        if time.monotonic() >= self.clock.due:
            await self.clock.keep(self.store.clock)

    async def look(self, request: Request) -> Sight:
        """Raises CacheDown."""
        if not request.tags:
            raw, *tags = [await self.guard(self.store.read(request.key))]
        else:
            raw, *tags = await self.guard(self.store.read_many([request.key, *request.tags]))
        await self.keep_time()
        return Sight(parse(raw), tags)

    def serve(self, request: Request, sight: Sight) -> Any:
        """The value to serve from ``sight``, or MISS. Starts a background reload where one is due and a place for it free."""
        now = self.now()
        verdict = judge(sight.entry, sight.tags, now, request.policy.early_beta)
        if verdict not in _SERVABLE:
            return MISS
        entry = sight.entry
        assert entry is not None
        if verdict is Verdict.STALE and not request.policy.stale_seconds:
            return MISS
        try:
            value = None if entry.negative else request.decode(entry.payload)
        except Uncodable as error:
            advice = "it is loaded anew; if this goes on, two programs write it with different codecs"
            self._tell("undecodable", request.key, error, advice)
            return MISS
        if verdict is Verdict.FRESH:
            self.counters.add["hits"]()
            return value
        self.counters.add["stale" if verdict is Verdict.STALE else "hits"]()
        if request.key not in self._refreshing and entry.claimed_until <= now:
            self._refreshing.add(request.key)
            if not self.port.spawn(lambda: self._refresh(request, entry)):
                self._refreshing.discard(request.key)
                self.counters.add["refreshes_put_off"]()
        return value

    def keep_near(self, request: Request, sight: Sight, ticket: object, value: Any) -> None:
        assert self.near is not None
        assert sight.entry is not None
        entry = sight.entry
        fresh_seconds = entry.fresh_until - self.now()
        self.near.keep(request.key, ticket, value, entry.mark, len(entry.raw), fresh_seconds, request.tags)

    # ------------------------------------------------------------------ loading

    async def miss(self, request: Request, sight: Sight | None) -> Any:
        deadline = None if request.policy.wait_seconds is None else time.monotonic() + request.policy.wait_seconds
        while True:
            flights.check_not_within(self, request.key)
            flight = self.flights.get(request.key)
            if flight is None:
                mine = Flight(request.key, self, self.port.latch())
                flight = self.flights.setdefault(request.key, mine)
                if flight is mine:
                    return await self.port.see_through(self._lead(request, flight, sight, deadline), flight.leave)
            self.counters.add["waits"]()
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            flight.waiters += 1
            try:
                with flights.waiting_for(flight):
                    if not await flight.done.passed(patience):
                        raise LoadTimeout(f"{request.key}: another caller was still loading after {request.policy.wait_seconds} s")
            finally:
                flight.waiters -= 1
                flight.nobody_waits()
            if flight.error is not None and flight.orphaned:
                pass  # what became of a caller who was cancelled is not about us
            elif flight.confirmed or flight.began > request.arrived or isinstance(flight.error, Overloaded):
                if flight.error is not None:
                    raise flights.twin(flight.error)
                try:
                    return flight.own_copy(request.decode)
                except Uncodable:
                    pass  # it was loaded for another type
            sight = None

    async def _lead(self, request: Request, flight: Flight, sight: Sight | None, deadline: float | None) -> Any:
        try:
            await self._obtain(request, flight, sight, deadline)
            return flight.value
        except BaseException as error:
            flight.error = error
            flight.orphaned |= not isinstance(error, Exception)
            raise
        finally:
            self.close(request.key, flight)
            flight.done.open()

    def close(self, key: str, flight: Flight) -> None:
        """Nobody joins from now on."""
        if self.flights.get(key) is flight:
            del self.flights[key]

    async def _obtain(self, request: Request, flight: Flight, sight: Sight | None, deadline: float | None) -> None:
        """Put the value into ``flight``, from whoever has it first: us by loading, or another process."""
        pause, waited = POLL_SECONDS[0], False
        while True:
            try:
                if sight is None:
                    flight.began = next(self.ticks)
                    sight = await self.look(request)
                    served = self.serve(request, sight)
                    if served is not MISS:
                        assert sight.entry is not None
                        flight.value, flight.payload = served, None if sight.entry.negative else sight.entry.payload
                        return None
                verdict = judge(sight.entry, sight.tags, self.now(), 0.0)
                if verdict is Verdict.WRITING:
                    return await self._load_only(request, flight)
                if verdict is not Verdict.CLAIMED:
                    claim = entries.claim(self.now() + request.policy.lease_seconds)
                    if await self.swap(request.key, identity(sight.entry), claim, request.policy.lease_seconds):
                        return await self._load_and_fill(request, flight, claim)
            except CacheDown:
                return await self._load_only(request, flight)
            if not waited:
                waited = True
                self.counters.add["waits"]()
            if deadline is not None and time.monotonic() >= deadline:
                raise LoadTimeout(f"{request.key}: another process was still loading after {request.policy.wait_seconds} s")
            with flights.waiting_for(flights.claimant(sight.entry.mark) if sight.entry is not None else None):
                await self.port.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, POLL_SECONDS[1])
            sight = None

    async def _load_only(self, request: Request, flight: Flight) -> None:
        self.counters.add["bypassed"]()
        value, _ = await self.load(request, [flight])
        fill = self.fill(request, value, 0.0, [])
        flight.value, flight.payload = fill.value, fill.payload

    async def load(self, request: Request, loading: Sequence[Flight]) -> tuple[Any, float]:
        """(value, seconds it took). Raises what the loader raises, and Overloaded. Only the outermost load takes a place: one that
        waits for a part of its own page would else keep that part from being loaded.
        """
        nested = bool(flights.chain())
        if not nested and not await self.loads.enter(self.load_wait_seconds):
            self.counters.add["overloaded"]()
            raise Overloaded(f"{request.key}: no place to load came free within {self.load_wait_seconds} s")
        loads = self.loads
        began = time.monotonic()
        try:
            for flight in loading:
                flight.began = next(self.ticks)
            self.counters.add["loads"]()
            with flights.inside(loading):
                value = await self.port.call(request.load)
        except BaseException:
            self.counters.add["load_errors"]()
            raise
        finally:
            if not nested:
                loads.leave()
            self.counters.load_seconds_total += time.monotonic() - began
        return value, time.monotonic() - began

    async def _load_and_fill(self, request: Request, flight: Flight, claim: bytes) -> None:
        """Load under ``claim``, renewing it, then swap it for the value."""
        lease = request.policy.lease_seconds
        tags: list[bytes] | None = []
        if request.tags:
            try:
                tags = await self.tag_versions(request.tags)
            except CacheDown:
                tags = None
        stop = self.port.every(lease / 3, lambda: self.swap(request.key, claim, claim, lease))
        let_go = flights.hold_claim(entries.mark_of(claim), flight)
        try:
            value, cost = await self.load(request, [flight])
            fill = self.fill(request, value, cost, tags)
        except BaseException:
            stop()
            await self.try_swap(request.key, claim, None, 0)  # the next caller need not wait for the lease
            raise
        finally:
            stop()
            let_go()
        flight.value, flight.payload = fill.value, fill.payload
        self.close(request.key, flight)  # who comes after the fill must look for himself: it may be dropped again by then
        accepted = await self.try_swap(request.key, claim, fill.raw, fill.seconds)
        if not accepted:
            self.counters.add["refused_fills"]()
        flight.confirmed = accepted and tags is not None

    def fill(self, request: Request, value: Any, cost: float, tags: list[bytes] | None) -> Fill:
        """``tags``: their versions from before the load; None if those could not be had, and the value must not be stored."""
        seconds = request.policy.lifetime_seconds(value)
        payload: Any = None
        if value is not None:
            try:
                payload = request.codec.encode(value, request.key)
                back = request.codec.decode(payload, request.key)
            except Uncodable as error:
                self._tell("unstored", request.key, error, "give codec= one that can, or have the loader answer plain data")
                return Fill(value, UNENCODED, None, 0.0)
            if not self.strict:
                value = back
            elif changed := difference(value, back):
                advice = "annotate the function's result, give codec= one for its type, or take what comes back (strict=False)"
                self._tell("unstored", request.key, changed, advice)
                return Fill(value, UNENCODED, None, 0.0)
        if seconds <= 0 or tags is None:
            return Fill(value, payload, None, 0.0)
        fresh_until = self.now() + seconds
        raw = entries.value(payload or b"", fresh_until=fresh_until, cost_seconds=cost, negative=value is None, tag_versions=tags)
        if len(raw) > request.policy.max_bytes:
            size = f"{len(raw)} bytes are more than max_bytes, {request.policy.max_bytes}"
            self._tell("unstored", request.key, size, "raise max_bytes of its policy, or cache less of it")
            return Fill(value, payload, None, 0.0)
        return Fill(value, payload, raw, seconds + request.policy.stale_seconds)

    async def _refresh(self, request: Request, seen: Entry) -> None:
        """Reload in the background. The old value stays and is served until the new one takes its place."""
        flights.outside()
        lease = request.policy.lease_seconds
        try:
            head = entries.claimed(seen, self.now() + lease)
            lives = max(1.0, seen.fresh_until + request.policy.stale_seconds - self.now())
            if not await self.guard(self.store.relabel(request.key, seen.header, head, lives)):
                return
            self.counters.add["refreshes"]()
            tags = await self.tag_versions(request.tags) if request.tags else []
            if tags is None:
                return
            current = [head]

            async def renew() -> bool:
                later = entries.claimed(seen, self.now() + lease)
                if not await self.guard(self.store.relabel(request.key, current[0], later, lives)):
                    return False
                current[0] = later
                return True

            stop = self.port.every(lease / 3, renew)
            try:
                value, cost = await self.load(request, [Flight(request.key, self, self.port.latch())])
                fill = self.fill(request, value, cost, tags)
            finally:
                stop()
            for _ in range(3):
                head = current[0]
                if await self.try_swap(request.key, head, fill.raw, fill.seconds):
                    return
                if head is current[0]:
                    await self.port.sleep(POLL_SECONDS[0])
                if head is current[0]:
                    break  # else a renewal was still on its way: once more with its header
            self.counters.add["refused_fills"]()
        except Exception as error:
            self._tell("refresh_errors", request.key, error, "the old value is served until stale_seconds are over: see to it")
        finally:
            self._refreshing.discard(request.key)

    # ------------------------------------------------------------------ tags

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes] | None:
        """The present version of each tag, made where there is none; None while a write to one of them is under way.

        Must be read before the load begins: an invalidation during the load then leaves the filled entry with an old version.
        """
        versions = []
        for tag, raw in zip(tags, await self.guard(self.store.read_many(tags)), strict=True):
            if raw is None:
                fresh = entries.new_mark()
                made = await self.guard(self.store.swap(tag, None, fresh, TAG_SECONDS))
                raw = fresh if made else await self.guard(self.store.read(tag))
            if raw is None or len(raw) != entries.TAG_BYTES:
                return None
            versions.append(raw)
        return versions

    # ------------------------------------------------------------------ invalidation

    async def invalidate(self, keys: Sequence[str]) -> None:
        """From now on nobody gets what was loaded before now. Raises CacheDown, and then nothing is promised."""
        self.forget(keys)
        if keys:
            await self.guard(self.store.drop(keys))
        self.forget(keys)
        for _ in keys:
            self.counters.add["invalidations"]()

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self.near is not None:
                self.near.drop(key)
            self.flights.pop(key, None)  # its callers keep it; later ones must not join a load that began too early

    # ------------------------------------------------------------------ asking the store

    async def guard(self, asking: Any) -> Any:
        """The store's answer. Raises CacheDown for every way in which it gives none, at once if it did not lately."""
        if not self.breaker.closed and not self.breaker.allows(time.monotonic()):
            asking.close()
            raise CacheDown("the cache did not answer lately; it will be tried again shortly")
        try:
            answer = await asking
        except self.trouble as error:
            raise self._down(error) from error
        self.breaker.succeeded()
        return answer

    def _down(self, error: BaseException, key: str = "") -> CacheDown:
        down = isinstance(error, self.store.down)
        self._tell("cache_errors", key, error, advice_for(error))
        if not down:
            return CacheDown(f"the cache refused: {error}")
        self.breaker.failed(time.monotonic())
        self.clock.doubt()
        return CacheDown(f"the cache could not be asked: {error}")

    def _tell(self, what: str, key: str, cause: BaseException | str, advice: str) -> None:
        self.counters.add[what]()
        self.reports.tell(what, key, cause, advice)

    async def swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        done: bool = await self.guard(self.store.swap(key, expected, new, ttl_seconds))
        return done

    async def try_swap(self, key: str, expected: bytes, new: bytes | None, ttl_seconds: float) -> bool:
        """False also if the cache cannot be asked: then nothing may be concluded from it."""
        try:
            return await self.swap(key, expected, new, ttl_seconds)
        except CacheDown:
            return False


_SERVABLE = (Verdict.FRESH, Verdict.EARLY, Verdict.STALE)


def identity(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.header
