"""Who leads a shard: the first promotion, failover, planned moves.

The invariant: a node is promoted only (a) when nobody in the shard holds any history, (b) when the primary is confirmed gone and
the node can be shown to have what it and whoever may have led since acknowledged, (c) by a hand-over from a primary that is seen to
lead, or (d) because the user accepted the loss. Each promotion has an order number of its own, saved before the engine hears of it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    Decide,
    Effect,
    Ended,
    Event,
    Follow,
    HandOver,
    Move,
    Node,
    Promote,
    Recovery,
    Refusal,
    Shard,
    Step,
    Wait,
)
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.lead import evidence, judge
from cachekeep.plan.reach.endpoints import addresses
from cachekeep.plan.situation import Situation, names, verb, with_shard

Appoint = Callable[[Situation, Shard, Node, Node, str], Step]
"""(situation, shard, who was lost, who becomes primary, why) → what makes it so."""


def outrun(s: Situation) -> Step | None:
    """Whoever has seen a later order than its shard's would refuse whatever it is told: a late order to a node of the same name
    that is no more, or a store that went back to an older copy. Orders only grow, so the next ones are greater."""
    for shard in s.decided.shards:
        seen, name = max(((s.seen(n).last_order or 0, n.name) for n in s.members(shard.id)), default=(0, ""))
        if seen > shard.order:
            decided = with_shard(s.decided, replace(shard, order=seen + 1))
            return Decide(decided, f"{name} has seen order {seen} of shard {shard.id}: the next one is {seen + 1}")
    return None


def lead(s: Situation) -> Step | None:
    """The first shard that needs something of its leadership."""
    return first(s, (_lead(s, shard) for shard in s.decided.shards))


def _lead(s: Situation, shard: Shard) -> Step | None:
    if s.left_to_successors(shard):
        return None
    primary = s.primary(shard)
    if primary is None:
        return abdicated(s, shard)
    if flying := under_way(s, HandOver, on=primary.name):
        return flying
    if shard.moving_to is not None:
        return _move(s, shard, primary)
    if s.leads(primary):
        return None
    if (heir := _heir(s, shard, primary)) is not None:
        return _handed_over(s, shard, primary, heir, f"{primary.name} has handed over to {heir.name}, though that was called off")
    if primary.condemned and not s.gone(primary):
        return None  # members.stop confirms it first, or starving.starve goes another way
    if s.gone(primary):
        return succeed(s, shard, primary, take_over)
    return judge.hung(s, shard, primary) or _first_promotion(s, shard, primary)


def _heir(s: Situation, shard: Shard, primary: Node) -> Node | None:
    """Who leads by a move that nobody saw the end of: the primary itself follows it.
    To take the lead back would lose what it has written."""
    follows = s.seen(primary).follows if s.alive(primary) else None
    return next((n for n in s.replicas(shard) if n.address == follows and s.leads(n)), None) if follows else None


def abdicated(s: Situation, shard: Shard) -> Step | None:
    """The decided primary is no longer a node at all: the best of the others."""
    members = s.members(shard.id, leaving=False)
    if not members:
        return None
    best = foremost(s, [n for n in members if s.alive(n) and s.seen(n).has_history], None) or members[0]
    led = replace(shard, primary=best.name, order=shard.order + 1, lead_order=shard.order + 1, min_replicas=0)
    decided = with_shard(s.decided, led)
    return Decide(decided, f"shard {shard.id} has no primary: {best.name} becomes primary")


# -- the primary is there but does not lead yet


def _first_promotion(s: Situation, shard: Shard, primary: Node) -> Step | None:
    """A process starts as a replica of nobody; the decided primary is told to lead,
    unless somebody else holds more than it does."""
    if not s.alive(primary):
        return None
    v = s.seen(primary)
    others = [n for n in s.replicas(shard) if s.runs(n)]
    if v.has_history is False:
        lost = succeed(s, shard, primary, take_over)  # an empty process is as good as none, for whoever holds data
        if lost is not None:
            return lost
        unknown = [n for n in others if s.seen(n).answering is not True]
        if unknown and s.decided.available_at is not None:  # before that nobody has written anything
            because = f"{primary.name} is empty; {names(unknown)} may hold data but does not answer yet"
            return Wait(s.policy.poll_seconds, "answer", because, about=tuple(n.name for n in unknown), refused=True)
        if shard.ended and others:
            anew = with_shard(s.decided, replace(shard, ended=()))
            return Decide(anew, f"nobody holds anything of what {shard.ended[0].primary} wrote: {primary.name} begins anew")
    elif (rival := next((n for n in others if s.leads(n) and evidence.usurps(s, shard, n)), None)) is not None:
        return _handed_over(s, shard, primary, rival, f"{rival.name} leads by a later order than {primary.name}")
    else:
        ends = evidence.over(s, shard, None)
        if doubtful := evidence.doubtful(s, shard):
            return _make_sure(s, replace(shard, ended=ends), doubtful[0], [primary])
        # Somebody that nobody has seen led meanwhile, or the primary is not where all they have comes from.
        if ahead := evidence.ahead(s, s.replicas(shard, leaving=False), primary):
            best = foremost(s, ahead, primary) or ahead[0]
            told = f"{best.name} has what {primary.name} lacks, and becomes primary"
            ends = evidence.vouched(ends, best) if evidence.proven(s, ends, primary) else ends
            return take_over(s, replace(shard, ended=ends), primary, best, told)
        if not evidence.proven(s, ends, primary):
            return _unproven(s, replace(shard, ended=ends), primary)
        if (rival := next((n for n in others if s.leads(n)), None)) is not None:
            stages = ((Follow(rival.name, primary.name, shard.order),), (_promote(s, shard, primary),))
            return Act(stages, f"{rival.name} leads but is not the primary")
    return Act(
        ((_promote(s, shard, primary),), _follow(s, shard, primary)),
        f"{primary.name} becomes primary of shard {shard.id} (order {shard.order})",
    )


def _promote(s: Situation, shard: Shard, primary: Node) -> Promote:
    return Promote(primary.name, shard.order, addresses(s, shard, primary))


def _unproven(s: Situation, shard: Shard, primary: Node) -> Step:
    """It is to lead, but somebody may have led since that was decided, and is gone."""
    lost = s.cache.node(shard.ended[-1].primary) or primary
    decided = with_shard(s.decided, replace(shard, ended=(), accept_stale=False))
    if shard.accept_stale:
        return Decide(decided, f"{primary.name} becomes primary although it may lack something: the user accepted the loss")
    if allowed := evidence.within_budget(s, shard.ended, primary):
        because = f"{primary.name} becomes primary: {allowed}"
        return Decide(decided, because, (s.tell(because, group=True),))
    return refuse(s, shard, lost, primary)


def _follow(s: Situation, shard: Shard, primary: Node) -> tuple[Effect, ...]:
    """All other nodes of the shard that answer follow the primary."""
    return tuple(Follow(n.name, primary.name, shard.order) for n in s.replicas(shard) if s.alive(n))


# -- the primary is gone


def succeed(s: Situation, shard: Shard, lost: Node, appoint: Appoint) -> Step | None:
    """The primary and what it held are gone: of those who can be shown to have it, the one that has the most takes over; else
    whoever may."""
    shard, before = replace(shard, ended=evidence.over(s, shard, lost)), shard
    others = s.replicas(shard)
    if doubtful := evidence.doubtful(s, shard):
        return _make_sure(s, shard, doubtful[0], s.replicas(shard, leaving=False))
    best = foremost(s, evidence.sure(s, shard, shard.ended), lost, shard.ended)
    if best is not None:
        told = f"{lost.name} is gone: {best.name} has the most of what it wrote and becomes primary"
        return appoint(s, replace(shard, ended=evidence.vouched(shard.ended, best)), lost, best, told)
    known = with_shard(s.decided, shard)
    told = f"{lost.name} is gone, and nobody who answers can be shown to have what it wrote"
    holders = [n for n in others if s.alive(n) and s.seen(n).has_history]
    waiting = [n for n in others if not n.leaving and n.name in shard.confirmed.nodes and s.runs(n) and not s.alive(n)]
    if waiting and not (holders and all(s.hangs(n) for n in waiting)):
        because = f"{lost.name} is gone; {names(waiting)} may have what it wrote but {verb(waiting, 'does', 'do')} not answer yet"
        return (
            Wait(s.policy.poll_seconds, "answer", because, about=tuple(n.name for n in waiting), refused=True)
            if shard == before
            else Decide(known, told)
        )
    if holders:
        return _without_proof(s, shard, lost, holders, appoint)
    if shard != before and any(s.runs(n) and s.seen(n).has_history is not False for n in others):
        return Decide(known, told)
    if lost.leaving:
        return _without_anything(s, shard, lost, appoint)
    return None  # nobody holds anything: members.start brings the primary back, empty


def _make_sure(s: Situation, shard: Shard, node: Node, others: list[Node]) -> Step:
    """It is stopped for certain, if another has what it had."""
    ends = (*shard.ended, evidence.end(s, node, s.seen(node).lead_order or 0))
    silent = s.seen(node).process == "frozen" or s.mute(node)
    if silent and not node.condemned and any(n != node and s.alive(n) and evidence.proven(s, ends, n) for n in others):
        return judge.condemn(s, node, f"{node.name} was to lead and does not answer: it is stopped for certain before another does")
    return Wait(
        s.policy.poll_seconds, "answer", f"{node.name} was to lead and does not answer yet", about=(node.name,), refused=True
    )


def _without_anything(s: Situation, shard: Shard, lost: Node, appoint: Appoint) -> Step | None:
    """A primary that leaves is not brought back: somebody else begins, empty, once nobody is left who could hold anything."""
    staying = s.replicas(shard, leaving=False)
    unknown = [n for n in staying if s.runs(n) and s.seen(n).has_history is None]
    if unknown:
        because = f"{lost.name} is gone and leaves; {names(unknown)} may hold data but {verb(unknown, 'does', 'do')} not answer yet"
        return Wait(s.policy.poll_seconds, "answer", because, about=tuple(n.name for n in unknown), refused=True)
    best = foremost(s, [n for n in staying if s.alive(n)], lost)
    if best is None:
        return None
    return appoint(s, shard, lost, best, f"{lost.name} is gone and leaves, and nobody holds any data: {best.name} becomes primary")


def _without_proof(s: Situation, shard: Shard, lost: Node, holders: list[Node], appoint: Appoint) -> Step | None:
    """Nobody who holds data can be shown to have what was acknowledged. The user decides, or the budget."""
    best = foremost(s, holders, lost, shard.ended) or holders[0]
    given_up = replace(shard, ended=())
    if s.clustered and not shard.owned and not s.decided.resharding:
        staying = [n for n in holders if not n.leaving]
        if not staying:
            return None  # who leaves would not be let lead, and nothing needs a leader here
        best = foremost(s, staying, lost, shard.ended) or staying[0]
        return appoint(s, given_up, lost, best, f"{best.name} becomes primary: shard {shard.id} owns no slots, so nothing is lost")
    if shard.accept_stale:
        return appoint(
            s, given_up, lost, best, f"{best.name} becomes primary although it may lack something: the user accepted the loss"
        )
    if allowed := evidence.within_budget(s, shard.ended, best):
        step = appoint(s, given_up, lost, best, f"{lost.name} is gone: {best.name} becomes primary; {allowed}")
        return replace(step, events=(*step.events, s.tell(step.because, group=True))) if isinstance(step, Decide) else step
    return refuse(s, shard, lost, best)


def refuse(s: Situation, shard: Shard, lost: Node, best: Node) -> Step:
    """Nobody is promoted without being asked; why, is told once."""
    lacks = evidence.doubt(s, shard, shard.ended, best, s.seen(best).stream)
    refusal = Refusal(shard=shard.id, lost=lost.name, best=best.name, doubt=lacks.doubt, lead=lacks.lead)
    because = (
        f"{refusal.lost} is gone, and {refusal.best} cannot be shown to have {lacks.words}. It is not promoted by itself: "
        f"`cachekeep failover {s.cache.name} --allow-data-loss` accepts the loss"
    )
    known = with_shard(s.decided, shard)
    if refusal not in s.decided.refusals:  # two shards may each have one: neither takes the other's place
        decided = replace(known, refusals=(*s.decided.refusals, refusal))
        return Decide(decided, because, (s.tell(because, group=True),))
    return (
        Decide(known, because) if known != s.decided else Wait(1.0, "consent", because, about=(lost.name, best.name), refused=True)
    )


def take_over(s: Situation, shard: Shard, lost: Node, best: Node, because: str) -> Decide:
    """A new primary, with a new order. The old one may come back only as a replica,
    and leads again only where nobody asked for automatic failover."""
    back = shard.preferred or (None if s.cache.wanted.automatic_failover or lost.leaving else lost.name)
    led = replace(
        shard,
        primary=best.name,
        order=shard.order + 1,
        lead_order=shard.order + 1,
        change=Recovery(lost=lost.name),
        accept_stale=False,
        min_replicas=0,
        preferred=None if back == best.name else back,
    )
    return Decide(with_shard(s.decided, led).unrefused(shard.id), because)


def foremost(s: Situation, candidates: list[Node], lost: Node | None, ends: tuple[Ended, ...] = ()) -> Node | None:
    """Whoever has most of what was written by the last who led; of these, of whatever else; between equals one in another zone than
    the lost one comes last; then the name."""
    if not candidates:
        return None
    zone = lost.zone if lost else None
    return min(candidates, key=lambda n: (-evidence.shared(s, ends, n), -(s.seen(n).offset or 0), n.zone != zone, n.name))


# -- planned moves


def _move(s: Situation, shard: Shard, giver: Node) -> Step:
    """A hand-over that has been decided: carried out, finished, or called off."""
    taker = s.cache.node(shard.moving_to or "")
    if taker is not None and s.leads(taker) and evidence.usurps(s, shard, taker):  # its giver has stepped down for it
        return _handed_over(s, shard, giver, taker, f"{giver.name} has handed over to {taker.name}")
    if taker is None or s.gone(taker) or taker.leaving:
        return _call_off(s, shard, giver, f"{shard.moving_to} is gone")
    if s.gone(giver):
        return _orphaned(s, shard, giver, taker)
    if not s.alive(giver) or not s.alive(taker):
        waiting = max(s.seen(giver).waiting_seconds, s.seen(taker).waiting_seconds)
        if waiting > s.policy.hand_over_seconds:
            if s.alive(giver) and not s.leads(giver):  # the taker may lead already, and has all that the giver wrote
                return _handed_over(
                    s, shard, giver, taker, f"{giver.name} has stepped down for {taker.name}, which does not answer"
                )
            return _call_off(s, shard, giver, f"{giver.name} or {taker.name} does not answer")
        return Wait(
            s.policy.poll_seconds, "answer", f"the move to {taker.name} waits for an answer", about=(giver.name, taker.name)
        )
    if s.leads(taker) or (s.seen(giver).role == "replica" and s.seen(giver).follows == taker.address):
        return _handed_over(s, shard, giver, taker, f"{giver.name} has handed over to {taker.name}")
    if not s.leads(giver):
        return _call_off(s, shard, giver, f"{giver.name} does not lead")
    if taker.name not in shard.in_sync:
        return _call_off(s, shard, giver, f"{taker.name} is not in sync")
    give = HandOver(
        giver=giver.name,
        taker=taker.name,
        order=shard.order,
        giver_addresses=(giver.address,),
        taker_addresses=addresses(s, shard, taker, leading=True),
        timeout_seconds=s.policy.hand_over_seconds,
    )
    rest = tuple(
        Follow(n.name, taker.name, shard.order) for n in s.replicas(shard) if s.alive(n) and n.name not in (taker.name, giver.name)
    )
    return Act(((give,), rest), f"{giver.name} hands over to {taker.name} (order {shard.order})")


def _orphaned(s: Situation, shard: Shard, giver: Node, taker: Node) -> Step:
    """The giver died in the middle: the taker leads if it does already, or if nobody has more. It may not have caught up yet."""
    if s.leads(taker):
        return _handed_over(s, shard, giver, taker, f"{giver.name} has handed over to {taker.name}")
    ends = evidence.over(s, shard, giver)
    if taker not in evidence.sure(s, shard, ends):
        return _call_off(s, shard, giver, f"{giver.name} is gone")
    best = foremost(s, evidence.ahead(s, s.replicas(shard, leaving=False), taker), giver) or taker
    orphan = replace(shard, ended=evidence.vouched(ends, best))
    return take_over(s, orphan, giver, best, f"{giver.name} is gone: {best.name} becomes primary")


def _handed_over(s: Situation, shard: Shard, giver: Node, taker: Node, because: str) -> Step:
    led = replace(
        shard,
        primary=taker.name,
        lead_order=shard.order,
        change=shard.change if isinstance(shard.change, Recovery) else None,
        ended=() if s.leads(taker) else shard.ended,
        min_replicas=0,
        preferred=None if shard.preferred == taker.name else shard.preferred,
    )
    return Decide(with_shard(s.decided, led), because, failover_told(s, giver, taker))


def _call_off(s: Situation, shard: Shard, giver: Node, why: str) -> Step:
    """A giver that leads has not given: who was to take over has not led."""
    led = s.leads(giver)
    calm = replace(led_on(shard) if led else shard, change=None)
    because = f"the move to {shard.moving_to} is called off: {why}{'; nothing was lost' if led else ''}"
    return Decide(with_shard(s.decided, calm), because)


def led_on(shard: Shard) -> Shard:
    """The primary leads, whoever was told to lead in its place: from now on that was no later order than its own."""
    return replace(
        shard, lead_order=shard.order, confirmed=replace(shard.confirmed, order=shard.order) if shard.in_sync else shard.confirmed
    )


def failover_told(s: Situation, giver: Node, taker: Node) -> tuple[Event, ...]:
    """The two events of a change of lead, of the member and of the group."""
    text = f"Failover from primary node {giver.member} to replica node {taker.member} completed"
    return (s.tell(text, node=giver), s.tell(text, group=True))


def move(s: Situation, shard: Shard, to: Node, because: str) -> Decide:
    """Decide a hand-over: order first, engines later."""
    return Decide(with_shard(s.decided, replace(shard, change=Move(to=to.name), order=shard.order + 1)), because)


def successor(s: Situation, shard: Shard) -> Node | None:
    """Who would lead if the primary went now, by plan: in sync, alive, not itself about to restart. Nobody while nobody leads."""
    primary = s.primary(shard)
    if primary is None or not s.leads(primary):
        return None
    able = [n for n in s.able(shard) if not n.due]
    return foremost(s, able, primary)


def transfer(s: Situation) -> Step | None:
    """A primary that leaves, or that stands in for the preferred one, hands over when somebody can take over."""
    return first(
        s, (_transfer(s, x, p) for x in s.decided.shards if (p := s.primary(x)) is not None and s.leads(p) and not x.moving_to)
    )


def _transfer(s: Situation, shard: Shard, primary: Node) -> Step | None:
    if primary.leaving and not (s.clustered and shard.id not in s.wanted_shards):
        to = successor(s, shard)
        if to is not None:
            return move(s, shard, to, f"{primary.name} leaves: {to.name} becomes primary first")
        staying = s.replicas(shard, leaving=False)
        if staying:
            return Wait(0.2, "sync", f"{primary.name} leaves when {names(staying)} is in sync", about=(primary.name,))
        decided = with_shard(s.decided, replace(shard, primary=None))
        return Decide(decided, f"{primary.name} leaves and shard {shard.id} with it")
    back = s.cache.node(shard.preferred) if shard.preferred else None
    if shard.preferred and (back is None or back.leaving):
        decided = with_shard(s.decided, replace(shard, preferred=None))
        return Decide(decided, f"{shard.preferred} is no longer wanted: {primary.name} leads for good")
    if back is not None and back.name in shard.in_sync and s.alive(back):
        return move(s, shard, back, f"{back.name} is in sync again and leads as before")
    return None


def conclude(s: Situation) -> Step | None:
    """A failover is told when the new primary is seen to lead; a refusal is over when every shard has its leader."""
    if s.decided.refusals and all((n := s.primary(x)) is not None and s.leads(n) for x in s.decided.shards):
        return Decide(replace(s.decided, refusals=()), "every shard has a leader again")
    for shard in s.decided.shards:
        recovery, primary = shard.change if isinstance(shard.change, Recovery) else None, s.primary(shard)
        if (recovery or shard.ended) and primary is not None and s.leads(primary):
            lost = s.cache.node(recovery.lost) if recovery else None
            told = failover_told(s, lost, primary) if lost else ()
            calm = replace(shard, change=None if recovery else shard.change, ended=(), accept_stale=False)
            because = f" in place of {recovery.lost}" if recovery else f" shard {shard.id} again"
            return Decide(with_shard(s.decided, calm), f"{primary.name} leads{because}", told)
    return None
