"""Cluster mode: who leads a shard. The engine elects; we begin the election at once when a primary is confirmed gone, and go by
what came of it.

The invariant: a replica is made to stand only when its primary is confirmed gone and it can be shown to have what that one and
whoever may have led since acknowledged (or the user accepts the loss); it takes over without a vote only when no vote can be had
and everybody who could object is confirmed gone, or when a vote has failed; and never before every other replica of its shard is
gone or has confirmed that it lets no engine elect it. One election at a time in the whole cluster, each with an order number of its
own, saved before the engine hears of it.
"""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Act,
    Apply,
    Condemned,
    Decide,
    Effect,
    Elect,
    Election,
    Move,
    Node,
    Predecessor,
    Recovery,
    Replicate,
    Shard,
    Step,
    Stream,
    Swap,
    Wait,
)
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.lead import evidence, judge, promote
from cachekeep.plan.situation import Situation, names, verb, with_nodes, with_shard
from cachekeep.plan.slots.ranges import common

ELECTION_SECONDS = 1.5
"""An election that began lasts a tenth of this. One that has not ended by then was refused by those who
voted in this shard lately."""


def lead(s: Situation) -> Step | None:
    """The first shard that needs something of its leadership."""
    return first(s, (_lead(s, shard) for shard in s.decided.shards))


def _lead(s: Situation, shard: Shard) -> Step | None:
    primary = s.primary(shard)
    if primary is None:
        return promote.abdicated(s, shard)
    if flying := under_way(s, Swap, on=primary.name):
        return flying
    leader = _leader(s, shard)
    if leader is not None and leader.name != primary.name:
        return _adopt(s, shard, primary, leader)
    if isinstance(shard.change, Election):
        return _elect(s, shard, shard.change, primary)
    if isinstance(shard.change, Move):
        return _swap(s, shard, primary)
    if s.leads(primary):
        return _emptied(s, shard, primary)
    if primary.condemned and not s.gone(primary):
        return None
    if s.gone(primary):
        return promote.succeed(s, shard, primary, _nominate)
    return judge.hung(s, shard, primary)


def _leader(s: Situation, shard: Shard) -> Node | None:
    """The node that the engine lets lead: of those that say they do, one that owns slots, and of these the one with the newest
    right to them. One that has lost the shard's slots leads nothing, whatever it says, unless it is to."""
    saying = [
        (bool(c.slots), c.epoch, n.name, n)
        for n in s.members(shard.id)
        if s.leads(n) and (c := s.seen(n).cluster) and (c.slots or not shard.owned or n.name in (shard.primary, shard.moving_to))
    ]
    return max(saying)[3] if saying else None


def _emptied(s: Situation, shard: Shard, primary: Node) -> Step | None:
    """A primary that has lost its slots to one that is no more has dropped its keys with them.
    Whoever followed that one has them."""
    if s.decided.resharding or not _gave(s, shard, primary):
        return None
    followed = {v.follows for n in s.replicas(shard) if s.alive(n) and (v := s.seen(n)).has_history}
    taker = next((n for n in s.replicas(shard) if n.address in followed and s.gone(n)), None)
    return _led(s, shard, primary, taker) if taker is not None else None


def _adopt(s: Situation, shard: Shard, old: Node, new: Node) -> Step:
    seen = s.seen(new).cluster
    assert seen is not None
    planned = shard.change == Move(to=new.name)
    led = replace(
        shard,
        primary=new.name,
        order=shard.order + 1,
        lead_order=shard.order + 1,
        ended=(),
        owned=seen.slots,
        epoch=max(seen.epoch, shard.epoch),
        predecessor=Predecessor(name=old.name, since=s.moment),
        change=None if planned else Recovery(lost=old.name),
        preferred=None,
        accept_stale=False,
    )
    because = f"{new.name} leads shard {shard.id} in place of {old.name}, at epoch {seen.epoch}"
    told = promote.failover_told(s, old, new) if planned else ()
    if shard.moving_to != new.name and (doubt := _unasked(s, shard, old, new)):
        because += doubt
        told = (*told, s.tell(because, group=True))
    decided = with_shard(s.decided, led).unrefused(shard.id)
    if planned and s.leads(old) and (believes := s.seen(old).cluster) and common(believes.slots, seen.slots):
        decided = with_nodes(decided, [replace(old, fate=Condemned(since=s.moment))])
        because += f"; {old.name} has not heard of it, and is stopped for certain before it takes writes beside it"
    return Decide(decided, because, told)


