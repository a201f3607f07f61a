"""Who is asking."""

from __future__ import annotations

import dataclasses

import msgspec

from cachekeep.audit.record import Identity, SessionIssuer
from cachekeep.model import IamRole, IamSession, IamUser, IssuedKey
from cachekeep.security.access_keys import Issuer
from cachekeep.store.contract import Transaction
from cachekeep.wire.audit import root_of
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


class Caller(msgspec.Struct, frozen=True):
    """A user or a role of the account. A role always asks in a session; a user may."""

    who: IamUser | IamRole
    session: IamSession | None = None


def is_root(call: Call) -> bool:
    return call.principal.arn.endswith(":root")


def user_arn(account: str, user: IamUser) -> str:
    return f"arn:aws:iam::{account}:user/{user.user_name}"


def role_arn(account: str, role: IamRole) -> str:
    return f"arn:aws:iam::{account}:role/{role.role_name}"


def session_arn(account: str, role: IamRole, session: IamSession) -> str:
    return f"arn:aws:sts::{account}:assumed-role/{role.role_name}/{session.session_name}"


async def identify(call: Call, tx: Transaction, issuer: Issuer) -> tuple[Call, Caller | None]:
    """The call with whoever asks as its principal, and who that is; None for the account's root.

    Raises ApiError InvalidClientTokenId for credentials that are no longer good, ExpiredToken for those whose time is over.
    """
    if is_root(call):
        call.seen.identity = root_of(call.principal)
        return call, None
    if call.principal.session_token:
        caller = await _in_session(call, tx, issuer)
    else:
        key = await tx.get(IssuedKey, call.principal.access_key)
        user = await tx.get(IamUser, key.user) if key is not None and key.active else None
        caller = Caller(user) if user is not None else None
    if caller is None:
        raise ApiError("InvalidClientTokenId", "The security token included in the request is invalid.", status=403)
    call.seen.identity = identity = _identity(caller, call.principal.account)
    return dataclasses.replace(call, principal=dataclasses.replace(call.principal, arn=identity.arn)), caller


async def _in_session(call: Call, tx: Transaction, issuer: Issuer) -> Caller | None:
    """A session lives no longer than whose it is: another of the same name is another. Raises ApiError ExpiredToken."""
    session = issuer.session_of(call.principal.access_key, call.principal.session_token)
    if session is None:
        return None
    if call.received_at >= session.expires_at:
        raise ApiError("ExpiredToken", "The security token included in the request is expired", status=403)
    who = await tx.get(IamRole, session.name) if session.kind == "role" else await tx.get(IamUser, session.name)
    return Caller(who, session) if who is not None and who.id == session.id else None


def _identity(caller: Caller, account: str) -> Identity:
    """For the record."""
    who, session = caller.who, caller.session
    if isinstance(who, IamUser):
        arn, began = user_arn(account, who), session.began_at if session else None
        return Identity(type="IAMUser", account=account, principal_id=who.id, arn=arn, name=who.user_name, session_began_at=began)
    assert session is not None
    issuer = SessionIssuer(type="Role", principal_id=who.id, arn=role_arn(account, who), account=account, name=who.role_name)
    return Identity(
        type="AssumedRole",
        account=account,
        principal_id=f"{who.id}:{session.session_name}",
        arn=session_arn(account, who, session),
        name=session.session_name,
        issuer=issuer,
        session_began_at=session.began_at,
    )
