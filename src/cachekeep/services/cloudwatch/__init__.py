"""CloudWatch: metrics. Each module of operations ends with the tables of those it serves and of what their parameters do."""

from collections.abc import Mapping

from cachekeep.services.cloudwatch import put, read
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.operation import Service
from cachekeep.services.core.rights import Rights
from cachekeep.wire.gateway import Call


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    return {"cloudwatch:namespace": call.params["Namespace"]} if "Namespace" in call.params else {}


SERVICE = Service(
    name="cloudwatch",
    title="CloudWatch",
    operations={**read.OPERATIONS, **put.OPERATIONS},
    parameters={**read.PARAMETERS, **put.PARAMETERS},
    rights=Rights(keys=_keys),
)