def _unasked(s: Situation, shard: Shard, old: Node, new: Node) -> str:
    """The engines have elected it by themselves, with what it had, while nobody was there to ask. What may be lost by that is
    said."""
    stream = s.seen(new).stream
    began = Stream(stream.before, stream.shared) if stream is not None and stream.before else stream
    ends = evidence.over(s, shard, old)
    seconds = evidence.lack(s, ends, began).seconds
    if seconds is not None and seconds <= s.policy.in_flight_seconds:
        return ""
    return f". The engines elected it, and it cannot be shown to have had {evidence.doubt(s, shard, ends, new, began).words}"


# -- a primary is gone


def _nominate(s: Situation, shard: Shard, lost: Node, best: Node, because: str) -> Step:
    """Decide an election. The primary is another only when the engine has made it one."""
    voters = [x for x in s.decided.shards if x.owned]
    voting = [x for x in voters if (p := s.primary(x)) is not None and s.leads(p)]
    seize = not shard.owned
    if shard.owned and len(voting) <= len(voters) // 2:
        unsure = [p for x in voters if (p := s.primary(x)) is not None and not s.leads(p) and not s.gone(p)]
        if unsure:
            told = (
                f"{lost.name} is gone, and too few primaries are left to elect another: {names(unsure)} is not known to be stopped"
            )
            return Wait(s.policy.poll_seconds * 5, "fence", told, about=(lost.name,), refused=True)
        seize = True
        because += f"; of {len(voters)} primaries only {len(voting)} could vote, and all others are confirmed stopped: "
        because += "it takes over without a vote"
    elif other := _electing(s, shard):
        return Wait(
            s.policy.poll_seconds, "turn", f"{lost.name} is gone; shard {other.id} elects first", about=(lost.name, other.id)
        )
    nominated = replace(
        shard,
        change=Election(to=best.name, lost=lost.name, since=s.moment, seize=seize),
        order=shard.order + 1,
        accept_stale=False,
    )
    return Decide(with_shard(s.decided, nominated).unrefused(shard.id), because)


def _electing(s: Situation, but: Shard) -> Shard | None:
    """A shard whose election may still be won: two at a time would take each other's votes."""
    return next(
        (
            x
            for x in s.decided.shards
            if x.id != but.id and isinstance(x.change, Election) and not x.change.seize and _age(s, x.change) < ELECTION_SECONDS
        ),
        None,
    )


def _age(s: Situation, election: Election) -> float:
    return s.seconds_since(election.since) or 0.0


def _elect(s: Situation, shard: Shard, election: Election, lost: Node) -> Step:
    """An election that has been decided: begun once, waited for, begun otherwise, or called off."""
    taker = s.cache.node(election.to)
    if taker is not None and s.gone(taker) and s.gone(lost) and evidence.usurps(s, shard, taker):
        return _led(s, shard, lost, taker)
    if s.runs(lost) or taker is None or s.gone(taker) or taker.leaving:
        return _call_off(s, shard, f"{lost.name} is back" if s.runs(lost) else f"{election.to} is gone")
    if not s.alive(taker):
        if _age(s, election) <= ELECTION_SECONDS:
            return Wait(s.policy.poll_seconds, "answer", f"{taker.name} does not answer yet", about=(taker.name,))
        return _give_up(s, shard, taker) if election.seize else _call_off(s, shard, f"{taker.name} does not answer")
    if not s.told(taker, shard):
        if election.seize and (rivalry := _rivals(s, shard, taker)) is not None:
            return rivalry
        how = "takes over shard" if election.seize else "stands for election in shard"
        others = tuple(p.name for x in s.decided.shards if election.seize and x is not shard and (p := s.primary(x)) and s.leads(p))
        return Act(
            ((Elect(taker.name, shard.order, election.seize, others),),), f"{taker.name} {how} {shard.id} (order {shard.order})"
        )
    if _age(s, election) < ELECTION_SECONDS:
        return Wait(s.policy.poll_seconds, "election", f"{taker.name} is being elected", about=(taker.name,))
    if not election.seize:
        because = (
            f"the vote for {taker.name} has failed, and {lost.name} is confirmed stopped: "
            "it takes over when nobody else can be elected"
        )
        seized = replace(shard, change=replace(election, seize=True, since=s.moment), order=shard.order + 1)
        return Decide(with_shard(s.decided, seized), because)
    return _call_off(s, shard, f"{taker.name} was not elected")


