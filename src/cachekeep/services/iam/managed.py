"""Managed policies: they have names and versions of their own, and count wherever they are attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from msgspec.structs import replace

from cachekeep.model import ManagedPolicy, PolicyText
from cachekeep.security.policy.readymade import MADE_AT, READY_MADE
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, Params, ServiceSettings
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.services.iam.find import HOLDERS, Holder
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

CHARACTERS_MAX: Final = 6144
"""Without white space [IAM and AWS STS quotas]."""
VERSIONS_MAX: Final = 5


def _readable(text: str) -> str:
    """Raises ApiError MalformedPolicyDocument or LimitExceeded."""
    find.read(text)
    if find.characters(text) > CHARACTERS_MAX:
        raise ApiError("LimitExceeded", f"Cannot exceed quota for PolicySize: {CHARACTERS_MAX}", status=409)
    return text


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A policy that can be attached."""
    name, text = call.params["PolicyName"], _readable(call.params["PolicyDocument"])
    if await tx.get(ManagedPolicy, name.lower()) is not None:
        raise ApiError(
            "EntityAlreadyExists", f"A policy called {name} already exists. Duplicate names are not allowed.", status=409
        )
    now = find.this_second(context)
    policy = ManagedPolicy(
        name=name.lower(),
        policy_name=name,
        id=find.new_id("ANPA", context, name.lower()),
        created_at=now,
        texts={"v1": PolicyText(text=text, created_at=now)},
        description=call.params.get("Description", ""),
        tags=find.tags_of(call),
    )
    await tx.put(policy)
    return {"Policy": _shown(policy, [], context.settings)}


async def _holders(tx: Transaction) -> list[Holder]:
    return [holder for kind in HOLDERS for holder in await tx.list(kind.type)]


def _shown(policy: ManagedPolicy, holders: list[Holder], settings: ServiceSettings, *, whole: bool = True) -> Mapping[str, Any]:
    arn = find.policy_arn(policy, settings)
    return {
        "PolicyName": policy.policy_name,
        "PolicyId": policy.id,
        "Arn": arn,
        "Path": "/",
        "DefaultVersionId": policy.default,
        **_uses(arn, holders),
        "IsAttachable": True,
        **({"Description": policy.description} if whole and policy.description else {}),
        "CreateDate": policy.created_at,
        "UpdateDate": max(version.created_at for version in policy.texts.values()),
        **({"Tags": find.tags_shown(policy.tags)} if whole else {}),
    }


def _uses(arn: str, holders: list[Holder]) -> Mapping[str, int]:
    return {
        "AttachmentCount": sum(arn in holder.attached for holder in holders),
        "PermissionsBoundaryUsageCount": sum(getattr(holder, "boundary", "") == arn for holder in holders),
    }


def _ready_made(arn: str, holders: list[Holder]) -> Mapping[str, Any]:
    """One that is there from the start."""
    name = arn.rpartition("/")[2]
    dates = {"CreateDate": MADE_AT, "UpdateDate": MADE_AT}
    whole = {"PolicyName": name, "PolicyId": f"ANPA{name.upper()}", "Arn": arn, "Path": "/", "DefaultVersionId": "v1"}
    return {**whole, **_uses(arn, holders), "IsAttachable": True, **dates}


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A managed policy, and how often it is attached."""
    arn, holders = call.params["PolicyArn"], await _holders(tx)
    if arn in READY_MADE:
        return {"Policy": _ready_made(arn, holders)}
    return {"Policy": _shown(await find.managed(tx, arn, context.settings), holders, context.settings)}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Managed policies: those that were made here, and those that are there from the start."""
    holders, scope = await _holders(tx), call.params.get("Scope", "All")
    rows: list[Mapping[str, Any]] = []
    if scope in ("All", "Local"):
        rows += [_shown(policy, holders, context.settings, whole=False) for policy in await tx.list(ManagedPolicy)]
    if scope in ("All", "AWS"):
        rows += [_ready_made(arn, holders) for arn in READY_MADE]
    if call.params.get("OnlyAttached"):
        rows = [row for row in rows if row["AttachmentCount"]]
    return find.listing(paging.page(rows, call.params, lambda r: r["Arn"], lambda r: r, "Policies", find.PAGES))


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A policy goes that is attached nowhere and has no version but the default one."""
    policy, arn = await _own(call, tx, context), call.params["PolicyArn"]
    if any(_uses(arn, await _holders(tx)).values()):
        raise ApiError("DeleteConflict", "Cannot delete a policy attached to entities.", status=409)
    if len(policy.texts) > 1:
        text = "This policy has more than one version. Before you delete a policy, you must delete the policy's versions."
        raise ApiError("DeleteConflict", f"{text} The default version is deleted with the policy.", status=409)
    await tx.delete(ManagedPolicy, policy.name)
    return {}


async def _own(call: Call, tx: Transaction, context: Context) -> ManagedPolicy:
    """Raises ApiError NoSuchEntity, or AccessDenied for one that is there from the start."""
    if call.params["PolicyArn"] in READY_MADE:
        raise ApiError("AccessDenied", f"{call.params['PolicyArn']} is there from the start and stays as it is.", status=403)
    return await find.managed(tx, call.params["PolicyArn"], context.settings)


# ------------------------------------------------------------------ versions


async def create_version(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Another text for a policy, which counts at once if it is made the default."""
    policy, text = await _own(call, tx, context), _readable(call.params["PolicyDocument"])
    if len(policy.texts) >= VERSIONS_MAX:
        words = f"A managed policy can have up to {VERSIONS_MAX} versions. Before you create a new version, you must delete one."
        raise ApiError("LimitExceeded", words, status=409)
    number = policy.last + 1
    version = PolicyText(text=text, created_at=find.this_second(context))
    default = f"v{number}" if call.params.get("SetAsDefault") else policy.default
    policy = replace(policy, texts={**policy.texts, f"v{number}": version}, last=number, default=default)
    await tx.put(policy)
    return {"PolicyVersion": _version(policy, f"v{number}", whole=False)}


