"""Whether a primary that does not do its work may be stopped, and what is said of a node that does not tell everything.

The invariant: whoever answers, be it with an error, is alive. A primary is condemned only when it is confirmed stopped (frozen),
when it has answered nothing for longer than a script may run (if its process is at work: than a command may), when nobody reaches
its host, or when the user asks for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from cachekeep.model import Act, Condemned, Decide, Excuse, Halted, Interrupt, Node, Plight, Shard, Step, Wait, Witness
from cachekeep.plan.lead import evidence
from cachekeep.plan.situation import Situation, fed_again, names, verb, with_nodes, with_shard

_SAID: dict[Plight, tuple[str, str]] = {
    "loading": ("is loading its data", ""),
    "busy": (
        "is busy with a script or function of a client",
        ": one that has written nothing is ended when it goes on for too long",
    ),
    "unkillable": ("is busy with a script or function of a client that cannot be ended, as it has written", ": it is waited for"),
    "paused": ("holds back every command, as a client asked for (CLIENT PAUSE)", ": it goes on by itself"),
    "crowded": ("has as many clients as it may and lets nobody else in, not even us", ": close some of them"),
    "stranger": ("does not know us", ": its admin user was changed, or another process answers at its address"),
    "failing": ("answers with an error", ""),
}
"""What is so, and what comes of it."""
_LASTING: frozenset[Plight] = frozenset({"unkillable", "paused", "crowded", "stranger", "failing"})
"""Those that the user should read of; the others end by themselves, or are ended."""


def plight(node: Node, excuse: Excuse) -> str:
    """What an alive node that does not tell everything says, in a sentence."""
    words = f" ({excuse.words})" if excuse.plight in ("stranger", "failing") and excuse.words else ""
    return f"{node.name} {''.join(_SAID[excuse.plight])}{words}"


def unwell(s: Situation, nodes: Sequence[Node]) -> Wait | None:
    """What there is to wait for while some of these nodes do not tell everything; None if all do."""
    if not nodes:
        return None
    told = [(n, e) for n in nodes if (e := s.seen(n).excuse)]
    mute = [n for n in nodes if s.seen(n).excuse is None]
    said = [plight(n, e) for n, e in told] + ([f"{names(mute)} {verb(mute, 'does', 'do')} not answer"] if mute else [])
    return Wait(
        s.policy.poll_seconds * 10,
        "excuse" if told else "answer",
        "; ".join(said),
        about=tuple(n.name for n in nodes),
        refused=any(e.plight in _LASTING for _, e in told),
    )


def hung(s: Situation, shard: Shard, primary: Node) -> Step | None:
    """The process is there but does not work: confirmed frozen, silent for too long, or cut off. It is fenced only if somebody can
    take over: killing it would lose what it holds."""
    v = s.seen(primary)
    doubt = _ask_witnesses(s, shard, primary)
    if doubt is not None:
        return doubt
    able = evidence.sure(s, shard, evidence.over(s, shard, primary))
    if primary.due and (able or shard.accept_stale) and (reason := ailing(s, shard, primary)):
        decided = with_nodes(s.decided, [replace(primary, fate=Halted())])
        return Decide(decided, f"{primary.name} {reason}, and its restart was asked for: it is stopped for certain")
    reason = why_hung(s, shard, primary)
    if reason is None:
        return _wait_for(s, primary)
    go_on = f"`cachekeep failover {s.cache.name}`, or a reboot of {primary.name}, goes on without what only it holds"
    hangs = "is frozen" if v.process == "frozen" else "does not answer"
    if not s.cache.wanted.automatic_failover:
        return Wait(
            1.0,
            "consent",
            f"{primary.name} {hangs}; automatic failover is off, so it is left alone. {go_on}",
            about=(primary.name,),
            refused=True,
        )
    if not able:
        because = (
            f"{primary.name} {hangs}, and no replica can be shown to have what it has: killing it would lose its data. {go_on}"
        )
        return Wait(1.0, "consent", because, about=(primary.name,), refused=True)
    return condemn(s, primary, f"{primary.name} {reason}: it is stopped for certain before {names(able[:1])} or another takes over")


def _wait_for(s: Situation, primary: Node) -> Wait | None:
    v = s.seen(primary)
    if v.excuse is not None:
        return unwell(s, [primary])
    if v.reachable is False and (left := s.policy.unreachable_seconds - v.silent_seconds) > 0:
        return Wait(
            left,
            "unreachable",
            f"{primary.name} takes nothing from here; its replicas are asked when that lasts",
            about=(primary.name,),
        )
    if v.computes and v.silent_seconds >= s.policy.silence_seconds:
        because = (
            f"{primary.name} answers nothing, and its process is at work: on one long command, it seems. It is given "
            f"{s.policy.command_seconds:g} s; `cachekeep failover {s.cache.name}` goes on without what only it holds"
        )
        return Wait(s.policy.poll_seconds * 5, "answer", because, about=(primary.name,), refused=True)
    if v.answering is not True:
        return Wait(
            s.policy.poll_seconds * 5,
            "answer",
            f"{primary.name} does not answer; it is not known to be down",
            about=(primary.name,),
        )
    return None


def spare(s: Situation) -> Step | None:
    """A primary that hung is stopped because others have what it has. Where that is not known any more (its keeper was away), or
    where it answers again, it is not: that would lose what it holds."""
    for shard in s.decided.shards:
        primary = s.primary(shard)
        if primary is None or not primary.condemned or primary.due or shard.moving_to or s.gone(primary):
            continue
        if s.policy.fence == "starve" and not s.clustered:
            continue  # it is stopped by other means, which take their time
        v = s.seen(primary)
        well = v.answering is True and v.role == "primary" and (v.cluster is None or bool(v.cluster.slots))
        if well or not (shard.accept_stale or evidence.sure(s, shard, evidence.over(s, shard, primary))):
            decided = with_shard(with_nodes(s.decided, [replace(primary, fate=None)]), fed_again(shard))
            why = "answers again" if well else "may hold what nobody can be shown to have"
            return Decide(decided, f"{primary.name} {why}: it is not stopped")
    return None


def condemn(s: Situation, node: Node, because: str) -> Decide:
    """It must be confirmed stopped before anything else happens to its shard."""
    return Decide(with_nodes(s.decided, [replace(node, fate=Condemned(since=s.moment))]), because)


def _ask_witnesses(s: Situation, shard: Shard, primary: Node) -> Step | None:
    """A primary that we cannot reach may be cut off, or we may be. Its replicas know, but not by themselves: a silent cut shows
    only when a connection is made. So they are made to connect anew before anything rests on their word."""
    if not _unreachable(s, primary) or not s.cache.wanted.automatic_failover:
        return None
    unsure = [n for n in _witnesses(s, shard) if s.seen(n).reaches is not False]
    ask = [n for n in unsure if (asked := s.seen(n).witnessed_seconds) is None or asked >= s.policy.witness_seconds]
    if ask:
        because = f"{primary.name} takes nothing from here: {names(ask)} {verb(ask, 'tries', 'try')} to reach it"
        return Act((tuple(Witness(n.name, primary.name) for n in ask),), because)
    if unsure:
        because = f"{primary.name} takes nothing from here, but {names(unsure)} does not find it lost: it may be we who are cut off"
        return Wait(s.policy.poll_seconds * 5, "witness", because, about=(primary.name,))
    return None


def _unreachable(s: Situation, primary: Node) -> bool:
    v = s.seen(primary)
    return v.process == "running" and v.reachable is False and v.silent_seconds >= s.policy.unreachable_seconds


def _witnesses(s: Situation, shard: Shard) -> list[Node]:
    return [n for n in s.replicas(shard) if n.name in shard.in_sync and s.alive(n)]


def why_hung(s: Situation, shard: Shard, primary: Node) -> str | None:
    """Why a primary may be stopped though nobody asked for it; None while it answers anything, and where we may be cut off."""
    v = s.seen(primary)
    if v.process == "frozen":
        return "is frozen"
    if v.reachable is False:
        witnesses = _witnesses(s, shard)
        if _unreachable(s, primary) and witnesses and all(s.seen(n).reaches is False for n in witnesses):
            return f"has been unreachable for {v.silent_seconds:.1f} s, for its replicas too"
        return None  # a replica reaches it, or nobody can tell: it may be we who are cut off
    if s.mute(primary):
        return f"has not answered for {v.silent_seconds:.1f} s"
    return None


def ailing(s: Situation, shard: Shard, primary: Node) -> str | None:
    """Why a primary may be stopped if the user asks for that: it hangs, or has had an excuse for long, whatever it is."""
    v = s.seen(primary)
    if v.excuse is not None and v.waiting_seconds >= s.policy.replica_seconds:
        return _SAID[v.excuse.plight][0]
    if v.computes and v.silent_seconds >= s.policy.replica_seconds:
        return "answers nothing and is at work"
    return why_hung(s, shard, primary)


def interrupt(s: Situation) -> Step | None:
    """A script or function of a client that goes on for too long is ended where the engine can: where it has written nothing.

    ElastiCache does so when its ``lua-time-limit`` is over [AWS: Redis OSS 2.6.13 parameters], and restarts the node where it
    cannot. Here a longer patience is the default, and no node is restarted that says it is busy.
    """
    long = [n for n in s.decided.nodes if (e := s.seen(n).excuse) and e.plight == "busy" and e.seconds >= s.policy.script_seconds]
    if not long:
        return None
    because = f"{names(long)} {verb(long, 'has', 'have')} been busy with a script for {s.policy.script_seconds:g} s: it is ended"
    return Act((tuple(Interrupt(n.name) for n in long),), because)
