"""What users ask for once. An errand is taken up by a decision, which the other rules carry out; its job ends when what was asked
for is seen, when it cannot come any more, or when it has taken too long.
"""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Decide, Decided, Done, Errand, ErrandKind, Event, Failed, Job, Node, Running, Shard, Step, Wait
from cachekeep.plan import snapshots
from cachekeep.plan.jobs import ended, late, with_job
from cachekeep.plan.lead.judge import ailing
from cachekeep.plan.lead.promote import move, successor
from cachekeep.plan.situation import Situation, names, verb, with_nodes, with_shard
from cachekeep.plan.slots import reshard

DEADLINES_SECONDS: dict[ErrandKind, float] = {
    "reboot": 3600.0,
    "promote": 600.0,
    "test-failover": 600.0,
    "promote-stale": 600.0,
    "rebalance": 86400.0,
    "snapshot": snapshots.DEADLINE_SECONDS,
    "patch": 86400.0,
    "stop-patch": 60.0,
}
"""From when it is taken up. A node that restarts may have to be fed anew; slots that move take as long as their keys."""


def end(s: Situation) -> Step | None:
    """Errands that have been taken up, and are done, or never will be."""
    for job in s.decided.jobs:
        if isinstance(job.work, Errand) and not job.ended and (step := _end(s, job, job.work)) is not None:
            return step
    return None


def _end(s: Situation, job: Job, errand: Errand) -> Decide | None:
    match errand.kind:
        case "reboot":
            found = _rebooted(s, errand, "rebooted")
        case "patch":
            found = _rebooted(s, errand, "restarted into the newer build")
        case "stop-patch":
            found = Done(), "nobody else is restarted into the newer build"
        case "promote":
            found = _promoted(s, errand)
        case "test-failover":
            found = _failed_over(s, errand)
        case "promote-stale":
            found = _led_again(s, errand)
        case "rebalance":
            found = None if s.decided.resharding else (Done(), "the slots are dealt out anew, as asked")
        case "snapshot":
            found = None  # its job is a task
    if found is None:
        return late(s, job, f"the {errand.kind} of {errand.shard or ' and '.join(errand.nodes) or s.cache.name}")
    return ended(s, job, *found)


Found = tuple[Done | Failed, str] | None


def _failed(because: str) -> Found:
    return Failed(because), because


def _rebooted(s: Situation, errand: Errand, done: str) -> Found:
    nodes = [n for n in s.decided.nodes if n.member in errand.nodes and not n.leaving]
    if any(n.due or n.condemned or not n.announced for n in nodes):
        return None
    if not nodes:
        return Done(), "nobody is left to reboot"
    return Done(), f"{names(nodes)} {verb(nodes, 'has', 'have')} been {done}"


def _promoted(s: Situation, errand: Errand) -> Found:
    node = s.cache.member(errand.nodes[0])
    shard = s.cache.shard(node.shard) if node is not None else None
    if node is None or shard is None or node.leaving:
        return _failed(f"{errand.nodes[0]} was to lead, and is gone")
    primary = s.primary(shard)
    if primary is None or not s.leads(primary) or shard.moving_to is not None or primary.due:
        return None
    if primary.name == node.name:
        return Done(), f"{node.name} leads, as asked"
    return None if shard.preferred == node.name else _failed(f"{node.name} was to lead, and {primary.name} still does")


def _failed_over(s: Situation, errand: Errand) -> Found:
    shard = s.cache.shard(errand.shard or "")
    if shard is None:
        return _failed(f"node group {errand.shard} is gone: no failover to test")
    primary = s.primary(shard)
    if primary is None or not s.leads(primary) or shard.moving_to is not None:
        return None
    if primary.member not in errand.nodes:
        return Done(), f"the test failover of node group {shard.id} is done: {primary.name} leads"
    return None if primary.due else _failed(f"the test failover of node group {shard.id} has failed: {primary.name} still leads")


