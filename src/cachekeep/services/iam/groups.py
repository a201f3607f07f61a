"""Groups: what is allowed to one is allowed to each of its users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import IamGroup, IamUser
from cachekeep.services.core import paging
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.iam import find
from cachekeep.services.iam.find import GROUP
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

GROUPS_OF_A_USER_MAX: Final = 10


async def create(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A group, without users and policies."""
    name = call.params["GroupName"]
    await find.refuse_taken(tx, GROUP, name)
    group = IamGroup(
        name=name.lower(),
        group_name=name,
        id=find.new_id("AGPA", context, name.lower()),
        created_at=find.this_second(context),
    )
    await tx.put(group)
    return {"Group": find.shown(group, context.settings)}


async def get(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A group and its users."""
    group = await find.holder(tx, GROUP, call.params["GroupName"])
    users = await _users(tx, group)
    shapes = {user.name: find.shown(user, context.settings, whole=False) for user in users}
    page = paging.page(users, call.params, lambda u: u.name, lambda u: shapes[u.name], "Users", find.PAGES)
    return {"Group": find.shown(group, context.settings), **find.listing(page)}


async def _users(tx: Transaction, group: IamGroup) -> list[IamUser]:
    return [user for user in await tx.list(IamUser) if group.name in user.groups]


async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """All groups."""
    return _page(await tx.list(IamGroup), call, context)


def _page(groups: list[IamGroup], call: Call, context: Context) -> Mapping[str, Any]:
    return find.listing(
        paging.page(groups, call.params, lambda g: g.name, lambda g: find.shown(g, context.settings), "Groups", find.PAGES)
    )


async def of_user(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The groups that a user is in."""
    user = await find.user(tx, call.params["UserName"])
    return _page([group for group in await tx.list(IamGroup) if group.name in user.groups], call, context)


async def delete(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A group goes that has neither users nor policies any more."""
    group = await find.holder(tx, GROUP, call.params["GroupName"])
    held = {
        "remove users from group": bool(await _users(tx, group)),
        "delete policies": bool(group.inline),
        "detach all policies": bool(group.attached),
    }
    if first := next((what for what, there in held.items() if there), None):
        raise ApiError("DeleteConflict", f"Cannot delete entity, must {first} first.", status=409)
    await tx.delete(IamGroup, group.name)
    return {}


async def update(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A group gets another name; its users stay in it."""
    group, name = await find.holder(tx, GROUP, call.params["GroupName"]), call.params.get("NewGroupName")
    if name is None or name == group.group_name:
        return {}
    if name.lower() == group.name:
        await tx.put(replace(group, group_name=name))
        return {}
    await find.refuse_taken(tx, GROUP, name)
    for user in await _users(tx, group):
        await tx.put(replace(user, groups=_with(user, group, name.lower())))
    await tx.delete(IamGroup, group.name)
    await tx.put(replace(group, name=name.lower(), group_name=name, version=0))
    return {}


def _with(user: IamUser, group: IamGroup, *others: str) -> tuple[str, ...]:
    """The groups of a user, with others in the place of one."""
    return tuple(sorted({*(name for name in user.groups if name != group.name), *others}))


async def add(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user is in the group from the next request on."""
    group, user = await _both(call, tx)
    groups = _with(user, group, group.name)
    if len(groups) > GROUPS_OF_A_USER_MAX:
        raise ApiError("LimitExceeded", f"Cannot exceed quota for GroupsPerUser: {GROUPS_OF_A_USER_MAX}", status=409)
    await tx.put(replace(user, groups=groups))
    return {}


async def remove(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """A user is in the group no longer."""
    group, user = await _both(call, tx)
    await tx.put(replace(user, groups=_with(user, group)))
    return {}


async def _both(call: Call, tx: Transaction) -> tuple[IamGroup, IamUser]:
    """Raises ApiError NoSuchEntity."""
    return await find.holder(tx, GROUP, call.params["GroupName"]), await find.user(tx, call.params["UserName"])


OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateGroup": writes(create),
    "GetGroup": reads(get),
    "ListGroups": reads(every),
    "ListGroupsForUser": reads(of_user),
    "UpdateGroup": writes(update),
    "DeleteGroup": writes(delete),
    "AddUserToGroup": writes(add),
    "RemoveUserFromGroup": writes(remove),
}

PARAMETERS: Final[Declared] = {
    "GroupName": Effect("the group"),
    "NewGroupName": Effect("its name from now on"),
    "CreateGroup:Path": NotYet("Paths", ("/",)),
    "ListGroups:PathPrefix": NotYet("Paths", ("/",)),
    "UpdateGroup:NewPath": NotYet("Paths", ("/",)),
}
