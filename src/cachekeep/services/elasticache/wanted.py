"""From a request's parameters to what is wanted: the rules that groups and clusters share, each in one table or one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.engines.catalogue import Offer, numbers
from cachekeep.engines.limits import memory_needed
from cachekeep.engines.node_types import node_type, offered
from cachekeep.engines.parameters import default_groups
from cachekeep.errors import EngineMissing
from cachekeep.model import Cache, CacheKind, Member, ParameterGroup, Secret, SubnetGroup, Transit, Wanted, WantedShard
from cachekeep.model.traits import traits
from cachekeep.services.core.context import Context, Params, ServiceSettings, combination_error, unsupported, value_error
from cachekeep.services.core.security_groups import security_group
from cachekeep.services.elasticache import find, names, quotas
from cachekeep.services.elasticache.render import DEFAULT_SUBNET_GROUP, shown_version
from cachekeep.store.contract import Transaction
from cachekeep.store.every import every
from cachekeep.wire.faults import ApiError

RETENTION_DAYS_MAX: Final = 35
DEFAULT_PORTS: Final = {"memcached": 11211, "redis": 6379, "valkey": 6379}


# ------------------------------------------------------------------ engine, version, node type, parameter group


def choose_version(context: Context, engine: str, asked: str | None, transit: Transit = "disabled") -> Offer:
    """The version that a request means: one that ElastiCache offers and an installed build serves, with TLS where that is asked
    for. What is shown as a cache's version may be asked for too. Raises ApiError for one that does not exist or that nothing
    installed serves."""
    needs = () if transit == "disabled" else ("tls",)
    versions = (entry.offer.version for entry in context.catalogue.versions(engine))
    asked = next((v for v in versions if asked == shown_version(context.catalogue, engine, v)), asked)
    try:
        return context.catalogue.choose(engine, asked, needs)[0]
    except EngineMissing as error:
        raise combination_error(f"{error} Nothing was changed.") from None


_TLS_SINCE: Final = {"memcached": (1, 6, 12)}
_WITHOUT_TLS: Final = {"memcached": ("m1", "m2", "m3", "r3", "t2")}


def transit(params: Params) -> Transit:
    """How clients are to come [CreateReplicationGroup, TransitEncryptionEnabled and TransitEncryptionMode].

    Raises ApiError InvalidParameterCombination.
    """
    enabled, asked = params.get("TransitEncryptionEnabled", False), params.get("TransitEncryptionMode")
    if not enabled:
        if asked is not None:
            raise combination_error("TransitEncryptionMode can be set only together with TransitEncryptionEnabled true.")
        return "disabled"
    if asked == "preferred":
        raise unsupported("Encryption in transit that clients may do without (TransitEncryptionMode preferred)")
    return "required"


def encrypted(context: Context, transit: Transit, offer: Offer, node_type: str) -> dict[str, Any]:
    """The wanted fields of a cache with TLS. Raises ApiError InvalidParameterCombination where ElastiCache has none
    [fact sheet §4: not on M1 and M2; Memcached from 1.6.12 on]."""
    if transit == "disabled":
        return {}
    if traits(offer.engine).listed:
        raise unsupported("Encryption in transit of memcached")
    if numbers(offer.version) < _TLS_SINCE.get(offer.engine, ()):
        raise combination_error(f"Encryption in transit is not supported for {offer.engine} version {offer.version}.")
    check_transit(transit, offer.engine, node_type)
    context.authorities.make(context.clock)
    return {"transit": transit, "authorities": context.authorities.ids[-1:]}


def check_transit_stays(params: Params, before: Wanted) -> None:
    """Raises ApiError InvalidParameterCombination where another encryption in transit is asked for than there is."""
    now = {"TransitEncryptionEnabled": before.transit != "disabled", "TransitEncryptionMode": before.transit}
    for name, value in now.items():
        if params.get(name, value) != value:
            raise unsupported(f"A change of encryption in transit ({name})")


def check_transit(transit: Transit, engine: str, node_type: str) -> None:
    """Raises ApiError InvalidParameterCombination for a node type that has no TLS at ElastiCache."""
    if transit != "disabled" and node_type.split(".")[1] in _WITHOUT_TLS.get(engine, ("m1", "m2")):
        raise combination_error(f"Encryption in transit is not supported for cache node type {node_type}. Nothing was changed.")


def check_node_type(engine: str, name: str) -> str:
    """Raises ApiError InvalidParameterValue for a node type that does not exist, or that rests on what we do not have."""
    found = node_type(name)
    if found is None:
        raise value_error(
            f"Invalid cache node type {name}. Valid ones for {engine} are, among others: cache.t3.micro, cache.m7g.large."
        )
    if found.tiered:
        raise unsupported(f"Data tiering (node type {name})")
    if name not in offered(engine):
        raise combination_error(f"The cache node type {name} is not available for {engine}.")
    return name


async def _family_and_values(tx: Transaction, name: str) -> tuple[str, dict[str, str]]:
    """Family of a parameter group, and its values where they differ from the family's.
    Raises ApiError CacheParameterGroupNotFound."""
    if family := default_groups().get(name):
        return family, {"cluster-enabled": "yes"} if name.endswith(".cluster.on") else {}
    found = await tx.get(ParameterGroup, name)
    if found is None:
        raise find.parameter_group_not_found(name)
    return found.family, found.values


async def parameter_group(tx: Transaction, name: str | None, family: str) -> tuple[str, dict[str, str]]:
    """Name and values of the parameter group to use; the family's default one for None.

    Raises ApiError CacheParameterGroupNotFound, or InvalidParameterCombination for a group of another family.
    """
    name = (name or f"default.{family}").lower()
    found_family, values = await _family_and_values(tx, name)
    if found_family != family:
        raise combination_error(f"Expected a parameter group of family {family} but found one of family {found_family}.")
    return name, values


async def zones_for(tx: Transaction, context: Context, subnet_group: str | None) -> tuple[str, ...]:
    """The zones in which a new cache's nodes may be placed. Raises ApiError CacheSubnetGroupNotFoundFault."""
    if subnet_group in (None, DEFAULT_SUBNET_GROUP):
        return context.settings.zones
    found = await tx.get(SubnetGroup, subnet_group)
    if found is None:
        raise find.subnet_group_not_found(subnet_group)
    return _zones_in(found, context)


