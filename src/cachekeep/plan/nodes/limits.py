"""What processes may use of the machine, before what fills it: limits are raised, then engines are told to use more;
engines are told to use less, then limits are lowered. A limit below what a process needs ends it, with all that it
holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from msgspec.structs import replace

from cachekeep.engines.config import ENGINES_OWN_FILES, bounds
from cachekeep.engines.limits import MEMCACHED_OWN_FILES, front_limits, limits
from cachekeep.engines.runtime import runtime
from cachekeep.model import Act, Apply, Effect, Limits, LimitsSeen, Node, Part, Step, Wait
from cachekeep.model.limits import lowered, raised
from cachekeep.plan.flights import first
from cachekeep.plan.situation import Situation, listed

_MIB = 1 << 20
_WORDS: Final[dict[Part, str]] = {
    "acl": "changed users",
    "login": "another login for replication",
    "settings": "changed settings",
    "tls": "another certificate",
}
_MARGIN_BYTES = 64 * _MIB
"""What a process's group is charged with beside its own pages, before a limit is lowered to what is in use."""


def widen(s: Situation) -> Step | None:
    """Whatever is held to less than has been decided for it gets the rest."""
    short = {name: more for name, decided, seen in _running(s) if (more := raised(decided, seen)) is not None}
    if not short:
        return None
    return Act((tuple(Apply(name, limits=more) for name, more in short.items()),), f"{listed(short)} may use more than before")


def configure(s: Situation) -> Step | None:
    """What a running engine can be told anew is brought to what it should be. Settings: no node before all of its shard have the
    limits for them; replicas first, so that whoever takes over has room for what its primary holds. Logins: no node comes to
    another by one that any node does not know yet."""
    there = (*s.decided.nodes, *s.decided.successors)
    due = {n.name: parts for n in there if s.alive(n) and (parts := _due(s, n))}
    if not due:
        return None
    leads = {x.primary for x in s.decided.shards}
    stages: list[tuple[Effect, ...]] = [
        tuple(Apply(name, parts) for name, parts in due.items() if (name in leads) is last) for last in (False, True)
    ]
    what = [_WORDS[part] for part in _WORDS if any(part in parts for parts in due.values())]
    return Act(tuple(filter(None, stages)), f"{listed(due)} {'gets' if len(due) == 1 else 'get'} {listed(what)}")


def narrow(s: Situation) -> Step | None:
    """Whatever is held to more than has been decided for it is held to that, as soon as it can be without ending it."""
    now: dict[str, Limits] = {}
    steps: list[Step | None] = []
    for name, decided, seen in _running(s):
        less, node = lowered(decided, seen), s.cache.node(name)
        if less is None:
            continue
        if node is not None and (why_not := _why_not_yet(s, node, less, seen)):
            steps.append(Wait(2.0, "limits", f"{name} keeps its limits: {why_not}", about=(name,), refused=True))
            less = Limits(cpus=less.cpus)
        if less != Limits():
            now[name] = less
    if now:
        steps.append(
            Act((tuple(Apply(name, limits=less) for name, less in now.items()),), f"{listed(now)} may use less than before")
        )
    return first(s, steps)


def too_small(s: Situation, node_type: str) -> str | None:
    """Why the nodes cannot become this node type; None if what they hold fits [AWS: Scaling down, "large enough to
    accommodate all the data and overhead"]."""
    for n in s.decided.nodes:
        used, room = s.seen(n).used_bytes, int(bounds(s.cache, replace(n, node_type=node_type), None).get("maxmemory", 0))
        if s.replicated and not n.leaving and used is not None and used > room:
            return f"{n.name} holds {used // _MIB} MiB, and {node_type} has room for {room // _MIB} MiB of data"
    return None


def holds(s: Situation, node: Node) -> int | None:
    """How much of its ``maxmemory`` a node has filled at least, in tenths, bytes."""
    used, data = s.seen(node).used_bytes, int(bounds(s.cache, node, None).get("maxmemory", 0))
    return None if used is None or data < 10 else used // (data // 10) * (data // 10)


