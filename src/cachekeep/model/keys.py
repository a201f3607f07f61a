"""Keys of KMS, and the names that they go by."""

from __future__ import annotations

import datetime as dt

import msgspec


class BackingKey(msgspec.Struct, frozen=True, kw_only=True):
    """What encrypts: 256 bits, sealed under the root key. A key that is rotated gets another one, and keeps the old for what they
    have encrypted."""

    number: int
    sealed: str
    created_at: dt.datetime


class KmsKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key. ``name`` is its id; ``policy`` says who may use it, and ``meant`` are the ids of those that it names by their ARN.
    From ``deleted_at`` on there is none."""

    name: str
    created_at: dt.datetime
    policy: str
    backing: tuple[BackingKey, ...]
    meant: dict[str, str] = {}
    description: str = ""
    enabled: bool = True
    deleted_at: dt.datetime | None = None
    tags: dict[str, str] = {}
    version: int = 0


class KmsAlias(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` begins with ``alias/``; ``key`` is the id that it stands for."""

    name: str
    key: str
    created_at: dt.datetime
    updated_at: dt.datetime
    version: int = 0
