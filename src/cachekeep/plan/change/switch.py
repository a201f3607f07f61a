"""From ``compatible`` to ``enabled``: nodes in cluster mode take the place of those without, all at once.

Beside each node a successor starts in cluster mode, fed by the group's primary as a replica is. When all of them have what it has,
the lead moves to one of them, and by one decision the successors become the nodes of the group. So a group is without cluster mode
or in it, never both: until then its own replicas take over where they must, afterwards the successors do.

The invariant: a successor leads only (a) by a ``Convert`` from a primary that has stepped down for it, or (b) when it was fed and
can be shown to have what the primary acknowledged, and that one and all in-sync replicas are lost; and only if it has refused
nothing of what it was fed. It becomes a node only when the old primary is seen to lead no more; until then no endpoint leads to it,
so to lead in vain harms nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    Bind,
    Confirmed,
    Conversion,
    Convert,
    Decide,
    Decided,
    Effect,
    Elect,
    Erase,
    Node,
    Preparing,
    Retiring,
    Shard,
    Spoilt,
    Start,
    Starving,
    Step,
    Stop,
    Wait,
)
from cachekeep.plan.flights import under_way
from cachekeep.plan.lead import evidence, judge, promote
from cachekeep.plan.nodes import announce
from cachekeep.plan.nodes.members import Needs, stop_stale
from cachekeep.plan.reach import configuration, followers
from cachekeep.plan.situation import Situation, listed, names, verb, with_shard, with_successors
from cachekeep.plan.slots.ranges import SLOTS

SUFFIX = ".cluster"
"""A successor's name is that of its member with this: both have processes at the same time."""
REST_SECONDS = 10.0
"""A successor that refused something is fed anew after this long: clients that go on as they do would have it fed for ever."""
RETRY_SECONDS = 5.0
"""A hand-over that was called off is tried again after this long, and one that goes on for as long is called off."""


# -- who leads


def give_way(s: Situation) -> Step | None:
    """Successors acknowledge what they are fed, and a primary that is to starve would not."""
    there = [n for n in s.decided.successors if not s.gone(n) and (s.alive(n) or s.seen(n).reachable is not False)]
    if not there or not any(isinstance(x.change, Starving) for x in s.decided.shards):
        return None
    return Act((tuple(Stop(n.name) for n in there),), f"{names(there)} {verb(there, 'leaves', 'leave')} a primary that is starved")


def lead(s: Situation) -> Step | None:
    """The hand-over to a successor: by plan, or because nobody else is left."""
    for shard in s.decided.shards:
        turn = shard.change if isinstance(shard.change, Conversion) else None
        taker, heirs = s.successor(turn.to) if turn else None, s.heirs(shard)
        if taker is None and not heirs:
            continue
        if flying := under_way(s, Convert, on=shard.primary):
            return flying
        # Who was told to lead and did not answer might do so beside another.
        if stale := stop_stale(s, s.decided.successors):
            return stale
        return _turn(s, shard, turn, taker) if turn and taker else _inherit(s, shard, heirs)
    return None


def _inherit(s: Situation, shard: Shard, heirs: list[Node]) -> Step:
    if not s.switching:
        because = (
            f"{shard.primary} is lost and no in-sync replica is left; {names(heirs)} may have what they had: "
            "set ClusterMode=enabled again to go on with that"
        )
        return Wait(1.0, "consent", because, about=tuple(n.name for n in heirs), refused=True)
    best = promote.foremost(s, [n for n in heirs if s.alive(n)], s.primary(shard))
    if best is None:
        because = (
            f"{shard.primary} is lost and no in-sync replica is left; {names(heirs)} may hold what they had "
            f"but {verb(heirs, 'does', 'do')} not answer yet"
        )
        return Wait(s.policy.poll_seconds, "answer", because, about=tuple(n.name for n in heirs), refused=True)
    lost = s.primary(shard)
    assert lost is not None
    ends = evidence.over(s, shard, lost)
    sure = [n for n in heirs if s.alive(n) and evidence.shown(s, ends, n)]
    best = promote.foremost(s, sure, lost) or best
    known = replace(shard, ended=ends)
    if not sure and not shard.accept_stale:
        return promote.refuse(s, known, lost, best)
    because = (
        f"{shard.primary} is lost and no in-sync replica is left: {best.name} has what they had and becomes primary in cluster mode"
        if sure
        else f"{best.name} becomes primary in cluster mode although it may lack something: the user accepted the loss"
    )
    turned = replace(
        known,
        change=Conversion(to=best.name, since=s.moment, lost=lost.name),
        order=shard.order + 1,
    )
    return Decide(with_shard(s.decided, turned), because)