def fewer_clients(s: Situation, node: Node) -> str | None:
    """Why it cannot take as many clients as its node type allows; None if it can."""
    seen, wanted = s.seen(node).limits, limits(s.cache, node).open_files
    if wanted is not None and not s.replicated:
        wanted -= MEMCACHED_OWN_FILES  # it counts without them when it sets its own limit
    if seen is None or wanted is None or seen.held.open_files is None or seen.held.open_files >= wanted:
        return None
    fewer, most = wanted - seen.held.open_files, seen.held.open_files
    return f"{fewer} clients fewer than {node.node_type} allows: a process may open {most} files here"


def _running(s: Situation) -> Iterator[tuple[str, Limits, LimitsSeen]]:
    """Everything that runs: its name, what is decided for it, what it is held to."""
    for n in s.decided.everyone:
        if s.runs(n) and not n.condemned and (seen := s.seen(n).limits) is not None:
            yield n.name, limits(s.cache, n), seen
    for f in s.decided.fronts:
        v = s.view.fronts.get(f.name)
        if v is not None and v.process == "running" and v.incarnation == f.incarnation and v.limits is not None:
            yield f.name, front_limits(f), v.limits


def _fed_together(s: Situation, node: Node) -> list[Node]:
    """A node and all that hold what its primary takes in, with those that take their place later."""
    return [n for n in (*s.decided.nodes, *s.decided.successors) if n.shard == node.shard or n is node]


def _has_room(s: Situation, node: Node) -> bool:
    """What is decided for it is in force, or there is no process that it could be in force for."""
    seen = s.seen(node).limits
    return not s.runs(node) or seen is None or raised(limits(s.cache, node), seen) is None


def astray(s: Situation, node: Node) -> tuple[Part, ...]:
    """What it was last told otherwise than it should have been, or never; settings too if it says other bounds of itself."""
    wanted, seen = runtime(s.cache, node), s.seen(node)
    return tuple(
        part
        for part in get_args(Part)
        if wanted.is_in(seen.digests, part) is False or (part == "settings" and not _bounded(s, node))
    )


def _due(s: Situation, node: Node) -> tuple[Part, ...]:
    """Those that it can be told now."""
    parts = astray(s, node)
    if "settings" in parts and not all(_has_room(s, mate) for mate in _fed_together(s, node)):
        parts = tuple(part for part in parts if part != "settings")
    if "login" in parts and any("acl" in astray(s, other) for other in s.decided.everyone if s.runs(other)):
        parts = tuple(part for part in parts if part != "login")
    return parts


def _bounded(s: Situation, node: Node) -> bool:
    """What it says of its bounds is as it should be, as far as it says anything."""
    seen = s.seen(node)
    open_files = seen.limits.held.open_files if seen.limits is not None else None
    wanted = bounds(s.cache, node, open_files)
    return all(seen.settings.get(name, value) == value for name, value in wanted.items())


def _why_not_yet(s: Situation, node: Node, less: Limits, seen: LimitsSeen) -> str | None:
    """Why a node cannot be held to less yet: what a primary takes in, its replicas hold too."""
    if not s.replicated and not runtime(s.cache, node).is_in(s.seen(node).digests, "boot"):
        return "it has not restarted yet"
    for mate in _fed_together(s, node):
        if not s.alive(mate):
            return f"{mate.name} does not answer"
        if "settings" in astray(s, mate):
            return f"{mate.name} has not been told yet to use less"
    used, clients = s.seen(node).used_bytes, s.seen(node).clients
    data = int(bounds(s.cache, node, None).get("maxmemory", 0))
    if less.memory_bytes is not None and s.replicated and used is None:
        return "it has not said how much it holds"
    if less.memory_bytes is not None and used is not None and used > data:
        return f"it holds {used // _MIB} MiB of data, more than the {data // _MIB} MiB that there is room for"
    resident, limit = seen.resident_bytes or 0, less.memory_bytes
    if limit is not None and resident + _MARGIN_BYTES > limit:
        return f"{resident // _MIB} MiB of memory are in use, too much for a limit of {limit // _MIB} MiB"
    if less.open_files is not None and s.replicated and (clients is None or clients + ENGINES_OWN_FILES > less.open_files):
        return f"{clients or 0} clients are connected, too many for {less.open_files} open files"
    return None
