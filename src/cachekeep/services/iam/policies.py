"""The policies of users: those of their own, and ready-made ones that are attached. They count from the next request on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from msgspec.structs import replace

from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.security.policy.readymade import READY_MADE
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

INLINE_CHARACTERS_MAX: Final = 2048
"""Of all inline policies of a user, without white space [IAM and AWS STS quotas]."""
ATTACHED_MAX: Final = 10


async def put(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A policy of the user's own, or another text for it."""
    user, text = await find.user(tx, call.params["UserName"]), call.params["PolicyDocument"]
    try:
        parse(text, "identity")
    except MalformedPolicy as error:
        raise ApiError("MalformedPolicyDocument", str(error)) from None
    inline = {**user.inline, call.params["PolicyName"]: text}
    if sum(len("".join(each.split())) for each in inline.values()) > INLINE_CHARACTERS_MAX:
        raise ApiError(
            "LimitExceeded", f"Maximum policy size of {INLINE_CHARACTERS_MAX} bytes exceeded for user {user.user_name}", status=409
        )
    await tx.put(replace(user, inline=inline))
    return {}


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The text of a user's own policy, percent-encoded as IAM tells it."""
    user, name = await find.user(tx, call.params["UserName"]), call.params["PolicyName"]
    if name not in user.inline:
        raise _not_there(name)
    return {"UserName": user.user_name, "PolicyName": name, "PolicyDocument": quote(user.inline[name])}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The names of a user's own policies."""
    user = await find.user(tx, call.params["UserName"])
    return find.listing(paging.page(user.inline, call.params, str, str, "PolicyNames", find.PAGES))


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user's own policy goes."""
    user, name = await find.user(tx, call.params["UserName"]), call.params["PolicyName"]
    if name not in user.inline:
        raise _not_there(name)
    await tx.put(replace(user, inline={other: text for other, text in user.inline.items() if other != name}))
    return {}


def _not_there(name: str) -> ApiError:
    return find.missing(f"The user policy with name {name}")


def _ready_made(call: Call) -> str:
    """The ARN of a policy. Raises ApiError NoSuchEntity."""
    arn: str = call.params["PolicyArn"]
    if arn not in READY_MADE:
        text = f"Policy {arn} does not exist or is not attachable. There are: {', '.join(READY_MADE)}."
        raise ApiError("NoSuchEntity", text, status=404)
    return arn


async def attach(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A ready-made policy counts for the user, too."""
    user, arn = await find.user(tx, call.params["UserName"]), _ready_made(call)
    attached = tuple(sorted({*user.attached, arn}))
    if len(attached) > ATTACHED_MAX:
        raise ApiError("LimitExceeded", f"Cannot exceed quota for PoliciesPerUser: {ATTACHED_MAX}", status=409)
    await tx.put(replace(user, attached=attached))
    return {}


async def detach(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A ready-made policy counts for the user no longer."""
    user, arn = await find.user(tx, call.params["UserName"]), call.params["PolicyArn"]
    if arn not in user.attached:
        raise find.missing(f"Policy {arn}")
    await tx.put(replace(user, attached=tuple(other for other in user.attached if other != arn)))
    return {}


async def list_attached(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The ready-made policies that count for a user."""
    user = await find.user(tx, call.params["UserName"])
    return find.listing(paging.page(user.attached, call.params, str, _shown, "AttachedPolicies", find.PAGES))


def _shown(arn: str) -> Mapping[str, str]:
    return {"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn}


async def bound(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A ready-made policy is the most that the user may do."""
    user, arn = await find.user(tx, call.params["UserName"]), call.params["PermissionsBoundary"]
    if arn not in READY_MADE:
        raise find.missing(f"Policy {arn}")
    await tx.put(replace(user, boundary=arn))
    return {}


async def unbound(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The user may do all that policies allow."""
    user = await find.user(tx, call.params["UserName"])
    if not user.boundary:
        raise find.missing(f"The permissions boundary of user {user.user_name}")
    await tx.put(replace(user, boundary=""))
    return {}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "PutUserPolicy": writes(put),
    "GetUserPolicy": reads(get),
    "ListUserPolicies": reads(every),
    "DeleteUserPolicy": writes(delete),
    "AttachUserPolicy": writes(attach),
    "DetachUserPolicy": writes(detach),
    "ListAttachedUserPolicies": reads(list_attached),
    "PutUserPermissionsBoundary": writes(bound),
    "DeleteUserPermissionsBoundary": writes(unbound),
}

PARAMETERS: Final[Declared] = {
    "PolicyName": Effect("the policy"),
    "PolicyDocument": Effect("what it allows and denies"),
    "PolicyArn": Effect("the ready-made policy"),
    "ListAttachedUserPolicies:PathPrefix": NotYet("Paths", ("/",)),
}
