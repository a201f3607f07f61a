"""Finding caches for a request, and refusing those that are not there or not in a state to be changed."""

from __future__ import annotations

from cachekeep.model import Cache, Condition
from cachekeep.services.core.hold import current
from cachekeep.services.elasticache.status import cache_status, cluster_status, group_status
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError


def group_not_found(name: str) -> ApiError:
    return ApiError("ReplicationGroupNotFoundFault", f"ReplicationGroup {name.lower()} not found.")


def cluster_not_found(cluster_id: str) -> ApiError:
    return ApiError("CacheClusterNotFound", f"CacheCluster not found: {cluster_id.lower()}")


def parameter_group_not_found(name: str) -> ApiError:
    return ApiError("CacheParameterGroupNotFound", f"CacheParameterGroup not found: {name.lower()}")


def subnet_group_not_found(name: str) -> ApiError:
    return ApiError("CacheSubnetGroupNotFoundFault", f"Cache Subnet Group {name.lower()} does not exist.")


async def group(tx: Transaction, name: str) -> Cache:
    """Raises ApiError ReplicationGroupNotFoundFault."""
    cache = await tx.cache(name.lower(), "group")
    if cache is None:
        raise group_not_found(name)
    return cache


async def cluster(tx: Transaction, cluster_id: str) -> Cache:
    """The cache that owns a CacheClusterId. Raises ApiError CacheClusterNotFound."""
    cache = await tx.cache_of(cluster_id.lower())
    if cache is None:
        raise cluster_not_found(cluster_id)
    return cache


def group_state_error(name: str) -> ApiError:
    """Terraform and Ansible look for "not in available state"."""
    return ApiError("InvalidReplicationGroupState", f"Replication group {name} is not in available state.")


def cluster_state_error(cluster_id: str) -> ApiError:
    return ApiError("InvalidCacheClusterState", f"Cache cluster {cluster_id} is not in available state.")


async def group_to_change(tx: Transaction, name: str, *, stuck: bool = False) -> Cache:
    """One that is available. ``stuck``: or that waits for its user, who may be about to do what it waits for: ElastiCache has no
    such state, as it replaces what does not work.

    Raises ApiError ReplicationGroupNotFoundFault or InvalidReplicationGroupState.
    """
    cache = await group(tx, name)
    told = await tx.condition(cache.uid)
    if group_status(cache, told) != "available" and not (stuck and waits(cache, told) and not _between(cache)):
        raise group_state_error(cache.name)
    return cache


async def cluster_to_change(tx: Transaction, cluster_id: str) -> Cache:
    """Raises ApiError CacheClusterNotFound or InvalidCacheClusterState."""
    cache = await cluster(tx, cluster_id)
    if cluster_status(cache, await tx.condition(cache.uid), cluster_id.lower()) != "available":
        raise cluster_state_error(cluster_id.lower())
    return cache


async def member_to_change(tx: Transaction, cluster_id: str) -> Cache:
    """The cache of a cluster that may be rebooted or removed by itself: a member that does not work is one, as long as its group
    is available or waits for its user. Raises ApiError CacheClusterNotFound or InvalidCacheClusterState."""
    cache = await cluster(tx, cluster_id)
    told = await tx.condition(cache.uid)
    ill = cache_status(cache, told) == "available" or waits(cache, told)
    now = cluster_status(cache, told, cluster_id.lower())
    if now != "available" and not (ill and now != "deleting"):
        raise cluster_state_error(cluster_id.lower())
    return cache


def waits(cache: Cache, told: Condition | None) -> bool:
    """Whether it waits for its user, by its keeper's present word."""
    seen = current(cache, told)
    return seen is not None and seen.refused and not cache.wanted.deleted


def _between(cache: Cache) -> bool:
    """It is on its way to other shards or to another cluster mode: nothing else is changed meanwhile."""
    return bool(cache.decided.resharding or cache.decided.successors) or cache.wanted.cluster_mode != cache.cluster_mode
