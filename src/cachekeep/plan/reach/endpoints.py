"""Where clients reach which node: addresses that move, the readers' balancer, the discovery list."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.model import Act, Bind, Decide, Discover, Effect, Node, Point, Shard, Step
from cachekeep.plan.flights import first
from cachekeep.plan.nodes.members import BALANCER, DISCOVERY
from cachekeep.plan.situation import Situation, names


def addresses(s: Situation, shard: Shard, node: Node, *, leading: bool | None = None) -> tuple[str, ...]:
    """Every address that a node listens on: its own, the primary endpoint if it leads,
    the reader endpoint if it serves it alone."""
    leads = node.name == shard.primary if leading is None else leading
    found = [node.address]
    if leads and shard.primary_address:
        found.append(shard.primary_address)
    if shard.reader_address and _reader(s, shard) == node.name:
        found.append(shard.reader_address)
    return tuple(found)


def _reader(s: Situation, shard: Shard) -> str | None:
    """The one node that serves the reader endpoint by itself: the only in-sync replica, or the primary when there is none.
    Nobody where a balancer does it."""
    if any(f.name == BALANCER for f in s.decided.fronts):
        return None
    replicas = [n.name for n in s.replicas(shard, leaving=False) if s.serving(shard, n)]
    if not replicas and any(s.runs(n) and s.seen(n).process == "frozen" for n in s.replicas(shard)):
        return None  # a frozen process keeps its address from everybody until it is gone
    return replicas[0] if replicas else shard.primary


def publish(s: Situation) -> Step | None:
    """Give addresses to whoever is to have them; take them from others first."""
    lose: list[Effect] = []
    gain: dict[str, tuple[str, ...]] = {}
    had: set[str] = set()
    for shard in s.decided.shards:
        for node in s.members(shard.id):
            bound = s.seen(node).bound
            if bound is None or not s.alive(node):
                continue
            want = (node.address,) if node.leaving and node.name != shard.primary else addresses(s, shard, node)
            if node.name == shard.primary and not s.leads(node):
                continue  # it gets the endpoint with its promotion
            if bound - set(want):
                lose.append(Bind(node.name, tuple(a for a in want if a in bound), drop_clients=True))
                had |= bound - set(want)
            elif set(want) - bound:
                gain[node.name] = want
    taken = Act((tuple(lose),), f"{_bound(lose)} no longer serves an endpoint that it had") if lose else None
    free: list[Effect] = [Bind(name, want) for name, want in gain.items() if had.isdisjoint(want)]
    given = Act((tuple(free),), f"{_bound(free)} serves an endpoint") if free else None
    return first(s, (taken, given))


def _bound(effects: list[Effect]) -> str:
    return " and ".join(e.node for e in effects if isinstance(e, Bind))


def balance(s: Situation) -> Step | None:
    """The balancer passes on to the in-sync replicas that answer; to the primary when there is none."""
    seen = s.view.fronts.get(BALANCER)
    if seen is None or seen.process != "running" or seen.targets is None:
        return None
    shard = s.decided.shards[0]
    targets = tuple(n.name for n in s.replicas(shard, leaving=False) if s.serving(shard, n))
    primary = s.primary(shard)
    if not targets and primary is not None and s.leads(primary):
        targets = (primary.name,)
    if not targets or set(targets) == set(seen.targets):
        return None
    return Act(((Point(BALANCER, targets),),), f"readers go to {' and '.join(targets)}")


def discovery(s: Situation) -> Step | None:
    """Memcached: the numbered list of nodes, first decided, then given to the configuration endpoint and to every node.

    A node is listed once it has been available and until it leaves; one that is being replaced stays listed (fact sheet §2).
    """
    listed = tuple(sorted(n.name for n in s.decided.nodes if not n.leaving and (n.announced or n.incarnation > 1 or s.alive(n))))
    if listed and listed != s.decided.discovery_nodes:
        decided = replace(s.decided, discovery_nodes=listed, discovery_version=s.decided.discovery_version + 1)
        return Decide(decided, f"discovery version {decided.discovery_version} lists {len(listed)} nodes")
    version = s.decided.discovery_version
    if not version:
        return None
    effects: list[Effect] = []
    seen = s.view.fronts.get(DISCOVERY)
    if seen is not None and seen.process == "running" and seen.version != version:
        effects.append(Point(DISCOVERY, listed, version))
    stale = [n for n in s.decided.nodes if s.alive(n) and s.seen(n).discovery_version != version]
    effects += [Discover(n.name, listed, version) for n in stale]
    if not effects:
        return None
    return Act((tuple(effects),), f"discovery version {version} is told{' to ' + names(stale) if stale else ''}")
