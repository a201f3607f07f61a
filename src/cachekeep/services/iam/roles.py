"""Roles: whoever a role trusts may be somebody else for a while, with credentials that end by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from msgspec.structs import replace

from cachekeep.model import IamRole
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, Moot, NotYet
from cachekeep.services.core.principals import UnknownPrincipal, ids_of
from cachekeep.services.iam import find
from cachekeep.services.iam.find import ROLE
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

TRUST_CHARACTERS_MAX: Final = 2048
"""Without white space [IAM and AWS STS quotas: "Role trust policy length"]."""


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A role that may do nothing yet, for those that it trusts."""
    name, boundary = call.params["RoleName"], call.params.get("PermissionsBoundary", "")
    await find.refuse_taken(tx, ROLE, name)
    if boundary:
        await find.refuse_unknown_policy(tx, boundary, context.settings)
    trust = call.params["AssumeRolePolicyDocument"]
    role = IamRole(
        name=name.lower(),
        role_name=name,
        id=find.new_id("AROA", context, name.lower()),
        created_at=find.this_second(context),
        trust=trust,
        trusted=await _trusted(trust, tx, context.settings),
        description=call.params.get("Description", ""),
        session_seconds_max=call.params.get("MaxSessionDuration", 3600),
        tags=find.tags_of(call),
        boundary=boundary,
    )
    await tx.put(role)
    return {"Role": _shown(role, context.settings)}


async def _trusted(text: str, tx: Transaction, settings: ServiceSettings) -> dict[str, str]:
    """The ids of those that a trust policy names. Raises ApiError MalformedPolicyDocument, also where there is no such one."""
    document = find.read(text, "resource", at_resource=True)
    if find.characters(text) > TRUST_CHARACTERS_MAX:
        raise ApiError("LimitExceeded", f"Cannot exceed quota for ACLSizePerRole: {TRUST_CHARACTERS_MAX}", status=409)
    try:
        return await ids_of(document, tx, settings.account)
    except UnknownPrincipal as error:
        raise ApiError("MalformedPolicyDocument", f'Invalid principal in policy: "AWS":"{error}"') from None


def _shown(role: IamRole, settings: ServiceSettings, *, whole: bool = True) -> Mapping[str, Any]:
    return {
        **find.shown(role, settings, whole=whole),
        "AssumeRolePolicyDocument": quote(role.trust),
        **({"Description": role.description} if role.description else {}),
        "MaxSessionDuration": role.session_seconds_max,
    }


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A role, and its trust."""
    return {"Role": _shown(await find.holder(tx, ROLE, call.params["RoleName"]), context.settings)}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All roles."""
    roles = await tx.list(IamRole)
    shapes = {role.name: _shown(role, context.settings, whole=False) for role in roles}
    return find.listing(paging.page(roles, call.params, lambda r: r.name, lambda r: shapes[r.name], "Roles", find.PAGES))


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A role goes that has no policies any more; its sessions end with it."""
    role = await find.holder(tx, ROLE, call.params["RoleName"])
    if role.inline or role.attached:
        verb = "delete" if role.inline else "detach all"
        raise ApiError("DeleteConflict", f"Cannot delete entity, must {verb} policies first.", status=409)
    await tx.delete(IamRole, role.name)
    return {}


async def update(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What a role is for, and how long its sessions may be."""
    role = await find.holder(tx, ROLE, call.params["RoleName"])
    seconds = call.params.get("MaxSessionDuration", role.session_seconds_max)
    await tx.put(replace(role, description=call.params.get("Description", role.description), session_seconds_max=seconds))
    return {}


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What a role is for."""
    role = await find.holder(tx, ROLE, call.params["RoleName"])
    role = replace(role, description=call.params["Description"])
    await tx.put(role)
    return {"Role": _shown(role, context.settings)}


async def trust(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Who is trusted by a role from now on; sessions that there are go on."""
    role, text = await find.holder(tx, ROLE, call.params["RoleName"]), call.params["PolicyDocument"]
    await tx.put(replace(role, trust=text, trusted=await _trusted(text, tx, context.settings)))
    return {}


async def profiles(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """There are none: no instance could use one."""
    await find.holder(tx, ROLE, call.params["RoleName"])
    return {"InstanceProfiles": [], "IsTruncated": False}


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateRole": writes(create),
    "GetRole": reads(get),
    "ListRoles": reads(every),
    "DeleteRole": writes(delete),
    "UpdateRole": writes(update),
    "UpdateRoleDescription": writes(describe),
    "UpdateAssumeRolePolicy": writes(trust),
    "ListInstanceProfilesForRole": reads(profiles),
}

_NONE: Final = Moot("there is none to choose from")
PARAMETERS: Final[Declared] = {
    "RoleName": Effect("the role"),
    "AssumeRolePolicyDocument": Effect("who is trusted"),
    "MaxSessionDuration": Effect("how many seconds a session may last at the most"),
    "CreateRole:Path": NotYet("Paths", ("/",)),
    "ListRoles:PathPrefix": NotYet("Paths", ("/",)),
    "ListInstanceProfilesForRole:Marker": _NONE,
    "ListInstanceProfilesForRole:MaxItems": _NONE,
}
