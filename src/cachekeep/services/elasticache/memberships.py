"""Users, their groups and the caches that have them: found, and kept together. A cache has a copy of its group's users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from cachekeep.engines import acl
from cachekeep.engines.catalogue import numbers
from cachekeep.model import Cache, CacheUser, ClientUser, Condition, NamedUsers, UserGroup, fingerprint
from cachekeep.services.core.caches import every, save
from cachekeep.services.core.context import combination_error, value_error
from cachekeep.services.elasticache import in_force
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError

DEFAULT: Final = CacheUser(name="default", id="default", user_name="default", engine="redis", access="on ~* +@all")
"""The user that is always there [AWS: "a default user", which cannot be changed or deleted]."""
_USERS_MAX: Final = 100
VALKEY_SINCE: Final = (7, 2)

# ------------------------------------------------------------------ users


async def known_user(tx: Transaction, id: str) -> CacheUser | None:
    """A user by its id, in whatever case."""
    return DEFAULT if id.lower() == DEFAULT.name else await tx.get(CacheUser, id.lower())


async def users_of(tx: Transaction, group: UserGroup) -> list[CacheUser]:
    """Those that are in a group: who is deleted leaves it at once."""
    return [user for name in group.users if (user := await known_user(tx, name)) is not None]


async def put(tx: Transaction, changed: CacheUser) -> None:
    """Keep a user that was changed, and have it changed wherever it is. Raises ApiError InvalidParameterCombination."""
    await tx.put(changed)
    for group in (await overview(tx)).of(changed.name):
        await _check_engine(tx, group)
        await _rewrite(tx, group)


def least_version(user: CacheUser) -> tuple[int, int]:
    """The lowest version of an engine that has all that the user needs [fact sheet §4: MinimumEngineVersion]."""
    return max(acl.least_version(acl.parse(user.access)), VALKEY_SINCE if user.engine == "valkey" else (6, 0))


def shown(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


# ------------------------------------------------------------------ groups


async def find_group(tx: Transaction, id: str) -> UserGroup:
    """Raises ApiError UserGroupNotFound."""
    found = await tx.get(UserGroup, id.lower())
    if found is None:
        raise ApiError("UserGroupNotFound", f"User group {id} not found.")
    return found


async def check_group(tx: Transaction, group: UserGroup) -> None:
    """Raises ApiError DuplicateUserName, DefaultUserRequired, InvalidParameterValue or
    InvalidParameterCombination."""
    found = await users_of(tx, group)
    if len(found) > _USERS_MAX:
        raise value_error(f"A user group can have at most {_USERS_MAX} users.")
    called = [each.user_name for each in found]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ApiError("DuplicateUserName", f"A user group cannot have two users with the user name {twice}.")
    if group.engine == "redis" and DEFAULT.user_name not in called:
        raise ApiError("DefaultUserRequired", "A user group of engine redis must contain a user with the user name default.")
    await _check_engine(tx, group)


async def _check_engine(tx: Transaction, group: UserGroup) -> None:
    """Raises ApiError InvalidParameterCombination."""
    for each in await users_of(tx, group):
        if group.engine == "redis" and each.engine != "redis":
            raise combination_error(
                f"The user {each.id} of engine {each.engine} cannot be in user group {group.id} of engine redis."
            )
        if group.engine == "valkey" and not each.passwords:
            raise combination_error(
                f"The user {each.id} needs no password, so it cannot be in user group {group.id} of engine valkey."
            )


async def put_group(tx: Transaction, changed: UserGroup) -> UserGroup:
    """Keep a group that was changed, and have the caches that use it follow. Raises ApiError InvalidParameterCombination."""
    kept = await tx.put(changed)
    await _rewrite(tx, kept)
    return kept


# ------------------------------------------------------------------ caches


class Overview(msgspec.Struct, frozen=True):
    """All user groups, and the caches that have each."""

    groups: Sequence[UserGroup]
    caches: Mapping[str, Sequence[Cache]]
    conditions: Mapping[str, Condition]

    def of(self, user: str) -> list[UserGroup]:
        """The groups that a user is in, by name."""
        return [group for group in self.groups if user in group.users]

    def told(self, group: UserGroup) -> bool:
        """Whether the nodes of all caches that have the group let in its users of now, as far as they run and answer."""
        return all(
            (seen := self.conditions.get(cache.uid)) is not None and seen.clients_told == fingerprint(cache.wanted.clients)
            for cache in self.caches.get(group.name, ())
            if cache.decided.available_at is not None
        )


async def overview(tx: Transaction) -> Overview:
    found = defaultdict(list)
    async for cache in every(tx, lambda cache: isinstance(cache.wanted.clients, NamedUsers) and not cache.wanted.deleted):
        assert isinstance(cache.wanted.clients, NamedUsers)
        found[cache.wanted.clients.group].append(cache)
    uids = [cache.uid for caches in found.values() for cache in caches]
    return Overview(await tx.list(UserGroup), found, await tx.conditions(uids))


async def _rewrite(tx: Transaction, group: UserGroup) -> None:
    for cache in (await overview(tx)).caches.get(group.name, ()):
        await save(tx, cache, replace(cache.wanted, clients=await clients(tx, group, *in_force.engine(cache))))


async def clients(tx: Transaction, group: UserGroup, engine: str, version: str) -> NamedUsers:
    """What a cache of this engine and version wants that has the group. Raises ApiError InvalidParameterCombination."""
    if group.engine == "valkey" and engine != "valkey":
        raise combination_error(f"The user group {group.id} of engine valkey cannot be used with a cache of engine {engine}.")
    found = await users_of(tx, group)
    for each in found:
        if least_version(each) > numbers(version):
            raise combination_error(
                f"The user {each.id} of user group {group.id} needs engine version {shown(least_version(each))} at least, "
                f"and the cache runs {version}."
            )
    copies = [ClientUser(name=u.user_name, access=u.access, passwords=u.passwords) for u in found]
    return NamedUsers(group=group.name, users=tuple(sorted(copies, key=lambda u: u.name)))
