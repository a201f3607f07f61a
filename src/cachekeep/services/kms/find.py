"""Finding keys for a request, whatever they are called by, and refusing those that cannot be used."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachekeep.model import BackingKey, KmsAlias, KmsKey, Secret
from cachekeep.security.ciphertext import head_of
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.paging import PageRule
from cachekeep.services.core.rights import Arn, Guard
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

PAGES: Final = PageRule("Marker", "Limit", 1, 1000, 100)
_KEY_BYTES: Final = 32
OWN: Final = "alias/aws/"
"""Aliases that users can neither make nor take away."""


def key_arn(settings: ServiceSettings, name: str) -> str:
    return f"arn:aws:kms:{settings.region}:{settings.account}:key/{name}"


def alias_arn(settings: ServiceSettings, name: str) -> str:
    return f"arn:aws:kms:{settings.region}:{settings.account}:{name}"


def full(settings: ServiceSettings, text: str) -> str:
    """The ARN of a key or an alias, however it is given: id, ``alias/…``, or one of their ARNs."""
    if text.startswith("arn:"):
        return text
    return alias_arn(settings, text) if text.startswith("alias/") else key_arn(settings, text)


def not_found(arn: str) -> ApiError:
    what = "Alias" if ":alias/" in arn else "Key"
    return ApiError("NotFoundException", f"{what} '{arn}' does not exist")


async def resolved(tx: Transaction, arn: str) -> str:
    """The key that an alias stands for: whoever may not use a key may not do so by another name of it."""
    before, found, name = arn.partition(":alias/")
    alias = await tx.get(KmsAlias, f"alias/{name}") if found else None
    return f"{before}:key/{alias.key}" if alias is not None else arn


async def key(tx: Transaction, text: str, context: Context) -> KmsKey:
    """Raises ApiError NotFoundException."""
    arn = full(context.settings, text)
    target = await resolved(tx, arn)
    name = target.rpartition(":key/")[2]
    found = await tx.get(KmsKey, name)
    if found is None or target != key_arn(context.settings, name) or is_gone(found, context):
        raise not_found(arn)
    return found


def is_gone(found: KmsKey, context: Context) -> bool:
    return found.deleted_at is not None and context.clock.now() >= found.deleted_at


async def sweep(tx: Transaction, context: Context) -> None:
    """Keys whose time is over leave nothing behind, and neither do their names."""
    gone = {each.name for each in await tx.list(KmsKey) if is_gone(each, context)}
    for alias in await tx.list(KmsAlias) if gone else ():
        if alias.key in gone:
            await tx.delete(KmsAlias, alias.name)
    for name in gone:
        await tx.delete(KmsKey, name)


def refuse_pending(found: KmsKey, context: Context) -> None:
    """Raises ApiError KMSInvalidStateException."""
    if found.deleted_at is not None:
        text = f"{key_arn(context.settings, found.name)} is pending deletion."
        raise ApiError("KMSInvalidStateException", text)


def usable(found: KmsKey, context: Context) -> KmsKey:
    """Raises ApiError DisabledException or KMSInvalidStateException."""
    refuse_pending(found, context)
    if not found.enabled:
        raise ApiError("DisabledException", f"{key_arn(context.settings, found.name)} is disabled.")
    return found


def opened(found: KmsKey, backing: BackingKey, context: Context) -> bytes:
    """The bits. Raises ``Unsealable`` without the root key."""
    return bytes.fromhex(context.sealing.open(backing.sealed, owner=found.name, purpose=_purpose(backing.number)).value)


def new_backing(name: str, number: int, context: Context, at: dt.datetime) -> BackingKey:
    secret = Secret(secrets.token_hex(_KEY_BYTES))
    context.sealing.make()
    sealed = context.sealing.seal(secret, owner=name, purpose=_purpose(number))
    return BackingKey(number=number, sealed=sealed, created_at=at)


def _purpose(number: int) -> str:
    return f"key {number}"


# ------------------------------------------------------------------ for policies


def names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    """Of a ciphertext it is the key that made it."""
    params = call.params
    found: dict[str, Sequence[str]] = {}
    given = params.get("KeyId") or params.get("TargetKeyId")
    if given is None and (blob := params.get("CiphertextBlob")) and (head := head_of(blob)):
        given = head.key
    if given:
        found["key"] = [Arn(full(settings, given))]
    if alias := params.get("AliasName"):
        found["alias"] = [Arn(alias_arn(settings, alias))]
    return found


def keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    """The encryption context, and by which alias a key was named."""
    found = {f"kms:EncryptionContext:{key}": value for key, value in call.params.get("EncryptionContext", {}).items()}
    name = call.params.get("KeyId", "").rpartition(":")[2]
    return found | ({"kms:RequestAlias": name} if name.startswith("alias/") else {}) | {"kms:CallerAccount": settings.account}


async def tags(tx: Transaction, arn: str) -> Mapping[str, str]:
    found = await tx.get(KmsKey, arn.rpartition(":key/")[2])
    return found.tags if found is not None else {}


async def guard(tx: Transaction, arn: str) -> Guard | None:
    """A key's policy."""
    found = await tx.get(KmsKey, arn.rpartition(":key/")[2]) if ":key/" in arn else None
    return Guard(found.policy, placed=False, ids=found.meant) if found is not None else None


# ------------------------------------------------------------------ as KMS tells them


def shown(found: KmsKey, settings: ServiceSettings) -> Mapping[str, Any]:
    state = "PendingDeletion" if found.deleted_at is not None else "Enabled" if found.enabled else "Disabled"
    return {
        "AWSAccountId": settings.account,
        "KeyId": found.name,
        "Arn": key_arn(settings, found.name),
        "CreationDate": found.created_at,
        "Enabled": state == "Enabled",
        "Description": found.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": state,
        **({"DeletionDate": found.deleted_at} if found.deleted_at is not None else {}),
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": False,
    }
