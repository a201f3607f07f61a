"""Another cluster mode for a group that exists: disabled, compatible, enabled [AWS: Modifying cluster mode]."""

from __future__ import annotations

from typing import Any, Final

from cachekeep.engines.catalogue import family_of, numbers
from cachekeep.model import Cache, Wanted
from cachekeep.services.core.context import Params, combination_error, unsupported
from cachekeep.services.elasticache import shards
from cachekeep.services.elasticache import wanted as want
from cachekeep.store.contract import Transaction

ENGINE_SINCE: Final = (7, 0)
"""[AWS: "Valkey 7.2 and above, or Redis OSS 7.0 and above"; there is no older Valkey]."""
_GOES_WITH: Final = {"ReplicationGroupId", "ApplyImmediately", "ClusterMode", "CacheParameterGroupName"}


def on_the_way(params: Params, cache: Cache) -> bool:
    """Whether this asks for ``compatible`` again while the way to ``enabled`` has not been gone yet, or for ``enabled`` after that:
    that may be had at any time, as the group may not be available before."""
    if cache.wanted.deleted or cache.clustered or any(x.moving_to for x in cache.decided.shards):
        return False
    asked, wanted = params.get("ClusterMode"), cache.wanted.cluster_mode
    return (asked, wanted) == ("compatible", "enabled") or (
        (asked, wanted) == ("enabled", "compatible") and bool(cache.decided.successors)
    )


async def change(params: Params, tx: Transaction, cache: Cache) -> dict[str, Any]:
    """What ``ClusterMode`` changes: the mode, and the parameter group to one that has, or has not, ``cluster-enabled``.

    A default parameter group is exchanged for the family's other one by itself. Raises ApiError InvalidParameterCombination, or
    CacheParameterGroupNotFound.
    """
    before, mode = cache.wanted, params["ClusterMode"]
    if more := sorted(params.keys() - _GOES_WITH):
        raise combination_error(f"ClusterMode cannot be changed together with {', '.join(more)}; nothing was changed.")
    if on_the_way(params, cache):
        if "CacheParameterGroupName" in params:
            raise combination_error("CacheParameterGroupName cannot be changed while cluster mode is; nothing was changed.")
        return {"cluster_mode": mode}
    if before.cluster_mode == "enabled":
        raise combination_error(f"ClusterMode cannot be changed from enabled to {mode}: cluster mode cannot be turned off again.")
    if mode == "enabled" and before.cluster_mode == "disabled":
        raise combination_error("ClusterMode cannot be changed from disabled to enabled: it must be compatible first.")
    if mode != "disabled":
        _check(before)
    if mode == "enabled" and "CacheParameterGroupName" not in params:
        return {"cluster_mode": mode}  # the group's has cluster-enabled already
    return {"cluster_mode": mode, **await _parameter_group(params, tx, before, on=mode != "disabled")}


def _check(before: Wanted) -> None:
    if before.transit != "disabled":
        raise unsupported("Changing ClusterMode of a group with encryption in transit")
    if numbers(before.version) < ENGINE_SINCE:
        raise combination_error(
            "ClusterMode=compatible or enabled needs Redis OSS 7.0 or Valkey 7.2 or later, "
            f"and the group runs {before.engine} {before.version}."
        )
    if before.deferred:
        raise combination_error(f"ClusterMode cannot be changed while a change of {', '.join(sorted(before.deferred))} is pending.")
    if not before.automatic_failover:  # which is not to be had without a replica
        raise combination_error(
            "ClusterMode=compatible or enabled needs automatic failover to be enabled, with at least one replica."
        )
    shards.check_port(before.port, clustered=True)


async def _parameter_group(params: Params, tx: Transaction, before: Wanted, *, on: bool) -> dict[str, Any]:
    family = family_of(before.engine, before.version)
    name = params.get("CacheParameterGroupName")
    if name is None:
        if not before.parameter_group.startswith("default."):
            ours = "has" if on else "has no"
            raise combination_error(
                f"The parameter group {before.parameter_group} cannot be used with ClusterMode={params['ClusterMode']}: "
                f"name one of family {family} that {ours} cluster-enabled in CacheParameterGroupName."
            )
        name = f"default.{family}.cluster.on" if on else f"default.{family}"
    group_name, values = await want.parameter_group(tx, name, family)
    if (values.get("cluster-enabled") == "yes") is not on:
        raise combination_error(
            f"ClusterMode={params['ClusterMode']} needs a parameter group {'with' if on else 'without'} cluster-enabled, "
            f"such as default.{family}{'.cluster.on' if on else ''}; {group_name} is none."
        )
    return {"parameter_group": group_name, "parameters": values}
