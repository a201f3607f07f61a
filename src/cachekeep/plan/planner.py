"""The rules in their order. The first that has something to say is the step."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator

from cachekeep.model import Cache, Moment, Step, View, Wait
from cachekeep.plan import (
    announce,
    cluster_leaders,
    cluster_members,
    cluster_slots,
    credentials,
    deadlines,
    endpoints,
    errands,
    followers,
    jobs,
    judge,
    leaders,
    limits,
    members,
    moments,
    rollout,
    starving,
    switching,
)
from cachekeep.plan.flights import first
from cachekeep.plan.situation import Policy, Situation, listed, names, verb

Rule = Callable[[Situation], Step | None]

RULES: tuple[Rule, ...] = (
    members.outrun,
    members.delete,
    moments.recount,
    judge.spare,
    members.stop,
    switching.give_way,
    starving.starve,
    leaders.outrun,
    switching.lead,
    leaders.lead,
    cluster_leaders.lead,
    cluster_slots.record,
    members.appoint,
    leaders.conclude,
    switching.hand_on,
    cluster_members.publish,
    members.start,
    announce.troubles,
    cluster_members.acquaint,
    cluster_leaders.follow,
    followers.follow,
    followers.admit,
    followers.track,
    followers.revive,
    judge.interrupt,
    switching.feed,
    starving.arm,
    starving.stop,
    endpoints.publish,
    endpoints.balance,
    endpoints.discovery,
    cluster_members.introduce,
    announce.announce,
    switching.retire,
    leaders.transfer,
    cluster_slots.reshard,
    members.part,
    limits.widen,
    limits.configure,
    credentials.rotate,
    rollout.resize,
    rollout.upgrade,
    rollout.restart,
    jobs.carry,
    errands.end,
    errands.begin,
    cluster_members.settle,
    limits.narrow,
)


def plan(cache: Cache, view: View, now: dt.datetime, moment: Moment, policy: Policy | None = None) -> Step:
    """The next step for a cache. Pure: the same arguments give the same step. ``now`` is the wall-clock time, for windows and for
    what users see; durations are measured from ``moment`` to ``moment``.

    A rule that can only wait does not keep the rules after it from being asked: a refused failover of one shard must not stop
    another's. The first wait is answered when no rule decides or acts.
    """
    s = Situation(cache, view, now, moment, policy or Policy())
    return conclude(s, (answer for _, answer in answers(s)))


def answers(s: Situation) -> Iterator[tuple[Rule, Step | None]]:
    """What each rule says, in their order, up to the first that decides or acts. Of a deleted cache nothing but its end matters:
    while that waits for something, nothing is started again."""
    for rule in (members.outrun, jobs.cancel, members.delete) if s.cache.wanted.deleted else RULES:
        answer = first(s, (rule(s),))
        yield rule, answer
        if answer is not None and not isinstance(answer, Wait):
            return


def conclude(s: Situation, said: Iterable[Step | None]) -> Step:
    """The step that follows from what the rules say."""
    return deadlines.overdue(s, first(s, said) or _rest(s))


def _rest(s: Situation) -> Wait:
    coming = [n for n in s.decided.nodes if not n.announced]
    if coming or s.decided.available_at is None:
        if coming:
            because = f"{names(coming)} {verb(coming)} not available yet"
            return Wait(s.policy.poll_seconds, "coming", because, about=tuple(n.name for n in coming))
        return Wait(s.policy.poll_seconds, "endpoints", "the endpoints are not served yet")
    stuck = [n for n in s.decided.nodes if s.seen(n).process == "stuck"]
    if stuck:
        because = (
            f"{names(stuck)} {verb(stuck)} stopped but {verb(stuck, 'hangs', 'hang')} in the kernel: "
            f"look after the disk under {verb(stuck, 'it', 'them')}"
        )
        return Wait(s.policy.poll_seconds * 10, "kernel", because, about=tuple(n.name for n in stuck), refused=True)
    if (wait := judge.unwell(s, [n for n in s.decided.nodes if not s.alive(n)])) is not None:
        return wait
    fronts = [(f.name, s.view.fronts.get(f.name)) for f in s.decided.fronts if not f.leaving]
    mute = [name for name, v in fronts if v is None or v.process != "running" or v.targets is None]
    if mute:
        return Wait(
            s.policy.poll_seconds * 5, "answer", f"{listed(mute)} {verb(mute, 'does', 'do')} not answer yet", about=tuple(mute)
        )
    rest = s.policy.rest_seconds if s.replicated else s.policy.discovery_seconds
    return Wait(rest, "calm", f"{s.cache.name} is as it should be")
