"""Finding targets and what belongs to them, and refusing what is not there, in this service's codes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, get_args

from cachekeep.model.scaling import Dimension, ScalableTarget
from cachekeep.services.core import paging
from cachekeep.services.core.context import Params, ServiceSettings
from cachekeep.services.core.paging import PageRule
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError

NAMESPACE: Final = "elasticache"
DIMENSIONS: Final = frozenset(get_args(Dimension))
PAGES: Final = PageRule("NextToken", "MaxResults", 1, 50, 50)

T = TypeVar("T")


def invalid(text: str) -> ApiError:
    return ApiError("ValidationException", text)


def scope(params: Params) -> str:
    """What a refusal says of where it looked."""
    where = f"service namespace: {params['ServiceNamespace']}, resource ID: {params['ResourceId']}"
    return f"{where}, scalable dimension: {params['ScalableDimension']}"


def missing(what: str, params: Params) -> ApiError:
    return ApiError("ObjectNotFoundException", f"No {what} found for {scope(params)}")


async def target(tx: Transaction, params: Params) -> ScalableTarget:
    """Raises ApiError ObjectNotFoundException."""
    found = await tx.get(ScalableTarget, named(params))
    if found is None or params["ServiceNamespace"] != NAMESPACE:
        raise missing("scalable target", params)
    return found


def named(params: Params) -> str:
    """The ``name`` of the target that a request is about."""
    return ScalableTarget.named(params["ResourceId"], params["ScalableDimension"])


def chosen(name: str, params: Params) -> bool:
    """Whether a listing that may be narrowed shows what belongs to that target. Raises ApiError ValidationException."""
    if params.get("ScalableDimension") and not params.get("ResourceId") and not params.get("ResourceIds"):
        raise invalid("The scalable dimension can only be specified along with the resource ID")
    resource, _, dimension = name.partition("|")
    return (
        params["ServiceNamespace"] == NAMESPACE
        and params.get("ResourceId", resource) == resource
        and resource in (params.get("ResourceIds") or [resource])
        and params.get("ScalableDimension", dimension) == dimension
    )


def page(rows: Iterable[T], params: Params, key: Callable[[T], str], shape: Callable[[T], Any], name: str) -> Mapping[str, Any]:
    """Raises ApiError ValidationException or InvalidNextTokenException."""
    try:
        return paging.page(rows, params, key, shape, name, PAGES)
    except ApiError as error:
        of_token = "NextToken" in error.message
        raise ApiError("InvalidNextTokenException" if of_token else "ValidationException", error.message) from None


def fresh_id(*parts: str) -> str:
    """32 hexadecimal digits that are others for other parts."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]


def uuid(hexadecimal: str) -> str:
    return "-".join(hexadecimal[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def arn(settings: ServiceSettings, found: ScalableTarget) -> str:
    return f"arn:aws:application-autoscaling:{settings.region}:{settings.account}:scalable-target/{found.id}"


def arn_of(settings: ServiceSettings, kind: str, id: str, resource: str, name: str) -> str:
    """The ARN of a policy or a scheduled action [API reference: PolicyARN, ScheduledActionARN]."""
    where, label = f"{uuid(id)}:resource/{NAMESPACE}/{resource}", {"scalingPolicy": "policyName"}.get(kind, f"{kind}Name")
    return f"arn:aws:autoscaling:{settings.region}:{settings.account}:{kind}:{where}:{label}/{name}"


def role(settings: ServiceSettings) -> str:
    """The service-linked role that scales: everybody's is the same."""
    path = "aws-service-role/elasticache.application-autoscaling.amazonaws.com"
    return f"arn:aws:iam::{settings.account}:role/{path}/AWSServiceRoleForApplicationAutoScaling_ElastiCacheRG"
