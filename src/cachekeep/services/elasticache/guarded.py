"""How policies see calls of ElastiCache: the resources that they name, the condition keys that they have, the tags of resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachekeep.model import Tags
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.rights import Rights
from cachekeep.services.elasticache import names
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "cluster": ("CacheClusterId", "CacheClusterIds", "PrimaryClusterId"),
    "globalreplicationgroup": ("GlobalReplicationGroupId",),
    "parametergroup": ("CacheParameterGroupName",),
    "replicationgroup": ("ReplicationGroupId", "ReplicationGroupIds", "PrimaryReplicationGroupId"),
    "reserved-instance": ("ReservedCacheNodeId",),
    "securitygroup": ("CacheSecurityGroupName", "CacheSecurityGroupNames"),
    "serverlesscache": ("ServerlessCacheName",),
    "serverlesscachesnapshot": ("ServerlessCacheSnapshotName", "SourceServerlessCacheSnapshotName"),
    "snapshot": ("SnapshotName", "SourceSnapshotName", "TargetSnapshotName", "FinalSnapshotIdentifier"),
    "subnetgroup": ("CacheSubnetGroupName",),
    "user": ("UserId", "UserIds", "UserIdsToAdd", "UserIdsToRemove"),
    "usergroup": ("UserGroupId", "UserGroupIds", "UserGroupIdsToAdd", "UserGroupIdsToRemove"),
}
"""Type of resource → the parameters that name one or several."""

_KEYS: Final = {
    "elasticache:AtRestEncryptionEnabled": "AtRestEncryptionEnabled",
    "elasticache:AutomaticFailoverEnabled": "AutomaticFailoverEnabled",
    "elasticache:CacheNodeType": "CacheNodeType",
    "elasticache:CacheParameterGroupName": "CacheParameterGroupName",
    "elasticache:EngineType": "Engine",
    "elasticache:EngineVersion": "EngineVersion",
    "elasticache:KmsKeyId": "KmsKeyId",
    "elasticache:MultiAZEnabled": "MultiAZEnabled",
    "elasticache:NumNodeGroups": "NumNodeGroups",
    "elasticache:ReplicasPerNodeGroup": "ReplicasPerNodeGroup",
    "elasticache:SnapshotRetentionLimit": "SnapshotRetentionLimit",
    "elasticache:TransitEncryptionEnabled": "TransitEncryptionEnabled",
}
"""Condition key → parameter [ElastiCache User Guide, "Using condition keys"]."""
_OFF: Final = ("AtRestEncryptionEnabled", "AutomaticFailoverEnabled", "MultiAZEnabled", "TransitEncryptionEnabled")
"""What is off in a new cache whose request does not say."""
_NEW: Final = ("CreateCacheCluster", "CreateReplicationGroup")
_USERS: Final = ("CreateUser", "ModifyUser")


def _named(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    params, found = dict(call.params), {}
    if params.get("TargetBucket"):
        params.pop("TargetSnapshotName", None)  # the files are called so, and there is no such snapshot
    for kind, parameters in _NAMES.items():
        given = [params[name] for name in parameters if params.get(name)]
        if texts := [text.lower() for value in given for text in ([value] if isinstance(value, str) else value)]:
            found[kind] = texts
    if arn := params.get("ResourceName"):
        try:
            kind, name = names.parse_arn(settings, arn)
        except ApiError:
            return {}  # of nothing here: who may ask at all is told so
        found[kind] = [name]
    return found


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    params = call.params
    found: dict[str, Any] = {key: params[name] for key, name in _KEYS.items() if params.get(name) is not None}
    if call.operation in _NEW:
        found = {f"elasticache:{name}": False for name in _OFF} | found
        found["elasticache:AuthTokenEnabled"] = bool(params.get("AuthToken"))
        sharded = params.get("ClusterMode") in ("enabled", "compatible") or params.get("NumNodeGroups", 1) > 1
        found["elasticache:ClusterModeEnabled"] = sharded
    if call.operation in _USERS and (mode := _mode(params)):
        found["elasticache:UserAuthenticationMode"] = mode
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in found.items()}


def _mode(params: Mapping[str, Any]) -> str:
    """How a user is to show who it is, however that is said; empty: as before."""
    if given := params.get("AuthenticationMode", {}).get("Type"):
        return str(given)
    return "no-password-required" if params.get("NoPasswordRequired") else "password" if params.get("Passwords") else ""


async def _tags(tx: Transaction, arn: str) -> Mapping[str, str]:
    """A member of a group has its group's, and its own over them."""
    *before, kind, name = arn.split(":")
    inherited = None
    if kind == "cluster" and (cache := await tx.cache_of(name)) is not None and cache.kind == "group":
        inherited = await tx.get(Tags, ":".join([*before, "replicationgroup", cache.name]))
    own = await tx.get(Tags, arn)
    return {**(inherited.values if inherited else {}), **(own.values if own else {})}


RIGHTS: Final = Rights(names=_named, keys=_keys, tags=_tags)