def _turn(s: Situation, shard: Shard, turn: Conversion, taker: Node) -> Step:
    """A hand-over that has been decided: carried out, finished, or called off."""
    giver = s.primary(shard)
    if not s.switching or giver is None:
        return _call_off(s, shard, turn, "cluster mode is not wanted any more")
    took = s.leads(taker) and s.told(taker, shard) and not s.refused(taker)
    if took and not s.leads(giver) and (s.alive(giver) or s.gone(giver)):
        return _enable(s, shard, taker)
    if not s.runs(taker):
        return _call_off(s, shard, turn, f"{taker.name} is gone")
    if s.lost(giver):
        return _seize(s, shard, turn, giver, taker)
    if _age(s, turn) > RETRY_SECONDS and not took:
        return _call_off(s, shard, turn, f"it took longer than {RETRY_SECONDS:g} s")
    if not s.alive(giver) or not s.alive(taker):
        waiting = max(s.seen(giver).waiting_seconds, s.seen(taker).waiting_seconds)
        if waiting <= s.policy.hand_over_seconds:
            return Wait(
                s.policy.poll_seconds, "answer", f"the move to {taker.name} waits for an answer", about=(giver.name, taker.name)
            )
        if took:  # which it did not before the giver had stepped down
            return judge.condemn(s, giver, f"{taker.name} leads in its place, and {giver.name} does not answer")
        return _call_off(s, shard, turn, f"{giver.name} or {taker.name} does not answer")
    if s.leads(taker):
        return _call_off(s, shard, turn, f"{taker.name} leads, but not by this order")
    if not s.leads(giver):
        return _call_off(s, shard, turn, f"{giver.name} does not lead")
    if not _in_step(s, giver, taker):
        return _call_off(s, shard, turn, f"{taker.name} does not have all that {giver.name} has")
    convert = Convert(giver.name, taker.name, shard.order, (giver.address,), s.policy.hand_over_seconds)
    return Act(((convert,),), f"{giver.name} hands over to {taker.name}, which is in cluster mode (order {shard.order})")


def _seize(s: Situation, shard: Shard, turn: Conversion, lost: Node, taker: Node) -> Step:
    if taker not in s.heirs(shard):
        return _call_off(s, shard, turn, f"{lost.name} is gone")
    if not s.alive(taker):
        others = [n for n in s.heirs(shard) if n != taker and s.alive(n)]
        if others and _age(s, turn) > RETRY_SECONDS:
            return _call_off(s, shard, turn, f"{taker.name} does not answer, and {names(others[:1])} does")
        return Wait(
            s.policy.poll_seconds,
            "answer",
            f"the move to {taker.name} waits for an answer",
            about=(taker.name,),
            refused=not others,
        )
    elect = Elect(taker.name, shard.order, seize=True)
    return Act(((elect,),), f"{taker.name} takes the lead from {lost.name}, which is gone (order {shard.order})")


def _age(s: Situation, conversion: Conversion) -> float:
    return s.seconds_since(conversion.since) or 0.0


def _call_off(s: Situation, shard: Shard, turn: Conversion, why: str) -> Decide:
    """By a later order. A taker that has seen this one starts anew:
    it may lead yet, or late, which harms nobody only as long as nobody is led to it."""
    calm = replace(shard, change=None, order=shard.order + 1)
    told = [n for n in s.decided.successors if n.name == turn.to and s.told(n, shard)]
    decided = _with(s, [_anew(n) for n in told])
    decided = with_shard(replace(decided, switch=replace(decided.preparing, tried_at=turn.since)), calm)
    return Decide(decided, f"the move to {turn.to} is called off: {why}; nothing was lost")