def _rivals(s: Situation, shard: Shard, taker: Node) -> Step | None:
    """Engines elect by themselves when they miss a primary for their node timeout, which each measures by a wall clock that may
    be set meanwhile. So nothing is concluded from the time: whoever could be elected in the taker's place is made to abstain, and
    then seen to be a replica still. Without another shard there is nobody who could vote for them."""
    voters = any(x.owned for x in s.decided.shards if x is not shard)
    rivals = [n for n in s.replicas(shard) if voters and n is not taker and not s.gone(n)]
    asked = [n for n in rivals if s.alive(n) and not runtime(s.cache, n).is_in(s.seen(n).digests, "settings")]
    if asked:
        effects: tuple[Effect, ...] = tuple(Apply(n.name, ("settings",)) for n in asked)
        return Act((effects,), f"{names(asked)} {verb(asked, 'abstains', 'abstain')} from elections while {taker.name} takes over")
    silent = [n for n in rivals if not s.alive(n)]
    if not silent:
        return None
    late = [
        n
        for n in silent
        if not n.condemned and (s.seen(n).process == "frozen" or s.seen(n).waiting_seconds >= s.policy.replica_seconds)
    ]
    if late:
        because = f"{late[0].name} does not answer and might be elected while {taker.name} takes over: it is stopped for certain"
        return judge.condemn(s, late[0], because)
    return Wait(
        s.policy.poll_seconds,
        "answer",
        f"{taker.name} takes over when {names(silent)} cannot be elected in its place",
        about=(taker.name,),
    )


def _give_up(s: Situation, shard: Shard, taker: Node) -> Step:
    """Who may have been told to take over without a vote, and does not answer, may do so late, when another leads already, and
    nobody's vote would keep it from taking that one's slots. So it is stopped for certain before another is told."""
    others = [n for n in evidence.sure(s, shard, evidence.over(s, shard, s.primary(shard))) if n is not taker]
    if taker.condemned:
        return Wait(s.policy.poll_seconds, "fence", f"{taker.name} is being stopped", about=(taker.name,))
    if not others:
        return Wait(
            s.policy.poll_seconds,
            "answer",
            f"{taker.name} does not answer yet, and nobody else could lead",
            about=(taker.name,),
            refused=True,
        )
    because = (
        f"{taker.name} was to take over and does not answer: it is stopped for certain before {names(others[:1])} or another does"
    )
    return judge.condemn(s, taker, because)


def _call_off(s: Situation, shard: Shard, why: str) -> Step:
    primary = s.primary(shard)
    led = promote.led_on(shard) if primary is not None and s.leads(primary) and not _gave(s, shard, primary) else shard
    calm = replace(led, change=None)
    return Decide(with_shard(s.decided, calm), f"the lead of shard {shard.id} does not go to {shard.moving_to}: {why}")


# -- planned moves


