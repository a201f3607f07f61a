"""Which nodes there are: appointed, started, stopped, restarted, sent away, forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from cachekeep.model import (
    Act,
    Cache,
    Convert,
    Decide,
    Decided,
    Effect,
    Erase,
    Event,
    Forget,
    Front,
    HandOver,
    Member,
    Node,
    Shard,
    Start,
    Step,
    Stop,
    Swap,
    Wait,
    WantedShard,
)
from cachekeep.model.traits import traits
from cachekeep.plan import jobs, restores
from cachekeep.plan.flights import first, under_way
from cachekeep.plan.lead import evidence
from cachekeep.plan.nodes import cluster
from cachekeep.plan.situation import Situation, fed_again, listed, names, pairs, verb, with_nodes

BALANCER = "readers"
DISCOVERY = "discovery"
COMPATIBLE = "configuration"


def outrun(s: Situation) -> Step | None:
    """What a later decision had started is not ended by an earlier one: the store went back to an older copy. The numbers of
    decisions only grow, so the next one may."""
    last = s.view.last_start
    if last <= s.decided.serial:
        return None
    return Decide(replace(s.decided, serial=last), f"decision {last} had a process started: the next one is {last + 1}")


def delete(s: Situation) -> Step | None:
    """A deleted cache loses every process and directory, then its row."""
    if not s.cache.ending:
        return None
    left: list[Effect] = [Erase(n.name) for n in s.decided.everyone if s.seen(n).process != "absent"]
    left += [Erase(f.name) for f in s.decided.fronts if (v := s.view.fronts.get(f.name)) is None or v.process != "absent"]
    if left:
        return Act((tuple(left),), f"{s.cache.name} is deleted: {len(left)} processes and their files go")
    if jobs.at_door(s):
        return None
    told: tuple[Event, ...] = tuple(
        Event(source_type="cache-cluster", source=c, message="Cache cluster deleted") for c in s.cache.cluster_ids()
    )
    if s.cache.kind == "group":
        told += (s.tell(f"Replication group {s.cache.name} deleted", group=True),)
    return Forget(f"nothing is left of {s.cache.name}", told)


def appoint(s: Situation) -> Step | None:
    """Every wanted member gets a node, every shard a first primary, every endpoint an address."""
    if s.decided.available_at is not None and not s.may_apply("shards"):
        return None
    wanted = s.cache.wanted
    known = {n.member for n in s.decided.nodes} | {n.name for n in s.decided.everyone}
    missing = [(shard, m) for shard in wanted.shards for m in shard.members if m.name not in known]
    needs = Needs(s)
    nodes = [_node(s, shard, member, needs) for shard, member in missing]
    shards = _shards(s, needs)
    fronts, configuration = _fronts(s, shards, needs)
    if lacking := needs.lacking():
        return lacking
    decided = replace(
        s.decided,
        nodes=(*s.decided.nodes, *nodes),
        mode=s.decided.mode if s.decided.nodes else "enabled" if s.clustered else "disabled",
        shards=shards,
        fronts=fronts,
        configuration_address=configuration,
        appointed_at=s.moment if nodes and not s.decided.nodes else s.decided.appointed_at,
    )
    if decided == s.decided:
        return None
    told: list[Event] = []
    if nodes and s.decided.available_at and not s.replicated:
        told.append(s.tell("Increasing number of requested nodes"))
    what = f"{names(nodes)} {verb(nodes)} appointed" if nodes else "the endpoints get their addresses"
    return Decide(decided, what, tuple(told))


def addresses_needed(cache: Cache) -> int:
    """At most how many addresses ``appoint`` would take for this cache; 0 when everything that is wanted has its own."""
    decided = cache.decided
    names = set(cache.wanted_names())
    nodes = len(names - {n.member for n in decided.nodes})
    if cache.wanted.cluster_mode == "enabled" and not cache.clustered:
        nodes += len(names - {n.member for n in decided.successors})
    if traits(cache.wanted.engine).listed or cache.wanted.cluster_mode != "disabled":
        nodes += decided.configuration_address is None
    if not traits(cache.wanted.engine).replicates or cache.clustered:
        return nodes
    led = any(x.primary_address for x in decided.shards)
    return nodes + (2 if cache.kind == "group" and not led else 0)


def addresses_used(decided: Decided) -> set[str]:
    """Every address that these decisions use: no other cache may have one of them."""
    found = {n.address for n in decided.everyone} | {f.address for f in decided.fronts}
    found |= {a for x in decided.shards for a in (x.primary_address, x.reader_address) if a}
    return found | ({decided.configuration_address} if decided.configuration_address else set())


class Needs:
    """Hands out free addresses and counts what is short."""

    def __init__(self, s: Situation) -> None:
        used = addresses_used(s.decided)  # some of them since the last look, perhaps
        self.known = s.view.free_addresses is not None
        self.linger_seconds = s.policy.linger_seconds
        self.free, self.short = [a for a in s.view.free_addresses or () if a not in used], 0

    def take(self) -> str:
        if self.free:
            return self.free.pop(0)
        self.short += 1
        return ""

    def lacking(self) -> Wait | None:
        """What there is to wait for when some could not be had."""
        if not self.short:
            return None
        if not self.known:
            because = f"{self.short} addresses are needed, and which of the address pool are free cannot be read from the store now"
            return Wait(1.0, "store", because, refused=True)
        because = (
            f"{self.short} more addresses are needed than the address pool has free (one that is given up is not used again for "
            f"{self.linger_seconds:g} s): give it a larger --address-pool"
        )
        return Wait(2.0, "addresses", because, refused=True)


def _node(s: Situation, shard: WantedShard, member: Member, needs: Needs) -> Node:
    like = next((n for n in s.decided.nodes if n.shard == shard.id), next(iter(s.decided.nodes), None))
    wanted = s.cache.wanted
    return Node(
        name=member.name,
        shard=shard.id,
        zone=member.zone,
        address=needs.take(),
        port=wanted.port,
        engine=wanted.engine if s.may_apply("version") or like is None else like.engine,
        version=wanted.version if s.may_apply("version") or like is None else like.version,
        node_type=wanted.node_type if s.may_apply("node_type") or like is None else like.node_type,
        created_at=s.now,
    )


def _shards(s: Situation, needs: Needs) -> tuple[Shard, ...]:
    """The decided shards, with those that are missing, and endpoint addresses where a group without cluster mode lacks them."""
    found = {shard.id: shard for shard in s.decided.shards}
    if s.clustered:
        return (*found.values(), *cluster.new_shards(s).values())
    for wanted in s.cache.wanted.shards:
        if wanted.id not in found:
            first = wanted.members[0].name if s.replicated else None
            order = 1 if first else 0
            found[wanted.id] = Shard(id=wanted.id, primary=first, order=order, lead_order=order, slots=wanted.slots)
        shard = found[wanted.id]
        if s.cache.kind == "group" and shard.primary_address is None:
            found[wanted.id] = replace(shard, primary_address=needs.take(), reader_address=needs.take())
        elif s.cache.kind == "cluster" and shard.primary_address is not None:  # its group was deleted around it
            found[wanted.id] = replace(shard, primary_address=None, reader_address=None)
    return tuple(found.values())


def _fronts(s: Situation, shards: tuple[Shard, ...], needs: Needs) -> tuple[tuple[Front, ...], str | None]:
    """Memcached has a discovery front; a group with two or more replicas has a balancer, which leaves when they become fewer; one
    that cluster clients can use too has a front for them."""
    fronts = {f.name: f for f in s.decided.fronts}
    port = s.cache.wanted.port
    configuration = s.decided.configuration_address
    if not s.replicated:
        configuration = configuration or needs.take()
        fronts.setdefault(DISCOVERY, Front(name=DISCOVERY, kind="discovery", address=configuration, port=port))
    elif s.clustered:
        configuration = configuration or needs.take()
    else:
        reader = shards[0].reader_address or ""
        many = s.cache.kind == "group" and len(s.cache.wanted.shards[0].members) > 2
        has = fronts.get(BALANCER)
        if many and has is None:
            fronts[BALANCER] = Front(name=BALANCER, kind="balancer", address=reader, port=port)
        elif has is not None and has.leaving == many:
            fronts[BALANCER] = replace(has, leaving=not many)
        compatible = s.cache.wanted.cluster_mode != "disabled"  # and stays so until the nodes themselves are in cluster mode
        has = fronts.get(COMPATIBLE)
        if compatible and has is None:
            configuration = needs.take()
            fronts[COMPATIBLE] = Front(name=COMPATIBLE, kind="compatible", address=configuration, port=port)
        elif has is not None and has.leaving == compatible:
            fronts[COMPATIBLE] = replace(has, leaving=not compatible)
    return tuple(fronts.values()), configuration


def stop(s: Situation) -> Step | None:
    """What must not run is stopped, and confirmed stopped, before anything that rests on it."""
    return first(s, (_stop_condemned(s), stop_stale(s, s.decided.nodes)))


def _stop_condemned(s: Situation) -> Step | None:
    now: list[Effect] = [
        Stop(n.name, s.policy.stop_grace_seconds if n.due and not _hangs(s, n) else 0.0)
        for n in s.decided.nodes
        if n.condemned and not s.gone(n) and not s.starves(n)
    ]
    return Act((tuple(now),), f"{_effect_names(now)} must be confirmed stopped first") if now else None


def _hangs(s: Situation, node: Node) -> bool:
    """It would not hear that it is asked to end: not by a signal that it has to answer itself."""
    v = s.seen(node)
    return v.process == "frozen" or v.waiting_seconds >= s.policy.silence_seconds


def stop_stale(s: Situation, nodes: Sequence[Node]) -> Step | None:
    """Older processes of these nodes are stopped."""
    stale = [n for n in nodes if s.stale(n)]
    if not stale:
        return None
    return Act((tuple(Stop(n.name) for n in stale),), f"an older process of {names(stale)} is still there")


def _effect_names(effects: list[Effect]) -> str:
    return listed(e.name for e in effects if isinstance(e, Stop | Start | Erase))


def start(s: Situation) -> Step | None:
    """Nodes whose process ended get a new incarnation; those without a process get one. The loss of a shard's primary has been
    dealt with by the leaders' rules before this one is asked."""
    # Whoever may lead unseen is not to be outrun by the order that a restart takes.
    held = {x.primary for x in s.decided.shards if s.left_to_successors(x) or evidence.doubtful(s, x)} | cluster.held_back(s)
    held |= restores.held_back(s)
    held |= {n for x in s.decided.shards if under_way(s, HandOver, Swap, Convert, on=x.primary) for n in (x.primary, x.moving_to)}
    ended = [n for n in s.decided.nodes if not n.leaving and s.ended(n) and n.name not in held]
    if ended:
        return _again(s, ended)
    fronts = [f for f in s.decided.fronts if not f.leaving]
    dead = {
        f.name
        for f in fronts
        if (v := s.view.fronts.get(f.name)) and v.process == "exited" and (v.incarnation or 0) >= f.incarnation
    }
    if dead:
        again = tuple(replace(f, incarnation=f.incarnation + 1) if f.name in dead else f for f in s.decided.fronts)
        return Decide(replace(s.decided, fronts=again), f"{listed(sorted(dead))} ended and {verb(dead)} started again")
    effects: list[Effect] = [
        Start(n.name) for n, v in pairs(s) if not n.leaving and v.process in ("absent", "exited") and n.name not in held
    ]
    taken = {a for _, v in pairs(s) for a in v.bound or ()}
    effects += [
        Start(f.name)
        for f in fronts
        if (v := s.view.fronts.get(f.name)) and v.process in ("absent", "exited") and f.address not in taken
    ]
    if effects:
        return Act((tuple(effects),), f"{_effect_names(effects)} {verb(effects, 'has', 'have')} no process yet")
    return None


