"""IAM. Each module of operations ends with the tables of those it serves and of what their parameters do."""

from cachekeep.services.core.operation import Service
from cachekeep.services.iam import callers, simulate

SERVICE = Service(
    name="iam",
    title="IAM",
    operations={**callers.OPERATIONS, **simulate.OPERATIONS},
    parameters={**callers.PARAMETERS, **simulate.PARAMETERS},
)
