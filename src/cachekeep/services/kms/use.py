"""What keys are for: encrypting up to 4 KiB, and making keys for more than that."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model import KmsKey
from cachekeep.security import ciphertext
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.kms import find
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_ALGORITHM: Final = {"EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
_BYTES: Final = {"AES_128": 16, "AES_256": 32}


async def encrypt(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Up to 4 KiB are encrypted, together with an encryption context."""
    key = await _key(call, tx, context)
    return {"CiphertextBlob": _sealed(key, call.params["Plaintext"], call, context), **_told(key, context), **_ALGORITHM}


async def _key(call: Call, tx: Transaction, context: Context) -> KmsKey:
    """Raises ApiError NotFoundException, DisabledException or KMSInvalidStateException."""
    return find.usable(await find.key(tx, call.params["KeyId"], context), context)


def _sealed(key: KmsKey, plaintext: bytes, call: Call, context: Context) -> bytes:
    newest = key.backing[-1]
    head = ciphertext.Head(key.name, newest.number)
    return ciphertext.encrypt(head, find.opened(key, newest, context), plaintext, call.params.get("EncryptionContext", {}))


def _told(key: KmsKey, context: Context) -> Mapping[str, str]:
    return {"KeyId": find.key_arn(context.settings, key.name)}


async def decrypt(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What was encrypted here, with the same encryption context. The key is known from the ciphertext."""
    blob: bytes = call.params.get("CiphertextBlob", b"")
    head = ciphertext.head_of(blob)
    if head is None:
        raise ApiError("InvalidCiphertextException", "It was not encrypted here.")
    key = find.usable(await find.key(tx, head.key, context), context)
    if "KeyId" in call.params and (await _key(call, tx, context)).name != key.name:
        text = "The key ID in the request does not identify a CMK that can perform this operation."
        raise ApiError("IncorrectKeyException", text)
    backing = next((each for each in key.backing if each.number == head.number), None)
    context_of = call.params.get("EncryptionContext", {})
    opened = ciphertext.decrypt(find.opened(key, backing, context), blob, context_of) if backing is not None else None
    if opened is None:
        raise ApiError("InvalidCiphertextException", "It was altered, or its encryption context is another.")
    return {"Plaintext": opened, **_told(key, context), **_ALGORITHM}


async def data_key(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A new key for whatever, as it is and encrypted by this one."""
    key = await _key(call, tx, context)
    plaintext = secrets.token_bytes(_size(call))
    return {"Plaintext": plaintext, "CiphertextBlob": _sealed(key, plaintext, call, context), **_told(key, context)}


async def data_key_sealed(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A new key for whatever, encrypted by this one: to be decrypted when it is needed."""
    return {name: value for name, value in (await data_key(call, tx, context)).items() if name != "Plaintext"}


def _size(call: Call) -> int:
    """Raises ApiError ValidationException."""
    size, spec = call.params.get("NumberOfBytes"), call.params.get("KeySpec")
    if (size is None) is (spec is None):
        raise ApiError("ValidationException", "Please specify either number of bytes or key spec.")
    return size if size is not None else _BYTES[str(spec)]


OPERATIONS: Final[Mapping[str, Operation]] = {
    "Encrypt": reads(encrypt),
    "Decrypt": reads(decrypt),
    "GenerateDataKey": reads(data_key),
    "GenerateDataKeyWithoutPlaintext": reads(data_key_sealed),
}

PARAMETERS: Final[Declared] = {
    "Plaintext": Effect("what is encrypted"),
    "CiphertextBlob": Effect("what is decrypted"),
    "EncryptionContext": Effect("what must be the same when it is decrypted"),
    "EncryptionAlgorithm": NotYet("Another algorithm", ("SYMMETRIC_DEFAULT",)),
    "KeySpec": Effect("how long the new key is"),
    "NumberOfBytes": Effect("how long the new key is"),
    "Recipient": NotYet("Answering an enclave"),
    "DryRun": NotYet("Trying without doing", (False,)),
    "DryRunModifiers": NotYet("Trying without doing"),
}
