"""What whoever leads next has to have, and who can be shown to have it.

A lead that is over has left writes that it acknowledged. Who was in sync with it has them, but for what was on its way; yet that is
knowledge of a moment, and grows old while nobody looks. So what counts is what was heard: a primary said at some moment how far it
was, and whoever holds at least that lacks only what it acknowledged later. How much later it can have been is known, too: up to the
moment from which it is known to have been still. If that is a short time, the loss is no more than what is on its way at any crash.
If it is long, or if nothing was heard, nobody knows what is lost, and the user is asked (decision 35).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import Doubt, Ended, Node, Shard, Stream, elapsed
from cachekeep.plan.situation import Situation

ENGINE_SECONDS = 7.0
"""In cluster mode engines elect by themselves after their node timeout (15 s): what is known of a lead's end is good for so
long."""


Number = TypeVar("Number", int, float)


class Lack(NamedTuple):
    """What a node lacks at most of what was acknowledged."""

    seconds: float | None
    """Of the last so many seconds; None: nobody can tell of how many."""
    bytes: int | None
    """So much that is known; None: not even that is."""


def over(s: Situation, shard: Shard, lost: Node | None) -> tuple[Ended, ...]:
    """The leads of this shard that are over since somebody was last seen to lead it; that of ``lost`` among them, if it has led."""
    fresh = sorted((end(s, n, order) for n, order in _past(s, shard, lost)), key=lambda e: e.order)
    known = {(e.primary, e.order) for e in shard.ended}
    return (*shard.ended, *(e for e in fresh if (e.primary, e.order) not in known))


def _past(s: Situation, shard: Shard, lost: Node | None) -> Iterator[tuple[Node, int]]:
    """Who may have led, and by which order. One that was decided on, but was never told, has not led: then what its predecessor
    left is all that there is, or, where the user has given that up, what it held itself. Engines in cluster mode lead without being
    told."""
    for node in s.members(shard.id):
        seen = s.seen(node)
        told = seen.lead_order
        if node == lost:
            led = s.clustered or told is None or told >= shard.lead_order
            if led or (seen.heard and not shard.ended):
                yield node, shard.lead_order
        elif usurps(s, shard, node) and s.gone(node):
            yield node, told or 0


def usurps(s: Situation, shard: Shard, node: Node) -> bool:
    """Was let lead by a later order than the primary: by a move of which nobody has seen the end."""
    return node.name != shard.primary and (s.seen(node).lead_order or 0) > shard.lead_order


def doubtful(s: Situation, shard: Shard) -> list[Node]:
    """Who was let lead by a later order than the primary, and does not answer: it may lead unseen, or late, beside another."""
    return [n for n in s.replicas(shard) if usurps(s, shard, n) and s.runs(n) and not s.alive(n)]


def end(s: Situation, node: Node, order: int) -> Ended:
    """What is known of a lead that is over now."""
    seen = s.seen(node)
    at = seen.still_since or s.moment
    if seen.heard and armed(s, node):
        at = seen.heard[0].asked_at
    silent = elapsed(seen.heard[0].asked_at, s.moment) if seen.heard else None
    return Ended(
        primary=node.name,
        order=order,
        at=at,
        heard=seen.heard,
        heard_at=None if silent is None else s.now - dt.timedelta(seconds=silent),
        in_sync=_in_sync(s, node, order),
    )


def _in_sync(s: Situation, node: Node, order: int) -> frozenset[str] | None:
    """Nothing is on its way to a replica that its primary does not feed. A new primary has not said yet which it feeds; the first
    one of a shard has fed nobody before it says so."""
    shard = s.cache.shard(node.shard)
    if shard is None or (node.name, order) != (shard.primary, shard.lead_order):
        return None
    known = shard.confirmed
    if known.primary is None or (known.primary, known.order) == (shard.primary, shard.lead_order):
        return known.nodes
    return None


def armed(s: Situation, node: Node) -> bool:
    """Whether it is a primary that takes no writes without its replicas, where the operator allows to rest on that: what it still
    acknowledges where nobody hears it is what starving costs, and no more than that."""
    shard = s.cache.shard(node.shard)
    led = shard is not None and shard.primary == node.name and shard.min_replicas > 0
    return led and s.policy.fence == "starve" and runtime(s.cache, node).is_in(s.seen(node).digests, "settings") is True


def lack(s: Situation, ends: tuple[Ended, ...], held: Stream | None) -> Lack:
    """What whoever holds this lacks of what these leads acknowledged, all of them."""
    each = [_lack(s, ends[:i], over, held) for i, over in enumerate(ends)]
    return Lack(_most([0.0, *(x.seconds for x in each)]), _most([0, *(x.bytes for x in each)]))


def _lack(s: Situation, earlier: tuple[Ended, ...], over: Ended, held: Stream | None) -> Lack:
    if held is None:
        return Lack(None, None)
    inherited = {h.stream.history for e in earlier for h in e.heard}
    had = next((h for h in over.heard if held.includes(h.stream, s.branches) or _adds_nothing(s, h.stream, inherited)), None)
    since = s.seconds_since(over.at)
    if s.clustered and (since is None or since > ENGINE_SECONDS):
        had = None
    return Lack(None if had is None else elapsed(had.asked_at, over.at), _behind(s, over, held, inherited))


def _adds_nothing(s: Situation, stream: Stream, inherited: set[str]) -> bool:
    """It was heard before it had written anything itself: what it held was written by a lead before."""
    return not inherited.isdisjoint(stream.within(s.branches))


def _behind(s: Situation, over: Ended, held: Stream, inherited: set[str]) -> int | None:
    """Of what was heard last. Offsets of different histories compare only as far as one goes on from the other."""
    if not over.heard:
        return None
    last = over.heard[0].stream
    if held.includes(last, s.branches) or _adds_nothing(s, last, inherited):
        return 0
    related = held.history in last.parts(s.branches) or last.history in held.parts(s.branches)
    return max(0, last.offset - held.offset) if related else None


def _most(amounts: list[Number | None]) -> Number | None:
    known = [a for a in amounts if a is not None]
    return max(known) if len(known) == len(amounts) else None


def sure(s: Situation, shard: Shard, ends: tuple[Ended, ...]) -> list[Node]:
    """Replicas that could lead now without a loss that is more than what was on its way: they answer, are here to stay, and it
    shows; or they have all that one of these has, and more.

    In cluster mode none that leads already: one that does has lost its slots, and has dropped what it held with them."""
    able = [n for n in s.replicas(shard, leaving=False) if s.alive(n) and not (s.clustered and s.leads(n))]
    shown = [n for n in able if s.seen(n).stream is not None and proven(s, ends, n)]
    if not shown:
        return []
    most = max(shown, key=lambda n: s.seen(n).offset or 0)
    return shown + [n for n in ahead(s, able, most) if n not in shown]


def shared(s: Situation, ends: tuple[Ended, ...], node: Node) -> int:
    """How much it has of what was last heard of the last of these leads. How far it is itself says nothing of that, if it went
    another way meanwhile."""
    held = s.seen(node).stream
    if held is None or not ends or not ends[-1].heard:
        return 0
    mine, theirs = held.parts(s.branches), ends[-1].heard[0].stream.parts(s.branches)
    return max((min(part, theirs[history]) for history, part in mine.items() if history in theirs), default=0)


def ahead(s: Situation, nodes: list[Node], than: Node) -> list[Node]:
    """Those of these nodes that have all that this one has, and more."""
    has = s.seen(than).stream
    there = [(n, s.seen(n).stream) for n in nodes if s.alive(n) and n is not than]
    return [n for n, held in there if held and has and held.includes(has, s.branches) and held.offset > has.offset]


def proven(s: Situation, ends: tuple[Ended, ...], node: Node) -> bool:
    """Whether it was in sync with these leads, and can be shown to have what they acknowledged, but for what was on its way."""
    return shown(s, ends, node) and not any(_out_of_sync(over, node) for over in ends)


def _out_of_sync(over: Ended, node: Node) -> bool:
    return over.in_sync is not None and node.name not in over.in_sync and node.name != over.primary


def vouched(ends: tuple[Ended, ...], node: Node) -> tuple[Ended, ...]:
    """It has what somebody has who was in sync with them, and so it is as good as in sync itself."""
    return tuple(e if e.in_sync is None else replace(e, in_sync=e.in_sync | {node.name}) for e in ends)


def shown(s: Situation, ends: tuple[Ended, ...], node: Node) -> bool:
    """Whether it has, by what was heard, all that these leads acknowledged but for their last moments."""
    seconds = lack(s, ends, s.seen(node).stream).seconds
    return seconds is not None and seconds <= s.policy.in_flight_seconds


def within_budget(s: Situation, ends: tuple[Ended, ...], node: Node) -> str | None:
    """Why the loss is one that the operator allows beforehand, if it is."""
    seconds, known = lack(s, ends, s.seen(node).stream)
    if seconds is not None and s.policy.loss_budget_seconds and seconds <= s.policy.loss_budget_seconds:
        return f"it lacks what was acknowledged in {seconds:.1f} s at most, within the loss budget"
    fresh = all(
        (since := elapsed(e.heard[0].asked_at, e.at)) is not None and since <= s.policy.in_flight_seconds for e in ends if e.heard
    )
    if known is not None and fresh and s.policy.loss_budget_bytes and known <= s.policy.loss_budget_bytes:
        return f"it is {known} bytes behind, within the loss budget"
    return None


class Doubted(NamedTuple):
    """What a node cannot be shown to have: whose, why not, and both in words."""

    lead: str
    doubt: Doubt
    words: str


def doubt(s: Situation, shard: Shard, ends: tuple[Ended, ...], node: Node, held: Stream | None) -> Doubted:
    """What a node that holds this cannot be shown to have."""
    for i, over in enumerate(ends):
        seconds, known = _lack(s, ends[:i], over, held)
        shown = seconds is not None and seconds <= s.policy.in_flight_seconds
        if shown and not _out_of_sync(over, node):
            continue
        why: Doubt
        if shown and not known:
            why, words = "out of sync", "it was not in sync with it"
        elif known:
            why, words = "behind", f"it lacks {known} bytes at least"
        elif seconds is not None:
            why, words = "silence", f"{over.primary} may have gone on for {seconds:.0f} s after it was last heard"
        elif over.heard and known is None:
            why, words = "another history", f"it holds another history than {over.primary} wrote"
        else:
            why, words = "unheard", f"nobody who is still here has heard {over.primary} at its end"
        return Doubted(over.primary, why, f"what {over.primary} acknowledged{_since(shard, over, seconds)} ({words})")
    return Doubted("", "nothing", "all of it")


def _since(shard: Shard, over: Ended, seconds: float | None) -> str:
    """By the wall clock. Where nothing was heard that could tell, it is since it was last known to be in sync, or from the
    beginning."""
    last = elapsed(over.heard[0].asked_at, over.at) if over.heard else None
    if over.heard_at is not None and seconds is not None and last is not None:
        at = over.heard_at - dt.timedelta(seconds=seconds - last)
    elif not over.heard and shard.confirmed.primary == over.primary and shard.confirmed.at is not None:
        at = shard.confirmed.at
    else:
        return ""
    return f" since {at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def without(shard: Shard, lost: Collection[str]) -> Shard:
    """The shard, of whose nodes these are in sync no more: what they hold is about to go, or gone."""
    if not shard.confirmed.nodes & set(lost):
        return shard
    return replace(shard, confirmed=replace(shard.confirmed, nodes=shard.confirmed.nodes - set(lost)))