def _again(s: Situation, ended: list[Node]) -> Step:
    """Decide a new incarnation for nodes whose process ended."""
    fresh, told = [], []
    for n in ended:
        if n.due == "reboot":
            told.append(s.tell(f"Cache node {n.node_id} shutdown", node=n))
        if n.due == "upgrade":
            n = replace(n, engine=s.cache.wanted.engine, version=s.cache.wanted.version)
        if not n.due and n.announced:
            told.append(s.tell(f"Recovering cache nodes {n.node_id}", node=n))
        fresh.append(replace(n, incarnation=n.incarnation + 1, fate=None, announced=False))
    lost = {n.name for n in ended}
    shards = tuple(_without(s, x, lost) for x in s.decided.shards)
    empty = [x.primary for x in shards if x.primary in lost and (x.owned or not s.clustered)]
    because = f"{names(ended)} ended and {verb(ended)} started again"
    if empty and s.replicated:
        because += f"; what only {listed(filter(None, empty))} held is lost"
    return Decide(with_nodes(replace(s.decided, shards=shards), fresh), because, tuple(told))


def _without(s: Situation, shard: Shard, lost: set[str]) -> Shard:
    """What their processes held is lost, and what is known of those who led has to be kept before others take their names. A
    primary that starts anew gets a new order: a promotion of its former process, arriving late, must not make it lead."""
    shard = evidence.without(shard, lost)
    if not s.replicated:
        return shard
    if shard.primary not in lost:
        return (
            replace(shard, ended=evidence.over(s, shard, None))
            if any(n.name in lost and evidence.usurps(s, shard, n) for n in s.members(shard.id))
            else shard
        )
    order = shard.order + 1
    ended = () if restores.going_on(s.cache) else evidence.over(s, shard, s.primary(shard))  # it starts with the same data again
    return replace(fed_again(shard), ended=ended, order=order, lead_order=order)


