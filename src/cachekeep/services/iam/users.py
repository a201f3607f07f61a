"""Users and their access keys. A key is good for what its user's policies allow, from its first to its last moment."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import IamUser, IssuedKey
from cachekeep.security.policy.readymade import READY_MADE
from cachekeep.services.core import paging
from cachekeep.services.core.callers import identify, is_root
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

KEYS_MAX: Final = 2
TAGS_MAX: Final = 50


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user, who may do nothing until a policy allows it."""
    name, boundary = call.params["UserName"], call.params.get("PermissionsBoundary", "")
    if await tx.get(IamUser, name.lower()):
        raise ApiError("EntityAlreadyExists", f"User with name {name} already exists.", status=409)
    if boundary and boundary not in READY_MADE:
        raise find.missing(f"Policy {boundary}")
    now = context.clock.now()
    user = IamUser(
        name=name.lower(),
        user_name=name,
        id=_new_id(context.settings.account, name.lower(), now.isoformat()),
        created_at=now.replace(microsecond=0),
        tags=_tags(call),
        boundary=boundary,
    )
    await tx.put(user)
    return {"User": find.shown(user, context.settings)}


def _new_id(*parts: str) -> str:
    """Another one for each user, also for one who gets the name of another that is gone."""
    return "AIDA" + base64.b32encode(hashlib.sha256("/".join(parts).encode()).digest()).decode()[:16]


def _tags(call: Call) -> dict[str, str]:
    tags: dict[str, str] = {}
    for each in call.params.get("Tags", ()):
        if each["Key"].lower() in {key.lower() for key in tags}:
            raise ApiError("InvalidInput", f"Duplicate tag keys found: {each['Key']}. Tag keys are case insensitive.")
        tags[each["Key"]] = each["Value"]
    if len(tags) > TAGS_MAX:
        raise ApiError("LimitExceeded", f"A user has at most {TAGS_MAX} tags.", status=409)
    return tags


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user; without a name the caller."""
    if asked := call.params.get("UserName"):
        return {"User": find.shown(await find.user(tx, asked), context.settings)}
    _, user = await identify(call, tx)
    if user is not None:
        return {"User": find.shown(user, context.settings)}
    account = call.principal.account
    root: dict[str, Any] = {"Path": "/", "UserName": "root", "UserId": account, "Arn": call.principal.arn}
    if context.settings.root_created_at:
        root["CreateDate"] = context.settings.root_created_at
    return {"User": root}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All users."""
    users = await tx.list(IamUser)
    shapes = {user.name: find.shown(replace(user, tags={}, boundary=""), context.settings) for user in users}
    return find.listing(paging.page(users, call.params, lambda u: u.name, lambda u: shapes[u.name], "Users", find.PAGES))


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user goes who has neither keys nor policies any more."""
    user = await find.user(tx, call.params["UserName"])
    held = {
        "access keys": bool(await find.keys_of(tx, user)),
        "policies": bool(user.inline),
        "attached policies": bool(user.attached),
    }
    if first := next((what for what, there in held.items() if there), None):
        verb = "detach" if first.startswith("attached") else "delete"
        text = f"Cannot delete entity, must {verb} {first.removeprefix('attached ')} first."
        raise ApiError("DeleteConflict", text, status=409)
    await tx.delete(IamUser, user.name)
    return {}


async def _owner(call: Call, tx: Transaction) -> IamUser:
    """Whose keys are meant: without a name the caller's. Raises ApiError NoSuchEntity."""
    if asked := call.params.get("UserName"):
        return await find.user(tx, asked)
    _, user = await identify(call, tx)
    if user is None:
        text = "The key of the account's root is the one that `cachekeep env` prints, and is not changed here: name a user."
        raise ApiError("ValidationError", text)
    return user


async def create_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key for a user, who has two at the most. Its secret is told now and never again."""
    user = await _owner(call, tx)
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
    user = await _owner(call, tx)
    keys = await find.keys_of(tx, user)
    return find.listing(
        paging.page(keys, call.params, lambda k: k.name, lambda k: _shown(k, user), "AccessKeyMetadata", find.PAGES)
    )


async def _key(call: Call, tx: Transaction) -> IssuedKey:
    """Raises ApiError NoSuchEntity."""
    user = await _owner(call, tx)
    key = await tx.get(IssuedKey, call.params["AccessKeyId"])
    if key is None or key.user != user.name:
        raise find.missing(f"The Access Key with id {call.params['AccessKeyId']}")
    return key


async def update_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """An inactive key opens nothing, from the next request on; it may become active again."""
    status = call.params["Status"]
    if status not in ("Active", "Inactive"):
        raise ApiError("ValidationError", "Status must be Active or Inactive.")
    await tx.put(replace(await _key(call, tx), active=status == "Active"))
    return {}


async def delete_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key goes, and opens nothing from the next request on."""
    await tx.delete(IssuedKey, (await _key(call, tx)).name)
    return {}


def caller_name(call: Call) -> str | None:
    """The name of a caller who is a user."""
    return None if is_root(call) else call.principal.arn.rpartition("/")[2]


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateUser": writes(create),
    "GetUser": reads(get),
    "ListUsers": reads(every),
    "DeleteUser": writes(delete),
    "CreateAccessKey": writes(create_key),
    "ListAccessKeys": reads(list_keys),
    "UpdateAccessKey": writes(update_key),
    "DeleteAccessKey": writes(delete_key),
}

PARAMETERS: Final[Declared] = {
    "UserName": Effect("the user; where it may be left out, the caller"),
    "CreateUser:Path": NotYet("Paths", ("/",)),
    "ListUsers:PathPrefix": NotYet("Paths", ("/",)),
    "PermissionsBoundary": Effect("the most that the user may do"),
    "Tags": Effect("the user's tags, which policies find as aws:PrincipalTag"),
    "Tags.Key": Effect("the tag"),
    "Tags.Value": Effect("its value"),
    "AccessKeyId": Effect("the key"),
    "Status": Effect("whether the key opens anything"),
    "Marker": Effect("the page after this one"),
    "MaxItems": Effect("how many a page holds"),
}
