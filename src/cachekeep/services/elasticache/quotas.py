"""ElastiCache's quotas: AWS's defaults (fact sheet §11)."""

from __future__ import annotations

from typing import Final

from cachekeep.services.core.quotas import Quota

_PER_CLUSTER: Final = "Cluster node quota exceeded. Each cluster can have at most {most} nodes in this region."

NODES: Final = Quota(
    default=300,
    code="NodeQuotaForCustomerExceeded",
    message="Customer node quota exceeded. You can have at most {most} nodes in this region",
)
NODES_PER_MEMCACHED_CLUSTER: Final = Quota(default=60, code="NodeQuotaForClusterExceeded", message=_PER_CLUSTER)
NODES_PER_GROUP: Final = Quota(default=500, code="NodeQuotaForCustomerExceeded", message=_PER_CLUSTER)
"""Primaries and replicas of one group with cluster mode [AWS quota L-AF354865, raised as far as it goes]. Of nodes,
IncreaseReplicaCount and ModifyReplicationGroupShardConfiguration declare no other code."""
NODES_PER_SHARD_MAX: Final = 6
"""No quota: nobody can have more [AWS: one primary and up to five replicas]."""
PARAMETER_GROUPS: Final = Quota(
    default=300,
    code="CacheParameterGroupQuotaExceeded",
    message="You have reached the quota of {most} cache parameter groups.",
)
SUBNET_GROUPS: Final = Quota(
    default=300,
    code="CacheSubnetGroupQuotaExceeded",
    message="You have reached the quota of {most} cache subnet groups.",
)
SUBNETS_PER_GROUP: Final = Quota(
    default=20,
    code="CacheSubnetQuotaExceededFault",
    message="A cache subnet group can have at most {most} subnets.",
)
SNAPSHOTS_PER_DAY: Final = Quota(
    default=20,
    code="SnapshotQuotaExceededFault",
    message="The maximum number of manual snapshots for this cluster taken within 24 hours has been reached",
)
"""Of one cache. Both are AWS's own."""
TAGS: Final = Quota(default=50, code="TagQuotaPerResourceExceeded", message="A resource can have at most {most} tags.")
USERS: Final = Quota(default=1000, code="UserQuotaExceeded", message="You have reached the quota of {most} users.")
USER_GROUPS: Final = Quota(default=100, code="UserGroupQuotaExceeded", message="You have reached the quota of {most} user groups.")
TEST_FAILOVERS_PER_DAY: Final = Quota(
    default=None,
    code="APICallRateForCustomerExceeded",
    message="Failover would be tested {count} times in 24 hours; {most} are allowed.",
)
"""AWS allows 15 shards in 24 hours."""
