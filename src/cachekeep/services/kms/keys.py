"""Keys: made, named, described, switched off and on, rotated, and deleted when a week or more has gone by."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import KmsAlias, KmsKey
from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, Moot, NotYet
from cachekeep.services.core.principals import UnknownPrincipal, ids_of
from cachekeep.services.kms import find
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_WINDOW_DAYS: Final = 30
_ROTATIONS_MAX: Final = 25
"""On demand, of one key [KMS quotas]."""
_TAGS_MAX: Final = 50
_POLICY_BYTES_MAX: Final = 32 << 10


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key of 256 bits for encrypting and decrypting, sealed under the root key."""
    await find.sweep(tx, context)
    now, name = _now(context), context.clock.new_id()
    policy = call.params.get("Policy") or _whole_account(context.settings.account)
    key = KmsKey(
        name=name,
        created_at=now,
        policy=policy,
        meant=await _meant(policy, tx, context),
        backing=(find.new_backing(name, 1, context, now),),
        description=call.params.get("Description", ""),
        tags=_tags(call, {}),
    )
    await tx.put(key)
    return {"KeyMetadata": find.shown(key, context.settings)}


def _now(context: Context) -> dt.datetime:
    return context.clock.now().replace(microsecond=0)


def _whole_account(account: str) -> str:
    """AWS's default: IAM's policies say who may use it."""
    statement = {
        "Sid": "EnableIAMUserPermissions",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]})


async def _meant(policy: str, tx: Transaction, context: Context) -> dict[str, str]:
    """Raises ApiError MalformedPolicyDocumentException."""
    try:
        if len(policy.encode()) > _POLICY_BYTES_MAX:
            raise MalformedPolicy(f"A key policy has at most {_POLICY_BYTES_MAX} bytes")
        return await ids_of(parse(policy, "resource"), tx, context.settings.account)
    except MalformedPolicy as error:
        raise ApiError("MalformedPolicyDocumentException", str(error)) from None
    except UnknownPrincipal as error:
        text = f"Policy contains a statement with one or more invalid principals: {error}"
        raise ApiError("MalformedPolicyDocumentException", text) from None


async def _key(call: Call, tx: Transaction, context: Context) -> KmsKey:
    """Raises ApiError NotFoundException."""
    return await find.key(tx, call.params["KeyId"], context)


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key, and whether it can be used."""
    return {"KeyMetadata": find.shown(await _key(call, tx, context), context.settings)}


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All keys."""
    rows = [key for key in await tx.list(KmsKey) if not find.is_gone(key, context)]
    return _page(
        rows, call, lambda k: k.name, lambda k: {"KeyId": k.name, "KeyArn": find.key_arn(context.settings, k.name)}, "Keys"
    )


def _page(rows: Any, call: Call, key: Any, shape: Any, name: str) -> Mapping[str, Any]:
    page = dict(paging.page(rows, call.params, key, shape, name, find.PAGES))
    marker = page.pop("Marker", None)
    return {**page, "Truncated": marker is not None, **({"NextMarker": marker} if marker else {})}


