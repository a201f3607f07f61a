"""Tags of users, roles and policies. Policies find those of whoever asks as ``aws:PrincipalTag/…``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.services.core import paging
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.parameters import Declared, Effect
from cachekeep.services.iam import find
from cachekeep.services.iam.find import ROLE, USER
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call

_Tagged = Callable[[Call, Transaction, Context], Awaitable[Any]]


async def _user(call: Call, tx: Transaction, context: Context) -> Any:
    return await find.holder(tx, USER, call.params["UserName"])


async def _role(call: Call, tx: Transaction, context: Context) -> Any:
    return await find.holder(tx, ROLE, call.params["RoleName"])


async def _policy(call: Call, tx: Transaction, context: Context) -> Any:
    return await find.managed(tx, call.params["PolicyArn"], context.settings)


def _operations(title: str, tagged: _Tagged) -> Mapping[str, Operation]:
    async def tag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        found, new = await tagged(call, tx, context), find.tags_of(call)
        kept = _without(found.tags, new)
        await tx.put(replace(found, tags=find.limited({**kept, **new})))
        return {}

    async def untag(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        found = await tagged(call, tx, context)
        await tx.put(replace(found, tags=_without(found.tags, call.params["TagKeys"])))
        return {}

    async def every(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        rows = find.tags_shown((await tagged(call, tx, context)).tags)
        return find.listing(paging.page(rows, call.params, lambda r: r["Key"], lambda r: r, "Tags", find.PAGES))

    word = title.lower()
    tag.__doc__, untag.__doc__ = f"Tags of a {word} are added or get other values.", f"Tags of a {word} go."
    every.__doc__ = f"The tags of a {word}."
    return {f"Tag{title}": writes(tag), f"Untag{title}": writes(untag), f"List{title}Tags": reads(every)}


def _without(tags: Mapping[str, str], keys: Any) -> dict[str, str]:
    """Keys differ by more than case."""
    gone = {key.lower() for key in keys}
    return {key: value for key, value in tags.items() if key.lower() not in gone}


OPERATIONS: Final[Mapping[str, Operation]] = {
    **_operations("User", _user),
    **_operations("Role", _role),
    **_operations("Policy", _policy),
}

PARAMETERS: Final[Declared] = {"TagKeys": Effect("the tags that go")}
