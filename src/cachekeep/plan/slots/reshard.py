"""Cluster mode: which shard owns which slots, and how they get there while all of them serve.

``Shard.slots`` is the aim. What the engines own is looked at before every step, so a move that was interrupted, anywhere and by
anything, is not resumed: what is still astray is moved.
"""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    ClusterSeen,
    Decide,
    Decided,
    Effect,
    MoveSlots,
    Own,
    Resharded,
    Resharding,
    Settle,
    Shard,
    Step,
    Wait,
    collides,
)
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.nodes.cluster import lingering_seconds
from cachekeep.plan.situation import Situation, listed, names
from cachekeep.plan.slots.ranges import SLOTS, Ranges, SlotMigration, common, compact, count, moves, rebalance, union, without

SLICE_SECONDS = 0.5
"""A move goes on for so long before the cache is looked at again: a failure elsewhere is not left waiting."""


def record(s: Situation) -> Step | None:
    """What primaries own is written down, for the case that one of them has to start anew."""
    changed = {}
    for shard in s.decided.shards:
        seen = _seen(s, shard)
        if under_way(s, MoveSlots, on=shard.primary):
            continue  # it is another with every key that moves
        if seen and not shard.moving_to and (seen.slots != shard.owned or seen.epoch > shard.epoch):
            changed[shard.id] = replace(shard, owned=seen.slots, epoch=max(seen.epoch, shard.epoch))
    if not changed:
        return None
    decided = replace(s.decided, shards=tuple(changed.get(x.id, x) for x in s.decided.shards))
    owns = ", ".join(f"{x.id} owns {count(x.owned)} slots at epoch {x.epoch}" for x in list(changed.values())[:4])
    return Decide(decided, owns + (f", and {len(changed) - 4} others" if len(changed) > 4 else ""))


def _seen(s: Situation, shard: Shard) -> ClusterSeen | None:
    """What the shard's primary says, if it leads."""
    primary = s.primary(shard)
    return s.seen(primary).cluster if primary is not None and s.leads(primary) else None


def reshard(s: Situation) -> Step | None:
    """Slots go where they belong."""
    if s.decided.available_at is None:
        return None
    seen = {x.id: _seen(s, x) for x in s.decided.shards}
    silent = [id for id, v in seen.items() if v is None]
    if silent:
        return (
            Wait(s.policy.poll_seconds * 5, "leader", f"slots move on when shard {silent[0]} leads", about=(silent[0],))
            if s.decided.resharding
            else None
        )
    now = {id: v for id, v in seen.items() if v is not None}
    step = _aim(s, now) or _leftover(s) or _unowned(s, now)
    if step is not None:
        return step
    target = {x.id: x.slots for x in s.decided.shards}
    todo = moves({id: v.slots for id, v in now.items()}, target)
    open_moves, stray = _open(s, now)
    if not todo and not open_moves and not stray:
        return _done(s, now) or _linger(s)
    if not s.decided.resharding:
        left = sum(count(m.slots) for m in (*todo, *open_moves))
        return (
            Decide(replace(s.decided, reshard=Resharding(slots=max(left, 1))), f"{left} slots are not where they belong")
            if left or stray
            else None
        )
    settle: Act | None = None
    if stray:
        effects: tuple[Effect, ...] = tuple(Settle(name, compact(slots)) for name, slots in stray.items())
        settle = Act((effects,), f"slots are closed that were left open on {' and '.join(stray)}")
    calm = [
        m for m in open_moves or todo if not {x.primary for x in s.decided.shards if x.id in (m.source, m.target)} & stray.keys()
    ]
    return first(s, (settle, _go(s, calm, sum(count(m.slots) for m in todo)) if calm else None))


def _aim(s: Situation, now: dict[str, ClusterSeen]) -> Step | None:
    """Other shards are wanted than those that share the slots: new shares, as soon as the new ones can take them."""
    if not s.may_apply("shards"):
        return None
    ids = [w.id for w in s.cache.wanted.shards]
    if set(ids) == {x.id for x in s.decided.shards if x.slots}:
        return None
    missing = [m.name for w in s.cache.wanted.shards for m in w.members if not ((n := s.cache.member(m.name)) and n.announced)]
    if missing:
        return None
    return aim(s, s.decided, {id: v.slots for id, v in now.items()}, ids)


def aim(s: Situation, decided: Decided, current: dict[str, Ranges], ids: list[str]) -> Decide:
    """Decide even shares for these shards, by as few moves as can be. Each shard's orders of before are void."""
    target = rebalance(current, ids)
    left = sum(count(m.slots) for m in moves(current, target))
    shards = tuple(replace(x, slots=target.get(x.id, ()), order=x.order + 1) for x in decided.shards)
    because = f"{left} slots move, so that {len(ids)} shards have {SLOTS // len(ids)} or one more each"
    told = (s.tell(f"Resharding of replication group {s.cache.name} has started: {left} slots move", group=True),) if left else ()
    reshard = Resharding(slots=left) if left else decided.reshard if isinstance(decided.reshard, Resharded) else None
    return Decide(replace(decided, shards=shards, reshard=reshard), because, told)


def rebalanced(s: Situation, decided: Decided) -> Decide | Wait:
    """The errand ``rebalance``."""
    current = {x.id: v.slots for x in s.decided.shards if (v := _seen(s, x))}
    if len(current) < len(s.decided.shards):
        return Wait(s.policy.poll_seconds * 5, "leader", "slots are dealt out anew when every shard leads")
    return aim(s, decided, current, [w.id for w in s.cache.wanted.shards])


