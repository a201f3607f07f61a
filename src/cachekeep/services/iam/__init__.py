"""IAM. Each module of operations ends with the tables of those it serves and of what their parameters do."""

from collections.abc import Mapping, Sequence
from typing import Any

from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.operation import Service, reads
from cachekeep.services.core.parameters import Moot
from cachekeep.services.core.rights import Rights
from cachekeep.services.iam import policies, simulate, users
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


async def _list_roles(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """There are none."""
    return {"Roles": [], "IsTruncated": False}


_NONE = Moot("there is none to choose from")


def _names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    """Who leaves the user out means itself."""
    source = call.params.get("PolicySourceArn", "").rpartition(":user/")[2]
    name = source or call.params.get("UserName") or users.caller_name(call)
    return {"user": [name]} if name else {}


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    asked = {"iam:PolicyARN": call.params.get("PolicyArn"), "iam:PermissionsBoundary": call.params.get("PermissionsBoundary")}
    return {key: value for key, value in asked.items() if value}


SERVICE = Service(
    name="iam",
    title="IAM",
    operations={**users.OPERATIONS, **policies.OPERATIONS, **simulate.OPERATIONS, "ListRoles": reads(_list_roles)},
    parameters={
        **users.PARAMETERS,
        **policies.PARAMETERS,
        **simulate.PARAMETERS,
        "ListRoles:PathPrefix": _NONE,
        "ListRoles:Marker": _NONE,
        "ListRoles:MaxItems": _NONE,
    },
    rights=Rights(names=_names, keys=_keys),
)
