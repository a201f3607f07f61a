"""sts and iam, as far as clients ask at their start: who am I?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.errors import ApiError
from cachekeep.services.context import Context
from cachekeep.services.operation import Operation, reads, refuses
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


async def get_caller_identity(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Account, ARN and id of whoever signed the request."""
    principal = call.principal
    return {"UserId": _user_id(call), "Account": principal.account, "Arn": principal.arn}


def _is_root(call: Call) -> bool:
    return call.principal.arn.endswith(":root")


def _user_id(call: Call) -> str:
    """The root's id is the account's."""
    return call.principal.account if _is_root(call) else call.principal.access_key


async def get_user(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The caller."""
    principal = call.principal
    name = "root" if _is_root(call) else principal.arn.rpartition("/")[2]
    asked = call.params.get("UserName", name)
    if asked != name:
        raise ApiError("NoSuchEntity", f"The user with name {asked} cannot be found.", status=404)
    user = {"Path": "/", "UserName": name, "UserId": _user_id(call), "Arn": principal.arn}
    if context.settings.root_created_at:
        user["CreateDate"] = context.settings.root_created_at  # type: ignore[assignment]
    return {"User": user}


async def list_roles(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """There are none."""
    return {"Roles": [], "IsTruncated": False}


def _no(what: str) -> Operation:
    return refuses("AccessDenied", f"{what} is not supported by this version of Cachekeep.")


STS: Final[Mapping[str, Operation]] = {
    "GetCallerIdentity": reads(get_caller_identity),
    "GetSessionToken": _no("Making temporary credentials"),
    "AssumeRole": _no("Assuming a role"),
}
IAM: Final[Mapping[str, Operation]] = {"GetUser": reads(get_user), "ListRoles": reads(list_roles)}