def _leftover(s: Situation) -> Step | None:
    """A primary that was replaced by a node that had not heard of all its slots yet gives the others to its successor."""
    effects: list[Effect] = []
    for shard in s.decided.shards:
        for node in s.replicas(shard):
            seen = s.seen(node).cluster
            if shard.primary and not shard.moving_to and s.leads(node) and seen is not None and seen.slots:
                effects.append(MoveSlots(node.name, shard.primary, seen.slots, shard.order, shard.order, SLICE_SECONDS))
    if not effects:
        return None
    givers = listed(e.source for e in effects if isinstance(e, MoveSlots))
    return Act((tuple(effects),), f"{givers} was replaced, but not in all of its slots: the others go after them")


def _unowned(s: Situation, now: dict[str, ClusterSeen]) -> Step | None:
    """Slots that nobody owns (their owner died and came back without) are given to the shards that are to have them: when everybody
    who might own them after all has been heard, and by an order of its own, as it makes a writer."""
    lost = without(((0, SLOTS - 1),), union(*(v.slots for v in now.values())))
    heirs = [(x, slots) for x in s.decided.shards if x.primary and (slots := common(lost, x.slots))]
    moving = any(isinstance(f.effect, MoveSlots) for f in s.view.flights)
    if not heirs or moving:  # of slots that move while shards are looked at one after the other, none may seem to have some
        return None
    if flying := first(s, (under_way(s, Own, on=x.primary) for x, _ in heirs)):
        return flying
    silent = [n for n in s.decided.nodes if not s.alive(n) and not s.gone(n)]
    if silent:
        return Wait(
            s.policy.poll_seconds * 5,
            "answer",
            f"{count(lost)} slots belong to nobody, but {names(silent)} might know better",
            about=tuple(n.name for n in silent),
        )
    stale = [replace(x, order=x.order + 1) for x, _ in heirs if (s.view.node(x.primary or "").last_order or 0) >= x.order]
    if stale:
        by_id = {x.id: x for x in stale}
        decided = replace(s.decided, shards=tuple(by_id.get(x.id, x) for x in s.decided.shards))
        return Decide(decided, f"{count(lost)} slots belong to nobody: their shards are to get them")
    others = {n.name for n in s.decided.nodes if s.alive(n)}
    effects = tuple(Own(x.primary or "", slots, x.order, tuple(sorted(others - {x.primary}))) for x, slots in heirs)
    return Act((effects,), f"{count(lost)} slots belong to nobody: their shards get them")


def _open(s: Situation, now: dict[str, ClusterSeen]) -> tuple[list[SlotMigration], dict[str, list[int]]]:
    """Slots that were left half open: those to finish, and those that are open on one side for nothing."""
    # By any of its nodes: who was half open towards a primary that has been replaced since is finished with its successor. To close
    # the slot instead would leave the keys that have moved already where nobody looks for them.
    shard_of = {id: n.shard for n in s.decided.nodes if (id := s.cluster_ids[n.name]) and n.shard in now}
    pairs: dict[tuple[str, str], set[int]] = {}
    stray: dict[str, list[int]] = {}
    for id, v in now.items():
        primary = next(x.primary for x in s.decided.shards if x.id == id)
        sides: list[tuple[int, str | None, str | None]] = [(slot, id, shard_of.get(other)) for slot, other in v.migrating.items()]
        sides += [(slot, shard_of.get(other), id) for slot, other in v.importing.items()]
        for slot, source, target in sides:
            if source and target and common(((slot, slot),), now[source].slots):
                pairs.setdefault((source, target), set()).add(slot)
            elif primary:
                stray.setdefault(primary, []).append(slot)
    return [SlotMigration(source, target, compact(slots)) for (source, target), slots in pairs.items()], stray


def _go(s: Situation, todo: list[SlotMigration], left: int) -> Step:
    """One move for each source at a time, to different targets as far as there are some."""
    shard = {x.id: x for x in s.decided.shards}
    sources: dict[str, list[SlotMigration]] = {}
    for m in todo:
        sources.setdefault(m.source, []).append(m)
    chosen = [found[i % len(found)] for i, found in enumerate(sources.values())]
    effects: list[Effect] = []
    said: list[str] = []
    for m in chosen:
        source, target = shard[m.source], shard[m.target]
        move = MoveSlots(source.primary or "", target.primary or "", m.slots, source.order, target.order, SLICE_SECONDS)
        if not any(collides(move, e) for e in effects):
            effects.append(move)
            said.append(f"{m.source} to {m.target}")
    return Act((tuple(effects),), f"slots move from {', '.join(said[:4])}: {percent(s.decided):.0f} % done, {left} left")


def percent(decided: Decided) -> float:
    """How many of the slots that set out have arrived, by what shards were last seen to own."""
    total, left = decided.resharding, sum(count(without(x.owned, x.slots)) for x in decided.shards)
    return 100.0 * max(0, total - left) / total if total else 100.0


def _done(s: Situation, now: dict[str, ClusterSeen]) -> Step | None:
    if not s.decided.resharding:
        return None
    told = (s.tell(f"Resharding of replication group {s.cache.name} has finished", group=True),)
    return Decide(
        replace(s.decided, reshard=Resharded(since=s.moment)),
        f"all slots are where they belong, in {sum(bool(v.slots) for v in now.values())} shards",
        told,
    )


def _linger(s: Situation) -> Step | None:
    """Shards that have given away their slots stay for a moment, to send on the clients that come to them."""
    left = lingering_seconds(s)
    return Wait(left, "linger", "clients of the shards that go are still sent on to others") if left > 0 else None
