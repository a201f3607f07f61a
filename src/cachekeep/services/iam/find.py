"""Finding users for a request, and refusing those that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.model import IamUser, IssuedKey
from cachekeep.services.core.callers import user_arn
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.paging import PageRule
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError

PAGES: Final = PageRule("Marker", "MaxItems", 1, 1000, 100)


def missing(what: str) -> ApiError:
    return ApiError("NoSuchEntity", f"{what} cannot be found.", status=404)


async def user(tx: Transaction, name: str) -> IamUser:
    """By the name as it was given, case and all: policies tell ``user/Bob`` from ``user/bob``, so nobody is reached past one by
    another spelling. Raises ApiError NoSuchEntity."""
    found = await tx.get(IamUser, name.lower())
    if found is None or found.user_name != name:
        raise missing(f"The user with name {name}")
    return found


async def keys_of(tx: Transaction, owner: IamUser) -> list[IssuedKey]:
    return [key for key in await tx.list(IssuedKey) if key.user == owner.name]


def shown(found: IamUser, settings: ServiceSettings) -> Mapping[str, Any]:
    """A user, as IAM tells it."""
    shape: dict[str, Any] = {
        "Path": "/",
        "UserName": found.user_name,
        "UserId": found.id,
        "Arn": user_arn(settings.account, found),
        "CreateDate": found.created_at,
    }
    if found.tags:
        shape["Tags"] = [{"Key": key, "Value": value} for key, value in sorted(found.tags.items())]
    if found.boundary:
        shape["PermissionsBoundary"] = {"PermissionsBoundaryType": "Policy", "PermissionsBoundaryArn": found.boundary}
    return shape


def listing(page: Mapping[str, Any]) -> Mapping[str, Any]:
    """A page of a list, as IAM tells that there are more."""
    return {**page, "IsTruncated": "Marker" in page}