def part(s: Situation) -> Step | None:
    """Nodes that are no longer wanted leave: first the lead (leaders' rules), then their place in lists, then the process."""
    if s.may_apply("shards"):
        wanted = set(s.cache.wanted_names())
        unwanted = [n for n in s.decided.nodes if n.member not in wanted and not n.leaving and not cluster.stays(s, n)]
        if unwanted := [n for n in unwanted if not s.needed(n)]:
            decided = with_nodes(s.decided, [replace(n, leaving=True) for n in unwanted])
            return Decide(decided, f"{names(unwanted)} {verb(unwanted)} no longer wanted")
    leading = cluster.leading(s)
    listed = set(s.decided.discovery_nodes)
    off = [n for n in s.decided.nodes if n.leaving and n.name not in leading and n.name not in listed]
    kept = [n for n in off if s.needed(n)]
    going = [n for n in off if n not in kept]
    because = (
        f"{names(kept)} {verb(kept, 'leaves', 'leave')} when there is a leader: "
        f"{verb(kept, 'it', 'they')} may hold what nobody else does"
    )
    waits = Wait(0.2, "leader", because, about=tuple(n.name for n in kept), refused=True) if kept else None
    return first(s, (_leave(s, going) if going else None, waits, _retire_fronts(s)))


def _leave(s: Situation, off: list[Node]) -> Step | None:
    lingering = {n: left for n in off if (left := cluster.sending_on_seconds(s, n)) > 0}
    there = [n for n in off if s.seen(n).process != "absent" and n not in lingering]
    because = f"{names(there)} {verb(there, 'leaves', 'leave')}: process and files go"
    erase = Act((tuple(Erase(n.name) for n in there),), because) if there else None
    gone = [n for n in off if n not in there and n not in lingering]
    because = f"clients of {names(list(lingering))} are still sent on to others"
    wait = Wait(min(lingering.values()), "linger", because, about=tuple(n.name for n in lingering)) if lingering else None
    return first(s, (erase, _drop(s, gone) if gone else None, wait))


