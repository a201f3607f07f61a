"""What cannot exist yet. Describes say so truthfully: empty lists, and not found for an id; nothing can be made or changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, unsupported
from cachekeep.services.core.operation import Handler, Operation, reads, refuses
from cachekeep.services.core.paging import USUAL, PageRule
from cachekeep.services.elasticache.declared import NO_CACHE_SECURITY_GROUPS
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_SERVERLESS_PAGES: Final = PageRule("NextToken", "MaxResults", 1, 50, 50)


def _missing(code: str, what: str) -> Callable[[str], ApiError]:
    return lambda name: ApiError(code, f"{what} {name} not found.")


MISSING: Final[Mapping[str, Callable[[str], ApiError]]] = {
    "snapshot": _missing("SnapshotNotFoundFault", "Snapshot"),
    "securitygroup": _missing("CacheSecurityGroupNotFound", "Cache security group"),
    "serverlesscache": _missing("ServerlessCacheNotFoundFault", "Serverless cache"),
    "serverlesscachesnapshot": _missing("ServerlessCacheSnapshotNotFoundFault", "Serverless cache snapshot"),
    "reserved-instance": _missing("ReservedCacheNodeNotFound", "Reserved cache node"),
    "offering": _missing("ReservedCacheNodesOfferingNotFound", "Reserved cache nodes offering"),
    "globalreplicationgroup": _missing("GlobalReplicationGroupNotFoundFault", "Global replication group"),
}
"""Kind of resource (as in its ARN) → the error for a name of it."""


def _empty(result: str, rule: PageRule = USUAL, **ids: str) -> Handler:
    """A Describe of nothing. ``ids``: parameter → kind of the resource that it would name."""

    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        """There is none: an empty list, or not found for an id."""
        paging.start(call.params, rule)
        for parameter, kind in ids.items():
            if name := call.params.get(parameter):
                raise MISSING[kind](name)
        return {result: []}

    return handler


_CACHE_SECURITY_GROUP_OPERATIONS: Final = (
    "CreateCacheSecurityGroup",
    "DescribeCacheSecurityGroups",
    "DeleteCacheSecurityGroup",
    "AuthorizeCacheSecurityGroupIngress",
    "RevokeCacheSecurityGroupIngress",
)


def _refused(what: str, *operations: str, plural: bool = False) -> dict[str, Operation]:
    error = unsupported(what, plural=plural)
    return {name: refuses(error.code, error.message) for name in operations}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "DescribeServerlessCaches": reads(_empty("ServerlessCaches", _SERVERLESS_PAGES, ServerlessCacheName="serverlesscache")),
    "DescribeServerlessCacheSnapshots": reads(
        _empty(
            "ServerlessCacheSnapshots",
            _SERVERLESS_PAGES,
            ServerlessCacheSnapshotName="serverlesscachesnapshot",
            ServerlessCacheName="serverlesscache",
        )
    ),
    "DescribeGlobalReplicationGroups": reads(_empty("GlobalReplicationGroups", GlobalReplicationGroupId="globalreplicationgroup")),
    "DescribeReservedCacheNodes": reads(_empty("ReservedCacheNodes", ReservedCacheNodeId="reserved-instance")),
    "DescribeReservedCacheNodesOfferings": reads(_empty("ReservedCacheNodesOfferings", ReservedCacheNodesOfferingId="offering")),
    **{name: refuses("InvalidParameterValue", NO_CACHE_SECURITY_GROUPS) for name in _CACHE_SECURITY_GROUP_OPERATIONS},
    **_refused(
        "Serverless caches",
        "CreateServerlessCache",
        "ModifyServerlessCache",
        "DeleteServerlessCache",
        "CreateServerlessCacheSnapshot",
        "CopyServerlessCacheSnapshot",
        "DeleteServerlessCacheSnapshot",
        "ExportServerlessCacheSnapshot",
        plural=True,
    ),
    **_refused(
        "Global datastores",
        "CreateGlobalReplicationGroup",
        "ModifyGlobalReplicationGroup",
        "DeleteGlobalReplicationGroup",
        "DisassociateGlobalReplicationGroup",
        "FailoverGlobalReplicationGroup",
        "IncreaseNodeGroupsInGlobalReplicationGroup",
        "DecreaseNodeGroupsInGlobalReplicationGroup",
        "RebalanceSlotsInGlobalReplicationGroup",
        plural=True,
    ),
    **_refused("Online migration", "PrepareMigration", "StartMigration", "CompleteMigration", "StopMigration", "TestMigration"),
    **_refused("Reserving cache nodes", "PurchaseReservedCacheNodesOffering"),
}
