"""User groups: the users that caches let in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import UserGroup
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context, combination_error, value_error
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.elasticache import memberships, names, quotas, tags
from cachekeep.services.elasticache.memberships import Overview
from cachekeep.services.elasticache.users import ID_MAX, engine
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Makes a group of users. One of engine redis has a user whose name is `default`."""
    params = call.params
    name = names.identifier(params["UserGroupId"], "UserGroupId", ID_MAX)
    given = tags.parse(params.get("Tags", ()), context)
    if await tx.get(UserGroup, name):
        raise ApiError("UserGroupAlreadyExists", f"User group {params['UserGroupId']} already exists.")
    quotas.USER_GROUPS.check(len(await tx.list(UserGroup)) + 1, context.settings.quotas)
    users = await _there(tx, _named(params.get("UserIds", ())))
    group = UserGroup(name=name, id=params["UserGroupId"], engine=engine(params["Engine"]), users=users)
    await memberships.check_group(tx, group)
    await tx.put(group)
    await tags.replace_all(tx, names.arn(context.settings, "usergroup", name), given)
    return await _shown(group, tx, await memberships.overview(tx), context)


async def modify(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Adds and removes users, on every cache that has the group; connections of those that go are ended."""
    params = call.params
    group = await memberships.find_group(tx, params["UserGroupId"])
    more, fewer = _named(params.get("UserIdsToAdd", ())), _named(params.get("UserIdsToRemove", ()))
    if not more and not fewer and "Engine" not in params:
        raise combination_error("No modifications were requested")
    if both := set(more) & set(fewer):
        raise combination_error(f"The user {min(both)} cannot be added and removed at once.")
    for id in fewer:
        if id not in group.users:
            raise value_error(f"User {id} is not a member of user group {group.id}.")
    for id in more:
        if id in group.users:
            raise value_error(f"User {id} is already a member of user group {group.id}.")
    changed = replace(group, users=(*(u for u in group.users if u not in fewer), *more))
    if "Engine" in params:
        changed = replace(changed, engine=engine(params["Engine"]))
        if (group.engine, changed.engine) == ("valkey", "redis"):
            raise combination_error("The engine of a user group cannot be changed from valkey to redis.")
    await _there(tx, more)
    await memberships.check_group(tx, changed)
    return await _shown(await memberships.put_group(tx, changed), tx, await memberships.overview(tx), context)


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Deletes a group that no cache has. Its users stay."""
    group = await memberships.find_group(tx, call.params["UserGroupId"])
    shape = await _shown(group, tx, await memberships.overview(tx), context)
    if in_use := shape["ReplicationGroups"]:
        words = f"User group {group.id} is used by {', '.join(in_use[:5])}, and cannot be deleted."
        raise ApiError("InvalidUserGroupState", words)
    await tx.delete(UserGroup, group.name)
    await tags.drop(tx, names.arn(context.settings, "usergroup", group.name))
    return {**shape, "Status": "deleting"}


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All groups in pages, or one by its id, with their users and the replication groups that have them."""
    after, size = paging.start(call.params)
    if asked := call.params.get("UserGroupId"):
        found: Sequence[UserGroup] = [await memberships.find_group(tx, asked)]
        marker: Mapping[str, str] = {}
    else:
        found, marker = paging.finish(await tx.list(UserGroup, after=after or "", limit=size + 1), size, lambda g: g.name)
    there = await memberships.overview(tx)
    return {"UserGroups": [await _shown(group, tx, there, context) for group in found], **marker}


def _named(ids: Iterable[str]) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(id.lower() for id in ids))


async def _there(tx: Transaction, users: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ApiError UserNotFound."""
    for id in users:
        if await memberships.known_user(tx, id) is None:
            raise ApiError("UserNotFound", f"User {id} not found.")
    return users


async def _shown(group: UserGroup, tx: Transaction, there: Overview, context: Context) -> dict[str, Any]:
    """A UserGroup."""
    users = await memberships.users_of(tx, group)
    caches = there.caches.get(group.name, ())
    return {
        "UserGroupId": group.id,
        "Status": "active" if there.told(group) else "modifying",
        "Engine": group.engine,
        "UserIds": [user.id for user in users],
        "MinimumEngineVersion": memberships.shown(max(map(memberships.least_version, users), default=memberships.VALKEY_SINCE)),
        "PendingChanges": {},
        "ReplicationGroups": [cache.name for cache in caches if cache.kind == "group"],
        "ARN": names.arn(context.settings, "usergroup", group.name),
    }


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateUserGroup": writes(create),
    "ModifyUserGroup": writes(modify),
    "DeleteUserGroup": writes(delete),
    "DescribeUserGroups": reads(describe),
}
