"""KMS: keys of the installation, guarded by policies of their own and sealed under the root key (decision 44)."""

from cachekeep.services.core.operation import Service
from cachekeep.services.core.rights import Rights
from cachekeep.services.kms import find, keys, use

SERVICE = Service(
    name="kms",
    title="KMS",
    operations={**keys.OPERATIONS, **use.OPERATIONS},
    parameters={**keys.PARAMETERS, **use.PARAMETERS},
    rights=Rights(
        names=find.names,
        keys=find.keys,
        tags=find.tags,
        guard=find.guard,
        resolve=find.resolved,
        denied="AccessDeniedException",
    ),
)
