"""Several keys at once: one look, one load for what nobody else is loading; the rest is waited for one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachekeep_patterns import entry as entries
from cachekeep_patterns import flights
from cachekeep_patterns.aside import Aside, Request, Sight, identity
from cachekeep_patterns.entry import Verdict, judge, parse
from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.flights import Flight
from cachekeep_patterns.near import MISS

Mine = Sequence[tuple[Request, Flight, bytes | None]]
"""What we are to load, each with its claim (None: the cache cannot be asked)."""


async def get_many(
    aside: Aside, requests: Sequence[Request], load_many: Callable[[list[str]], Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Values by key. ``load_many`` gets the caller's ``names`` of the keys and answers a mapping; what that lacks is None."""
    found: dict[str, Any] = {}
    tickets: dict[str, object] = {}
    if (near := aside.near) is not None:
        for request in requests:
            kept = near.peek(request.key)
            if kept is not MISS:
                aside.counters.add["near_hits"]()
                found[request.key] = kept
            elif not aside.store.lags:
                tickets[request.key] = near.ticket(request.key, request.tags)
    asked = [request for request in requests if request.key not in found]
    if not asked:
        return found
    arrived = next(aside.ticks)
    sights: dict[str, Sight] = {}
    with contextlib.suppress(CacheDown):
        sights = await _look_many(aside, asked)
    wanted: list[Request] = []
    for request in asked:
        request.arrived = arrived
        sight = sights.get(request.key)
        served = MISS if sight is None else aside.serve(request, sight)
        if sight is None or served is MISS:
            aside.counters.add["misses"]()
            wanted.append(request)
            continue
        found[request.key] = served
        if request.key in tickets:
            aside.keep_near(request, sight, tickets[request.key], served)
    if wanted:
        mine = await _claim_many(aside, wanted, sights)
        if mine:
            found |= await aside.port.see_through(_load_many(aside, mine, load_many, names), _leaving([f for _, f, _ in mine]))
        for request in wanted:
            if request.key not in found:
                found[request.key] = await aside.miss(request, None)
            if near is not None:
                near.answered(request.key)
    return found


async def _look_many(aside: Aside, requests: Sequence[Request]) -> dict[str, Sight]:
    tags = sorted({tag for request in requests for tag in request.tags})
    raws = await aside.guard(aside.store.read_many([request.key for request in requests]))
    versions = dict(zip(tags, await aside.guard(aside.store.read_many(tags)), strict=True)) if tags else {}
    aside.breaker.succeeded()
    await aside.keep_time()
    return {
        request.key: Sight(parse(raw), [versions[tag] for tag in request.tags]) for request, raw in zip(requests, raws, strict=True)
    }


async def _claim_many(aside: Aside, wanted: Sequence[Request], sights: Mapping[str, Sight]) -> Mine:
    mine = []
    for request in wanted:
        flights.check_not_within(aside, request.key)
        flight = Flight(request.key, aside, aside.port.latch())
        if aside.flights.setdefault(request.key, flight) is flight:
            mine.append((request, flight))
    try:
        free = [
            (request, flight)
            for request, flight in mine
            if sights
            and judge(sights[request.key].entry, sights[request.key].tags, aside.now(), 0.0)
            not in (Verdict.CLAIMED, Verdict.WRITING)
        ]
        claims = [entries.claim(aside.now() + request.policy.lease_seconds) for request, _ in free]
        swaps = [
            (request.key, identity(sights[request.key].entry), claim, request.policy.lease_seconds)
            for (request, _), claim in zip(free, claims, strict=True)
        ]
        try:
            won = await aside.guard(aside.store.swap_many(swaps)) if swaps else []
        except CacheDown:
            sights, won = {}, []
    except BaseException:
        _abandon(aside, [flight for _, flight in mine])
        raise
    if not sights:
        return [(request, flight, None) for request, flight in mine]
    held = {r.key: (r, f, c) for (r, f), c, ours in zip(free, claims, won, strict=True) if ours}
    _abandon(aside, [flight for request, flight in mine if request.key not in held])
    return list(held.values())


def _abandon(aside: Aside, loading: Sequence[Flight]) -> None:
    for flight in loading:
        aside.close(flight.key, flight)
        flight.done.open()  # if unconfirmed and never begun, whoever waits goes around again


def _leaving(loading: Sequence[Flight]) -> Callable[[Callable[[], object]], None]:
    """The caller of these was cancelled: they end together, when nobody waits for any."""

    def leave(stop: Callable[[], object]) -> None:
        for flight in loading:
            flight.leave(lambda: None if any(one.waiters for one in loading) else stop())

    return leave


async def _load_many(aside: Aside, mine: Mine, load_many: Callable[[list[str]], Any], names: Mapping[str, str]) -> dict[str, Any]:
    claims = [(request, flight, claim) for request, flight, claim in mine if claim is not None]
    ends: list[Callable[[], object]] = [_renewed(aside, request, claim) for request, _, claim in claims]
    ends += [flights.hold_claim(entries.mark_of(claim), flight) for _, flight, claim in claims]
    loading = [flight for _, flight, _ in mine]
    first = mine[0][0]
    try:
        tags = {r.key: await aside.tag_versions(r.tags) if r.tags else [] for r, _, _ in claims}
        whole = Request(first.key, lambda: load_many([names[r.key] for r, _, _ in mine]), first.policy, first.codec)
        loaded, cost = await aside.load(whole, loading)
        fills = {r.key: aside.fill(r, loaded.get(names[r.key]), cost, tags.get(r.key)) for r, _, _ in mine}
        for flight in loading:
            flight.value, flight.payload = fills[flight.key].value, fills[flight.key].payload
            aside.close(flight.key, flight)
        try:
            swaps = [(r.key, claim, fills[r.key].raw, fills[r.key].seconds) for r, _, claim in claims]
            accepted = await aside.guard(aside.store.swap_many(swaps)) if swaps else []
        except CacheDown:
            accepted = [False] * len(claims)
        for (_, flight, _), ok in zip(claims, accepted, strict=True):
            flight.confirmed = ok
        return {key: fill.value for key, fill in fills.items()}
    except BaseException as error:
        for flight in loading:
            flight.error = error
            flight.orphaned |= not isinstance(error, Exception)
        for request, _, claim in claims:
            await aside.try_swap(request.key, claim, None, 0)
        raise
    finally:
        for end in ends:
            end()
        _abandon(aside, loading)


def _renewed(aside: Aside, request: Request, claim: bytes) -> Callable[[], None]:
    """Keep the claim until the returned function is called."""
    lease = request.policy.lease_seconds
    return aside.port.every(lease / 3, lambda: aside.swap(request.key, claim, claim, lease))