def _drop(s: Situation, gone: list[Node]) -> Step:
    known = cluster.still_known(s, gone)
    if known:
        return Wait(
            s.policy.poll_seconds, "acquaintance", f"{names(known)} is still known to others", about=tuple(n.name for n in known)
        )
    kept = tuple(n for n in s.decided.nodes if n not in gone)
    decided = replace(s.decided, nodes=kept, shards=cluster.drop_shards(s, kept))
    if s.replicated:
        told = [s.tell("Cache cluster deleted", node=n) for n in gone]
    else:
        told = [s.tell(f"Removed cache nodes {', '.join(n.node_id for n in gone)}")]
        told.append(s.tell(f"Finished modifying number of nodes from {len(s.decided.nodes)} to {len(decided.nodes)}"))
    return Decide(decided, f"{names(gone)} {verb(gone, 'has', 'have')} left", tuple(told))


def _retire_fronts(s: Situation) -> Step | None:
    leaving = [f for f in s.decided.fronts if f.leaving]
    if not leaving:
        return None
    there = [f for f in leaving if (v := s.view.fronts.get(f.name)) is None or v.process != "absent"]
    if there:
        return Act((tuple(Erase(f.name) for f in there),), f"{there[0].name} is not needed any more")
    kept = tuple(f for f in s.decided.fronts if not f.leaving)
    free = {f.address for f in leaving if f.kind == "compatible"}
    goes = s.decided.configuration_address in free and not s.clustered
    configuration = None if goes else s.decided.configuration_address
    return Decide(replace(s.decided, fronts=kept, configuration_address=configuration), f"{leaving[0].name} has left")