def _swap(s: Situation, shard: Shard, giver: Node) -> Step:
    """A planned move that has been decided: carried out or called off. When it is done the taker is adopted."""
    taker = s.cache.node(shard.moving_to or "")
    if taker is not None and s.gone(taker):
        if _gave(s, shard, giver) or (s.gone(giver) and evidence.usurps(s, shard, taker)):
            return _led(s, shard, giver, taker)
        if s.told(taker, shard) and not s.alive(giver) and not s.gone(giver):
            return Wait(
                s.policy.poll_seconds,
                "answer",
                f"{taker.name} is gone and may have led: {giver.name} does not answer yet",
                about=(giver.name,),
            )
    if taker is None or s.gone(taker):
        return _call_off(s, shard, f"{shard.moving_to} is gone")
    if not s.alive(taker) and s.told(taker, shard):
        return _give_up(s, shard, taker) if s.gone(giver) else _doubtful(s, shard, giver, taker)
    if s.gone(giver) or taker.leaving:
        return _call_off(s, shard, f"{giver.name if s.gone(giver) else taker.name} is gone")
    if not s.alive(giver) or not s.alive(taker):
        waiting = max(s.seen(giver).waiting_seconds, s.seen(taker).waiting_seconds)
        if waiting > s.policy.hand_over_seconds:
            return _call_off(s, shard, f"{giver.name} or {taker.name} does not answer")
        return Wait(
            s.policy.poll_seconds, "answer", f"the move to {taker.name} waits for an answer", about=(giver.name, taker.name)
        )
    if not s.leads(giver):
        return _call_off(s, shard, f"{giver.name} does not lead")
    if s.leads(taker):
        return _call_off(s, shard, f"{taker.name} leads, but not what {giver.name} does")
    if taker.name not in shard.in_sync:
        return _call_off(s, shard, f"{taker.name} is not in sync")
    if (seen := s.seen(giver).cluster) is not None and (seen.migrating or seen.importing):
        because = f"{giver.name} hands shard {shard.id} over when no slot of it is half open: the taker would not know of that"
        return Wait(s.policy.poll_seconds, "slots", because, about=(giver.name,))
    swap = Swap(giver.name, taker.name, shard.order, s.policy.hand_over_seconds)
    return Act(((swap,),), f"{giver.name} hands shard {shard.id} over to {taker.name} (order {shard.order})")


def _gave(s: Situation, shard: Shard, giver: Node) -> bool:
    """The giver owns nothing any more: somebody has taken its slots, and it has dropped its keys or follows that one."""
    seen = s.seen(giver).cluster
    return s.alive(giver) and seen is not None and not seen.slots and bool(shard.owned)


def _led(s: Situation, shard: Shard, giver: Node, taker: Node) -> Step:
    """The taker has led, or may have, and died before anybody saw it: whoever has what it had, which the giver has not, is its
    successor."""
    led = replace(
        shard,
        primary=taker.name,
        change=None,
        order=shard.order + 1,
        lead_order=shard.order,
        ended=evidence.over(s, shard, giver) if s.gone(giver) else shard.ended,
        preferred=None,
    )
    return Decide(with_shard(s.decided, led), f"{taker.name} may have taken shard {shard.id} over from {giver.name}, and is gone")


def _doubtful(s: Situation, shard: Shard, giver: Node, taker: Node) -> Step:
    """The taker may have been told, and would take over whenever it wakes up, with less than the giver has by then: the giver's
    pause ends soon. So it is stopped for certain at once."""
    v = s.seen(taker)
    # Who sees neither of them is told nothing by silence.
    late = v.silent_seconds >= s.policy.hand_over_seconds / 2
    hangs = v.process == "frozen" or (late and (s.leads(giver) or judge.why_hung(s, shard, giver) is not None))
    if taker.condemned or not hangs:
        return Wait(s.policy.poll_seconds, "answer", f"the move to {taker.name} waits for an answer", about=(taker.name,))
    because = (
        f"{taker.name} was to take over from {giver.name} and does not answer: it is stopped for certain, before it does so late"
    )
    return judge.condemn(s, taker, because)


# -- replicas


def follow(s: Situation) -> Step | None:
    """Replicas follow the primary of their shard. The engine sees to it; this is for those that came up while it changed."""
    effects: list[Effect] = []
    guarded: Wait | None = None
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not s.leads(primary) or shard.moving_to:
            continue
        for node in s.replicas(shard):
            seen = s.seen(node)
            if not s.alive(node) or seen.cluster is None or seen.follows == primary.address:
                continue
            if s.cluster_ids[primary.name] not in seen.cluster.knows or seen.cluster.slots:
                continue  # it has not met the primary yet, or has not heard yet that it was replaced
            if seen.has_history and node.name in shard.confirmed.nodes and s.seen(primary).has_history is False:
                because = (
                    f"{primary.name} leads but is empty, while {node.name} holds data: it is not told to follow, "
                    "or it would be emptied"
                )
                guarded = guarded or Wait(1.0, "empty", because, about=(primary.name,), refused=True)
                continue
            effects.append(Replicate(node.name, primary.name, shard.order))
    if not effects:
        return guarded
    act = Act((tuple(effects),), f"{' and '.join(e.node for e in effects if isinstance(e, Replicate))} follows its primary")
    return first(s, (guarded, act))
