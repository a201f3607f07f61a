"""Who may be a client of a cache: anybody, or users with rights of their own. Passwords are kept as hashes alone (SHA-256,
hexadecimal)."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib

import msgspec


class ClientUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user as the nodes of a cache know it. ``access`` is its access string, normalised; without ``passwords`` it needs none."""

    name: str
    access: str
    passwords: tuple[str, ...] = ()


class Anybody(msgspec.Struct, frozen=True, tag="anybody"):
    """Whoever reaches the cache is the user ``default``."""


class NamedUsers(msgspec.Struct, frozen=True, kw_only=True, tag="users"):
    """The users of a user group: a copy, rewritten by whoever changes the group or one of them."""

    group: str
    users: tuple[ClientUser, ...]


class TokenHolders(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    """Whoever has one of the tokens is the user ``default``. ``optional``: and so is whoever has none."""

    tokens: tuple[str, ...]
    """Hashes, the newest last."""
    optional: bool = False
    changed_at: dt.datetime


Clients = Anybody | NamedUsers | TokenHolders


@functools.lru_cache(maxsize=1024)
def fingerprint(clients: Clients) -> str:
    """Equal for those that are equal."""
    return hashlib.sha256(msgspec.json.encode(clients)).hexdigest()[:16]


class CacheUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user as CreateUser makes it. ``name`` is its id in lower case, ``id`` as it was given; clients come as ``user_name``."""

    name: str
    id: str
    user_name: str
    engine: str
    access: str
    passwords: tuple[str, ...] = ()
    version: int = 0


class UserGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A user group. ``name`` is its id in lower case; ``users`` are names of ``CacheUser``."""

    name: str
    id: str
    engine: str
    users: tuple[str, ...] = ()
    version: int = 0
