"""Application Auto Scaling. Each module of operations ends with the tables of those it serves and of what their parameters do."""

from collections.abc import Mapping, Sequence
from typing import Final

from cachekeep.services.autoscaling import actions, activities, policies, targets
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.operation import Service, refuses
from cachekeep.services.core.rights import Rights
from cachekeep.wire.gateway import Call

_FORECAST: Final = "Predictive scaling is not supported by this version of Cachekeep, so there is no forecast."


def _names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    """A target's ARN holds an id that nobody chooses: who names one by its parts is judged by the keys below."""
    asked = call.params.get("ResourceARN", "").rpartition("scalable-target/")[2]
    return {"ScalableTarget": [asked or "*"]}


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    asked = {
        "application-autoscaling:service-namespace": call.params.get("ServiceNamespace"),
        "application-autoscaling:scalable-dimension": call.params.get("ScalableDimension"),
    }
    return {key: value for key, value in asked.items() if value}


SERVICE = Service(
    name="application-autoscaling",
    title="Application Auto Scaling",
    operations={
        **targets.OPERATIONS,
        **policies.OPERATIONS,
        **actions.OPERATIONS,
        **activities.OPERATIONS,
        "GetPredictiveScalingForecast": refuses("ValidationException", _FORECAST),
    },
    parameters={**targets.PARAMETERS, **policies.PARAMETERS, **actions.PARAMETERS, **activities.PARAMETERS},
    rights=Rights(names=_names, keys=_keys, denied="AccessDeniedException"),
)