async def zones_of(tx: Transaction, context: Context, cache: Cache) -> tuple[str, ...]:
    """The zones in which more nodes of a cache may be placed: its subnet group is there as long as it is."""
    found = await tx.get(SubnetGroup, cache.wanted.subnet_group) if cache.wanted.subnet_group else None
    return _zones_in(found, context) if found else context.settings.zones


def _zones_in(group: SubnetGroup, context: Context) -> tuple[str, ...]:
    return tuple(zone for zone in context.settings.zones if any(s.zone == zone for s in group.subnets))


# ------------------------------------------------------------------ plain fields

_PLAIN: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "AutoMinorVersionUpgrade": ("auto_minor_version_upgrade", bool),
    "AutomaticFailoverEnabled": ("automatic_failover", bool),
    "MultiAZEnabled": ("multi_az", bool),
    "ReplicationGroupDescription": ("description", str),
}


async def plain(tx: Transaction, params: Params, settings: ServiceSettings) -> dict[str, Any]:
    """The wanted fields that parameters set one to one. Raises ApiError InvalidParameterValue."""
    found = {field: read(params[name]) for name, (field, read) in _PLAIN.items() if name in params}
    if (days := params.get("SnapshotRetentionLimit")) is not None:
        found["snapshot_retention_days"] = _retention(days)
    if "SecurityGroupIds" in params:
        found["security_group_ids"] = await _security_groups(tx, params["SecurityGroupIds"], settings)
    return found


def _retention(days: int) -> int:
    """[AWS: 0, which turns automatic snapshots off, to 35]."""
    if not 0 <= days <= RETENTION_DAYS_MAX:
        raise value_error(f"Invalid value {days} for SnapshotRetentionLimit: it must be between 0 and {RETENTION_DAYS_MAX} days.")
    return days


async def _security_groups(tx: Transaction, ids: Sequence[str], settings: ServiceSettings) -> tuple[str, ...]:
    """The ids, each once."""
    for each in ids:
        if not names.is_security_group_id(each):
            raise value_error(f"Invalid security group {each!r}: an id begins with sg-.")
        if not settings.any_subnet and await security_group(tx, settings, each) is None:
            raise value_error(
                f"The security group {each} does not exist. ec2:DescribeSecurityGroups lists those that there are; "
                "`cachekeep up --any-subnet` takes any other id for the default one. Nothing was changed."
            )
    return tuple(dict.fromkeys(ids))


def windows(params: Params, engine: str, before: Wanted | None = None) -> dict[str, Any]:
    """Both windows after a request. Raises ApiError InvalidParameterValue, or InvalidParameterCombination for an engine that has
    no snapshots."""
    if not traits(engine).snapshots:
        for name in ("SnapshotWindow", "SnapshotRetentionLimit"):
            if params.get(name):
                raise combination_error(f"{name} cannot be used with memcached, which has no snapshots; nothing was changed.")
    asked = params.get("PreferredMaintenanceWindow"), params.get("SnapshotWindow")
    if before is not None:
        if asked == (None, None):
            return {}
        asked = asked[0] or before.maintenance_window, asked[1] or before.snapshot_window
    maintenance, snapshot = names.windows(*asked)
    return {"maintenance_window": maintenance, "snapshot_window": snapshot}


# ------------------------------------------------------------------ room


class Room(msgspec.Struct, frozen=True):
    """What all caches together want."""

    nodes: int
    memory_bytes: int


