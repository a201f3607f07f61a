"""Who may be a client of a cache that is made or changed: everybody, whoever has the AUTH token, or the users of a user group."""

from __future__ import annotations

import datetime as dt
import string
from collections.abc import Sequence
from typing import Final

from cachekeep.engines.users import hash_of
from cachekeep.model import Anybody, Cache, Clients, NamedUsers, TokenHolders, Transit, UserGroup
from cachekeep.services.core.context import Params, combination_error, value_error
from cachekeep.services.elasticache import in_force, memberships
from cachekeep.store.contract import Transaction

CHANGES: Final = frozenset(
    {"AuthToken", "AuthTokenUpdateStrategy", "UserGroupIdsToAdd", "UserGroupIdsToRemove", "RemoveUserGroups"}
)
"""Parameters that change it."""
STILL_OPEN: Final = (
    "The AUTH token is known, and clients without it still come in. Until it is set (AuthTokenUpdateStrategy=SET) engines take any "
    "token with the user name default, and refuse one that comes without a name."
)
"""Said where a token is added to a cache that had none. Engines have no state in between: [valkey.io, AUTH]."""
_LENGTHS: Final = (16, 128)
_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "!&#$^<>-")
"""What both the API reference and the user guide let a token have."""
_LIVE_MAX: Final = 2
_STRATEGIES: Final = ("ROTATE", "SET", "DELETE")


async def of_new(params: Params, tx: Transaction, now: dt.datetime, *, engine: str, version: str, transit: Transit) -> Clients:
    """Of a new cache. Raises ApiError UserGroupNotFound, InvalidParameterValue or InvalidParameterCombination."""
    ids = params.get("UserGroupIds", ())
    if "AuthToken" not in params:
        return await memberships.clients(tx, await _one(tx, ids), engine, version) if ids else Anybody()
    if ids:
        raise combination_error("AuthToken and UserGroupIds cannot be used together.")
    return TokenHolders(tokens=(new_token(params, engine, transit),), changed_at=now)


def of_new_cluster(params: Params, now: dt.datetime, *, engine: str, transit: Transit) -> Clients:
    """Of a new stand-alone cluster. Raises ApiError InvalidParameterValue or InvalidParameterCombination."""
    if "AuthToken" not in params:
        return Anybody()
    return TokenHolders(tokens=(new_token(params, engine, transit),), changed_at=now)


def new_token(params: Params, engine: str, transit: Transit) -> str:
    """The hash of a token that is asked for. Raises ApiError InvalidParameterValue or InvalidParameterCombination."""
    token, (least, most) = params["AuthToken"], _LENGTHS
    if engine == "memcached":
        raise combination_error("AuthToken cannot be used with memcached.")
    if transit == "disabled":
        raise combination_error("An AUTH token needs encryption in transit: set TransitEncryptionEnabled. Nothing was changed.")
    if not least <= len(token) <= most or not set(token) <= _CHARACTERS:
        raise value_error(
            f"Invalid AuthToken: it must have {least} to {most} characters, letters, digits and the special ones ! & # $ ^ < > -"
        )
    return hash_of(token)


async def of_changed(params: Params, tx: Transaction, now: dt.datetime, cache: Cache) -> Clients:
    """Of a cache after a request. Raises ApiError UserGroupNotFound, InvalidParameterValue or InvalidParameterCombination."""
    before = cache.wanted.clients
    has = before.group if isinstance(before, NamedUsers) else None
    add, remove = params.get("UserGroupIdsToAdd", ()), params.get("UserGroupIdsToRemove", ())
    for id in remove:
        if id.lower() != has:
            raise value_error(f"User group {id} is not a user group of replication group {cache.name}.")
    goes = bool(remove) or params.get("RemoveUserGroups", False)
    if "AuthToken" in params or "AuthTokenUpdateStrategy" in params:
        if _strategy(params) != "DELETE":
            if add or (has is not None and not goes):
                raise combination_error("A replication group has an AUTH token or a user group, not both: remove one of them.")
            return of_token(params, now, cache)
        if not isinstance(before, TokenHolders) or not add:
            raise combination_error("AuthTokenUpdateStrategy DELETE takes a token away together with UserGroupIdsToAdd only.")
    elif add and isinstance(before, TokenHolders):
        raise combination_error(
            f"Replication group {cache.name} has an AUTH token: add the user group with AuthTokenUpdateStrategy DELETE."
        )
    if not add:
        return Anybody() if goes and has is not None else before
    wanted = await _one(tx, add)
    if has is not None and not goes:
        raise combination_error(
            f"Replication group {cache.name} has the user group {has}, and can have one at most: name it in UserGroupIdsToRemove."
        )
    return await memberships.clients(tx, wanted, *in_force.engine(cache))


def _strategy(params: Params) -> str:
    """Raises ApiError InvalidParameterValue or InvalidParameterCombination."""
    asked: str = params.get("AuthTokenUpdateStrategy", "ROTATE")
    if asked not in _STRATEGIES:
        raise value_error(f"Invalid AuthTokenUpdateStrategy {asked}: valid ones are {', '.join(_STRATEGIES)}.")
    if not params.get("ApplyImmediately"):
        raise combination_error("ApplyImmediately must be true: an AUTH token cannot be changed in the maintenance window.")
    if (asked == "DELETE") is ("AuthToken" in params):
        raise combination_error("AuthToken goes with the strategies ROTATE and SET, and not with DELETE.")
    return asked


def of_token(params: Params, now: dt.datetime, cache: Cache) -> Clients:
    """Of a cache that gets a token or another one [ModifyReplicationGroup, AuthTokenUpdateStrategy].

    ``ROTATE`` adds one, and with a third the oldest goes; where there was none, clients without any still come in. ``SET``: it is
    the only one, and every client needs it. Raises ApiError InvalidParameterValue or InvalidParameterCombination.
    """
    strategy = _strategy(params)
    if strategy == "DELETE":
        raise combination_error("AuthTokenUpdateStrategy DELETE takes a token away together with UserGroupIdsToAdd only.")
    token, before = new_token(params, cache.wanted.engine, cache.wanted.transit), cache.wanted.clients
    if strategy == "SET":
        return TokenHolders(tokens=(token,), changed_at=now)
    if not isinstance(before, TokenHolders):
        if cache.kind == "cluster" and isinstance(before, NamedUsers):  # it was retained of a group that had them
            raise combination_error("The strategy ROTATE would let in everybody: it has users. Use SET.")
        return TokenHolders(tokens=(token,), optional=True, changed_at=now)
    live = (*(t for t in before.tokens if t != token), token)
    return TokenHolders(tokens=live[-_LIVE_MAX:], optional=before.optional, changed_at=now)


def still_open(clients: Clients) -> bool:
    """Whether there is a token that nobody needs yet."""
    return isinstance(clients, TokenHolders) and clients.optional


async def _one(tx: Transaction, ids: Sequence[str]) -> UserGroup:
    if len({id.lower() for id in ids}) > 1:
        raise combination_error("A replication group can have one user group at most.")
    return await memberships.find_group(tx, ids[0])
