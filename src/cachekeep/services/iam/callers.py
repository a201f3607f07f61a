"""What clients ask at their start: who am I?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.services.core.callers import is_root, user_id
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads
from cachekeep.services.core.parameters import Declared, Effect, Moot
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


async def get_user(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The caller."""
    principal = call.principal
    name = "root" if is_root(call) else principal.arn.rpartition("/")[2]
    asked = call.params.get("UserName", name)
    if asked != name:
        raise ApiError("NoSuchEntity", f"The user with name {asked} cannot be found.", status=404)
    user = {"Path": "/", "UserName": name, "UserId": user_id(call), "Arn": principal.arn}
    if context.settings.root_created_at:
        user["CreateDate"] = context.settings.root_created_at  # type: ignore[assignment]
    return {"User": user}


async def list_roles(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """There are none."""
    return {"Roles": [], "IsTruncated": False}


_NONE: Final = Moot("there is none to choose from")

OPERATIONS: Final[Mapping[str, Operation]] = {"GetUser": reads(get_user), "ListRoles": reads(list_roles)}

PARAMETERS: Final[Declared] = {
    "UserName": Effect("the caller's name; no other is found"),
    "PathPrefix": _NONE,
    "Marker": _NONE,
    "MaxItems": _NONE,
}
