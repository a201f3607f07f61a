"""Changes to running nodes: node type, version, reboots and other errands. Replicas first, one at a time;
then the lead moves; then the old primary."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Decide, Decided, Errand, Halted, Node, Shard, Step, Wait
from cachekeep.plan import cluster_members, cluster_slots, evidence
from cachekeep.plan.judge import ailing
from cachekeep.plan.leaders import move, successor
from cachekeep.plan.limits import too_small
from cachekeep.plan.situation import Situation, names, verb, with_nodes, with_shard


def resize(s: Situation) -> Step | None:
    """A new node type is a matter of limits and settings: decided for all nodes, then put in force (Valkey, Redis) or
    rebooted into (Memcached). One that has no room for what the nodes hold is not decided."""
    if not s.may_apply("node_type"):
        return None
    wanted = s.cache.wanted.node_type
    other = [n for n in (*s.decided.nodes, *s.decided.successors) if n.node_type != wanted and not n.leaving]
    if not other:
        return None
    if (why_not := too_small(s, wanted)) is not None:
        return Wait(2.0, "room", f"the node type stays {other[0].node_type}: {why_not}", about=(other[0].node_type,), refused=True)
    due = "" if s.replicated else "reboot"
    decided = with_nodes(s.decided, [replace(n, node_type=wanted, due=n.due or due) for n in other])
    decided = replace(decided, successors=tuple(replace(n, node_type=wanted) for n in decided.successors))
    return Decide(
        decided, f"the node type becomes {wanted}", (s.tell(f"Succeeded applying modification to cache node type to {wanted}."),)
    )


def upgrade(s: Situation) -> Step | None:
    """Nodes of another engine or version than the wanted one are due for a restart into it."""
    if not s.may_apply("version"):
        return None
    wanted = s.cache.wanted
    old = [
        n
        for n in s.decided.nodes
        if (n.engine, n.version) != (wanted.engine, wanted.version) and not n.leaving and n.due != "upgrade"
    ]
    if not old:
        return None
    decided = with_nodes(s.decided, [replace(n, due="upgrade") for n in old])
    return Decide(decided, f"{names(old)} shall become {wanted.engine} {wanted.version}")


def restart(s: Situation) -> Step | None:
    """Nodes that are due for a restart: one per shard at a time, the primary last and after it has handed over."""
    due = [n for n in s.decided.nodes if n.due and n.announced and not n.leaving and not n.condemned]
    if not due:
        return None
    if not s.replicated:
        return _halt(s, [n for n in due if s.runs(n)])
    now: list[Node] = []
    waits: Step | None = None
    for shard in s.decided.shards:
        mine = [n for n in due if n.shard == shard.id]
        if not mine or shard.moving_to:
            continue
        coming_back = [n for n in s.members(shard.id, leaving=False) if n.condemned or not n.announced]
        if coming_back:
            waits = waits or Wait(
                0.1,
                "sync",
                f"{names(mine)} {verb(mine, 'restarts', 'restart')} when {names(coming_back)} {verb(coming_back)} back and in sync",
                about=tuple(n.name for n in mine),
            )
            continue
        replicas = [n for n in mine if n.name != shard.primary]
        if replicas and s.needed(replicas[0]):
            because = f"{replicas[0].name} restarts when shard {shard.id} has a leader: it may hold what nobody else does"
            waits = waits or Wait(0.2, "leader", because, about=(replicas[0].name,), refused=True)
            continue
        if replicas and (left := cluster_members.sending_on_seconds(s, replicas[0])) > 0:
            because = f"clients of {replicas[0].name} are still sent on to {shard.primary}; then it restarts"
            waits = waits or Wait(left, "linger", because, about=(replicas[0].name,))
            continue
        if replicas:
            now.append(replicas[0])
            continue
        primary = mine[0]
        to = successor(s, shard)
        if to is not None:
            return move(s, shard, to, f"{primary.name} is about to restart: {to.name} shall lead first")
        if s.replicas(shard, leaving=False):
            waits = waits or Wait(
                0.2, "sync", f"{primary.name} restarts when a replica is in sync", about=(primary.name,), refused=True
            )
        else:
            now.append(primary)
    return _halt(s, now) if now else waits


def _halt(s: Situation, nodes: list[Node]) -> Step | None:
    """They may not be promoted any more, and are stopped: ``members.stop`` gives planned stops their grace."""
    if not nodes:
        return None
    lost = {n.name for n in nodes}
    shards = tuple(evidence.without(x, lost) for x in s.decided.shards)
    decided = with_nodes(replace(s.decided, shards=shards), [replace(n, fate=Halted()) for n in nodes])
    return Decide(decided, f"{names(nodes)} {verb(nodes, 'restarts', 'restart')} by plan ({nodes[0].due})")


def errand(s: Situation) -> Step | None:
    """The first errand that has not been done is begun; what it decided is then carried out by the other rules. One that waits for
    what may never come gives way to a later one, which may be the way out."""
    todo = sorted((e for e in s.cache.wanted.errands if e.serial > s.decided.errands_done), key=lambda e: e.serial)
    if not todo:
        return None
    consent = [e for e in todo if e.kind == "promote-stale"]
    if not consent and any(x.moving_to for x in s.decided.shards):  # a move may wait for what only the consent brings about
        return Wait(s.policy.poll_seconds, "turn", "an errand waits for the move before it")
    waits: list[Wait] = []
    for errand in consent[-1:] or todo:  # errands before a consent wait for a leader that only it can give
        step = _begin(s, errand)
        if isinstance(step, Decide):
            told = tuple(s.tell(f"Given up for a later request: {w.because}", group=True) for w in waits)
            return Decide(step.decided, step.because, (*told, *step.events))
        if not step.refused:
            return waits[0] if waits else step
        waits.append(step)
    return waits[0]


def _begin(s: Situation, errand: Errand) -> Decide | Wait:
    decided = replace(s.decided, errands_done=errand.serial)
    match errand.kind:
        case "reboot":
            nodes = [n for n in s.decided.nodes if n.member in errand.nodes and not n.leaving]
            decided = _hung_ones_given_up(s, decided, nodes)
            return Decide(with_nodes(decided, [replace(n, due=n.due or "reboot") for n in nodes]), f"{names(nodes)} shall reboot")
        case "promote":
            return _promote(s, errand)
        case "test-failover":
            return _test_failover(s, errand)
        case "rebalance":
            return cluster_slots.rebalanced(s, decided) if s.clustered else Decide(decided, "there are no slots to deal out")
        case "promote-stale":
            shard = s.cache.shard(errand.shard or s.decided.shards[0].id)
            primary = s.primary(shard) if shard is not None else None
            if shard is not None and primary is not None and (reason := ailing(s, shard, primary)):
                word = _given_up(s, decided, shard, primary)
                return Decide(word, f"{primary.name} {reason} and is given up: the user accepts the loss of what only it holds")
            if shard is None or s.decided.refusal is None or (primary is not None and s.leads(primary)):
                return Decide(decided, "nobody waits for a stale promotion: nothing is changed")
            return Decide(
                with_shard(decided, replace(shard, accept_stale=True)), "the user accepts the loss of what was never replicated"
            )


def _promote(s: Situation, errand: Errand) -> Decide | Wait:
    done = replace(s.decided, errands_done=errand.serial)
    node = s.cache.member(errand.nodes[0])
    shard = s.cache.shard(node.shard) if node else None
    if node is None or shard is None or node.name == shard.primary:
        return Decide(done, f"{errand.nodes[0]} leads already or is gone: nothing to promote")
    primary = s.primary(shard)
    if primary is not None and (reason := ailing(s, shard, primary)):
        word = _given_up(s, done, replace(shard, preferred=node.name), primary)
        return Decide(word, f"{primary.name} {reason} and is given up: {node.name} shall lead, as asked")
    if node.name not in shard.in_sync or not s.alive(node) or primary is None or not s.leads(primary):
        if not s.alive(node):
            return Wait(
                0.2,
                "sync",
                f"{node.name} shall be promoted as soon as it is in sync, and does not answer",
                about=(node.name,),
                refused=True,
            )
        return Wait(0.2, "sync", f"{node.name} shall be promoted as soon as it is in sync", about=(node.name,))
    return _with_errand(move(s, shard, node, f"{node.name} shall lead, as asked"), errand)


def _test_failover(s: Situation, errand: Errand) -> Decide | Wait:
    shard = s.cache.shard(errand.shard or "")
    primary = s.primary(shard) if shard else None
    done = replace(s.decided, errands_done=errand.serial)
    if shard is None or primary is None:
        return Decide(done, f"node group {errand.shard} is gone: no failover to test")
    if reason := ailing(s, shard, primary):
        return Decide(_given_up(s, done, shard, primary), f"{primary.name} {reason} and is given up, as asked")
    to = successor(s, shard)
    if to is None:
        hopeless = not any(s.alive(n) for n in s.replicas(shard, leaving=False))
        because = f"the test failover of node group {shard.id} waits for a replica in sync"
        return Wait(0.2, "sync", f"{because}, and none answers" if hopeless else because, about=(shard.id,), refused=hopeless)
    step = move(s, shard, to, f"test failover of node group {shard.id}: {to.name} shall lead and {primary.name} be replaced")
    step = Decide(with_nodes(step.decided, [replace(primary, due="reboot")]), step.because)
    return _with_errand(step, errand)


def _given_up(s: Situation, decided: Decided, shard: Shard, primary: Node) -> Decided:
    """The user's word about a primary that hangs: it may be stopped, whatever only it holds."""
    return with_nodes(with_shard(decided, replace(shard, accept_stale=True)), [replace(primary, due="reboot")])


def _hung_ones_given_up(s: Situation, decided: Decided, nodes: list[Node]) -> Decided:
    for node in nodes:
        shard = s.cache.shard(node.shard)
        if shard is not None and shard.primary == node.name and ailing(s, shard, node):
            decided = _given_up(s, decided, shard, node)
    return decided


def _with_errand(step: Decide, errand: Errand) -> Decide:
    return Decide(replace(step.decided, errands_done=errand.serial), step.because, step.events)
