"""Promises that a decision keeps or breaks by itself, whatever comes of it. Beside them ``run`` counts writes and writers.

They go by what is true in the world, not by what keepers have seen; so each leaves room for what may have changed since the last
look.
"""

from __future__ import annotations

from collections.abc import Iterator

from cachekeep.compute.contract import Key
from cachekeep.model import Cache, Node, Shard
from cachekeep.sim.world import Engine, World

LOOK_SECONDS = 2.0
"""What has been so for this long has been seen by every keeper that sees anything."""
PATIENCE_SECONDS = 3.0
"""For so long, and no longer, a replica that is silent counts as what it was (``Policy.replica_seconds``, and a look more)."""


def broken(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """What is wrong with a decision."""
    world.note_leaders()
    yield from _in_sync_without_a_node(after)
    yield from _in_sync_unfed(world, before, after)
    yield from _stopped_though_it_leads(world, before, after)
    yield from _stopped_though_nobody_leads(world, before, after)
    yield from _sent_away_though_nobody_leads(world, before, after)
    yield from _two_restarts_at_once(world, before, after)
    yield from _moves_out_of_sync(before, after)
    yield from _asked_in_vain(world, before, after)


def empty_lead(world: World, cache: Cache, key: Key) -> str | None:
    """Nobody begins empty while a node of the shard holds data: that one would be emptied as soon as it follows."""
    node, engine = cache.node(key[1]), world.processes.get(key)
    if node is None or engine is None or engine.history or engine.writes:
        return None
    kin = ((cache.uid, n.name) for n in cache.decided.nodes if n.shard == node.shard and not n.leaving and not n.condemned)
    holders = [k[1] for k in kin if k != key and (e := world.processes.get(k)) is not None and e.alive and e.writes]
    return f"{key[1]} is empty and is let lead, while {holders[0]} holds data" if holders else None


def moved_out_of_sync(cache: Cache, taker: Key) -> str | None:
    """Nobody's writes are held back for a node that is not in sync: it would not catch up, or has something else."""
    node = cache.node(taker[1])
    shard = cache.shard(node.shard) if node is not None else None
    if shard is None or taker[1] in shard.in_sync or taker[1] in cache.decided.fed:
        return None
    return f"the lead is to be handed over to {taker[1]}, which is not in sync"


def _in_sync_without_a_node(after: Cache) -> Iterator[str]:
    for shard in after.decided.shards:
        if strangers := shard.confirmed.nodes - {n.name for n in after.decided.nodes if n.shard == shard.id}:
            yield f"{sorted(strangers)[0]} counts as in sync, and is no node any more: the next of that name will be"


def _in_sync_unfed(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """Whoever is found in sync is fed by the primary, unless both of them believe it in vain, or it stays so while it is silent."""
    for shard in after.decided.shards:
        old, primary = before.shard(shard.id), world.processes.get((after.uid, shard.primary or ""))
        if old is None or old.confirmed.at == shard.confirmed.at or primary is None or not primary.works:
            continue  # nothing was heard of the primary; at most, nodes have gone
        for name in sorted(shard.in_sync):
            engine = world.processes.get((after.uid, name))
            if engine is None or (engine.works and engine.linked and engine.online):
                continue
            # By the former one, where a group has just become a cluster: who was in sync with that one goes on.
            feeders = (primary, world.processes.get((after.uid, old.primary or "")) or primary)
            fed_at = max(feeder.feeds.get(engine.spec.key, (0.0, 0.0))[1] for feeder in feeders)
            stays = name in old.in_sync and not engine.answers and not engine.frozen
            patience = LOOK_SECONDS + (PATIENCE_SECONDS if stays else 0.0)
            if world.now - max(fed_at, world.unattended_at) > patience:
                yield f"{name} counts as in sync, and has not been fed by {shard.primary} for {world.now - fed_at:.1f} s"


def _stopped_though_it_leads(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """A primary that serves, and that an in-sync replica which keepers reach is fed by, is not taken for lost."""
    for shard in before.decided.shards:
        old, new = before.node(shard.primary or ""), after.node(shard.primary or "")
        if old is None or new is None or shard.moving_to or not _given_up(shard, old, after.shard(shard.id), new):
            continue
        engine = world.processes.get((before.uid, new.name))
        if engine is not None and _answers(world, engine) and (fed := _feeds(world, before, shard, engine)):
            yield f"{new.name} is given up, though it leads and {fed} has been fed by it all the while"


def _given_up(shard: Shard, node: Node, now: Shard | None, then: Node) -> bool:
    """It is to be stopped, or what only it holds is taken to be lost by a user's word."""
    accepted = now is not None and now.primary == node.name and now.accept_stale and not shard.accept_stale
    return accepted or (then.condemned and not node.condemned)


def _feeds(world: World, cache: Cache, shard: Shard, primary: Engine) -> str | None:
    for name in sorted(shard.in_sync):
        key = (cache.uid, name)
        since, last = primary.feeds.get(key, (world.now, 0.0))
        if world.within_reach(key) and since <= world.now - LOOK_SECONDS and last >= world.now - 0.2:
            return name
    return None


def _stopped_though_nobody_leads(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """A replica that hangs may hold what nobody else does, until somebody is seen to lead."""
    for node in after.decided.nodes:
        old, shard = before.node(node.name), before.shard(node.shard)
        if shard is None or old is None or old.condemned or not node.condemned or node.due or node.leaving:
            continue
        led_at = world.led_at.get((before.uid, shard.primary or ""), 0.0)
        if node.name != shard.primary and not shard.moving_to and world.now - led_at > LOOK_SECONDS:
            yield f"{node.name} is to be stopped while nobody leads: it may hold what nobody else does"


def _sent_away_though_nobody_leads(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """Nor is one that works restarted or sent away meanwhile because a user wants that."""
    for node in after.decided.nodes:
        old, shard = before.node(node.name), before.shard(node.shard)
        if old is None or shard is None or shard.moving_to or node.name == shard.primary or (after.clustered and not shard.owned):
            continue
        goes = (node.condemned and node.due and not old.condemned) or (node.leaving and not old.leaving)
        engine = world.processes.get((before.uid, node.name))
        holds = engine is not None and engine.writes and _answers(world, engine) and world.within_reach(engine.spec.key)
        if goes and holds and world.now - world.led_at.get((before.uid, shard.primary or ""), 0.0) > LOOK_SECONDS:
            yield f"{node.name} is sent away while nobody leads: it may hold what nobody else does"


def _answers(world: World, engine: Engine) -> bool:
    """For so long that everybody knows."""
    return engine.answers and world.now - world.answering_since.get(engine.spec.key, world.now) > LOOK_SECONDS


def _two_restarts_at_once(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """By plan at most one replica of a shard is away, so that what the primary holds stays held by another. One that hangs is away
    already."""
    works = {key[1] for key, engine in world.processes.items() if engine.works}
    for shard in after.decided.shards:
        away = [n for n in after.decided.nodes if n.shard == shard.id and n.due and n.condemned and n.name != shard.primary]
        fresh = [n for n in away if n.name in works and (old := before.node(n.name)) is not None and not old.condemned]
        others = [n for n in after.decided.nodes if n.shard == shard.id and n not in fresh and not n.leaving]
        back = [n.name for n in others if not n.announced or (n.due and n.condemned)]
        if fresh and (back or len(fresh) > 1):
            yield f"{fresh[0].name} is restarted by plan while {(back or [fresh[-1].name])[0]} is not back yet"


def _moves_out_of_sync(before: Cache, after: Cache) -> Iterator[str]:
    """A planned move is decided for a node in sync, or for a successor that was fed."""
    for shard in after.decided.shards:
        old = before.shard(shard.id)
        if old is None or shard.moving_to in (None, old.moving_to) or shard.lost or shard.primary != old.primary:
            continue
        if shard.moving_to not in old.in_sync | before.decided.fed:
            yield f"the lead is to go to {shard.moving_to}, which is not in sync"


def _asked_in_vain(world: World, before: Cache, after: Cache) -> Iterator[str]:
    """The user is asked to accept a loss only when no in-sync replica is left that may keep it from happening: one that has said
    for long enough why it does not answer is waited for."""
    lost = {r.lost for r in after.decided.refusals if r not in before.decided.refusals}
    for shard in (x for x in before.decided.shards if x.primary in lost):
        for name in sorted(shard.in_sync):
            node, engine = before.node(name), world.processes.get((before.uid, name))
            there = node is not None and engine is not None and engine.spec.incarnation == node.incarnation and not node.leaving
            busy = engine is not None and engine.excuse is not None and engine.still_at <= world.now - LOOK_SECONDS
            if there and busy and world.within_reach((before.uid, name)):
                yield f"the user is asked to accept a loss although {name} is in sync and only busy"