async def taken(tx: Transaction, besides: str | None = None) -> Room:
    """The room that caches take, but for the one with uid ``besides``: what their processes may use at the worst."""
    count = memory = 0
    async for cache in every(tx, lambda cache: cache.uid != besides and not cache.wanted.deleted):
        count += len(cache.wanted_names())
        memory += _memory_bytes(cache.wanted, cache)
    return Room(count, memory)


def _memory_bytes(wanted: Wanted, cache: Cache | None) -> int:
    """What the nodes' processes may use. On the way to cluster mode there are two for each member."""
    twice = cache is not None and wanted.cluster_mode == "enabled" and not cache.clustered
    return _count(wanted) * memory_needed(wanted) * (2 if twice else 1)


async def check_room(tx: Transaction, context: Context, wanted: Wanted, cache: Cache | None = None) -> None:
    """Refuse what does not fit, if it is more than before.

    Raises ApiError NodeQuotaForCustomerExceeded or InsufficientCacheClusterCapacity.
    """
    settings = context.settings
    if _count(wanted) > (_count(cache.wanted) if cache else 0):
        if wanted.cluster_mode == "enabled":
            quotas.NODES_PER_GROUP.check(_count(wanted), settings.quotas)
        others = await taken(tx, cache.uid if cache else None)
        quotas.NODES.check(others.nodes + _count(wanted), settings.quotas)
    if shortage := await memory_shortage(tx, context, wanted, cache):
        raise ApiError("InsufficientCacheClusterCapacity", shortage)


async def memory_shortage(tx: Transaction, context: Context, wanted: Wanted, cache: Cache | None) -> str | None:
    """Why there is no room for what processes may use, if that is more than before; None where there is."""
    settings = context.settings
    needed = _memory_bytes(wanted, cache)
    if settings.overcommit or needed <= (_memory_bytes(cache.wanted, cache) if cache else 0):
        return None
    others = await taken(tx, cache.uid if cache else None)
    free = settings.capacity_memory_bytes - others.memory_bytes
    if needed <= free:
        return None
    return (
        f"{_count(wanted)} nodes of type {wanted.node_type} may need {needed >> 20} MiB; of the "
        f"{settings.capacity_memory_bytes >> 20} "
        f"MiB that this installation has for caches, {max(free, 0) >> 20} MiB are free. Nothing was changed."
    )


def _count(wanted: Wanted) -> int:
    return sum(len(shard.members) for shard in wanted.shards)


# ------------------------------------------------------------------ members


async def new_names(tx: Transaction, prefix: str, digits: int, count: int, mine: Iterable[str] = ()) -> list[str]:
    """``count`` member names with the lowest numbers that neither this cache nor any cluster has."""
    chosen: list[str] = []
    for name in names.numbered(prefix, digits, frozenset(mine)):
        if len(chosen) == count:
            break
        if "." in name or await tx.cache_of(name) is None:
            chosen.append(name)
    return chosen


def own_names(cache: Cache) -> set[str]:
    """Names that a new member must not have: those that are wanted and those that are still there."""
    return {*cache.wanted_names(), *(n.member for n in cache.decided.nodes)}


def with_members(wanted: Wanted, shard_id: str, members: Iterable[Member]) -> tuple[WantedShard, ...]:
    """The shards with one shard's members replaced."""
    return tuple(replace(s, members=tuple(members)) if s.id == shard_id else s for s in wanted.shards)


def primary_of(cache: Cache, shard: WantedShard) -> str | None:
    """The member that is the decided primary of a shard, or the one that will be."""
    decided = cache.shard(shard.id)
    node = cache.node(decided.primary) if decided and decided.primary else None
    return node.member if node else shard.members[0].name if shard.members else None


# ------------------------------------------------------------------ changing and inserting

_DEFERRABLE: Final = {"node_type": "node_type", "version": "version", "engine": "version", "shards": "shards"}


def revise(cache: Cache, changes: Mapping[str, Any], *, immediately: bool) -> Wanted:
    """``cache.wanted`` with changes. Those that restart or move nodes wait for the maintenance window unless ``immediately``,
    which also lets everything go that has been waiting [ModifyReplicationGroup, ApplyImmediately]."""
    before = cache.wanted
    wanted = replace(before, **changes)
    changed = {_DEFERRABLE[f] for f in _DEFERRABLE if getattr(wanted, f) != getattr(before, f)}
    return replace(wanted, deferred=frozenset() if immediately else before.deferred | changed)


async def insert(tx: Transaction, context: Context, kind: CacheKind, name: str, wanted: Wanted) -> Cache:
    """Add a cache of which nothing is decided yet. Raises AlreadyThere, or what ``check_room`` raises."""
    await check_room(tx, context, wanted)
    uid = context.clock.new_id()
    if traits(wanted.engine).has_users:
        password = context.sealing.credential(uid, 1, Secret(context.clock.new_secret()))
        wanted = replace(wanted, credentials=(password,))
    return await tx.insert(
        Cache(
            uid=uid,
            name=name,
            kind=kind,
            region=context.settings.region,
            created_at=context.clock.now(),
            wanted=wanted,
        )
    )
