"""Finding who and what a request names, and refusing those that are not there."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cachekeep.model import IamGroup, IamRole, IamUser, IssuedKey, ManagedPolicy
from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.security.policy.readymade import READY_MADE
from cachekeep.security.policy.tree import Kind, PolicyDocument
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.paging import PageRule
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

PAGES: Final = PageRule("Marker", "MaxItems", 1, 1000, 100)
TAGS_MAX: Final = 50

Holder = IamUser | IamGroup | IamRole
"""Who has policies."""


def name_of(holder: Holder) -> str:
    """As it was given."""
    if isinstance(holder, IamUser):
        return holder.user_name
    return holder.group_name if isinstance(holder, IamGroup) else holder.role_name


class HolderKind(msgspec.Struct, frozen=True):
    """One kind of them. ``title`` is what IAM's names of operations and parameters call it; ``inline_characters_max`` is of all
    its own policies, without white space [IAM and AWS STS quotas]."""

    type: type[Holder]
    title: str
    inline_characters_max: int

    @property
    def parameter(self) -> str:
        return f"{self.title}Name"

    @property
    def word(self) -> str:
        return self.title.lower()


USER: Final = HolderKind(IamUser, "User", 2048)
GROUP: Final = HolderKind(IamGroup, "Group", 5120)
ROLE: Final = HolderKind(IamRole, "Role", 10240)
HOLDERS: Final = (USER, GROUP, ROLE)


def missing(what: str) -> ApiError:
    return ApiError("NoSuchEntity", f"{what} cannot be found.", status=404)


async def holder(tx: Transaction, kind: HolderKind, name: str) -> Any:
    """By the name as it was given, case and all: policies tell ``user/Bob`` from ``user/bob``, so nobody is reached past one by
    another spelling. Raises ApiError NoSuchEntity."""
    found = await tx.get(kind.type, name.lower())
    if found is None or name_of(found) != name:
        raise missing(f"The {kind.word} with name {name}")
    return found


async def user(tx: Transaction, name: str) -> IamUser:
    """Raises ApiError NoSuchEntity."""
    found: IamUser = await holder(tx, USER, name)
    return found


async def refuse_taken(tx: Transaction, kind: HolderKind, name: str) -> None:
    """Raises ApiError EntityAlreadyExists: names that differ by case alone are one."""
    if await tx.get(kind.type, name.lower()) is not None:
        raise ApiError("EntityAlreadyExists", f"{kind.title} with name {name} already exists.", status=409)


async def keys_of(tx: Transaction, owner: IamUser) -> list[IssuedKey]:
    return [key for key in await tx.list(IssuedKey) if key.user == owner.name]


def arn_of(holder: Holder, settings: ServiceSettings) -> str:
    word = next(kind.word for kind in HOLDERS if isinstance(holder, kind.type))
    return f"arn:aws:iam::{settings.account}:{word}/{name_of(holder)}"


def new_id(prefix: str, context: Context, name: str) -> str:
    """Another one for each, also for one who gets the name of another that is gone."""
    parts = f"{context.settings.account}/{prefix}/{name}/{context.clock.now().isoformat()}"
    return prefix + base64.b32encode(hashlib.sha256(parts.encode()).digest()).decode()[:16]


def this_second(context: Context) -> dt.datetime:
    return context.clock.now().replace(microsecond=0)


# ------------------------------------------------------------------ policies


def read(text: str, kind: Kind = "identity", *, at_resource: bool = False) -> PolicyDocument:
    """Raises ApiError MalformedPolicyDocument."""
    try:
        return parse(text, kind, at_resource=at_resource)
    except MalformedPolicy as error:
        raise ApiError("MalformedPolicyDocument", str(error)) from None


def characters(text: str) -> int:
    """White space does not count."""
    return len("".join(text.split()))


async def managed(tx: Transaction, arn: str, settings: ServiceSettings) -> ManagedPolicy:
    """One that was made here, by its ARN as it was given. Raises ApiError NoSuchEntity."""
    found = await tx.get(ManagedPolicy, arn.rpartition("/")[2].lower())
    if found is None or policy_arn(found, settings) != arn:
        raise missing(f"Policy {arn}")
    return found


def policy_arn(policy: ManagedPolicy, settings: ServiceSettings) -> str:
    return f"arn:aws:iam::{settings.account}:policy/{policy.policy_name}"


async def refuse_unknown_policy(tx: Transaction, arn: str, settings: ServiceSettings) -> None:
    """Raises ApiError NoSuchEntity unless there is a policy with this ARN to be attached."""
    if arn not in READY_MADE:
        try:
            await managed(tx, arn, settings)
        except ApiError:
            text = f"Policy {arn} does not exist or is not attachable."
            raise ApiError("NoSuchEntity", text, status=404) from None


# ------------------------------------------------------------------ tags


def tags_of(call: Call) -> dict[str, str]:
    """Raises ApiError InvalidInput."""
    tags: dict[str, str] = {}
    for each in call.params.get("Tags", ()):
        if each["Key"].lower() in {key.lower() for key in tags}:
            raise ApiError("InvalidInput", f"Duplicate tag keys found: {each['Key']}. Tag keys are case insensitive.")
        tags[each["Key"]] = each["Value"]
    return limited(tags)


def limited(tags: dict[str, str]) -> dict[str, str]:
    """Raises ApiError LimitExceeded."""
    if len(tags) > TAGS_MAX:
        raise ApiError("LimitExceeded", f"There are at most {TAGS_MAX} tags.", status=409)
    return tags


def tags_shown(tags: Mapping[str, str]) -> list[Mapping[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


# ------------------------------------------------------------------ as IAM tells them


def shown(found: Holder, settings: ServiceSettings, *, whole: bool = True) -> dict[str, Any]:
    """A user, a group or a role; in a list without tags and boundary."""
    title = next(kind.title for kind in HOLDERS if isinstance(found, kind.type))
    shape: dict[str, Any] = {
        "Path": "/",
        f"{title}Name": name_of(found),
        f"{title}Id": found.id,
        "Arn": arn_of(found, settings),
        "CreateDate": found.created_at,
    }
    if isinstance(found, IamGroup) or not whole:
        return shape
    if found.tags:
        shape["Tags"] = tags_shown(found.tags)
    if found.boundary:
        shape["PermissionsBoundary"] = {"PermissionsBoundaryType": "Policy", "PermissionsBoundaryArn": found.boundary}
    return shape


def listing(page: Mapping[str, Any]) -> Mapping[str, Any]:
    """A page of a list, as IAM tells that there are more."""
    return {**page, "IsTruncated": "Marker" in page}