def _anew(node: Node) -> Node:
    return replace(node, incarnation=node.incarnation + 1, fate=None)


def _enable(s: Situation, shard: Shard, taker: Node) -> Decide:
    """The one decision by which the group is in cluster mode."""
    seen = s.seen(taker).cluster
    everything = ((0, SLOTS - 1),)
    led = Shard(
        id=shard.id,
        primary=taker.name,
        order=shard.order,
        lead_order=shard.order,
        confirmed=Confirmed(
            primary=taker.name,
            order=shard.order,
            nodes=frozenset(n.name for n in s.decided.successors if n != taker and _follows_on(s, taker, n)),
            at=s.now,
        ),
        slots=everything,
        owned=everything,
        epoch=seen.epoch if seen else shard.epoch,
    )
    decided = replace(
        s.decided,
        nodes=tuple(replace(n if _follows_on(s, taker, n) else _anew(n), announced=True) for n in s.decided.successors),
        mode="enabled",
        switch=Retiring(nodes=s.decided.nodes, since=s.moment),
        shards=(led,),
        fronts=tuple(replace(f, leaving=True) for f in s.decided.fronts),
        configuration_node=taker.name,
        refusals=(),
    )
    told = s.tell(f"Cluster mode of replication group {s.cache.name} has been enabled", group=True)
    return Decide(decided, f"{taker.name} leads in place of {shard.primary}: {s.cache.name} is in cluster mode", (told,))


def _follows_on(s: Situation, taker: Node, node: Node) -> bool:
    """Has what the taker had, as far as it is known, and is ready to follow it. Others start anew."""
    fed = node.name in s.decided.fed and s.alive(node) and not s.refused(node)
    return node == taker or (fed and s.seen(node).role == "replica")


# -- successors


def feed(s: Situation) -> Step | None:
    """Successors are appointed and started, and take over when all have been fed."""
    if not s.switching:
        if any(s.left_to_successors(x) for x in s.decided.shards):
            return None  # they may be all that is left
        return _dismiss(s, s.decided.successors) or _forget(s)
    shard = s.decided.shards[0]
    primary = s.primary(shard)
    busy = shard.moving_to or isinstance(shard.change, Starving)
    if s.decided.available_at is None or busy or primary is None or not s.leads(primary):
        return None
    return (
        _dismiss(s, [n for n in s.decided.successors if n.member not in s.cache.wanted_names()])
        or _refused(s)
        or _track(s, primary)
        or _room(s, primary)
        or _appoint(s)
        or _renew(s, primary)
        or stop_stale(s, s.decided.successors)
        or _start(s)
        or _ready(s, shard, primary)
    )


def _dismiss(s: Situation, nodes: Sequence[Node]) -> Step | None:
    if not nodes:
        return None
    there = [n for n in nodes if s.seen(n).process != "absent"]
    if there:
        return Act((tuple(Erase(n.name) for n in there),), f"{names(there)} {verb(there)} not needed any more")
    left = tuple(n for n in s.decided.successors if n not in nodes)
    return Decide(
        _prepared(s, successors=left, confirmed=_confirmed(s, {n.name for n in nodes})),
        f"{names(nodes)} {verb(nodes, 'has', 'have')} left",
    )


def _forget(s: Situation) -> Step | None:
    """Next time, it is told again."""
    if not s.decided.preparing.other_databases:
        return None
    return Decide(_prepared(s, other_databases=()), "other databases may hold keys")


def _refused(s: Situation) -> Step | None:
    """Who refused something is of no use, whatever comes after."""
    spoilt = [n for n in s.decided.successors if n.fate is None and s.alive(n) and s.refused(n)]
    if not spoilt:
        return None
    because = (
        f"{s.cache.name} cannot be in cluster mode while its clients use other databases than 0: "
        f"{names(spoilt)} could not follow, and "
        f"{verb(spoilt, 'is', 'are')} fed anew in {REST_SECONDS:g} s. Nothing was lost"
    )
    return Decide(_with(s, [replace(n, fate=Spoilt(since=s.moment)) for n in spoilt]), because, (s.tell(because, group=True),))


