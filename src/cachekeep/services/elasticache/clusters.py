"""Cache clusters: Memcached clusters, single Valkey or Redis nodes, and the members of replication groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.engines.catalogue import ENGINES
from cachekeep.model import Cache, Member, Wanted, WantedShard
from cachekeep.model.traits import traits
from cachekeep.services.core import paging
from cachekeep.services.core.caches import save, told
from cachekeep.services.core.context import Context, Params, combination_error, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Held, Operation, reads, writes
from cachekeep.services.elasticache import (
    admission,
    find,
    in_force,
    names,
    quotas,
    render,
    replicas,
    restoring,
    snapshots,
    tags,
    zones,
)
from cachekeep.services.elasticache import wanted as want
from cachekeep.services.elasticache.groups import change_engine, change_node_type
from cachekeep.store.contract import AlreadyThere, Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_SHARD: Final = "0001"


# ------------------------------------------------------------------ create


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Creates a Memcached cluster of up to 60 nodes, a single Valkey or Redis node, or one more replica of a replication group."""
    params = call.params
    cluster_id = names.identifier(params["CacheClusterId"], "CacheClusterId", names.CLUSTER_ID_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    if await tx.cache_of(cluster_id):
        raise _already_exists(cluster_id)
    if "ReplicationGroupId" in params:
        cache = await replicas.add_named(params, tx, context, cluster_id)
    else:
        cache = await _new(params, tx, context, cluster_id)
    await tags.replace_all(tx, names.arn(context.settings, "cluster", cluster_id), given)
    tx.wake(cache.uid)
    return {"CacheCluster": render.cluster(cache, None, cluster_id, context)}


def _already_exists(cluster_id: str) -> ApiError:
    return ApiError("CacheClusterAlreadyExists", f"Cache cluster {cluster_id} already exists.")


async def _new(params: Params, tx: Transaction, context: Context, cluster_id: str) -> Cache:
    restored = await restoring.source(params, tx)
    params = restoring.filled(params, restored)
    for name in ("Engine", "CacheNodeType"):
        if name not in params:
            raise value_error(f"The parameter {name} must be provided and must not be blank.")
    engine = params["Engine"].lower()
    if engine not in ENGINES:
        raise value_error(f"Invalid engine {engine}: valid engines are {', '.join(ENGINES)}.")
    transit = want.transit(params)
    offer = want.choose_version(context, engine, params.get("EngineVersion"), transit)
    node_type = want.check_node_type(engine, params["CacheNodeType"])
    group_name, values = await want.parameter_group(tx, params.get("CacheParameterGroupName"), offer.family)
    if values.get("cluster-enabled") == "yes":
        raise combination_error(f"The parameter group {group_name} turns cluster mode on, which needs a replication group.")
    subnet_group = params.get("CacheSubnetGroupName", "").lower() or None
    allowed = await want.zones_for(tx, context, subnet_group)
    where = _zones(params, context, engine, cluster_id, allowed)
    found = [f"{cluster_id}.{number:04}" for number in range(1, len(where) + 1)] if traits(engine).listed else [cluster_id]
    wanted = Wanted(
        engine=engine,
        version=offer.version,
        node_type=node_type,
        port=names.port(params.get("Port"), want.DEFAULT_PORTS[engine]),
        shards=(WantedShard(id=_SHARD, members=tuple(Member(name=n, zone=z) for n, z in zip(found, where, strict=True))),),
        cross_zone=_crosses(params, where),
        parameter_group=group_name,
        parameters=values,
        subnet_group=subnet_group,
        clients=admission.of_new_cluster(params, context.clock.now(), engine=engine, transit=transit),
        **want.encrypted(context, transit, offer, node_type),
        **await want.plain(tx, params, context.settings),
        **want.windows(params, engine),
    )
    wanted = restoring.imported(restoring.into(wanted, restored), params, context)
    try:
        cache = await want.insert(tx, context, "cluster", cluster_id, wanted)
        await tx.tell(*restoring.told_of(cache))
        return cache
    except AlreadyThere:
        raise _already_exists(cluster_id) from None


def _zones(params: Params, context: Context, engine: str, cluster_id: str, allowed: Sequence[str]) -> list[str]:
    """A zone for each node [CreateCacheCluster: NumCacheNodes, AZMode, PreferredAvailabilityZone(s)].

    Raises ApiError InvalidParameterValue, InvalidParameterCombination or NodeQuotaForClusterExceeded.
    """
    count = params.get("NumCacheNodes", 1)
    check_node_count(engine, count, context)
    chosen = list(params.get("PreferredAvailabilityZones", ()))
    one = params.get("PreferredAvailabilityZone")
    crossing = _crosses(params, chosen)
    if one and not (crossing and one.lower() == "multiple"):  # as it is shown of such a cluster
        if chosen:
            raise combination_error("PreferredAvailabilityZone and PreferredAvailabilityZones cannot be used together.")
        if crossing and count > 1:
            raise combination_error(
                "PreferredAvailabilityZone cannot be used with AZMode cross-az; use PreferredAvailabilityZones."
            )
        chosen = [one] * count
    if crossing and (not traits(engine).listed or count == 1):
        raise combination_error("AZMode cross-az needs a Memcached cluster of two or more nodes.")
    if chosen and len(chosen) != count:
        raise combination_error(f"{len(chosen)} availability zones are named for {count} cache nodes; name one for each.")
    zones.check(chosen, allowed)
    if not crossing and len(set(chosen)) > 1:
        raise combination_error("Nodes in several availability zones need AZMode cross-az.")
    rotated = zones.rotated(allowed, cluster_id)
    return chosen or (zones.spread(count, rotated) if crossing else [rotated[0]] * count)


def _crosses(params: Params, zones: Sequence[str], before: bool = False) -> bool:
    """Whether nodes are to be in several zones [CreateCacheCluster, AZMode: single-az is assumed where neither it nor zones are
    given]."""
    given = params.get("AZMode")
    return (before or len(set(zones)) > 1) if given is None else given == "cross-az"


def check_node_count(engine: str, count: int, context: Context) -> None:
    """Raises ApiError InvalidParameterValue or NodeQuotaForClusterExceeded."""
    if count < 1:
        raise value_error(f"NumCacheNodes must be at least 1, and not {count}.")
    if not traits(engine).listed and count > 1:
        raise value_error(f"Cannot create a {engine} cluster with a NumCacheNodes parameter greater than 1.")
    quotas.NODES_PER_MEMCACHED_CLUSTER.check(count, context.settings.quotas)


# ------------------------------------------------------------------ describe


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All clusters in pages, members of groups included, or one by its id; the one is held while it is in transition."""
    params = call.params
    after, size = paging.start(params)
    marker: Mapping[str, str] = {}
    if name := params.get("CacheClusterId"):
        cache = await find.cluster(tx, name)
        if cache.kind == "group" and params.get("ShowCacheClustersNotInReplicationGroups"):
            raise find.cluster_not_found(name)
        found = [(name.lower(), cache)]
    elif params.get("ShowCacheClustersNotInReplicationGroups"):
        rows = await tx.caches(kind="cluster", after=after or "", limit=size + 1)
        caches, marker = paging.finish(rows, size, lambda cache: cache.name)
        found = [(cache.name, cache) for cache in caches]
    else:
        owned, marker = paging.finish(await tx.members(after=after or "", limit=size + 1), size, lambda row: row[0])
        found = await _owners(tx, owned)
    conditions = await tx.conditions([cache.uid for _, cache in found])
    nodes = params.get("ShowCacheNodeInfo", False)
    shapes = [render.cluster(cache, conditions.get(cache.uid), name, context, nodes=nodes) for name, cache in found]
    return {"CacheClusters": shapes, **marker}


async def _owners(tx: Transaction, owned: Sequence[tuple[str, str]]) -> list[tuple[str, Cache]]:
    """Each member with its cache; members of one group are neighbours more often than not."""
    known: dict[str, Cache] = {}
    for cluster_id, uid in owned:
        if uid not in known and (cache := await tx.cache_of(cluster_id)):
            known[uid] = cache
    return [(cluster_id, known[uid]) for cluster_id, uid in owned if uid in known]


# ------------------------------------------------------------------ modify


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Changes the number of Memcached nodes, node type, engine version, parameter group, windows."""
    params = call.params
    cluster_id = params["CacheClusterId"].lower()
    cache = await find.cluster(tx, cluster_id)
    immediately = params.get("ApplyImmediately", False)
    if not params.keys() - {"CacheClusterId", "ApplyImmediately"} and not (immediately and cache.wanted.deferred):
        raise combination_error("No modifications were requested")
    if cache.kind == "group":
        raise combination_error(
            f"Cache cluster {cluster_id} belongs to replication group {cache.name}; use ModifyReplicationGroup to change it."
        )
    await find.cluster_to_change(tx, cluster_id)
    before = cache.wanted
    changes = await want.plain(tx, params, context.settings) | want.windows(params, before.engine, before)
    if "CacheNodeType" in params:
        changes["node_type"] = await change_node_type(tx, cache, params["CacheNodeType"])
    if params.get("Engine", before.engine).lower() != before.engine:
        raise combination_error(
            "The engine of a stand-alone cluster cannot be changed; make it the primary of a replication group first."
        )
    if admission.CHANGES & params.keys():
        changes["clients"] = admission.of_token(params, context.clock.now(), cache)
    changes |= await change_engine(params, tx, context, cache, immediately=immediately)
    changes |= await _change_nodes(params, tx, context, cache)
    wanted = want.revise(cache, changes, immediately=immediately)
    await want.check_room(tx, context, wanted, cache)
    opened = admission.still_open(wanted.clients) and not admission.still_open(before.clients)
    cache = await save(tx, cache, wanted, *([told(cache, admission.STILL_OPEN)] if opened else []))
    return {"CacheCluster": render.cluster(cache, await tx.condition(cache.uid), cluster_id, context)}


_COUNTING: Final = frozenset({"NumCacheNodes", "CacheNodeIdsToRemove", "NewAvailabilityZones", "AZMode"})


async def _change_nodes(params: Params, tx: Transaction, context: Context, cache: Cache) -> dict[str, Any]:
    """More or fewer Memcached nodes. A change that still waits for the window is replaced [ModifyCacheCluster, NumCacheNodes].

    Raises ApiError InvalidParameterValue, InvalidParameterCombination or NodeQuotaForClusterExceeded.
    """
    if not _COUNTING & params.keys():
        return {}
    before = cache.wanted
    waiting = "shards" in before.deferred
    present = in_force.members(cache) if waiting else before.shards[0].members
    count = params.get("NumCacheNodes", len(present))
    check_node_count(before.engine, count, context)
    if not traits(before.engine).listed:
        if _COUNTING & params.keys() - {"NumCacheNodes"}:
            raise combination_error("CacheNodeIdsToRemove, NewAvailabilityZones and AZMode are for Memcached clusters only.")
        return {}
    named = [*(m.zone for m in present), *params["NewAvailabilityZones"]] if params.get("NewAvailabilityZones") else []
    crossing = _crosses(params, named, before.cross_zone)
    if params.get("AZMode") == "cross-az" and count == 1:
        raise combination_error("AZMode cross-az needs two or more cache nodes.")
    kept = _without(present, params.get("CacheNodeIdsToRemove", ()), len(present) - count)
    allowed = await want.zones_of(tx, context, cache)
    added = _where(params, present, count - len(present), allowed, crossing)
    if not crossing and len({*(m.zone for m in kept), *added}) > 1:
        raise combination_error("Nodes in several availability zones need AZMode cross-az.")
    new = await want.new_names(tx, f"{cache.name}.", 4, len(added), want.own_names(cache))
    members = (*kept, *(Member(name=name, zone=zone) for name, zone in zip(new, added, strict=True)))
    return {"shards": want.with_members(before, before.shards[0].id, members), "cross_zone": crossing}


def _without(present: Sequence[Member], removed: Sequence[str], fewer: int) -> tuple[Member, ...]:
    """The members that stay when ``fewer`` (maybe none) are to go."""
    ids = {m.name.partition(".")[2]: m for m in present}
    if removed and fewer <= 0:
        raise combination_error(
            "CacheNodeIdsToRemove can only be given when NumCacheNodes is less than the present number of nodes."
        )
    if fewer > 0 and len(set(removed)) != fewer:
        nodes = "one cache node" if fewer == 1 else f"{fewer} cache nodes"
        raise combination_error(f"CacheNodeIdsToRemove must name {nodes}, the difference to NumCacheNodes.")
    for node_id in removed:
        if node_id not in ids:
            raise value_error(f"Cache node {node_id} does not exist. Cache nodes: {', '.join(ids)}.")
    return tuple(m for node_id, m in ids.items() if node_id not in removed)


def _where(params: Params, present: Sequence[Member], more: int, allowed: Sequence[str], crossing: bool) -> list[str]:
    """Zones for new nodes."""
    chosen = list(params.get("NewAvailabilityZones", ()))
    zones.check(chosen, allowed)
    if chosen and len(chosen) != max(more, 0):
        raise combination_error(
            f"{len(chosen)} availability zones are named for {max(more, 0)} new cache nodes; name one for each."
        )
    if chosen or more <= 0:
        return chosen
    there = [m.zone for m in present]
    return zones.spread(more, allowed, there) if crossing else [there[0]] * more


# ------------------------------------------------------------------ delete and reboot


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes a cluster with its data, or one replica of a replication group."""
    cluster_id = call.params["CacheClusterId"].lower()
    cache = await find.cluster(tx, cluster_id)
    last = call.params.get("FinalSnapshotIdentifier")
    if cache.kind == "group":
        if last is not None:
            raise combination_error(f"{cluster_id} is a replica, whose data {cache.name} keeps: it has no last snapshot.")
        cache = await replicas.remove_named(tx, cache, cluster_id)
        await tags.drop(tx, names.arn(context.settings, "cluster", cluster_id))
    else:
        if cache.wanted.deleted and cache.kept_from_ending is None:
            raise find.cluster_state_error(cluster_id)
        if last is not None and not cache.wanted.deleted:
            await find.cluster_to_change(tx, cluster_id)
        cache = await snapshots.delete_cache(tx, context, cache, last)
        await tags.forget(tx, context, cache)
    return {"CacheCluster": render.cluster(cache, await tx.condition(cache.uid), cluster_id, context)}


async def reboot(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Named nodes are stopped and started again, with the parameters that wait for it; their data is gone, as at AWS."""
    cluster_id = call.params["CacheClusterId"].lower()
    cache = await find.member_to_change(tx, cluster_id)
    there = [m.name for m in in_force.members(cache)]
    mine = {name.partition(".")[2] or "0001": name for name in there if name.partition(".")[0] == cluster_id}
    asked = list(dict.fromkeys(call.params["CacheNodeIdsToReboot"]))
    if not asked:
        raise value_error("CacheNodeIdsToReboot must name at least one cache node.")
    for node_id in asked:
        if node_id not in mine:
            raise value_error(f"Cache node {node_id} does not exist. Cache nodes: {', '.join(mine)}.")
    if cache.clustered:
        raise combination_error("The nodes of a cluster with cluster mode enabled cannot be rebooted.")
    errands = with_errand(cache, "reboot", nodes=tuple(mine[node_id] for node_id in asked))
    cache = await save(tx, cache, replace(cache.wanted, errands=errands))
    return {"CacheCluster": render.cluster(cache, await tx.condition(cache.uid), cluster_id, context)}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateCacheCluster": writes(create),
    "DescribeCacheClusters": reads(describe, Held("CacheClusterId", "cluster")),
    "ModifyCacheCluster": writes(modify),
    "DeleteCacheCluster": writes(delete),
    "RebootCacheCluster": writes(reboot),
}
