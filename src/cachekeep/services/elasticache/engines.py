"""What can be had: engine versions with an installed build, and the node types to which a cache may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.engines.node_types import allowed_modifications
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, combination_error
from cachekeep.services.core.operation import Operation, reads
from cachekeep.services.elasticache import find, in_force
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


async def describe_versions(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The versions that an installed build serves; the description names the build."""
    params = call.params
    engine = params.get("Engine")
    found = context.catalogue.versions(
        engine.lower() if engine else None,
        params.get("EngineVersion"),
        params.get("CacheParameterGroupFamily"),
        params.get("DefaultOnly", False),
    )
    numbered = [(f"{index:04}", entry) for index, entry in enumerate(found)]
    return paging.page(
        numbered,
        params,
        lambda row: row[0],
        lambda row: {
            "Engine": row[1].offer.engine,
            "EngineVersion": row[1].offer.version,
            "CacheParameterGroupFamily": row[1].offer.family,
            "CacheEngineDescription": row[1].description,
            "CacheEngineVersionDescription": row[1].version_description,
        },
        "CacheEngineVersions",
    )


async def list_node_types(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Larger and smaller node types to which a cluster or group may change from the one in force; its data fit in them."""
    cluster_id, group_id = call.params.get("CacheClusterId"), call.params.get("ReplicationGroupId")
    if bool(cluster_id) == bool(group_id):
        raise combination_error("Give either CacheClusterId or ReplicationGroupId.")
    cache = await find.cluster(tx, cluster_id) if cluster_id else await find.group(tx, group_id or "")
    up, down = allowed_modifications(in_force.engine(cache)[0], in_force.node_type(cache))
    held = in_force.held_bytes(await tx.condition(cache.uid))
    fitting = {name for name in (*up, *down) if in_force.fits(cache, name, held)}
    return {
        "ScaleUpModifications": [name for name in up if name in fitting],
        "ScaleDownModifications": [name for name in down if name in fitting],
    }


OPERATIONS: Final[Mapping[str, Operation]] = {
    "DescribeCacheEngineVersions": reads(describe_versions),
    "ListAllowedNodeTypeModifications": reads(list_node_types),
}
