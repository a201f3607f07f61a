"""A policy as a tree. Only ``parse`` makes one, so whatever is in it can be evaluated."""

from __future__ import annotations

from typing import Literal

import msgspec

from cachekeep.security.policy.conditions import Clause
from cachekeep.security.policy.pattern import Pattern

Effect = Literal["Allow", "Deny"]
Kind = Literal["identity", "resource", "boundary", "session"]
"""What a policy is attached to: a principal, a resource; the ceiling of a principal, or of a session."""


class Actions(msgspec.Struct, frozen=True):
    """``Action``, or with ``others`` ``NotAction``."""

    patterns: tuple[Pattern, ...]
    others: bool


class Resources(msgspec.Struct, frozen=True):
    """``Resource``, or with ``others`` ``NotResource``. A ``*`` reaches over colons."""

    arns: tuple[Pattern, ...]
    others: bool


class Principals(msgspec.Struct, frozen=True):
    """``Principal``, or with ``others`` ``NotPrincipal``: ARNs, accounts' ids, names of services; ``*`` is everybody."""

    names: frozenset[str]
    others: bool


class Statement(msgspec.Struct, frozen=True):
    """``principals`` is None in a policy of an identity, ``resources`` in one that stands at its only resource."""

    sid: str
    effect: Effect
    actions: Actions
    resources: Resources | None
    principals: Principals | None
    clauses: tuple[Clause, ...]


class PolicyDocument(msgspec.Struct, frozen=True):
    """All statements count, in whatever order."""

    statements: tuple[Statement, ...]
