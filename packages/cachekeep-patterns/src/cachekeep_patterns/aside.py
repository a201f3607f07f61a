"""Cache-aside, the whole of it. Written once; `Cache` and `AsyncCache` (cache.py) are its two faces.

A get: `get` (a hit ends here) → `_miss` (one flight per key in this process) → `_obtain` (one claim per key among all processes) →
`_load_and_fill`.

What is promised, and why it holds (decision 0011):

* One load per expiry: only the holder of the claim loads; it renews the claim while it loads; its death lets the claim lapse.
* Nothing loaded before an invalidation is served to who comes after it, and, where every writer raises barriers (write.py), no
  caller gets a value older than one read before through the same key: a fill swaps the claim for the value, so it is refused if
  anything (an invalidation, a write's barrier) replaced the claim; and a load's result is given only to callers who arrived before
  the load began, unless its fill was accepted, which proves that nothing happened in between.
* The cache is never needed: if it cannot be asked, loads go on, still one per key and at most ``max_loads`` at once here.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachekeep_patterns import entry as entries
from cachekeep_patterns.codecs import Codec
from cachekeep_patterns.entry import Entry, Verdict, judge, parse
from cachekeep_patterns.errors import CacheDown, LoadTimeout, Overloaded, Uncodable
from cachekeep_patterns.near import MISS, NearCache
from cachekeep_patterns.observe import Counters
from cachekeep_patterns.policy import Breaker, Policy
from cachekeep_patterns.ports import Latch, Port, Turnstile
from cachekeep_patterns.stores.protocol import Store

Loader = Callable[[], Any]

TAG_SECONDS = 30 * 86_400.0  # a tag that outlives its entries; if it goes early, they only count as old
_POLL_SECONDS = (0.005, 0.05)
_WRITE_TRIES = 64
UNASKED: Any = object()


@dataclass(slots=True)
class Sight:
    """What was seen at a key, with the present versions of the tags it hangs on."""

    entry: Entry | None
    tags: list[bytes | None]


@dataclass(slots=True, eq=False)
class Flight:
    """One load in this process, and everybody who waits for it."""

    done: Latch
    began: int = -1  # tick at which the loader (or the look that found the value) was last started
    confirmed: bool = False  # the cache accepted the value after everybody who waits had arrived
    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Request:
    """One key being asked for."""

    key: str
    load: Loader
    policy: Policy
    codec: Codec
    tags: tuple[str, ...] = ()
    arrived: int = 0


@dataclass
class Aside:
    store: Store
    port: Port
    near: NearCache | None
    breaker: Breaker
    counters: Counters
    loads: Turnstile
    load_wait_seconds: float
    now: Callable[[], float] = time.time
    _flights: dict[str, Flight] = field(default_factory=dict)
    _refreshing: set[str] = field(default_factory=set)
    ticks: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._hit = self.counters.add["hits"]
        self.trouble = (*self.store.down, *self.store.refused)

    # ------------------------------------------------------------------ reading

    def fresh(self, raw: Any, codec: Codec, key: str) -> Any:
        """The value in ``raw`` if it is plain and fresh, else MISS. The hot path: most gets end here."""
        if type(raw) is bytes:
            payload = entries.fresh_payload(raw, self.now())
            if payload is not None:
                try:
                    value = codec.decode(payload, key)
                except Uncodable:
                    return MISS  # counted and replaced in `get`
                self._hit()
                return value
        return MISS

    async def get(self, request: Request, known: Any = UNASKED) -> Any:
        """``known``: what the caller found at the key (bytes, None, the error of asking), ``request.arrived`` taken before."""
        ticket = self.near.ticket(request.key, request.tags) if self.near is not None and not self.store.lags else None
        sight: Sight | None
        try:
            if known is UNASKED:
                request.arrived = next(self.ticks)
                sight = await self._look(request)
            elif isinstance(known, BaseException):
                raise self._down(known)
            else:
                self.breaker.succeeded()
                sight = Sight(parse(known), [])
        except CacheDown:
            sight = None
        if sight is not None:
            served = self._serve(request, sight)
            if served is not MISS:
                if ticket is not None:
                    self._keep_near(request, sight, ticket, served)
                return served
        self.counters.add["misses"]()
        value = await self._miss(request, sight)
        if self.near is not None:
            self.near.answered(request.key)
        return value

    async def _look(self, request: Request) -> Sight:
        """Raises CacheDown."""
        if not request.tags:
            return Sight(parse(await self._read(request.key)), [])
        self._check_breaker()
        raw, *tags = await self._guard(self.store.read_many([request.key, *request.tags]))
        self.breaker.succeeded()
        return Sight(parse(raw), tags)

    async def _read(self, key: str) -> bytes | None:
        """What is stored at a key. Raises CacheDown."""
        if not self.breaker.closed:
            self._check_breaker()
        try:
            raw = await self.store.read(key)
        except self.trouble as error:
            raise self._down(error) from error
        self.breaker.succeeded()
        return raw

    def _check_breaker(self) -> None:
        if not self.breaker.allows(self.now()):
            raise CacheDown("the cache did not answer lately; it will be tried again shortly")

    def _serve(self, request: Request, sight: Sight) -> Any:
        """The value to serve from ``sight``, or MISS. Starts a background reload where one is due."""
        now = self.now()
        verdict = judge(sight.entry, sight.tags, now, request.policy.early_beta)
        if verdict not in _SERVABLE:
            return MISS
        entry = sight.entry
        assert entry is not None
        if verdict is Verdict.STALE and not request.policy.stale_seconds:
            return MISS
        try:
            value = None if entry.negative else request.codec.decode(entry.payload, request.key)
        except Uncodable:
            self.counters.add["undecodable"]()
            return MISS
        if verdict is Verdict.FRESH:
            self.counters.add["hits"]()
            return value
        self.counters.add["stale" if verdict is Verdict.STALE else "hits"]()
        if request.key not in self._refreshing and entry.claimed_until <= now:
            self._refreshing.add(request.key)
            self.port.spawn(lambda: self._refresh(request, entry))
        return value

    def _keep_near(self, request: Request, sight: Sight, ticket: object, value: Any) -> None:
        assert self.near is not None
        assert sight.entry is not None
        entry = sight.entry
        fresh_seconds = entry.fresh_until - self.now()
        self.near.keep(request.key, ticket, value, entry.mark, len(entry.raw), fresh_seconds, request.tags)

    # ------------------------------------------------------------------ loading

    async def _miss(self, request: Request, sight: Sight | None) -> Any:
        deadline = None if request.policy.wait_seconds is None else time.monotonic() + request.policy.wait_seconds
        while True:
            flight = self._flights.get(request.key)
            if flight is None:
                mine = Flight(self.port.latch())
                flight = self._flights.setdefault(request.key, mine)
                if flight is mine:
                    return await self.port.see_through(self._lead(request, flight, sight, deadline))
            self.counters.add["waits"]()
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not await flight.done.passed(patience):
                raise LoadTimeout(f"{request.key}: another caller was still loading after {request.policy.wait_seconds} s")
            if flight.confirmed or flight.began > request.arrived or isinstance(flight.error, Overloaded):
                if flight.error is not None:
                    raise flight.error
                return flight.value
            sight = None

    async def _lead(self, request: Request, flight: Flight, sight: Sight | None, deadline: float | None) -> Any:
        try:
            flight.value, flight.confirmed = await self._obtain(request, flight, sight, deadline)
            return flight.value
        except BaseException as error:
            flight.error = error if isinstance(error, Exception) else RuntimeError(f"the loading caller was ended: {error!r}")
            raise
        finally:
            self._close(request.key, flight)
            flight.done.open()

    def _close(self, key: str, flight: Flight) -> None:
        """Nobody joins from now on."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _obtain(self, request: Request, flight: Flight, sight: Sight | None, deadline: float | None) -> tuple[Any, bool]:
        """(value, confirmed) from whoever has it first: us by loading, or another process."""
        pause, waited = _POLL_SECONDS[0], False
        while True:
            try:
                if sight is None:
                    flight.began = next(self.ticks)
                    sight = await self._look(request)
                    served = self._serve(request, sight)
                    if served is not MISS:
                        return served, False
                verdict = judge(sight.entry, sight.tags, self.now(), 0.0)
                if verdict is Verdict.WRITING:
                    return await self._load_only(request, flight), False
                if verdict is not Verdict.CLAIMED:
                    claim = entries.claim(self.now() + request.policy.lease_seconds)
                    if await self._swap(request.key, _identity(sight.entry), claim, request.policy.lease_seconds):
                        return await self._load_and_fill(request, flight, claim)
            except CacheDown:
                return await self._load_only(request, flight), False
            if not waited:
                waited = True
                self.counters.add["waits"]()
            if deadline is not None and time.monotonic() >= deadline:
                raise LoadTimeout(f"{request.key}: another process was still loading after {request.policy.wait_seconds} s")
            await self.port.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, _POLL_SECONDS[1])
            sight = None

    async def _load_only(self, request: Request, flight: Flight) -> Any:
        self.counters.add["bypassed"]()
        value, _ = await self._load(request, flight)
        return value

    async def _load(self, request: Request, flight: Flight | None) -> tuple[Any, float]:
        """(value, seconds it took). Raises what the loader raises, and Overloaded."""
        if not await self.loads.enter(self.load_wait_seconds):
            self.counters.add["overloaded"]()
            raise Overloaded(f"{request.key}: no place to load came free within {self.load_wait_seconds} s")
        began = time.monotonic()
        try:
            if flight is not None:
                flight.began = next(self.ticks)
            self.counters.add["loads"]()
            value = await self.port.call(request.load)
        except BaseException:
            self.counters.add["load_errors"]()
            raise
        finally:
            self.loads.leave()
            self.counters.load_seconds_total += time.monotonic() - began
        return value, time.monotonic() - began

    async def _load_and_fill(self, request: Request, flight: Flight, claim: bytes) -> tuple[Any, bool]:
        """Load under ``claim``, renewing it, then swap it for the value. (value, whether the swap was accepted)"""
        lease = request.policy.lease_seconds
        tags: list[bytes] | None = []
        if request.tags:
            try:
                tags = await self._tag_versions(request.tags)
            except CacheDown:
                tags = None
        stop = self.port.every(lease / 3, lambda: self._swap(request.key, claim, claim, lease))
        try:
            value, cost = await self._load(request, flight)
        except BaseException:
            stop()
            await self._try_swap(request.key, claim, None, 0)  # the next caller need not wait for the lease
            raise
        stop()
        fill, seconds = (None, 0.0) if tags is None else self._encode(request, value, cost, tags)
        self._close(request.key, flight)  # who comes after the fill must look for himself: it may be dropped again by then
        accepted = await self._try_swap(request.key, claim, fill, seconds)
        if not accepted:
            self.counters.add["refused_fills"]()
        return value, accepted and tags is not None

    def _encode(self, request: Request, value: Any, cost: float, tags: list[bytes]) -> tuple[bytes | None, float]:
        """(the entry to store or None, its time to live)."""
        seconds = request.policy.lifetime_seconds(missing=value is None)
        if seconds <= 0:
            return None, 0.0
        try:
            payload = b"" if value is None else request.codec.encode(value, request.key)
        except Uncodable:
            self.counters.add["unstored"]()
            return None, 0.0
        raw = entries.value(payload, fresh_until=self.now() + seconds, cost_seconds=cost, negative=value is None, tag_versions=tags)
        if len(raw) > request.policy.max_bytes:
            self.counters.add["unstored"]()
            return None, 0.0
        return raw, seconds + request.policy.stale_seconds

    async def _refresh(self, request: Request, seen: Entry) -> None:
        """Reload in the background. The old value stays and is served until the new one takes its place."""
        lease = request.policy.lease_seconds
        try:
            head = entries.claimed(seen, self.now() + lease)
            lives = max(1.0, seen.fresh_until + request.policy.stale_seconds - self.now())
            if not await self._guard(self.store.relabel(request.key, seen.header, head, lives)):
                return
            self.counters.add["refreshes"]()
            tags = await self._tag_versions(request.tags) if request.tags else []
            if tags is None:
                return
            current = [head]

            async def renew() -> bool:
                later = entries.claimed(seen, self.now() + lease)
                if not await self._guard(self.store.relabel(request.key, current[0], later, lives)):
                    return False
                current[0] = later
                return True

            stop = self.port.every(lease / 3, renew)
            try:
                value, cost = await self._load(request, None)
            finally:
                stop()
            fill, seconds = self._encode(request, value, cost, tags)
            for _ in range(3):
                head = current[0]
                if await self._try_swap(request.key, head, fill, seconds):
                    return
                if head is current[0]:
                    await self.port.sleep(_POLL_SECONDS[0])
                if head is current[0]:
                    break  # else a renewal was still on its way: once more with its header
            self.counters.add["refused_fills"]()
        finally:
            self._refreshing.discard(request.key)

    # ------------------------------------------------------------------ many keys

    async def get_many(
        self, requests: Sequence[Request], load_many: Callable[[list[str]], Any], names: Mapping[str, str]
    ) -> dict[str, Any]:
        """Values by key. One look, one load for what nobody else is loading; the rest is waited for one by one.

        ``load_many`` gets the caller's ``names`` of the keys and answers a mapping; what it leaves out counts as None.
        """
        if not requests:
            return {}
        arrived = next(self.ticks)
        found: dict[str, Any] = {}
        sights: dict[str, Sight] = {}
        with contextlib.suppress(CacheDown):
            sights = await self._look_many(requests)
        wanted: list[Request] = []
        for request in requests:
            request.arrived = arrived
            sight = sights.get(request.key)
            served = MISS if sight is None else self._serve(request, sight)
            if served is MISS:
                self.counters.add["misses"]()
                wanted.append(request)
            else:
                found[request.key] = served
        if wanted:
            mine = await self._claim_many(wanted, sights)
            found |= await self.port.see_through(self._load_many(mine, load_many, names))
            for request in wanted:
                if request.key not in found:
                    found[request.key] = await self._miss(request, None)
        if self.near is not None:
            for key in found:
                self.near.answered(key)
        return found

    async def _look_many(self, requests: Sequence[Request]) -> dict[str, Sight]:
        self._check_breaker()
        tags = sorted({tag for request in requests for tag in request.tags})
        raws = await self._guard(self.store.read_many([request.key for request in requests]))
        versions = dict(zip(tags, await self._guard(self.store.read_many(tags)), strict=True)) if tags else {}
        self.breaker.succeeded()
        return {
            request.key: Sight(parse(raw), [versions[tag] for tag in request.tags])
            for request, raw in zip(requests, raws, strict=True)
        }

    async def _claim_many(
        self, wanted: Sequence[Request], sights: Mapping[str, Sight]
    ) -> list[tuple[Request, Flight, bytes | None]]:
        """Those that we are to load, each with its claim (None: the cache cannot be asked)."""
        mine = []
        for request in wanted:
            flight = Flight(self.port.latch())
            if self._flights.setdefault(request.key, flight) is flight:
                mine.append((request, flight))
        try:
            free = [
                (request, flight)
                for request, flight in mine
                if sights
                and judge(sights[request.key].entry, sights[request.key].tags, self.now(), 0.0)
                not in (Verdict.CLAIMED, Verdict.WRITING)
            ]
            claims = [entries.claim(self.now() + request.policy.lease_seconds) for request, _ in free]
            swaps = [
                (request.key, _identity(sights[request.key].entry), claim, request.policy.lease_seconds)
                for (request, _), claim in zip(free, claims, strict=True)
            ]
            try:
                won = await self._guard(self.store.swap_many(swaps)) if swaps else []
            except CacheDown:
                sights, won = {}, []
        except BaseException:
            for request, flight in mine:
                self._abandon(request, flight)
            raise
        if not sights:
            return [(request, flight, None) for request, flight in mine]
        held = {r.key: (r, f, c) for (r, f), c, ours in zip(free, claims, won, strict=True) if ours}
        for request, flight in mine:
            if request.key not in held:
                self._abandon(request, flight)
        return list(held.values())

    def _abandon(self, request: Request, flight: Flight) -> None:
        self._close(request.key, flight)
        flight.done.open()  # unconfirmed and never begun: whoever waits goes around again

    async def _load_many(
        self,
        mine: Sequence[tuple[Request, Flight, bytes | None]],
        load_many: Callable[[list[str]], Any],
        names: Mapping[str, str],
    ) -> dict[str, Any]:
        if not mine:
            return {}
        claims = [(request, claim) for request, _, claim in mine if claim is not None]
        stops = [self.port.every(r.policy.lease_seconds / 3, _renewal(self, r.key, c, r.policy.lease_seconds)) for r, c in claims]
        first = mine[0][0]
        try:
            tags = {r.key: await self._tag_versions(r.tags) if r.tags else [] for r, _ in claims}
            for _, flight, _ in mine:
                flight.began = next(self.ticks)
            whole = Request(first.key, lambda: load_many([names[r.key] for r, _, _ in mine]), first.policy, first.codec)
            loaded, cost = await self._load(whole, None)
            values = {request.key: loaded.get(names[request.key]) for request, _, _ in mine}
            swaps = []
            for request, claim in claims:
                versions = tags[request.key]
                fill, seconds = (None, 0.0) if versions is None else self._encode(request, values[request.key], cost, versions)
                swaps.append((request.key, claim, fill, seconds))
            for request, flight, _ in mine:
                self._close(request.key, flight)
            try:
                accepted = await self._guard(self.store.swap_many(swaps)) if swaps else []
            except CacheDown:
                accepted = [False] * len(swaps)
            sure = {request.key for (request, _), ok in zip(claims, accepted, strict=True) if ok}
            for request, flight, _ in mine:
                flight.value, flight.confirmed = values[request.key], request.key in sure
            return values
        except BaseException as error:
            for _, flight, _ in mine:
                flight.error = error if isinstance(error, Exception) else RuntimeError(f"ended: {error!r}")
            for request, claim in claims:
                await self._try_swap(request.key, claim, None, 0)
            raise
        finally:
            for stop in stops:
                stop()
            for request, flight, _ in mine:
                self._abandon(request, flight)

    # ------------------------------------------------------------------ tags

    async def _tag_versions(self, tags: Sequence[str]) -> list[bytes] | None:
        """The present version of each tag, made where there is none; None while a write to one of them is under way.

        Must be read before the load begins: an invalidation during the load then leaves the filled entry with an old version.
        """
        versions = []
        for tag, raw in zip(tags, await self._guard(self.store.read_many(tags)), strict=True):
            if raw is None:
                fresh = entries.new_mark()
                made = await self._guard(self.store.swap(tag, None, fresh, TAG_SECONDS))
                raw = fresh if made else await self._guard(self.store.read(tag))
            if raw is None or len(raw) != entries.TAG_BYTES:
                return None
            versions.append(raw)
        return versions

    # ------------------------------------------------------------------ invalidation

    async def invalidate(self, keys: Sequence[str]) -> None:
        """From now on nobody gets what was loaded before now. Raises CacheDown, and then nothing is promised."""
        self._forget(keys)
        if keys:
            await self._guard(self.store.drop(keys))
        self._forget(keys)
        for _ in keys:
            self.counters.add["invalidations"]()

    def _forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self.near is not None:
                self.near.drop(key)
            self._flights.pop(key, None)  # its callers keep it; later ones must not join a load that began too early

    # ------------------------------------------------------------------ writing

    async def raise_barriers(self, keys: Sequence[str], lease_seconds: float) -> dict[str, bytes]:
        """Empty each key and keep it empty while a write is under way; the marks to lower them by. Raises CacheDown."""
        self._forget(keys)
        marks = {}
        for key in keys:
            raised = await self._change(key, entries.raise_barrier, lease_seconds)
            assert raised is not None
            marks[key] = entries.HEADER.unpack(raised)[3]
        self._forget(keys)
        return marks

    def hold_barriers(self, marks: Mapping[str, bytes], lease_seconds: float) -> Callable[[], None]:
        """Renew them until the returned function is called."""

        async def renew() -> bool:
            for key, mark in marks.items():
                seen = parse(await self._guard(self.store.read(key)))
                if seen is not None and seen.kind == entries.Kind.BARRIER and seen.mark == mark:
                    await self._swap(key, seen.header, seen.header, lease_seconds)
            return True

        return self.port.every(lease_seconds / 3, renew)

    async def lower_barriers(
        self, marks: Mapping[str, bytes], publish: Mapping[str, tuple[bytes, float]], lease_seconds: float
    ) -> None:
        """End a write, putting in (entry, time to live) of ``publish`` where we were the only writer. Raises CacheDown."""
        for key, mark in marks.items():
            new, ttl = publish.get(key, (None, lease_seconds))

            def lower(seen: Entry | None, mark: bytes = mark, new: bytes | None = new) -> bytes | None:
                return entries.lower_barrier(seen, mark, new)

            await self._change(key, lower, lease_seconds, ttl if new is not None else lease_seconds)
        self._forget(list(marks))

    async def _change(
        self,
        key: str,
        transition: Callable[[Entry | None], bytes | None],
        lease_seconds: float,
        value_seconds: float | None = None,
    ) -> bytes | None:
        """Apply a pure transition to a key by compare-and-swap."""
        for _ in range(_WRITE_TRIES):
            seen = parse(await self._guard(self.store.read(key)))
            new = transition(seen)
            is_value = new is not None and new[0] == entries.Kind.VALUE
            ttl = value_seconds if is_value and value_seconds is not None else lease_seconds
            if await self._swap(key, _identity(seen), new, ttl):
                return new
            await self.port.sleep(_POLL_SECONDS[0] * random.random())
        raise CacheDown(f"{key}: {_WRITE_TRIES} writers were faster")

    def encode(self, request: Request, value: Any, tags: list[bytes]) -> tuple[bytes, float] | None:
        """An entry to publish and its time to live; None if it may not be stored."""
        raw, seconds = self._encode(request, value, 0.0, tags)
        return None if raw is None else (raw, seconds)

    # ------------------------------------------------------------------ asking the store

    async def _guard(self, asking: Any) -> Any:
        """The store's answer. Raises CacheDown for every way in which it gives none."""
        try:
            return await asking
        except self.trouble as error:
            raise self._down(error) from error

    def _down(self, error: BaseException) -> CacheDown:
        self.counters.add["cache_errors"]()
        if isinstance(error, self.store.down):
            self.breaker.failed(self.now())
            return CacheDown(f"the cache could not be asked: {error}")
        return CacheDown(f"the cache refused: {error}")

    async def _swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        done: bool = await self._guard(self.store.swap(key, expected, new, ttl_seconds))
        return done

    async def _try_swap(self, key: str, expected: bytes, new: bytes | None, ttl_seconds: float) -> bool:
        """False also if the cache cannot be asked: then nothing may be concluded from it."""
        try:
            return await self._swap(key, expected, new, ttl_seconds)
        except CacheDown:
            return False


_SERVABLE = (Verdict.FRESH, Verdict.EARLY, Verdict.STALE)


def _identity(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.header


def _renewal(aside: Aside, key: str, claim: bytes, lease_seconds: float) -> Callable[[], Any]:
    return lambda: aside._swap(key, claim, claim, lease_seconds)
