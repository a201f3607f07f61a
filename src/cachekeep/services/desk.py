"""What only the command line asks for. No AWS service: its calls come from ``web/desk.py``, which adds what is seen right now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from cachekeep.engines.catalogue import offer_of
from cachekeep.model import Cache, Condition, Errand, Secret, Snapshot, SnapshotEnd, Verification, Wanted
from cachekeep.model.endpoint import endpoints, node_endpoint
from cachekeep.model.security_group import SecurityGroup
from cachekeep.model.traits import traits
from cachekeep.plan.status import unseen
from cachekeep.services.authorities import rotate_authority
from cachekeep.services.core.caches import save, told
from cachekeep.services.core.context import Context, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Service, reads, writes
from cachekeep.services.core.security_groups import WAKE, check_filter, let_in, security_groups
from cachekeep.services.elasticache.snapshots import status as status_of
from cachekeep.store.contract import Transaction
from cachekeep.store.every import every
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

NAME: Final = "cachekeep"
"""The service that a signature for the desk is scoped to."""

T = TypeVar("T")


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """One cache, by group id or cache cluster id, after ``group/`` or ``cluster/`` where both are;
    all of them where that is allowed."""

    name: str = ""


class FailoverAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A failover by hand. ``to`` names the next primary; else the best replica takes over and the primary is replaced."""

    name: str
    shard: str | None = None
    to: str | None = None
    allow_data_loss: bool = False


class AllowAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A user of this machine (by number) for one cache. ``group``: id or name, where more than one is let in."""

    name: str
    user: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] | None = None
    group: str = ""
    revoke: bool = False


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence for the events of a cache."""

    name: str
    message: str


