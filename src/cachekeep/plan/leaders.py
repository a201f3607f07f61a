"""Who leads a shard: the first promotion, failover, planned moves.

The invariant: a node is promoted only (a) when nobody in the shard holds any history, (b) out of the in-sync set when the primary
is confirmed gone, (c) by a hand-over from a primary that is seen to lead, or (d) because the user accepted the loss. Each promotion
has an order number of its own, saved before the engine hears of it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from cachekeep.model import Act, Decide, Effect, Event, Follow, HandOver, Node, Promote, Shard, Step, Wait
from cachekeep.plan import judge
from cachekeep.plan.endpoints import addresses
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.situation import Situation, names, verb, with_shard

Appoint = Callable[[Situation, Shard, Node, Node, str], Step]
"""(situation, shard, who was lost, who shall lead, why) → what makes it so."""


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
    if not s.replicated or s.clustered:
        return None
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
    best = foremost(s, [n for n in members if n.name in shard.in_sync and s.alive(n)], None) or members[0]
    led = replace(shard, primary=best.name, order=shard.order + 1, in_sync=shard.in_sync - {best.name}, min_replicas=0)
    decided = with_shard(s.decided, led)
    return Decide(decided, f"shard {shard.id} has no primary: {best.name} shall lead")


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
            return Wait(s.policy.poll_seconds, because, refused=True)
    elif ahead := _ahead(s, shard, primary):
        best = foremost(s, ahead, primary) or ahead[0]
        return take_over(s, shard, primary, best, f"{best.name} has what {primary.name} lacks, and shall lead")
    elif any(s.leads(n) for n in others):
        rival = next(n for n in others if s.leads(n))
        effects = (Follow(rival.name, primary.name, shard.order),)
        return Act(
            (effects, (Promote(primary.name, shard.order, addresses(s, shard, primary)),)), f"{rival.name} leads but shall not"
        )
    return Act(
        ((Promote(primary.name, shard.order, addresses(s, shard, primary)),), _follow(s, shard, primary)),
        f"{primary.name} shall lead shard {shard.id} (order {shard.order})",
    )


def _ahead(s: Situation, shard: Shard, than: Node) -> list[Node]:
    """In-sync replicas that have more than this node, though nobody leads:
    somebody whom nobody has seen led meanwhile, or the node is not where all it has comes from."""
    has = s.seen(than).offset or 0
    return [n for n in s.able(shard) if n is not than and (s.seen(n).offset or 0) > has]


def _follow(s: Situation, shard: Shard, primary: Node) -> tuple[Effect, ...]:
    """All other nodes of the shard that answer follow the primary."""
    return tuple(Follow(n.name, primary.name, shard.order) for n in s.replicas(shard) if s.alive(n))


# -- the primary is gone


def succeed(s: Situation, shard: Shard, lost: Node, appoint: Appoint) -> Step | None:
    """The primary and what it held are gone: the in-sync replica that has the most takes over; else whoever may."""
    in_sync = [n for n in s.replicas(shard, leaving=False) if n.name in shard.in_sync]
    best = foremost(s, [n for n in in_sync if s.alive(n)], lost)
    if best is not None:
        return appoint(s, shard, lost, best, f"{lost.name} is gone: {best.name} has the most of what it wrote and shall lead")
    waiting = [n for n in in_sync if s.runs(n)]
    if waiting:
        return Wait(
            s.policy.poll_seconds,
            f"{lost.name} is gone; {names(waiting)} {verb(waiting)} in sync but {verb(waiting, 'does', 'do')} not answer yet",
            refused=True,
        )
    holders = [n for n in s.replicas(shard) if s.alive(n) and s.seen(n).has_history]
    if holders:
        return _without_in_sync(s, shard, lost, holders, appoint)
    if lost.leaving:
        return _without_anything(s, shard, lost, appoint)
    return None  # nobody holds anything: members.start brings the primary back, empty


def _without_anything(s: Situation, shard: Shard, lost: Node, appoint: Appoint) -> Step | None:
    """A primary that leaves is not brought back: somebody else begins, empty, once nobody is left who could hold anything."""
    staying = s.replicas(shard, leaving=False)
    unknown = [n for n in staying if s.runs(n) and s.seen(n).has_history is None]
    if unknown:
        because = f"{lost.name} is gone and leaves; {names(unknown)} may hold data but {verb(unknown, 'does', 'do')} not answer yet"
        return Wait(s.policy.poll_seconds, because, refused=True)
    best = foremost(s, [n for n in staying if s.alive(n)], lost)
    if best is None:
        return None
    return appoint(s, shard, lost, best, f"{lost.name} is gone and leaves, and nobody holds any data: {best.name} shall lead")


def _without_in_sync(s: Situation, shard: Shard, lost: Node, holders: list[Node], appoint: Appoint) -> Step:
    """Only nodes outside the in-sync set hold data: promoting one loses what it never received. The user decides, or the budget."""
    best = foremost(s, holders, lost) or holders[0]
    behind = _behind(s, lost, best)
    if s.clustered and not shard.owned and not s.decided.resharding:
        return appoint(s, shard, lost, best, f"{best.name} shall lead: shard {shard.id} owns no slots, so nothing is lost")
    if shard.accept_stale:
        return appoint(s, shard, lost, best, f"{best.name} shall lead although it is out of sync: the user accepted the loss")
    late = s.seen(best).link_down_seconds
    if late is not None and s.policy.loss_budget_seconds and late <= s.policy.loss_budget_seconds:
        return appoint(s, shard, lost, best, f"{best.name} shall lead: it was fed until {late} s ago, within the loss budget")
    if behind is not None and s.policy.loss_budget_bytes and behind <= s.policy.loss_budget_bytes:
        return appoint(s, shard, lost, best, f"{best.name} shall lead: it is {behind} bytes behind, within the loss budget")
    because = (
        f"{lost.name} is gone and no in-sync replica is left; {best.name} holds older data. It is not promoted by itself: "
        f"`cachekeep failover {s.cache.name} --allow-data-loss` accepts what it never received"
    )
    refused = (s.decided.refusal or "").splitlines()
    if because not in refused:  # two shards may each have one: neither takes the other's place
        return Decide(replace(s.decided, refusal="\n".join((*refused, because))), because, (s.tell(because, group=True),))
    return Wait(1.0, because, refused=True)


def _behind(s: Situation, lost: Node, candidate: Node) -> int | None:
    """How many bytes of the lost primary's stream the candidate lacked when the primary was last seen: never the whole truth, so
    even 0 is within a budget only where the user set one."""
    had, has = s.seen(lost).offset, s.seen(candidate).offset
    return max(0, had - has) if had is not None and has is not None else None


def take_over(s: Situation, shard: Shard, lost: Node, best: Node, because: str) -> Decide:
    """A new primary, with a new order. The old one may come back only as a replica,
    and leads again only where nobody asked for automatic failover."""
    back = shard.preferred or (None if s.cache.wanted.automatic_failover or lost.leaving else lost.name)
    led = replace(
        shard,
        primary=best.name,
        order=shard.order + 1,
        # Who cannot be told whom to follow now will lack what is written from now on.
        in_sync=frozenset(n.name for n in s.replicas(shard) if n.name in shard.in_sync - {best.name} and s.alive(n)),
        recovering_from=lost.name,
        accept_stale=False,
        min_replicas=0,
        starving=False,
        starved_since=None,
        preferred=None if back == best.name else back,
    )
    return Decide(replace(with_shard(s.decided, led), refusal=None, fed=frozenset()), because)


def foremost(s: Situation, candidates: list[Node], lost: Node | None) -> Node | None:
    """Highest offset first; between equals one in another zone than the lost one comes last; then the name."""
    if not candidates:
        return None
    zone = lost.zone if lost else None
    return min(candidates, key=lambda n: (-(s.seen(n).offset or 0), n.zone != zone, n.name))


# -- planned moves


def _move(s: Situation, shard: Shard, giver: Node) -> Step:
    """A hand-over that has been decided: carried out, finished, or called off."""
    taker = s.cache.node(shard.moving_to or "")
    if taker is None or s.gone(taker) or taker.leaving:
        return _call_off(s, shard, f"{shard.moving_to} is gone")
    if s.gone(giver):
        return _orphaned(s, shard, giver, taker)
    if not s.alive(giver) or not s.alive(taker):
        waiting = max(s.seen(giver).waiting_seconds, s.seen(taker).waiting_seconds)
        if waiting > s.policy.hand_over_seconds:
            if s.alive(giver) and not s.leads(giver):  # the taker may lead already, and has all that the giver wrote
                return _handed_over(
                    s, shard, giver, taker, f"{giver.name} has stepped down for {taker.name}, which does not answer"
                )
            return _call_off(s, shard, f"{giver.name} or {taker.name} does not answer")
        return Wait(s.policy.poll_seconds, f"the move to {taker.name} waits for an answer")
    if s.leads(taker) or (s.seen(giver).role == "replica" and s.seen(giver).follows == taker.address):
        return _handed_over(s, shard, giver, taker, f"{giver.name} has handed over to {taker.name}")
    if not s.leads(giver):
        return _call_off(s, shard, f"{giver.name} does not lead")
    if taker.name not in shard.in_sync:
        return _call_off(s, shard, f"{taker.name} is not in sync")
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
    if taker.name not in shard.in_sync or not s.alive(taker):
        return _call_off(s, shard, f"{giver.name} is gone")
    best = foremost(s, _ahead(s, shard, taker), giver) or taker
    return take_over(s, replace(shard, moving_to=None), giver, best, f"{giver.name} is gone: {best.name} shall lead")


def _handed_over(s: Situation, shard: Shard, giver: Node, taker: Node, because: str) -> Step:
    led = replace(
        shard,
        primary=taker.name,
        moving_to=None,
        in_sync=shard.in_sync - {taker.name},
        min_replicas=0,
        preferred=None if shard.preferred == taker.name else shard.preferred,
    )
    return Decide(replace(with_shard(s.decided, led), fed=frozenset()), because, failover_told(s, giver, taker))


def _call_off(s: Situation, shard: Shard, why: str) -> Step:
    return Decide(
        with_shard(s.decided, replace(shard, moving_to=None)),
        f"the move to {shard.moving_to} is called off: {why}; nothing was lost",
    )


def failover_told(s: Situation, giver: Node, taker: Node) -> tuple[Event, ...]:
    """The two events of a change of lead, of the member and of the group."""
    text = f"Failover from primary node {giver.member} to replica node {taker.member} completed"
    return (s.tell(text, node=giver), s.tell(text, group=True))


def move(s: Situation, shard: Shard, to: Node, because: str) -> Decide:
    """Decide a hand-over: order first, engines later."""
    return Decide(with_shard(s.decided, replace(shard, moving_to=to.name, order=shard.order + 1)), because)


def successor(s: Situation, shard: Shard) -> Node | None:
    """Who would lead if the primary went now, by plan: in sync, alive, not itself about to restart. Nobody while nobody leads."""
    primary = s.primary(shard)
    if primary is None or not s.leads(primary):
        return None
    able = [n for n in s.able(shard) if not n.due]
    return foremost(s, able, primary)


def transfer(s: Situation) -> Step | None:
    """A primary that leaves, or that stands in for the preferred one, hands over when somebody can take over."""
    if not s.replicated:
        return None
    return first(
        s, (_transfer(s, x, p) for x in s.decided.shards if (p := s.primary(x)) is not None and s.leads(p) and not x.moving_to)
    )


def _transfer(s: Situation, shard: Shard, primary: Node) -> Step | None:
    if primary.leaving and not (s.clustered and shard.id not in s.wanted_shards):
        to = successor(s, shard)
        if to is not None:
            return move(s, shard, to, f"{primary.name} leaves: {to.name} shall lead first")
        staying = s.replicas(shard, leaving=False)
        if staying:
            return Wait(0.2, f"{primary.name} leaves when {names(staying)} is in sync")
        decided = with_shard(s.decided, replace(shard, primary=None, in_sync=frozenset()))
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
    if s.decided.refusal and all((n := s.primary(x)) is not None and s.leads(n) for x in s.decided.shards):
        return Decide(replace(s.decided, refusal=None), "every shard has a leader again")
    for shard in s.decided.shards:
        lost, primary = s.cache.node(shard.recovering_from or ""), s.primary(shard)
        if shard.recovering_from and primary is not None and s.leads(primary):
            told = failover_told(s, lost, primary) if lost else ()
            decided = with_shard(s.decided, replace(shard, recovering_from=None))
            return Decide(decided, f"{primary.name} leads in place of {shard.recovering_from}", told)
    return None
