"""The rules in their order. The first that has something to say is the step."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from cachekeep.model import Cache, Moment, Step, View, Wait
from cachekeep.model.traits import traits
from cachekeep.plan import deadlines, jobs, moments, restores
from cachekeep.plan.change import backups, clients, credentials, errands, rollout, switch
from cachekeep.plan.flights import first
from cachekeep.plan.lead import elect, judge, promote, starve
from cachekeep.plan.nodes import announce, certificates, cluster, limits, members
from cachekeep.plan.reach import configuration, endpoints, followers
from cachekeep.plan.situation import Policy, Situation, listed, names, verb
from cachekeep.plan.slots import reshard

Rule = Callable[[Situation], Step | None]
Applies = Literal["always", "deleted", "all", "replicated", "plain", "cluster", "listed"]
"""To which caches: deleted or not; deleted; all others; of these those of Valkey and Redis, of which those without cluster mode and
those in it; those whose clients are told by a list."""


class Row(NamedTuple):
    """A rule in its place."""

    rule: Rule
    applies: Applies
    why_here: str


RULES: tuple[Row, ...] = (
    Row(members.outrun, "always", "before `members.delete`: what ends a process must be decided later than what started it"),
    Row(jobs.cancel, "deleted", "before `members.delete`: a job ends with what it works on, not after it"),
    Row(members.delete, "deleted", "before all that follows: of a cache that is deleted nothing matters but its end"),
    Row(moments.recount, "all", "before every rule that measures how long something has taken"),
    Row(judge.spare, "all", "before `members.stop`: who is to be spared must not be stopped"),
    Row(members.stop, "all", "before `promote.lead`: a successor rests on the stop of whoever led being confirmed"),
    Row(switch.give_way, "all", "before `starve.starve`: successors acknowledge what they are fed, as replicas do"),
    Row(starve.starve, "plain", "after `members.stop`, which was tried in vain; before `promote.lead`, which would wait for it"),
    Row(promote.outrun, "all", "before every order of a lead: a node refuses one that is not later than the last it has seen"),
    Row(switch.lead, "plain", "before `promote.lead`, which leaves a shard alone while successors may be all that is left of it"),
    Row(promote.lead, "plain", "before `members.start`: a lost primary is succeeded before its process comes back empty"),
    Row(elect.lead, "cluster", "before `members.start`: a lost primary is succeeded before its process comes back empty"),
    Row(reshard.record, "cluster", "before `members.start`: a primary starts with what it was last seen to own"),
    Row(members.appoint, "all", "after `promote.lead`, since no new node delays a failover; before `members.start`"),
    Row(certificates.issue, "all", "after `members.appoint`, which gives addresses; before `members.start`: it starts with one"),
    Row(promote.conclude, "all", "after `promote.lead`; before `promote.transfer`: no move begins while a recovery is under way"),
    Row(switch.hand_on, "cluster", "before `configuration.publish`, which leaves it to the front until that has given way"),
    Row(restores.fetch, "all", "after `members.appoint`; before `members.start`: who starts with data waits for them"),
    Row(configuration.publish, "cluster", "before `members.start`: the endpoint leaves a node that is gone before that comes back"),
    Row(
        clients.know,
        "replicated",
        "before `members.start` and `limits.configure`: who may know a user is decided before it is told",
    ),
    Row(members.start, "all", "after whatever says who leads: what comes back follows"),
    Row(announce.troubles, "all", "after `members.start`: what cannot be done is told when nobody waits for a process"),
    Row(cluster.acquaint, "cluster", "before `elect.follow`: a node follows only what it knows"),
    Row(elect.follow, "cluster", "before `followers.track`: who does not follow is not in sync"),
    Row(followers.follow, "plain", "before `followers.track`: who does not follow is not in sync"),
    Row(followers.admit, "replicated", "after `followers.follow`: a replica is let in where it was sent"),
    Row(followers.track, "replicated", "before what rests on who is in sync: `endpoints.publish`, `promote.transfer`"),
    Row(followers.revive, "plain", "after `followers.track`: by then it is out of sync, and nobody reads from it"),
    Row(judge.interrupt, "all", "after `followers.track`: a client's script is ended when nothing presses more"),
    Row(switch.feed, "plain", "after `followers.track`: successors are fed beside replicas that are settled"),
    Row(starve.arm, "plain", "after `followers.track`: a primary depends on replicas while so many are in sync"),
    Row(starve.stop, "all", "after `promote.lead`: an order that fails keeps all rules after it from their turn"),
    Row(endpoints.publish, "plain", "after `followers.track`: readers are sent to who is in sync"),
    Row(endpoints.balance, "all", "after `endpoints.publish`: first where clients write, then where they read"),
    Row(endpoints.discovery, "listed", "before `announce.announce`: a node is available when clients are told of it"),
    Row(configuration.introduce, "cluster", "before `announce.announce`: a node is available when clients are told of it"),
    Row(announce.announce, "all", "after `endpoints.publish`: available is what is served"),
    Row(switch.retire, "cluster", "after `announce.announce`: those that took their place play their part by then"),
    Row(promote.transfer, "replicated", "after `announce.announce`: a lead moves by plan when nothing is broken"),
    Row(reshard.reshard, "cluster", "after `promote.transfer`: slots move when no lead does"),
    Row(members.part, "all", "after `promote.transfer` and `reshard.reshard`: a node leaves when lead and slots have left it"),
    Row(limits.widen, "all", "before `limits.configure`: a process may use more before its engine is told to hold more"),
    Row(limits.configure, "all", "before `limits.narrow`: a process may use less when its engine holds less"),
    Row(credentials.rotate, "all", "after `limits.configure`: one password is in force before the next is decided"),
    Row(clients.forget, "replicated", "after `limits.configure`: who is gone is remembered until no node knows him"),
    Row(certificates.rotate, "all", "after `limits.configure`: one certificate is in force before the next is decided"),
    Row(rollout.resize, "all", "after `limits.configure`: one node type is in force before another is decided"),
    Row(rollout.upgrade, "all", "before `rollout.restart`: a node that is due for several reasons restarts once"),
    Row(rollout.restart, "all", "after `members.part`: who leaves does not restart"),
    Row(backups.schedule, "replicated", "after `members.part`: none is due of what is about to be another"),
    Row(backups.keep, "replicated", "before `jobs.carry`, whose waits would hide that what is deleted does not go"),
    Row(jobs.carry, "all", "after `rollout.restart`: what lasts for minutes waits for nodes that are about to restart"),
    Row(errands.end, "all", "before `errands.begin`: an end is seen before another is taken up"),
    Row(errands.begin, "all", "after `rollout.restart`: what was taken up before goes on first"),
    Row(cluster.settle, "cluster", "after all that could be done: it only says how long to wait for the engines"),
    Row(limits.narrow, "all", "after all that could be done: to use less presses least"),
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
    for rule in rules_of(s.cache):
        answer = first(s, (rule(s),))
        yield rule, answer
        if answer is not None and not isinstance(answer, Wait):
            return


def conclude(s: Situation, said: Iterable[Step | None]) -> Step:
    """The step that follows from what the rules say."""
    return deadlines.overdue(s, first(s, said) or _rest(s))


def rules_of(cache: Cache) -> tuple[Rule, ...]:
    """Those that are asked."""
    applying: set[Applies] = {"always"}
    if cache.ending:
        applying |= {"deleted"}
    elif traits(cache.wanted.engine).listed:
        applying |= {"all", "listed"}
    else:
        applying |= {"all", "replicated", "cluster" if cache.clustered else "plain"}
    return tuple(row.rule for row in RULES if row.applies in applying)


def named(rule: Rule) -> str:
    """How people are told of it: by module and name."""
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


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