async def status(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """How one cache is, or all of them."""
    name = _read(call, Named).name
    caches = [await _find(tx, name)] if name else sorted([c async for c in every(tx)], key=lambda c: c.kind != "group")
    conditions = await tx.conditions([c.uid for c in caches])
    broken = [v for v in await tx.list(Verification) if v.problem]
    lost = [f"snapshot {v.name.rpartition('/')[2]} cannot be restored: {v.problem}" for v in broken]
    return {"caches": [_warned(shown(c, conditions.get(c.uid)), context) for c in caches], "snapshots": lost}


async def snapshots(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All snapshots, and what came of restoring each for a trial."""
    return {"snapshots": [await _snapshot(tx, each) for each in await tx.list(Snapshot)]}


async def _snapshot(tx: Transaction, found: Snapshot) -> Mapping[str, Any]:
    end, tried = await tx.get(SnapshotEnd, found.uid), await tx.get(Verification, found.uid)
    copies = end.copies if end is not None else ()
    return {
        "name": found.name,
        "cache": found.group or found.cluster_id or found.nodes[0].cluster_id,
        "status": status_of(found, end),
        "asked_at": found.asked_at.isoformat(),
        "bytes": sum(c.size_bytes for c in copies),
        "verified": tried is not None and not tried.problem,
        "how": tried.how if tried is not None else "",
        "at": tried.at.isoformat() if tried is not None else "",
        "keys": tried.keys if tried is not None else None,
        "seconds": tried.seconds if tried is not None else None,
        "problem": tried.problem if tried is not None else end.problem if end is not None else "",
    }


def _warned(cache: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
    """With what is known of holes in the build that its nodes are started from."""
    build = context.catalogue.serving(offer_of(cache["engine"], cache["version"]))
    return {**cache, "warning": f"{build.engine} {build.version}: {build.warning}" if build is not None and build.warning else ""}


async def explain(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The cache that is to be explained: looking at it is not done in a transaction."""
    return {"cache": await _find(tx, _read(call, Named).name)}


async def reload(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Nothing that is stored: whether engines may be looked for again."""
    return {}


async def tell(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds a sentence to the events of a cache."""
    asked = _read(call, Told)
    await tx.tell(told(await _find(tx, asked.name), asked.message[:1000]))
    return {}


async def failover(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Another node becomes primary, by hand."""
    asked = _read(call, FailoverAsked)
    cache = await _find(tx, asked.name)
    errands, because = failover_of(cache, asked)
    *others, errand = errands
    if any(replace(e, serial=errand.serial) == errand for e in others):
        return {"because": f"{because} (asked already, not done yet)"}
    await save(tx, cache, replace(cache.wanted, errands=errands), told(cache, f"By hand: {because}"))
    return {"because": because}


async def rotate(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The password of our own users at the nodes of a cache is changed, under load and without a restart."""
    cache = await _find(tx, _read(call, Named).name)
    wanted = rotated(cache, Secret(context.clock.new_secret()), context)
    if wanted == cache.wanted:
        return {"because": "the passwords of Cachekeep's own users are on their way to be changed (asked already, not done yet)"}
    await save(tx, cache, wanted, told(cache, "By hand: the passwords of Cachekeep's own users are to be changed"))
    return {"because": "the passwords of Cachekeep's own users are to be changed at every node"}


async def allow(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user of this machine becomes a member of a group that is let in to a cache, or is one no more; or who is one."""
    asked, settings = _read(call, AllowAsked), context.settings
    check_filter(settings)
    cache, groups = await _find(tx, asked.name), await security_groups(tx, settings)
    candidates = let_in(cache, groups, settings)
    if asked.user is None:
        return {"groups": [{"id": g.name, "name": g.group_name, "users": list(g.users)} for g in candidates]}
    group = _joined(cache, candidates, asked)
    users = {*group.users} - {asked.user} if asked.revoke else {*group.users, asked.user}
    await tx.put(replace(group, users=tuple(sorted(users))))
    tx.wake(WAKE)
    others = [c.name async for c in every(tx, lambda c: c.uid != cache.uid and group in let_in(c, groups, settings))]
    told = f"{group.group_name} ({group.name}), which is let in to {', '.join([cache.name, *others])}"
    return {"because": f"user {asked.user} is {'no longer ' if asked.revoke else ''}a member of {told}"}


def _joined(cache: Cache, candidates: Sequence[SecurityGroup], asked: AllowAsked) -> SecurityGroup:
    """The group that a user is to be a member of, or none of any more. Raises ApiError."""
    if asked.user == 0:
        raise value_error("root is let in everywhere: Cachekeep's own processes are root's.")
    named = [g for g in candidates if asked.group in ("", g.name, g.group_name)]
    if asked.revoke:
        named = [g for g in named if asked.user in g.users]
    listed = ", ".join(f"{g.group_name} ({g.name})" for g in candidates)
    if len(named) == 1:
        return named[0]
    if named:
        raise value_error(f"Members of several groups are let in to {cache.name}; name one with --group: {listed}")
    if asked.revoke and candidates:
        raise value_error(f"User {asked.user} is a member of none of the groups that are let in to {cache.name}: {listed}")
    mine = ", ".join(cache.wanted.security_group_ids) or "the default security group"
    raise value_error(
        f"{'That group' if candidates else 'No group'} is {'not ' if candidates else ''}let in to {cache.name} at port "
        f"{cache.wanted.port}{f'; these are: {listed}' if candidates else ''}. Have {mine} let one in first: aws ec2 "
        f"authorize-security-group-ingress --group-id … --protocol tcp --port {cache.wanted.port} --source-group …"
    )


SERVICE: Final = Service(
    name=NAME,
    operations={
        "status": reads(status),
        "snapshots": reads(snapshots),
        "explain": reads(explain),
        "reload": reads(reload),
        "tell": writes(tell),
        "failover": writes(failover),
        "rotate": writes(rotate),
        "rotate-ca": writes(rotate_authority),
        "allow": writes(allow),
    },
)


def rotated(cache: Cache, secret: Secret, context: Context) -> Wanted:
    """What is wanted, with one more password to come to; as it is while one is on its way. Raises ApiError for what cannot be."""
    if not traits(cache.wanted.engine).has_users:
        raise value_error(f"{cache.name} runs {cache.wanted.engine}, which has no users.")
    if cache.wanted.deleted:
        raise value_error(f"{cache.name} is being deleted.")
    now, other = cache.decided.credential, cache.decided.other_credential
    newest = cache.wanted.credentials[-1].serial
    if newest > now:
        return cache.wanted
    kept = tuple(c for c in cache.wanted.credentials if c.serial >= min(now, other or now))
    return replace(cache.wanted, credentials=(*kept, context.sealing.credential(cache.uid, newest + 1, secret)))


def failover_of(cache: Cache, asked: FailoverAsked) -> tuple[tuple[Errand, ...], str]:
    """The errands with one more, and how to say what it does. Raises ApiError for what cannot be."""
    if not traits(cache.wanted.engine).replicates:
        raise value_error(f"{cache.name} runs {cache.wanted.engine}, which has no primaries.")
    if cache.wanted.deleted:
        raise value_error(f"{cache.name} is being deleted.")
    ids = [s.id for s in cache.decided.shards]
    node = (cache.member(asked.to) or cache.node(asked.to)) if asked.to else None
    if asked.to and node is None:
        raise value_error(f"{cache.name} has no node {asked.to}: {', '.join(n.name for n in cache.decided.nodes)}")
    shard_id = asked.shard.zfill(4) if asked.shard else node.shard if node else ids[0] if len(ids) == 1 else None
    if shard_id is None:
        raise value_error(f"{cache.name} has {len(ids)} shards; name one with --shard: {', '.join(ids) or 'none'}")
    shard = cache.shard(shard_id)
    if shard is None or (node is not None and node.shard != shard_id):
        raise value_error(f"{asked.to or cache.name} has no shard {shard_id}: {', '.join(ids) or 'none is decided yet'}")
    if asked.allow_data_loss:
        told = f"shard {shard_id} may promote a node that lacks writes, which are lost then"
        return with_errand(cache, "promote-stale", shard=shard_id), told
    if node is not None:
        if node.name == shard.primary:
            raise value_error(f"{node.name} is the primary of shard {shard_id} already.")
        return with_errand(cache, "promote", nodes=(node.member,), shard=shard_id), f"{node.name} is to lead shard {shard_id}"
    if len([n for n in cache.decided.nodes if n.shard == shard_id and not n.leaving]) < 2:
        raise value_error(f"shard {shard_id} of {cache.name} has no replica that could take over.")
    return with_errand(cache, "test-failover", shard=shard_id), f"the best replica is to lead shard {shard_id}"


def _read(call: Call, kind: type[T]) -> T:
    """What the call says. Raises ApiError InvalidParameterValue."""
    try:
        return msgspec.convert(call.params, kind)
    except msgspec.ValidationError as error:
        raise value_error(str(error)) from None


async def _find(tx: Transaction, name: str) -> Cache:
    """Replication groups and cache clusters have names of their own, so one name may be of two caches [ARNs: one kind for each].

    Raises ApiError.
    """
    name = name.lower()
    kind, _, bare = name.rpartition("/")
    found = {"group": await tx.cache(bare, "group"), "cluster": await tx.cache_of(bare)}
    caches = {c.uid: c for k, c in found.items() if c is not None and kind in ("", k)}
    if len(caches) > 1:
        raise value_error(
            f"{bare} is the name of a replication group and of a cache cluster: say group/{bare} or cluster/{bare}.",
        )
    for cache in caches.values():
        return cache
    raise ApiError("NotFound", f"There is no cache {name!r}. `cachekeep status` lists those that are there.", status=404)


def shown(cache: Cache, condition: Condition | None) -> Mapping[str, Any]:
    """A cache, as the command line shows it."""
    decided = cache.decided
    seen = {n.name: n for n in condition.nodes} if condition else {}
    return {
        "name": cache.name,
        "full_name": f"{cache.kind}/{cache.name}",
        "kind": cache.kind,
        **_running(cache),
        "transit": cache.decided.transit,
        "status": condition.status if condition else "unknown" if unseen(cache) == "modifying" else unseen(cache),
        "because": condition.because if condition else "its keeper has not looked yet",
        "refused": bool(condition and condition.refused),
        "endpoints": _endpoints(cache),
        "shards": [{"id": x.id, "slots": x.owned or x.slots} for x in decided.shards],
        "nodes": [
            {
                "name": n.name,
                "member": n.member,
                "shard": n.shard,
                "zone": n.zone,
                "endpoint": str(node_endpoint(n)),
                **(msgspec.to_builtins(replace(seen[n.name], name=n.name)) if n.name in seen else {"status": "unknown"}),
            }
            for n in decided.nodes
        ],
    }


def _running(cache: Cache) -> Mapping[str, Any]:
    """What is decided for the nodes, and beside it what they become: a change may wait for the window, or be half done."""
    wanted = cache.wanted
    asked: dict[str, tuple[str, ...]] = {"engine": (wanted.engine, wanted.version), "node_type": (wanted.node_type,)}
    nodes = [n for n in cache.decided.nodes if not n.leaving] or cache.decided.nodes
    have: dict[str, list[tuple[str, ...]]] = {
        "engine": [(n.engine, n.version) for n in nodes],
        "node_type": [(n.node_type,) for n in nodes],
    }
    now = {what: next((h for h in have[what] if h != asked[what]), asked[what]) for what in asked}
    field = {"engine": "version", "node_type": "node_type"}
    return {
        "engine": now["engine"][0],
        "version": now["engine"][1],
        "node_type": now["node_type"][0],
        "pending": [
            {"what": what, "from": " ".join(now[what]), "to": " ".join(asked[what]), "in_window": field[what] in wanted.deferred}
            for what in asked
            if now[what] != asked[what]
        ],
    }


def _endpoints(cache: Cache) -> Mapping[str, str]:
    """By their kind, and by their shard where there is more than one."""
    many = len(cache.decided.shards) > 1
    return {f"{e.kind} {e.of}" if many and e.of else e.kind: str(e) for e in endpoints(cache)}
