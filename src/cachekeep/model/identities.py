"""Who may ask: users of the API, their groups and access keys, roles and their sessions, and the policies of all of them."""

from __future__ import annotations

import datetime as dt
from typing import Literal

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
    groups: tuple[str, ...] = ()
    boundary: str = ""
    version: int = 0


class IamGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group, whose policies count for its users. ``name`` is in lower case, as users' is, and ``groups`` of these name it so."""

    name: str
    group_name: str
    id: str
    created_at: dt.datetime
    inline: dict[str, str] = {}
    attached: tuple[str, ...] = ()
    version: int = 0


class IamRole(msgspec.Struct, frozen=True, kw_only=True):
    """A role. ``trust`` says who may assume it; ``trusted`` are the ids of those that it names by their ARN: whoever gets the name
    of one that is gone is another."""

    name: str
    role_name: str
    id: str
    created_at: dt.datetime
    trust: str
    trusted: dict[str, str] = {}
    description: str = ""
    session_seconds_max: int = 3600
    tags: dict[str, str] = {}
    inline: dict[str, str] = {}
    attached: tuple[str, ...] = ()
    boundary: str = ""
    version: int = 0


class PolicyText(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a managed policy."""

    text: str
    created_at: dt.datetime


class ManagedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy with a name of its own, to be attached. ``name`` is in lower case; ``texts`` are its versions by id (``v1`` …), of
    which ``default`` counts; ``last`` is the number of the newest that ever was."""

    name: str
    policy_name: str
    id: str
    created_at: dt.datetime
    texts: dict[str, PolicyText]
    default: str = "v1"
    last: int = 1
    description: str = ""
    tags: dict[str, str] = {}
    version: int = 0


class IamSession(msgspec.Struct, frozen=True, kw_only=True):
    """What temporary credentials stand for: a session of a role, or of a user. It is stored nowhere but in its own token.

    ``name`` and ``id`` are those of the role or user, ``session_name`` is a role's only. ``policies`` are texts, ``attached`` ARNs
    of managed ones: where there are any, the session may do no more than they allow.
    """

    kind: Literal["role", "user"]
    name: str
    id: str
    session_name: str = ""
    began_at: dt.datetime
    expires_at: dt.datetime
    policies: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    tags: dict[str, str] = {}


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """An access key, by its id, and the ``name`` of the user whose it is. Its secret is nowhere."""

    name: str
    user: str
    created_at: dt.datetime
    active: bool = True
    version: int = 0
