"""KMS by boto3: keys encrypt for those who may use them, and what a key sealed is unreadable without it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.services.rig import ACCOUNT, Rig, refused
from tests.services.test_enforced import Bob
from tests.services.test_roles import allow, trust

from cachekeep.model import KmsKey
from cachekeep.store import SqlStore

IAM = f"arn:aws:iam::{ACCOUNT}"


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def kms(rig: Rig) -> Any:
    return rig.client("kms")


@pytest.fixture
def key(kms: Any) -> str:
    return kms.create_key(Description="d")["KeyMetadata"]["KeyId"]


def sealed(kms: Any, key: str, text: bytes = b"secret", **context: str) -> bytes:
    return kms.encrypt(KeyId=key, Plaintext=text, EncryptionContext=context)["CiphertextBlob"]


def test_what_is_encrypted_is_decrypted(kms: Any, key: str) -> None:
    blob = sealed(kms, key, a="1", b="2")
    found = kms.decrypt(CiphertextBlob=blob, EncryptionContext={"b": "2", "a": "1"})
    assert (found["Plaintext"], found["KeyId"]) == (b"secret", kms.describe_key(KeyId=key)["KeyMetadata"]["Arn"])
    assert b"secret" not in blob
    assert sealed(kms, key) != sealed(kms, key)
    for context in ({}, {"a": "1"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2", "c": ""}):
        assert refused(kms.decrypt, CiphertextBlob=blob, EncryptionContext=context).code == "InvalidCiphertextException"
    assert refused(kms.encrypt, KeyId=key, Plaintext=b"x" * 4097).code == "ValidationException"


def test_what_was_altered_is_not_decrypted(kms: Any, key: str) -> None:
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    blob = sealed(kms, key)
    for at in range(len(blob)):
        altered = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        assert refused(kms.decrypt, CiphertextBlob=altered).code in ("InvalidCiphertextException", "NotFoundException")
    for cut in (0, 1, 20, 40, len(blob) - 1):
        assert refused(kms.decrypt, CiphertextBlob=blob[:cut] or b"x").code == "InvalidCiphertextException"
    assert refused(kms.decrypt, CiphertextBlob=blob, KeyId=other).code == "IncorrectKeyException"


def test_data_keys(kms: Any, key: str) -> None:
    for asked, size in (({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 7}, 7)):
        made = kms.generate_data_key(KeyId=key, EncryptionContext={"a": "1"}, **asked)
        assert len(made["Plaintext"]) == size
        opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext={"a": "1"})
        assert opened["Plaintext"] == made["Plaintext"]
        assert "Plaintext" not in kms.generate_data_key_without_plaintext(KeyId=key, **asked)
    assert refused(kms.generate_data_key, KeyId=key).code == "ValidationException"


def test_a_key_that_is_rotated_still_opens_what_was_before(kms: Any, key: str) -> None:
    before = sealed(kms, key)
    kms.rotate_key_on_demand(KeyId=key)
    after = sealed(kms, key)
    assert [kms.decrypt(CiphertextBlob=blob)["Plaintext"] for blob in (before, after)] == [b"secret"] * 2
    assert before[:21] != after[:21]  # other bits have encrypted it


def test_a_key_that_is_off_opens_nothing_and_says_so(rig: Rig, kms: Any, key: str) -> None:
    blob = sealed(kms, key)
    kms.disable_key(KeyId=key)
    for call in (lambda **_: sealed(kms, key), lambda **_: kms.decrypt(CiphertextBlob=blob)):
        assert refused(call).code == "DisabledException"
    kms.enable_key(KeyId=key)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert refused(kms.decrypt, CiphertextBlob=blob).code == "KMSInvalidStateException"
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "PendingDeletion"
    kms.cancel_key_deletion(KeyId=key)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.enable_key(KeyId=key)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    rig.clock.passed += dt.timedelta(days=7, seconds=1)
    assert refused(kms.decrypt, CiphertextBlob=blob).code == "NotFoundException"
    assert refused(kms.cancel_key_deletion, KeyId=key).code == "NotFoundException"
    assert kms.list_keys()["Keys"] == []
    kms.create_key()
    assert [each.name for each in rig.run(_stored(rig))] == [kms.list_keys()["Keys"][0]["KeyId"]]  # nothing is left of it


async def _stored(rig: Rig) -> list[KmsKey]:
    async with rig.store.reading() as tx:
        return await tx.list(KmsKey)


def test_names_of_keys(kms: Any, key: str) -> None:
    other = kms.create_key()["KeyMetadata"]
    kms.create_alias(AliasName="alias/mine", TargetKeyId=key)
    arn = kms.list_aliases(KeyId=key)["Aliases"][0]["AliasArn"]
    blob = sealed(kms, "alias/mine")
    for name in ("alias/mine", arn, key, kms.describe_key(KeyId=key)["KeyMetadata"]["Arn"]):
        assert kms.decrypt(CiphertextBlob=blob, KeyId=name)["Plaintext"] == b"secret"
    kms.update_alias(AliasName="alias/mine", TargetKeyId=other["Arn"])
    assert kms.describe_key(KeyId="alias/mine")["KeyMetadata"]["KeyId"] == other["KeyId"]
    kms.delete_alias(AliasName="alias/mine")
    for name in (
        "alias/mine",
        "x",
        key.upper(),
        f"arn:aws:kms:us-east-1:111111111111:key/{key}",
        f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/{key}",
    ):
        assert refused(kms.encrypt, KeyId=name, Plaintext=b"x").code == "NotFoundException", name
    for bad in ("mine", "alias/aws/mine", "alias/"):
        assert refused(kms.create_alias, AliasName=bad, TargetKeyId=key).code in (
            "InvalidAliasNameException",
            "ValidationException",
        )


# ------------------------------------------------------------------ who may


def test_a_keys_policy_guards_it() -> None:
    rig = Rig(auth="enforce")
    kms, bob = rig.client("kms"), Bob(rig)
    theirs = bob.client("kms")
    key = kms.create_key()["KeyMetadata"]
    kms.create_alias(AliasName="alias/mine", TargetKeyId=key["KeyId"])
    blob = sealed(kms, key["KeyId"])
    assert refused(theirs.decrypt, CiphertextBlob=blob).code == "AccessDeniedException"
    bob.may({"Action": "kms:*"})  # the default policy leaves it to IAM
    assert theirs.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    # no other name of it leads past a deny
    bob.may({"Action": "kms:*"}, {"Effect": "Deny", "Action": "kms:*", "Resource": key["Arn"]})
    for name in ("alias/mine", key["KeyId"], key["Arn"], f"arn:aws:kms:us-east-1:{ACCOUNT}:alias/mine"):
        assert refused(theirs.encrypt, KeyId=name, Plaintext=b"x").code == "AccessDeniedException", name
    assert refused(theirs.decrypt, CiphertextBlob=blob).code == "AccessDeniedException"
    # a policy that names somebody else lets nobody in, whatever IAM says
    bob.may({"Action": "*"})
    rig.client("iam").create_user(UserName="eve")
    kms.put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy=_policy(f"{IAM}:user/eve"))
    assert "resource-based policy" in refused(theirs.decrypt, CiphertextBlob=blob).message
    # and one that names him needs no policy of IAM's
    bob.iam.delete_user_policy(UserName="Bob", PolicyName="p")
    kms.put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy=_policy(f"{IAM}:user/Bob", {"a": "1"}))
    blob = sealed(kms, key["KeyId"], a="1")
    assert theirs.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "1"})["Plaintext"] == b"secret"
    assert refused(theirs.decrypt, CiphertextBlob=blob).code == "AccessDeniedException"
    error = refused(kms.put_key_policy, KeyId=key["KeyId"], PolicyName="default", Policy=_policy(f"{IAM}:user/none"))
    assert error.code == "MalformedPolicyDocumentException"
    rig.close()


def _policy(principal: str, context: dict[str, str] | None = None) -> str:
    condition = {"Condition": {"StringEquals": {f"kms:EncryptionContext:{k}": v for k, v in context.items()}}} if context else {}
    return trust({"AWS": principal}, "kms:*", Resource="*", **condition)


def test_tags_of_a_key_count() -> None:
    rig = Rig(auth="enforce")
    kms, bob = rig.client("kms"), Bob(rig)
    key = kms.create_key(Tags=[{"TagKey": "team", "TagValue": "red"}])["KeyMetadata"]["KeyId"]
    condition = {"StringEquals": {"aws:ResourceTag/team": "red"}}
    bob.iam.put_user_policy(UserName="Bob", PolicyName="p", PolicyDocument=allow("kms:*", Condition=condition))
    sealed(bob.client("kms"), key)
    kms.untag_resource(KeyId=key, TagKeys=["team"])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == []
    assert refused(sealed, kms=bob.client("kms"), key=key).code == "AccessDeniedException"
    rig.close()


def test_no_key_is_in_the_database(tmp_path: Any) -> None:
    """Nor what it encrypts; and with another root key it opens nothing, and says so."""
    from cachekeep.security.sealing import Sealing

    file = tmp_path / "x.db"
    first = Rig()
    rig = Rig(store=SqlStore(str(file), first.clock))
    kms = rig.client("kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blob = sealed(kms, key)
    rig.services._context = __import__("msgspec").structs.replace(rig.services._context, sealing=Sealing(b"x" * 32))
    assert refused(kms.decrypt, CiphertextBlob=blob).code == "ServiceUnavailable"
    rig.close()
    first.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.encode() in kept
    assert b"secret" not in kept


def test_what_terraform_calls_for_aws_kms_key_and_alias(kms: Any) -> None:
    key = kms.create_key(
        KeySpec="SYMMETRIC_DEFAULT",
        KeyUsage="ENCRYPT_DECRYPT",
        Description="d",
        MultiRegion=False,
        BypassPolicyLockoutSafetyCheck=False,
    )["KeyMetadata"]["KeyId"]
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Enabled"
    assert json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])["Statement"]
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    kms.create_alias(AliasName="alias/tf", TargetKeyId=key)
    assert [a["AliasName"] for page in kms.get_paginator("list_aliases").paginate() for a in page["Aliases"]] == ["alias/tf"]
    kms.update_key_description(KeyId=key, Description="e")
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "1"}])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "a", "TagValue": "1"}]
    kms.delete_alias(AliasName="alias/tf")
    kms.schedule_key_deletion(KeyId=key)