def _room(s: Situation, primary: Node) -> Step | None:
    """An engine in cluster mode ends when it is fed keys of other databases."""
    others = s.seen(primary).other_databases
    because = (
        f"{s.cache.name} cannot be in cluster mode while databases other than 0 hold keys ({listed(map(str, others))}). "
        f"Delete or move them, or set ClusterMode=compatible again; nothing was changed"
    )
    if not set(others) <= set(s.decided.preparing.other_databases):  # told once: they may come and go
        known = tuple(sorted({*others, *s.decided.preparing.other_databases}))
        return Decide(_prepared(s, other_databases=known), because, (s.tell(because, group=True),))
    return Wait(1.0, "databases", because, refused=True) if others else None


def _appoint(s: Situation) -> Step | None:
    have = {n.member for n in s.decided.successors}
    nodes = [n for n in s.decided.nodes if n.member not in have and not n.leaving]
    if not nodes or s.decided.retired:
        return None
    needs = Needs(s)
    fresh = tuple(
        Node(
            name=n.member + SUFFIX,
            in_place_of=n.member,
            shard=n.shard,
            zone=n.zone,
            address=needs.take(),
            port=n.port,
            engine=n.engine,
            version=n.version,
            node_type=n.node_type,
            created_at=s.now,
        )
        for n in nodes
    )
    if lacking := needs.lacking():
        return lacking
    decided = _prepared(s, successors=(*s.decided.successors, *fresh))
    return Decide(decided, f"{names(fresh)} {verb(fresh)} appointed, in cluster mode")


def _renew(s: Situation, primary: Node) -> Step | None:
    """Who ended, hangs, follows another or was spoilt starts anew: what it holds is the primary's."""
    useless = [n for n in s.decided.successors if _useless(s, primary, n)]
    if not useless:
        return None
    return Decide(_with(s, [_anew(n) for n in useless]), f"{names(useless)} {verb(useless, 'starts', 'start')} anew")


def _useless(s: Situation, primary: Node, node: Node) -> bool:
    v = s.seen(node)
    if isinstance(node.fate, Spoilt):
        return (s.seconds_since(node.fate.since) or 0.0) >= REST_SECONDS
    if v.silent_seconds >= s.policy.replica_seconds if v.process == "frozen" else s.mute(node):
        return s.runs(node)
    return s.ended(node) or (s.alive(node) and v.follows != primary.address)


def _start(s: Situation) -> Step | None:
    absent = [n for n in s.decided.successors if s.seen(n).process in ("absent", "exited")]
    if not absent:
        return None
    return Act((tuple(Start(n.name) for n in absent),), f"{names(absent)} {verb(absent, 'has', 'have')} no process yet")


def _track(s: Situation, primary: Node) -> Step | None:
    fed = frozenset(n.name for n in s.decided.successors if _in_step(s, primary, n))
    if fed == s.decided.fed:
        return None
    because = f"{listed(sorted(fed))} {verb(fed, 'has', 'have')} what {primary.name} has"
    confirmed = Confirmed(primary=primary.name, order=s.decided.shards[0].lead_order, nodes=fed, at=s.now)
    return Decide(_prepared(s, confirmed=confirmed), because)


def _in_step(s: Situation, primary: Node, node: Node) -> bool:
    """In sync as any replica, and all that it was fed it has carried out."""
    spoilt = isinstance(node.fate, Spoilt) or (s.seen(node).answering is True and s.refused(node))
    return not spoilt and followers.in_sync(s, s.decided.fed, primary, node)


