"""ElastiCache. Each module of operations ends with the table of those it serves."""

from cachekeep.services.core.operation import Service
from cachekeep.services.elasticache import (
    absent,
    clusters,
    engines,
    events,
    groups,
    parameter_groups,
    replicas,
    resharding,
    service_updates,
    snapshots,
    subnet_groups,
    tags,
    user_groups,
    users,
)
from cachekeep.services.elasticache.blanks import without_blanks
from cachekeep.services.elasticache.declared import DECLARED
from cachekeep.services.elasticache.guarded import RIGHTS

SERVICE = Service(
    name="elasticache",
    title="ElastiCache",
    operations={
        **absent.OPERATIONS,
        **clusters.OPERATIONS,
        **engines.OPERATIONS,
        **events.OPERATIONS,
        **groups.OPERATIONS,
        **parameter_groups.OPERATIONS,
        **replicas.OPERATIONS,
        **resharding.OPERATIONS,
        **snapshots.OPERATIONS,
        **service_updates.OPERATIONS,
        **subnet_groups.OPERATIONS,
        **tags.OPERATIONS,
        **user_groups.OPERATIONS,
        **users.OPERATIONS,
    },
    parameters=DECLARED,
    prepare=without_blanks,
    rights=RIGHTS,
)
