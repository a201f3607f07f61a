"""Users and their access keys. A key is good for what its user's policies allow, from its first to its last moment."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.audit import lookup
from cachekeep.audit.record import Recorded
from cachekeep.model import IamUser, IssuedKey
from cachekeep.services.core import paging
from cachekeep.services.core.callers import Caller, identify
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.services.iam.find import USER
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

KEYS_MAX: Final = 2


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user, who may do nothing until a policy allows it."""
    name, boundary = call.params["UserName"], call.params.get("PermissionsBoundary", "")
    await find.refuse_taken(tx, USER, name)
    if boundary:
        await find.refuse_unknown_policy(tx, boundary, context.settings)
    user = IamUser(
        name=name.lower(),
        user_name=name,
        id=find.new_id("AIDA", context, name.lower()),
        created_at=find.this_second(context),
        tags=find.tags_of(call),
        boundary=boundary,
    )
    await tx.put(user)
    return {"User": find.shown(user, context.settings)}


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user; without a name the caller."""
    if asked := call.params.get("UserName"):
        return {"User": find.shown(await find.user(tx, asked), context.settings)}
    _, caller = await identify(call, tx, context.settings.issuer)
    if caller is not None:
        return {"User": find.shown(_user_of(caller), context.settings)}
    account = call.principal.account
    root: dict[str, Any] = {"Path": "/", "UserName": "root", "UserId": account, "Arn": call.principal.arn}
    if context.settings.root_created_at:
        root["CreateDate"] = context.settings.root_created_at
    return {"User": root}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All users."""
    users = await tx.list(IamUser)
    shapes = {user.name: find.shown(user, context.settings, whole=False) for user in users}
    return find.listing(paging.page(users, call.params, lambda u: u.name, lambda u: shapes[u.name], "Users", find.PAGES))


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user goes who has neither keys nor policies any more."""
    user = await find.user(tx, call.params["UserName"])
    held = {
        "access keys": bool(await find.keys_of(tx, user)),
        "policies": bool(user.inline),
        "attached policies": bool(user.attached),
        "groups": bool(user.groups),
    }
    if first := next((what for what, there in held.items() if there), None):
        verbs = {"attached policies": "detach all policies", "groups": "remove users from group"}
        text = f"Cannot delete entity, must {verbs.get(first, f'delete {first}')} first."
        raise ApiError("DeleteConflict", text, status=409)
    await tx.delete(IamUser, user.name)
    return {}


def _user_of(caller: Caller) -> IamUser:
    """Raises ApiError ValidationError for a session of a role."""
    if isinstance(caller.who, IamUser):
        return caller.who
    raise ApiError("ValidationError", "Must specify userName when calling with non-User credentials")


async def update(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user gets another name, and keeps keys, groups and policies."""
    user, name = await find.user(tx, call.params["UserName"]), call.params.get("NewUserName")
    if name is None or name == user.user_name:
        return {}
    if name.lower() == user.name:
        await tx.put(replace(user, user_name=name))
        return {}
    await find.refuse_taken(tx, USER, name)
    for key in await find.keys_of(tx, user):
        await tx.put(replace(key, user=name.lower()))
    await tx.delete(IamUser, user.name)
    await tx.put(replace(user, name=name.lower(), user_name=name, version=0))
    return {}


async def _owner(call: Call, tx: Transaction, context: Context) -> IamUser:
    """Whose keys are meant: without a name the caller's. Raises ApiError NoSuchEntity."""
    if asked := call.params.get("UserName"):
        return await find.user(tx, asked)
    _, caller = await identify(call, tx, context.settings.issuer)
    if caller is None:
        text = "The key of the account's root is the one that `cachekeep env` prints, and is not changed here: name a user."
        raise ApiError("ValidationError", text)
    return _user_of(caller)