def _ready(s: Situation, shard: Shard, primary: Node) -> Step | None:
    """The move begins when everybody is fed and nothing else is going on."""
    behind = [n for n in s.decided.successors if n.name not in s.decided.fed]
    if behind:
        return Wait(
            s.policy.poll_seconds * 5,
            "sync",
            f"{names(behind)} {verb(behind)} fed what {primary.name} has",
            about=tuple(n.name for n in behind),
        )
    if any(n.leaving or n.due or n.condemned for n in s.decided.nodes) or _pause(s) > 0:
        return Wait(max(_pause(s), s.policy.poll_seconds * 5), "turn", "the move to cluster mode waits until all is calm")
    if {n.member for n in s.decided.nodes} != {n.member for n in s.decided.successors}:
        return None
    same = [n for n in s.decided.successors if n.member == primary.member and s.alive(n)]
    to = next(iter(same), None) or promote.foremost(s, [n for n in s.decided.successors if s.alive(n)], primary)
    if to is None:
        return None
    turned = replace(shard, change=Conversion(to=to.name, since=s.moment), order=shard.order + 1)
    return Decide(with_shard(s.decided, turned), f"all successors have what {primary.name} has: {to.name} becomes primary")


def _pause(s: Situation) -> float:
    tried_at = s.decided.preparing.tried_at
    return RETRY_SECONDS - (s.seconds_since(tried_at) or 0.0) if tried_at else 0.0


def _with(s: Situation, changed: list[Node]) -> Decided:
    """These successors in place of their namesakes: they have to be fed again."""
    switch = with_successors(s.decided, changed).preparing
    return _prepared(s, successors=switch.successors, confirmed=_confirmed(s, {n.name for n in changed}))


def _prepared(s: Situation, **changes: object) -> Decided:
    """What is prepared, with changes; when nothing of it is left there is no switch under way."""
    preparing = replace(s.decided.preparing, **changes)
    return replace(s.decided, switch=None if preparing == Preparing() else preparing)


def _confirmed(s: Situation, lost: Collection[str]) -> Confirmed:
    """Without these."""
    known = s.decided.preparing.confirmed
    return replace(known, nodes=known.nodes - set(lost))


# -- those whose place was taken


def hand_on(s: Situation) -> Step | None:
    """The configuration endpoint goes from the front to a node. Not before the others have been told to follow the new primary, and
    it is known which of them do, for that one takes writes from then on; nor much later, whatever keeps them from it."""
    switch = s.decided.switch
    if not isinstance(switch, Retiring):
        return None
    shard = s.decided.shards[0]
    primary = s.primary(shard)
    if primary is not None and s.leads(primary):
        unsure = [n for n in s.replicas(shard) if n.name in shard.in_sync and not followers.in_sync(s, shard.in_sync, primary, n)]
        if unsure and (s.seconds_since(switch.since) or 0.0) < RETRY_SECONDS:
            return None
        if unsure:
            left = evidence.without(shard, {n.name for n in unsure})
            return Decide(with_shard(s.decided, left), f"{names(unsure)} {verb(unsure)} out of sync and may not be promoted")
    fronts = [f for f in s.decided.fronts if (v := s.view.fronts.get(f.name)) is None or v.process != "absent"]
    if not fronts:
        return configuration.publish_now(s)
    stages: list[tuple[Effect, ...]] = [tuple(Erase(f.name) for f in fronts)]
    holder, address = s.cache.node(s.decided.configuration_node or ""), s.decided.configuration_address
    if holder is not None and address and s.alive(holder):
        stages.append((Bind(holder.name, (holder.address, address)),))
    return Act(tuple(stages), f"{listed(f.name for f in fronts)} {verb(fronts, 'gives', 'give')} way to the nodes")


def retire(s: Situation) -> Step | None:
    """They are erased at once, and forgotten when those that took their place are all in sync."""
    if not s.decided.retired:
        return None
    there = [n for n in s.decided.retired if s.seen(n).process != "absent"]
    if there:
        return Act(
            (tuple(Erase(n.name) for n in there),),
            f"{names(there)} {verb(there, 'has', 'have')} been replaced: process and files go",
        )
    late = [n for n in s.decided.nodes if not n.leaving and not announce.ready(s, n)]
    if late:
        return Wait(
            s.policy.poll_seconds * 5,
            "sync",
            f"{names(late)} {verb(late)} not in sync in cluster mode yet",
            about=tuple(n.name for n in late),
        )
    return Decide(replace(s.decided, switch=None), f"{s.cache.name} is in cluster mode, with all its nodes")