def _version(policy: ManagedPolicy, name: str, *, whole: bool) -> Mapping[str, Any]:
    version = policy.texts[name]
    shape: dict[str, Any] = {"VersionId": name, "IsDefaultVersion": name == policy.default, "CreateDate": version.created_at}
    return {**shape, **({"Document": quote(version.text)} if whole else {})}


async def get_version(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The text of a version, percent-encoded as IAM tells it."""
    arn, name = call.params["PolicyArn"], call.params["VersionId"]
    if arn in READY_MADE and name == "v1":
        made = {"VersionId": "v1", "IsDefaultVersion": True, "CreateDate": MADE_AT}
        return {"PolicyVersion": {**made, "Document": quote(READY_MADE[arn])}}
    policy = await find.managed(tx, arn, context.settings)
    return {"PolicyVersion": _version(policy, _named(policy, name), whole=True)}


def _named(policy: ManagedPolicy, name: str) -> str:
    """Raises ApiError NoSuchEntity."""
    if name not in policy.texts:
        raise find.missing(f"Policy version {name} of {policy.policy_name}")
    return name


async def versions(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The versions of a policy, the newest first."""
    arn = call.params["PolicyArn"]
    if arn in READY_MADE:
        rows = [{"VersionId": "v1", "IsDefaultVersion": True, "CreateDate": MADE_AT}]
    else:
        policy = await find.managed(tx, arn, context.settings)
        rows = [dict(_version(policy, name, whole=False)) for name in policy.texts]
    return find.listing(paging.page(rows, call.params, _newest_first, lambda r: r, "Versions", find.PAGES))


def _newest_first(row: Params) -> str:
    return f"{10**9 - int(row['VersionId'][1:]):010}"


async def delete_version(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A version goes that is not the default one."""
    policy = await _own(call, tx, context)
    name = _named(policy, call.params["VersionId"])
    if name == policy.default:
        raise ApiError("DeleteConflict", "Cannot delete the default version of a policy.", status=409)
    await tx.put(replace(policy, texts={other: text for other, text in policy.texts.items() if other != name}))
    return {}


async def set_default(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Another version counts, wherever the policy is attached."""
    policy = await _own(call, tx, context)
    await tx.put(replace(policy, default=_named(policy, call.params["VersionId"])))
    return {}


async def entities(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Users, groups and roles that a managed policy is attached to."""
    arn, settings = call.params["PolicyArn"], context.settings
    await find.refuse_unknown_policy(tx, arn, settings)
    wanted = call.params.get("EntityFilter")
    usage = call.params.get("PolicyUsageFilter", "PermissionsPolicy")
    rows = [
        (f"{kind.title}/{holder.name}", {f"{kind.title}Name": find.name_of(holder), f"{kind.title}Id": holder.id})
        for kind in HOLDERS
        if wanted in (None, kind.title)
        for holder in await tx.list(kind.type)
        if (arn in holder.attached if usage == "PermissionsPolicy" else getattr(holder, "boundary", "") == arn)
    ]
    page = paging.page(rows, call.params, lambda r: r[0], lambda r: r, "rows", find.PAGES)
    marker = {name: value for name, value in page.items() if name != "rows"}
    found = {f"Policy{kind.title}s": [row for key, row in page["rows"] if key.startswith(f"{kind.title}/")] for kind in HOLDERS}
    return find.listing({**found, **marker})


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreatePolicy": writes(create),
    "GetPolicy": reads(get),
    "ListPolicies": reads(every),
    "DeletePolicy": writes(delete),
    "CreatePolicyVersion": writes(create_version),
    "GetPolicyVersion": reads(get_version),
    "ListPolicyVersions": reads(versions),
    "DeletePolicyVersion": writes(delete_version),
    "SetDefaultPolicyVersion": writes(set_default),
    "ListEntitiesForPolicy": reads(entities),
}

PARAMETERS: Final[Declared] = {
    "Description": Effect("what it is for"),
    "VersionId": Effect("the version"),
    "SetAsDefault": Effect("whether it counts from now on"),
    "Scope": Effect("`Local` are those that were made here, `AWS` those that are there from the start"),
    "OnlyAttached": Effect("those that are attached"),
    "EntityFilter": Effect("users, groups or roles alone"),
    "PolicyUsageFilter": Effect("`PermissionsBoundary`: those whose boundary it is"),
    "CreatePolicy:Path": NotYet("Paths", ("/",)),
    "ListPolicies:PathPrefix": NotYet("Paths", ("/",)),
    "ListEntitiesForPolicy:PathPrefix": NotYet("Paths", ("/",)),
    "ListPolicies:PolicyUsageFilter": NotYet("Listing by what policies are used for", ("PermissionsPolicy",)),
}
