"""Who is asking."""

from __future__ import annotations

import dataclasses

from cachekeep.audit.record import Identity
from cachekeep.model import IamUser, IssuedKey
from cachekeep.store.contract import Transaction
from cachekeep.wire.audit import root_of
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


def is_root(call: Call) -> bool:
    return call.principal.arn.endswith(":root")


def user_arn(account: str, user: IamUser) -> str:
    return f"arn:aws:iam::{account}:user/{user.user_name}"


async def identify(call: Call, tx: Transaction) -> tuple[Call, IamUser | None]:
    """The call with whoever asks as its principal, and that user; None for the account's root.

    Raises ApiError InvalidClientTokenId for a key that is no longer good.
    """
    if is_root(call):
        call.seen.identity = root_of(call.principal)
        return call, None
    key = await tx.get(IssuedKey, call.principal.access_key)
    user = await tx.get(IamUser, key.user) if key is not None and key.active else None
    if user is None:
        raise ApiError("InvalidClientTokenId", "The security token included in the request is invalid.", status=403)
    principal = dataclasses.replace(call.principal, arn=user_arn(call.principal.account, user))
    call.seen.identity = Identity(
        type="IAMUser", account=principal.account, principal_id=user.id, arn=principal.arn, name=user.user_name
    )
    return dataclasses.replace(call, principal=principal), user
