"""Users of caches: what each may do, and by which passwords it comes. Whoever changes one rewrites what every cache wants that has
it, in the same transaction: keepers bring it to the nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.engines import acl
from cachekeep.engines.users import RESERVED, WITHHELD, hash_of
from cachekeep.model import CacheUser
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, Params, combination_error, unsupported, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.elasticache import memberships, names, quotas, tags
from cachekeep.services.elasticache.memberships import DEFAULT, Overview
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

ID_MAX: Final = 40
_NAME_MAX: Final = 120
_PASSWORDS_MAX: Final = 2
_LENGTHS: Final = (16, 128)
_NOT_IN_PASSWORDS: Final = ',"/@'
_ENGINES: Final = ("redis", "valkey")
_FILTERS: Final = ("user-id", "user-name", "user-group-id", "engine")


class _Proof(msgspec.Struct, frozen=True):
    """How a user shows who it is: hashes of passwords; none: it need not."""

    passwords: tuple[str, ...]


# ------------------------------------------------------------------ the operations


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Makes a user, which user groups bring to caches."""
    params = call.params
    name = names.identifier(params["UserId"], "UserId", ID_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    if name == DEFAULT.name or await tx.get(CacheUser, name):
        raise ApiError("UserAlreadyExists", f"User {params['UserId']} already exists.")
    quotas.USERS.check(len(await tx.list(CacheUser)) + 1, context.settings.quotas)
    proof = _proof(params)
    if proof is None:
        raise _no_password()
    user = CacheUser(
        name=name,
        id=params["UserId"],
        user_name=_user_name(params["UserName"]),
        engine=engine(params["Engine"]),
        access=_access(params["AccessString"]),
        passwords=proof.passwords,
    )
    _check(user)
    await tx.put(user)
    await tags.replace_all(tx, names.arn(context.settings, "user", name), given)
    return _shown(user, await memberships.overview(tx), context)


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Changes rights or passwords, on every cache that has the user and without a restart; connections stay as far as they may."""
    params = call.params
    user = await _to_change(tx, params["UserId"])
    if "AccessString" in params and "AppendAccessString" in params:
        raise combination_error("AccessString and AppendAccessString cannot be used together.")
    changes: dict[str, Any] = {}
    if "AccessString" in params:
        changes["access"] = _access(params["AccessString"])
    if "AppendAccessString" in params:
        changes["access"] = _access(f"{user.access} {params['AppendAccessString']}")
    if (proof := _proof(params)) is not None:
        changes["passwords"] = proof.passwords
    if "Engine" in params:
        changes["engine"] = engine(params["Engine"])
    if not changes:
        raise combination_error("No modifications were requested")
    changed = replace(user, **changes)
    if (user.engine, changed.engine) == ("valkey", "redis"):
        raise combination_error("The engine of a user cannot be changed from valkey to redis.")
    _check(changed)
    await memberships.put(tx, changed)
    return _shown(changed, await memberships.overview(tx), context)


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Takes a user from its groups and from every cache, and ends its connections."""
    user = await _to_change(tx, call.params["UserId"])
    there = await memberships.overview(tx)
    shape, groups = _shown(user, there, context), there.of(user.name)
    for group in groups:
        if user.user_name == DEFAULT.user_name and group.engine == "redis":
            words = f"The user {user.id} is the default user of user group {group.id}, which needs one."
            raise ApiError("DefaultUserAssociatedToUserGroup", words)
    for group in groups:
        await memberships.put_group(tx, replace(group, users=tuple(u for u in group.users if u != user.name)))
    await tx.delete(CacheUser, user.name)
    await tags.drop(tx, names.arn(context.settings, "user", user.name))
    return {**shape, "Status": "deleting"}


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All users with the ids of their groups, or those that match; `default` is always among them."""
    params = call.params
    if asked := params.get("UserId"):
        found: Sequence[CacheUser] = [await _find(tx, asked)]
    else:
        found = [DEFAULT, *await tx.list(CacheUser)]
    if "Engine" in params:
        wanted = engine(params["Engine"])
        found = [user for user in found if user.engine == wanted]
    there = await memberships.overview(tx)
    shapes = {user.name: _shown(user, there, context) for user in found}
    kept = [user for user in found if _matches(shapes[user.name], params)]
    return paging.page(kept, params, lambda user: user.name, lambda user: shapes[user.name], "Users")


async def _find(tx: Transaction, id: str) -> CacheUser:
    """Raises ApiError UserNotFound."""
    found = await memberships.known_user(tx, id)
    if found is None:
        raise ApiError("UserNotFound", f"User {id} not found.")
    return found


async def _to_change(tx: Transaction, id: str) -> CacheUser:
    """Raises ApiError UserNotFound or InvalidParameterValue."""
    found = await _find(tx, id)
    if found is DEFAULT:
        raise value_error("The user default cannot be changed or deleted: put another one with the user name default in its place.")
    return found


def _matches(shape: Mapping[str, Any], params: Params) -> bool:
    """Whether a user passes all filters. Raises ApiError InvalidParameterCombination."""
    fields = {
        "user-id": [shape["UserId"].lower()],
        "user-name": [shape["UserName"]],
        "user-group-id": [group.lower() for group in shape["UserGroupIds"]],
        "engine": [shape["Engine"]],
    }
    for each in params.get("Filters", ()):
        if each["Name"] not in _FILTERS:
            raise combination_error(f"Invalid filter {each['Name']}: valid ones are {', '.join(_FILTERS)}.")
        values = each["Values"] if each["Name"] == "user-name" else [value.lower() for value in each["Values"]]
        if not set(values) & set(fields[each["Name"]]):
            return False
    return True


def _shown(user: CacheUser, there: Overview, context: Context) -> dict[str, Any]:
    """A User."""
    groups = there.of(user.name)
    told = all(map(there.told, groups))
    kind = {"Type": "password", "PasswordCount": len(user.passwords)} if user.passwords else {"Type": "no-password"}
    return {
        "UserId": user.id,
        "UserName": user.user_name,
        "Status": "active" if told else "modifying",
        "Engine": user.engine,
        "MinimumEngineVersion": memberships.shown(memberships.least_version(user)),
        "AccessString": user.access,
        "UserGroupIds": [group.id for group in groups],
        "Authentication": kind,
        "ARN": names.arn(context.settings, "user", user.name),
    }


# ------------------------------------------------------------------ what is asked for


def engine(text: str) -> str:
    """Engines are written in either case. Raises ApiError InvalidParameterValue."""
    if text.lower() not in _ENGINES:
        raise value_error(f"Invalid engine {text}: valid ones are {', '.join(_ENGINES)}.")
    return text.lower()


def _user_name(text: str) -> str:
    """What clients say. Raises ApiError InvalidParameterValue."""
    if len(text) > _NAME_MAX or not text.isprintable() or " " in text:
        raise value_error(f"UserName must have at most {_NAME_MAX} characters, printable ones and no spaces.")
    if text.startswith(RESERVED):
        raise value_error(f"UserName must not begin with {RESERVED}.")
    return text


def _access(text: str) -> str:
    """Raises ApiError InvalidParameterValue."""
    return acl.normal(acl.parse(text, WITHHELD))


def _no_password() -> ApiError:
    return combination_error(
        "No password was provided. If you want to create/update the user without password, please use the NoPasswordRequired flag."
    )


def _proof(params: Params) -> _Proof | None:
    """None where nothing is asked for. Raises ApiError InvalidParameterCombination or InvalidParameterValue."""
    mode, passwords, none = params.get("AuthenticationMode"), params.get("Passwords"), params.get("NoPasswordRequired", False)
    if mode is not None:
        if passwords or none:
            raise combination_error("AuthenticationMode cannot be used together with Passwords or NoPasswordRequired.")
        passwords, none = mode.get("Passwords"), mode.get("Type") == "no-password-required"
        if mode.get("Type") == "iam":
            raise unsupported("IAM authentication of a cache's users (AuthenticationMode.Type=iam)")
        if not none and not passwords:
            raise _no_password()
    if none and passwords:
        raise combination_error("A user that needs no password cannot have one.")
    if none:
        return _Proof(())
    return _Proof(_hashes(passwords)) if passwords else None


def _hashes(passwords: Sequence[str]) -> tuple[str, ...]:
    """Raises ApiError InvalidParameterValue."""
    if len(passwords) > _PASSWORDS_MAX:
        raise value_error(f"A user can have at most {_PASSWORDS_MAX} passwords.")
    least, most = _LENGTHS
    for each in passwords:
        plain = each.isascii() and each.isprintable() and not set(each) & set(_NOT_IN_PASSWORDS)
        if not least <= len(each) <= most or not plain:
            raise value_error(
                f"A password must have {least} to {most} printable ASCII characters, and none of {' '.join(_NOT_IN_PASSWORDS)}"
            )
    return tuple(dict.fromkeys(map(hash_of, passwords)))


def _check(user: CacheUser) -> None:
    """What does not go together. Raises ApiError InvalidParameterCombination."""
    if user.engine == "valkey" and not user.passwords:
        raise combination_error("A user of engine valkey must have a password.")


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateUser": writes(create),
    "ModifyUser": writes(modify),
    "DeleteUser": writes(delete),
    "DescribeUsers": reads(describe),
}