async def create_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key for a user, who has two at the most. Its secret is told now and never again."""
    user = await _owner(call, tx, context)
    if len(await find.keys_of(tx, user)) >= KEYS_MAX:
        raise ApiError("LimitExceeded", f"Cannot exceed quota for AccessKeysPerUser: {KEYS_MAX}", status=409)
    access_key, secret = context.settings.issuer.issue()
    key = IssuedKey(name=access_key, user=user.name, created_at=context.clock.now().replace(microsecond=0))
    await tx.put(key)
    return {"AccessKey": {**_shown(key, user), "SecretAccessKey": secret}}


def _shown(key: IssuedKey, user: IamUser) -> Mapping[str, Any]:
    status = "Active" if key.active else "Inactive"
    return {"UserName": user.user_name, "AccessKeyId": key.name, "Status": status, "CreateDate": key.created_at}


async def list_keys(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The keys of a user, without their secrets."""
    user = await _owner(call, tx, context)
    keys = await find.keys_of(tx, user)
    return find.listing(
        paging.page(keys, call.params, lambda k: k.name, lambda k: _shown(k, user), "AccessKeyMetadata", find.PAGES)
    )


async def _key(call: Call, tx: Transaction, context: Context) -> IssuedKey:
    """Raises ApiError NoSuchEntity."""
    user = await _owner(call, tx, context)
    key = await tx.get(IssuedKey, call.params["AccessKeyId"])
    if key is None or key.user != user.name:
        raise find.missing(f"The Access Key with id {call.params['AccessKeyId']}")
    return key


async def update_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """An inactive key opens nothing, from the next request on; it may become active again."""
    status = call.params["Status"]
    if status not in ("Active", "Inactive"):
        raise ApiError("ValidationError", "Status must be Active or Inactive.")
    await tx.put(replace(await _key(call, tx, context), active=status == "Active"))
    return {}


async def delete_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key goes, and opens nothing from the next request on."""
    await tx.delete(IssuedKey, (await _key(call, tx, context)).name)
    return {}


async def last_used(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Whose key it is, and when, where and for what it was used last, as far as calls are on record."""
    key = await tx.get(IssuedKey, call.params["AccessKeyId"])
    owner = await tx.get(IamUser, key.user) if key is not None else None
    if owner is None:
        raise find.missing(f"The Access Key with id {call.params['AccessKeyId']}")
    found = await asyncio.to_thread(
        _newest, [trail.directory for trail in context.settings.trails], call.params["AccessKeyId"], call
    )
    used: dict[str, Any] = {"ServiceName": "N/A", "Region": "N/A"}
    if found is not None:
        service = found.event_source.removesuffix(".amazonaws.com")
        used = {"LastUsedDate": found.event_time, "ServiceName": service, "Region": context.settings.region}
    return {"UserName": owner.user_name, "AccessKeyLastUsed": used}


def _newest(directories: Sequence[Path], access_key: str, call: Call) -> Recorded | None:
    places: lookup.Places | None = (None,) * len(directories)
    oldest = call.received_at - dt.timedelta(days=lookup.KEPT_DAYS)
    while places is not None:
        page = lookup.look(
            directories, places, oldest, call.received_at, lambda record: record.user_identity.access_key_id == access_key, 1
        )
        if page.found:
            return page.found[0][0]
        places = page.more
    return None


def caller_name(call: Call) -> str | None:
    """The name of a caller who is a user; a role's session has none that a policy could mean by it."""
    before, _, name = call.principal.arn.rpartition(":user/")
    return name if before else None


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateUser": writes(create),
    "GetUser": reads(get),
    "ListUsers": reads(every),
    "UpdateUser": writes(update),
    "DeleteUser": writes(delete),
    "CreateAccessKey": writes(create_key),
    "ListAccessKeys": reads(list_keys),
    "UpdateAccessKey": writes(update_key),
    "DeleteAccessKey": writes(delete_key),
    "GetAccessKeyLastUsed": reads(last_used),
}

PARAMETERS: Final[Declared] = {
    "UserName": Effect("the user; where it may be left out, the caller"),
    "CreateUser:Path": NotYet("Paths", ("/",)),
    "ListUsers:PathPrefix": NotYet("Paths", ("/",)),
    "UpdateUser:NewPath": NotYet("Paths", ("/",)),
    "NewUserName": Effect("the user's name from now on"),
    "PermissionsBoundary": Effect("the most that the user or role may do"),
    "Tags": Effect("the tags; those of whoever asks are what policies find as aws:PrincipalTag"),
    "Tags.Key": Effect("the tag"),
    "Tags.Value": Effect("its value"),
    "AccessKeyId": Effect("the key"),
    "Status": Effect("whether the key opens anything"),
    "Marker": Effect("the page after this one"),
    "MaxItems": Effect("how many a page holds"),
}