def _led_again(s: Situation, errand: Errand) -> Found:
    shard = s.cache.shard(errand.shard or s.decided.shards[0].id)
    if shard is None:
        return _failed(f"shard {errand.shard} is gone: nobody is to lead it")
    primary = s.primary(shard)
    return (Done(), f"{primary.name} leads shard {shard.id}, as was asked for") if primary and s.leads(primary) else None


def begin(s: Situation) -> Step | None:
    """The first errand that is left is taken up; what that decides is then carried out by the other rules. One that waits for
    what may never come gives way to a later one, which may be the way out."""
    left = s.cache.errands_left
    if not left:
        return None
    consent = [e for e in left if e.kind == "promote-stale"]
    if not consent and any(x.moving_to for x in s.decided.shards):  # a move may wait for what only the consent brings about
        return Wait(s.policy.poll_seconds, "turn", "an errand waits for the move before it")
    given_up: list[tuple[Errand, Wait]] = []
    for errand in consent or left:  # errands before a consent wait for a leader that only it can give
        step = _begin(s, errand)
        if isinstance(step, Decide):
            decided, told = step.decided, list[Event]()
            for other, wait in given_up:
                because = f"Given up for a later request: {wait.because}"
                decided = with_job(s, decided, _job(s, other, Failed(because)))
                told.append(s.tell(because, group=True))
            return Decide(decided, step.because, (*told, *step.events))
        if not step.refused:
            return given_up[0][1] if given_up else step
        given_up.append((errand, step))
    return given_up[0][1]


def _job(s: Situation, errand: Errand, state: Running | Done | Failed) -> Job:
    deadline_seconds = DEADLINES_SECONDS[errand.kind]
    return Job(id=errand.id, work=errand, began_at=s.moment, deadline_seconds=deadline_seconds, state=state)


def _begun(s: Situation, errand: Errand, step: Decide) -> Decide:
    return replace(step, decided=with_job(s, step.decided, _job(s, errand, Running())))


def _nothing(s: Situation, errand: Errand, because: str) -> Decide:
    """It is so already, or cannot be."""
    return Decide(with_job(s, s.decided, _job(s, errand, Done())), because)


def _begin(s: Situation, errand: Errand) -> Decide | Wait:
    match errand.kind:
        case "reboot":
            nodes = [n for n in s.decided.nodes if n.member in errand.nodes and not n.leaving]
            if not nodes:
                return _nothing(s, errand, f"{names(nodes)} {verb(nodes, 'reboots', 'reboot')}")
            decided = _hung_ones_given_up(s, nodes)
            due = with_nodes(decided, [replace(n, due=n.due or "reboot") for n in nodes])
            return _begun(s, errand, Decide(due, f"{names(nodes)} {verb(nodes, 'reboots', 'reboot')}"))
        case "patch":
            nodes = [n for n in s.decided.nodes if n.member in errand.nodes and not n.leaving]
            because = f"{names(nodes)} {verb(nodes, 'restarts', 'restart')} into the newer build, one at a time"
            if not nodes:
                return _nothing(s, errand, because)
            return _begun(s, errand, Decide(with_nodes(s.decided, [replace(n, due=n.due or "upgrade") for n in nodes]), because))
        case "stop-patch":
            return _stop_patch(s, errand)
        case "promote":
            return _promote(s, errand)
        case "test-failover":
            return _test_failover(s, errand)
        case "rebalance":
            if not s.clustered:
                return _nothing(s, errand, "there are no slots to deal out")
            step = reshard.rebalanced(s, s.decided)
            return step if isinstance(step, Wait) else _begun(s, errand, step)
        case "snapshot":
            job = snapshots.job(s, errand)
            return Decide(with_job(s, s.decided, job), f"snapshot {errand.snapshot.rpartition('/')[2]} is taken, as asked")
        case "promote-stale":
            shard = s.cache.shard(errand.shard or s.decided.shards[0].id)
            primary = s.primary(shard) if shard is not None else None
            if shard is not None and primary is not None and (reason := ailing(s, shard, primary)):
                because = f"{primary.name} {reason} and is given up: the user accepts the loss of what only it holds"
                return _begun(s, errand, Decide(_given_up(s.decided, shard, primary), because))
            refused = shard is not None and any(r.shard == shard.id for r in s.decided.refusals)
            if shard is None or not refused or (primary is not None and s.leads(primary)):
                return _nothing(s, errand, "nobody waits for a stale promotion: nothing is changed")
            accepted = with_shard(s.decided, replace(shard, accept_stale=True))
            return _begun(s, errand, Decide(accepted, "the user accepts the loss of what was never replicated"))


