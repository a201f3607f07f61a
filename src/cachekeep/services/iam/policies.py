"""The policies of users, groups and roles: those of their own, and managed ones. They count from the next request on.

Each operation is made for every kind of holder: what a policy says does not depend on whose it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from msgspec.structs import replace

from cachekeep.services.core import paging
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Handler, Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.services.iam.find import GROUP, HOLDERS, HolderKind
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

ATTACHED_MAX: Final = 10


def _of(kind: HolderKind, handler: Handler, sentence: str) -> Handler:
    handler.__doc__ = sentence.replace("HOLDER", kind.word)
    return handler


def _put(kind: HolderKind) -> Handler:
    async def put(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, text = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PolicyDocument"]
        find.read(text)
        inline = {**holder.inline, call.params["PolicyName"]: text}
        if sum(map(find.characters, inline.values())) > kind.inline_characters_max:
            text = f"Maximum policy size of {kind.inline_characters_max} bytes exceeded for {kind.word} {find.name_of(holder)}"
            raise ApiError("LimitExceeded", text, status=409)
        await tx.put(replace(holder, inline=inline))
        return {}

    return _of(kind, put, "A policy of the HOLDER's own, or another text for it.")


def _get(kind: HolderKind) -> Handler:
    async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, name = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PolicyName"]
        if name not in holder.inline:
            raise find.missing(f"The {kind.word} policy with name {name}")
        return {kind.parameter: find.name_of(holder), "PolicyName": name, "PolicyDocument": quote(holder.inline[name])}

    return _of(kind, get, "The text of a policy of the HOLDER's own, percent-encoded as IAM tells it.")


def _every(kind: HolderKind) -> Handler:
    async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder = await find.holder(tx, kind, call.params[kind.parameter])
        return find.listing(paging.page(holder.inline, call.params, str, str, "PolicyNames", find.PAGES))

    return _of(kind, every, "The names of the HOLDER's own policies.")


def _delete(kind: HolderKind) -> Handler:
    async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, name = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PolicyName"]
        if name not in holder.inline:
            raise find.missing(f"The {kind.word} policy with name {name}")
        await tx.put(replace(holder, inline={other: text for other, text in holder.inline.items() if other != name}))
        return {}

    return _of(kind, delete, "A policy of the HOLDER's own goes.")


def _attach(kind: HolderKind) -> Handler:
    async def attach(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, arn = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PolicyArn"]
        await find.refuse_unknown_policy(tx, arn, context.settings)
        attached = tuple(sorted({*holder.attached, arn}))
        if len(attached) > ATTACHED_MAX:
            raise ApiError("LimitExceeded", f"Cannot exceed quota for PoliciesPer{kind.title}: {ATTACHED_MAX}", status=409)
        await tx.put(replace(holder, attached=attached))
        return {}

    return _of(kind, attach, "A managed policy counts for the HOLDER, too.")


def _detach(kind: HolderKind) -> Handler:
    async def detach(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, arn = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PolicyArn"]
        if arn not in holder.attached:
            raise find.missing(f"Policy {arn}")
        await tx.put(replace(holder, attached=tuple(other for other in holder.attached if other != arn)))
        return {}

    return _of(kind, detach, "A managed policy counts for the HOLDER no longer.")


def _list_attached(kind: HolderKind) -> Handler:
    async def list_attached(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder = await find.holder(tx, kind, call.params[kind.parameter])
        return find.listing(paging.page(holder.attached, call.params, str, _shown, "AttachedPolicies", find.PAGES))

    return _of(kind, list_attached, "The managed policies that count for the HOLDER.")


def _shown(arn: str) -> Mapping[str, str]:
    return {"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn}


def _bound(kind: HolderKind) -> Handler:
    async def bound(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder, arn = await find.holder(tx, kind, call.params[kind.parameter]), call.params["PermissionsBoundary"]
        await find.refuse_unknown_policy(tx, arn, context.settings)
        await tx.put(replace(holder, boundary=arn))
        return {}

    return _of(kind, bound, "A managed policy is the most that the HOLDER may do.")


def _unbound(kind: HolderKind) -> Handler:
    async def unbound(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        holder = await find.holder(tx, kind, call.params[kind.parameter])
        if not holder.boundary:
            raise find.missing(f"The permissions boundary of {kind.word} {find.name_of(holder)}")
        await tx.put(replace(holder, boundary=""))
        return {}

    return _of(kind, unbound, "The HOLDER may do all that policies allow.")


def _operations(kind: HolderKind) -> Mapping[str, Operation]:
    title = kind.title
    found = {
        f"Put{title}Policy": writes(_put(kind)),
        f"Get{title}Policy": reads(_get(kind)),
        f"List{title}Policies": reads(_every(kind)),
        f"Delete{title}Policy": writes(_delete(kind)),
        f"Attach{title}Policy": writes(_attach(kind)),
        f"Detach{title}Policy": writes(_detach(kind)),
        f"ListAttached{title}Policies": reads(_list_attached(kind)),
    }
    if kind is not GROUP:
        found |= {
            f"Put{title}PermissionsBoundary": writes(_bound(kind)),
            f"Delete{title}PermissionsBoundary": writes(_unbound(kind)),
        }
    return found


OPERATIONS: Final[Mapping[str, Operation]] = {name: row for kind in HOLDERS for name, row in _operations(kind).items()}

PARAMETERS: Final[Declared] = {
    "PolicyName": Effect("the policy"),
    "PolicyDocument": Effect("what it allows and denies"),
    "PolicyArn": Effect("the managed policy"),
    **{f"ListAttached{kind.title}Policies:PathPrefix": NotYet("Paths", ("/",)) for kind in HOLDERS},
}
