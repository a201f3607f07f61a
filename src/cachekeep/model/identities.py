"""Who may ask: users of the API and the access keys that were issued to them."""

from __future__ import annotations

import datetime as dt

import msgspec


class IamUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user. ``name`` is in lower case: names that differ by case alone are one [CreateUser]; ``user_name`` is as it was given.

    ``inline`` are policies by name, as texts; ``attached`` are ARNs of managed ones. ``boundary`` is the ARN of one, or empty.
    """

    name: str
    user_name: str
    id: str
    created_at: dt.datetime
    tags: dict[str, str] = {}
    inline: dict[str, str] = {}
    attached: tuple[str, ...] = ()
    boundary: str = ""
    version: int = 0


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """An access key, by its id, and the ``name`` of the user whose it is. Its secret is nowhere."""

    name: str
    user: str
    created_at: dt.datetime
    active: bool = True
    version: int = 0