def _stop_patch(s: Situation, errand: Errand) -> Decide:
    """Who has begun to restart goes on; whoever is due for another version stays so."""
    wanted = s.cache.wanted
    nodes = [
        n
        for n in s.decided.nodes
        if n.due == "upgrade" and not n.condemned and (n.engine, n.version) == (wanted.engine, wanted.version)
    ]
    if not nodes:
        return _nothing(s, errand, "nobody waits to be restarted into a newer build")
    decided = with_nodes(s.decided, [replace(n, due="") for n in nodes])
    return _begun(s, errand, Decide(decided, f"{names(nodes)} {verb(nodes, 'keeps', 'keep')} the older build, as asked"))


def _promote(s: Situation, errand: Errand) -> Decide | Wait:
    node = s.cache.member(errand.nodes[0])
    shard = s.cache.shard(node.shard) if node else None
    if node is None or shard is None or node.name == shard.primary:
        return _nothing(s, errand, f"{errand.nodes[0]} leads already or is gone: nothing to promote")
    primary = s.primary(shard)
    if primary is not None and (reason := ailing(s, shard, primary)):
        word = _given_up(s.decided, replace(shard, preferred=node.name), primary)
        return _begun(s, errand, Decide(word, f"{primary.name} {reason} and is given up: {node.name} becomes primary, as asked"))
    if node.name not in shard.in_sync or not s.alive(node) or primary is None or not s.leads(primary):
        if not s.alive(node):
            return Wait(
                0.2,
                "sync",
                f"{node.name} is promoted as soon as it is in sync, and does not answer",
                about=(node.name,),
                refused=True,
            )
        return Wait(0.2, "sync", f"{node.name} is promoted as soon as it is in sync", about=(node.name,))
    return _begun(s, errand, move(s, shard, node, f"{node.name} becomes primary, as asked"))


def _test_failover(s: Situation, errand: Errand) -> Decide | Wait:
    shard = s.cache.shard(errand.shard or "")
    primary = s.primary(shard) if shard else None
    if shard is None or primary is None:
        return _nothing(s, errand, f"node group {errand.shard} is gone: no failover to test")
    led = replace(errand, nodes=(primary.member,))
    if reason := ailing(s, shard, primary):
        return _begun(s, led, Decide(_given_up(s.decided, shard, primary), f"{primary.name} {reason} and is given up, as asked"))
    to = successor(s, shard)
    if to is None:
        hopeless = not any(s.alive(n) for n in s.replicas(shard, leaving=False))
        because = f"the test failover of node group {shard.id} waits for a replica in sync"
        return Wait(0.2, "sync", f"{because}, and none answers" if hopeless else because, about=(shard.id,), refused=hopeless)
    step = move(s, shard, to, f"test failover of node group {shard.id}: {to.name} becomes primary and {primary.name} is replaced")
    return _begun(s, led, replace(step, decided=with_nodes(step.decided, [replace(primary, due="reboot")])))


def _given_up(decided: Decided, shard: Shard, primary: Node) -> Decided:
    """The user's word about a primary that hangs: it may be stopped, whatever only it holds."""
    return with_nodes(with_shard(decided, replace(shard, accept_stale=True)), [replace(primary, due="reboot")])


def _hung_ones_given_up(s: Situation, nodes: list[Node]) -> Decided:
    decided = s.decided
    for node in nodes:
        shard = s.cache.shard(node.shard)
        if shard is not None and shard.primary == node.name and ailing(s, shard, node):
            decided = _given_up(decided, shard, node)
    return decided