async def update_description(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What a key is for."""
    key = await _key(call, tx, context)
    find.refuse_pending(key, context)
    await tx.put(replace(key, description=call.params["Description"]))
    return {}


async def enable(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key can be used again."""
    return await _switch(call, tx, context, on=True)


async def disable(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key neither encrypts nor decrypts, from the next request on."""
    return await _switch(call, tx, context, on=False)


async def _switch(call: Call, tx: Transaction, context: Context, *, on: bool) -> Mapping[str, Any]:
    key = await _key(call, tx, context)
    find.refuse_pending(key, context)
    await tx.put(replace(key, enabled=on))
    return {}


async def rotate(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """New bits encrypt from the next request on; what the old ones have encrypted is decrypted by them."""
    key = find.usable(await _key(call, tx, context), context)
    if len(key.backing) > _ROTATIONS_MAX:
        raise ApiError("LimitExceededException", f"A key is rotated on demand at most {_ROTATIONS_MAX} times.")
    new = find.new_backing(key.name, key.backing[-1].number + 1, context, _now(context))
    await tx.put(replace(key, backing=(*key.backing, new)))
    return {"KeyId": find.key_arn(context.settings, key.name)}


async def rotation(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """No key is rotated by itself."""
    key = await _key(call, tx, context)
    return {"KeyId": find.key_arn(context.settings, key.name), "KeyRotationEnabled": False}


async def schedule_deletion(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key cannot be used from now on, and is gone after 7 to 30 days, with all that it has encrypted."""
    key = await _key(call, tx, context)
    find.refuse_pending(key, context)
    days = call.params.get("PendingWindowInDays", _WINDOW_DAYS)
    if not 7 <= days <= _WINDOW_DAYS:
        raise ApiError("ValidationException", f"PendingWindowInDays must be between 7 and {_WINDOW_DAYS}.")
    key = replace(key, deleted_at=_now(context) + dt.timedelta(days=days), enabled=False)
    await tx.put(key)
    about = {"KeyId": find.key_arn(context.settings, key.name), "DeletionDate": key.deleted_at}
    return {**about, "KeyState": "PendingDeletion", "PendingWindowInDays": days}


async def cancel_deletion(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A key stays, and is disabled until it is enabled."""
    key = await _key(call, tx, context)
    if key.deleted_at is None:
        raise ApiError("KMSInvalidStateException", f"{find.key_arn(context.settings, key.name)} is not pending deletion.")
    await tx.put(replace(key, deleted_at=None))
    return {"KeyId": find.key_arn(context.settings, key.name)}


# ------------------------------------------------------------------ policies and tags


async def get_policy(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Who may use a key."""
    return {"Policy": (await _key(call, tx, context)).policy, "PolicyName": "default"}


async def put_policy(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Who may use a key, from the next request on. The account's root may always."""
    key, policy = await _key(call, tx, context), call.params["Policy"]
    find.refuse_pending(key, context)
    await tx.put(replace(key, policy=policy, meant=await _meant(policy, tx, context)))
    return {}


async def tag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Tags of a key are added or get other values."""
    key = await _key(call, tx, context)
    find.refuse_pending(key, context)
    await tx.put(replace(key, tags=_tags(call, key.tags)))
    return {}


def _tags(call: Call, before: Mapping[str, str]) -> dict[str, str]:
    """Raises ApiError TagException or LimitExceededException."""
    given = call.params.get("Tags", ())
    new = {each["TagKey"]: each["TagValue"] for each in given}
    if len(new) < len(given):
        raise ApiError("TagException", "Duplicate tag keys")
    if len({**before, **new}) > _TAGS_MAX:
        raise ApiError("LimitExceededException", f"A key has at most {_TAGS_MAX} tags.")
    return {**before, **new}


async def untag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Tags of a key go."""
    key = await _key(call, tx, context)
    find.refuse_pending(key, context)
    await tx.put(replace(key, tags={name: value for name, value in key.tags.items() if name not in call.params["TagKeys"]}))
    return {}


async def list_tags(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The tags of a key."""
    rows = sorted((await _key(call, tx, context)).tags.items())
    return _page(rows, call, lambda r: r[0], lambda r: {"TagKey": r[0], "TagValue": r[1]}, "Tags")


# ------------------------------------------------------------------ aliases


async def create_alias(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Another name for a key."""
    name = _own_name(call)
    if await tx.get(KmsAlias, name) is not None:
        text = f"An alias with the name {find.alias_arn(context.settings, name)} already exists"
        raise ApiError("AlreadyExistsException", text)
    key, now = await _target(call, tx, context), _now(context)
    await tx.put(KmsAlias(name=name, key=key.name, created_at=now, updated_at=now))
    return {}


def _own_name(call: Call) -> str:
    """Raises ApiError InvalidAliasNameException."""
    name: str = call.params["AliasName"]
    if not name.startswith("alias/") or name.startswith(find.OWN) or name == "alias/":
        raise ApiError("InvalidAliasNameException", f"An alias begins with alias/, and not with {find.OWN}.")
    return name


async def _target(call: Call, tx: Transaction, context: Context) -> KmsKey:
    """Raises ApiError."""
    text = call.params["TargetKeyId"]
    if "alias/" in text:
        raise ApiError("ValidationException", "Aliases must refer to keys. Not aliases")
    key = await find.key(tx, text, context)
    find.refuse_pending(key, context)
    return key


async def update_alias(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A name stands for another key."""
    alias = await _alias(call, tx, context)
    key = await _target(call, tx, context)
    await tx.put(replace(alias, key=key.name, updated_at=_now(context)))
    return {}


async def _alias(call: Call, tx: Transaction, context: Context) -> KmsAlias:
    """Raises ApiError NotFoundException."""
    name = _own_name(call)
    found = await tx.get(KmsAlias, name)
    if found is None:
        raise find.not_found(find.alias_arn(context.settings, name))
    return found


async def delete_alias(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A name goes; the key stays."""
    await tx.delete(KmsAlias, (await _alias(call, tx, context)).name)
    return {}


async def aliases(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All aliases, or those of a key."""
    rows = await tx.list(KmsAlias)
    if "KeyId" in call.params:
        key = await _key(call, tx, context)
        rows = [alias for alias in rows if alias.key == key.name]

    def shape(alias: KmsAlias) -> Mapping[str, Any]:
        dates = {"CreationDate": alias.created_at, "LastUpdatedDate": alias.updated_at}
        arn = find.alias_arn(context.settings, alias.name)
        return {"AliasName": alias.name, "AliasArn": arn, "TargetKeyId": alias.key, **dates}

    return _page(rows, call, lambda a: a.name, shape, "Aliases")


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateKey": writes(create),
    "DescribeKey": reads(describe),
    "ListKeys": reads(every),
    "UpdateKeyDescription": writes(update_description),
    "EnableKey": writes(enable),
    "DisableKey": writes(disable),
    "RotateKeyOnDemand": writes(rotate),
    "GetKeyRotationStatus": reads(rotation),
    "ScheduleKeyDeletion": writes(schedule_deletion),
    "CancelKeyDeletion": writes(cancel_deletion),
    "GetKeyPolicy": reads(get_policy),
    "PutKeyPolicy": writes(put_policy),
    "TagResource": writes(tag),
    "UntagResource": writes(untag),
    "ListResourceTags": reads(list_tags),
    "CreateAlias": writes(create_alias),
    "UpdateAlias": writes(update_alias),
    "DeleteAlias": writes(delete_alias),
    "ListAliases": reads(aliases),
}

_NO_OTHERS: Final = "Keys of other kinds"
PARAMETERS: Final[Declared] = {
    "KeyId": Effect("the key: its id, its ARN, an alias, or an alias' ARN"),
    "Policy": Effect("who may use it"),
    "GetKeyPolicy:PolicyName": NotYet("A policy of another name", ("default",)),
    "PutKeyPolicy:PolicyName": NotYet("A policy of another name", ("default",)),
    "BypassPolicyLockoutSafetyCheck": Moot("nobody is locked out: the account's root may always"),
    "Description": Effect("what it is for"),
    "KeyUsage": NotYet(_NO_OTHERS, ("ENCRYPT_DECRYPT",)),
    "CustomerMasterKeySpec": NotYet(_NO_OTHERS, ("SYMMETRIC_DEFAULT",)),
    "CreateKey:KeySpec": NotYet(_NO_OTHERS, ("SYMMETRIC_DEFAULT",)),
    "Origin": NotYet(_NO_OTHERS, ("AWS_KMS",)),
    "CustomKeyStoreId": NotYet("A key store of one's own"),
    "XksKeyId": NotYet("A key that is kept elsewhere"),
    "MultiRegion": NotYet("Keys of several regions", (False,)),
    "ResourceOwners": NotYet("Keys of other accounts"),
    "Tags": Effect("its tags"),
    "Tags.TagKey": Effect("the tag"),
    "Tags.TagValue": Effect("its value"),
    "TagKeys": Effect("the tags that go"),
    "GrantTokens": NotYet("Grants"),
    "PendingWindowInDays": Effect("after how many days it is gone"),
    "AliasName": Effect("the name, which begins with `alias/`"),
    "TargetKeyId": Effect("the key that it stands for"),
    "Limit": Effect("how many a page holds"),
    "Marker": Effect("the page after this one"),
}
