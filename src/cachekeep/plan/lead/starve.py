"""Starving: how a primary that cannot be confirmed stopped is succeeded, where the operator allows that (``Policy.fence``).

An engine with ``min-replicas-to-write`` refuses writes when too few replicas acknowledge what it sends. So its replicas leave it,
and when enough have left for long enough, it takes no writes, wherever it is and whoever reaches it.

The invariant: of its replicas, fewer than its own setting asks for could still acknowledge anything, since ``STARVING_SECONDS``. It
says nothing of a process that is halted meanwhile: a thawed one may take what its sockets hold before it counts its replicas anew.
Hence the driver's word is asked for first.
"""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.engines.config import MAX_LAG_SECONDS
from cachekeep.model import Act, Decide, Detach, Node, Shard, Starved, Starving, Step, Stop, Wait
from cachekeep.plan.flights import first
from cachekeep.plan.lead import evidence, promote
from cachekeep.plan.situation import Situation, names, verb, with_nodes, with_shard

STARVING_SECONDS = MAX_LAG_SECONDS + 3.0
"""Engines count lag in whole seconds (one more than the setting may pass), and look once a second; the third is to spare."""


def arm(s: Situation) -> Step | None:
    """A primary needs a majority of its shard, itself included, to take writes: while so many are in sync, so that a replica that
    restarts does not keep clients from writing."""
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary) or shard.moving_to:
            continue
        needed = (len(s.replicas(shard)) + 1) // 2
        able = s.policy.fence == "starve" and s.cache.wanted.automatic_failover and len(shard.in_sync) >= needed
        armed = needed if able else 0
        if armed != shard.min_replicas:
            said = (
                f"takes writes only while {armed} or more of its replicas keep up" if armed else "takes writes without its replicas"
            )
            return Decide(with_shard(s.decided, replace(shard, min_replicas=armed)), f"{primary.name} {said}")
    return None


def starve(s: Situation) -> Step | None:
    """The first shard whose primary has to be succeeded without being confirmed stopped."""
    return first(s, (_starve(s, x, p) for x in s.decided.shards if (p := s.primary(x)) is not None and s.starves(p)))


def _starve(s: Situation, shard: Shard, lost: Node) -> Step | None:
    if s.gone(lost):
        return None
    ends = evidence.over(s, shard, lost)
    able = [n for n in s.able(shard) if evidence.proven(s, ends, n)]
    why_not = _why_not(s, shard, lost) if not isinstance(shard.change, Starving) else None
    if why_not is None and not able:
        why_not = "no in-sync replica could take over"
    if why_not is not None:
        return Wait(
            1.0,
            "fence",
            f"{lost.name} cannot be confirmed stopped, and {why_not}: it is not succeeded",
            about=(lost.name,),
            refused=True,
        )
    if not isinstance(shard.change, Starving):
        because = f"{lost.name} cannot be confirmed stopped: its replicas leave it, until it must refuse writes"
        return Decide(with_shard(s.decided, replace(shard, change=Starving(), order=shard.order + 1)), because)
    if shard.change.since is None:
        return _part(s, shard, lost)
    left = STARVING_SECONDS - (s.seconds_since(shard.change.since) or 0.0)
    if left > 0:
        return Wait(
            left, "starving", f"too few replicas are left to {lost.name}: soon it takes no writes", about=(lost.name,), steady=True
        )
    best = promote.foremost(s, able, lost) or able[0]
    because = f"{lost.name} has been without replicas for {STARVING_SECONDS:g} s and takes no writes: {best.name} becomes primary"
    led = promote.take_over(s, shard, lost, best, because)
    return replace(led, decided=with_nodes(led.decided, [replace(lost, fate=Starved())]))


def _why_not(s: Situation, shard: Shard, lost: Node) -> str | None:
    if not evidence.armed(s, lost):
        return "it does not depend on its replicas"
    if len(feeding := _feeding(s, shard)) >= shard.min_replicas:
        return f"{names(feeding)} may go on acknowledging what it writes"
    return None


def _feeding(s: Situation, shard: Shard) -> list[Node]:
    """Replicas that cannot be asked: they may be where the primary is, and acknowledge what it writes."""
    return [n for n in (*s.replicas(shard), *s.decided.successors) if not s.gone(n) and not s.alive(n)]


def _part(s: Situation, shard: Shard, lost: Node) -> Step:
    """Its replicas are told to leave; when they are seen to have left, the time runs.
    They do not come back: no order sends them."""
    asked = [n for n in s.replicas(shard) if s.alive(n)]
    going = [n for n in asked if s.seen(n).role != "replica" or s.seen(n).follows is not None]
    if going:
        effects = tuple(Detach(n.name, shard.order) for n in going)
        return Act((effects,), f"{names(going)} {verb(going, 'leaves', 'leave')} {lost.name} (order {shard.order})")
    if len(feeding := _feeding(s, shard)) >= shard.min_replicas:
        return Wait(
            s.policy.poll_seconds * 5,
            "answer",
            f"{names(feeding)} may go on acknowledging what {lost.name} writes",
            about=tuple(n.name for n in feeding),
            refused=True,
        )
    because = f"{names(asked)} {verb(asked, 'has', 'have')} left {lost.name}, which takes no writes in {STARVING_SECONDS:g} s"
    return Decide(with_shard(s.decided, replace(shard, change=Starving(since=s.moment))), because)


def stop(s: Situation) -> Step | None:
    """What could not be confirmed stopped is stopped when its host can be reached again. Not before:
    an order that fails would keep all rules after it from their turn."""
    back = [n for n in s.decided.nodes if s.starves(n) and s.runs(n) and s.seen(n).reachable]
    if not back:
        return None
    return Act((tuple(Stop(n.name) for n in back),), f"{names(back)} can be reached again and {verb(back)} stopped")
