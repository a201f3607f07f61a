"""What a call needs to be allowed: its action, the resources that it names, and what conditions find in it.

Actions and their types of resources are those of the Service Authorization Reference (``security/data/authorization.json``). Each
service says beside its operations how a call names resources of these types.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from cachekeep.security.policy.keys import authorization
from cachekeep.services.core.context import ServiceSettings
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call

_NAME: Final = re.compile(r"\$\{\w+\}")


def _nothing(call: Call, settings: ServiceSettings) -> Mapping[str, Any]:
    return {}


async def _no_tags(tx: Transaction, arn: str) -> Mapping[str, str]:
    return {}


class Arn(str):
    """The name of a resource that is an ARN already."""


class Guard(msgspec.Struct, frozen=True):
    """The policy of a resource to which nobody gets past it. ``ids``: those that it names by their ARN, as they were then.

    ``placed``: it names no resource, for it stands at its only one."""

    text: str
    placed: bool
    ids: Mapping[str, str] = {}


async def _no_guard(tx: Transaction, arn: str) -> Guard | None:
    return None


async def _as_named(tx: Transaction, arn: str) -> str:
    return arn


def _itself(call: Call) -> Sequence[str]:
    return [call.operation]


class Rights(msgspec.Struct, frozen=True):
    """How the calls of a service are seen by policies.

    ``names``: type of resource → the names of those that a call is about. ``keys``: the service's own condition keys.
    ``tags``: those that a resource has; ``resolve``: what another name of one stands for;
    ``guard``: its policy. ``acts``: the actions that a call takes. ``free``: operations that
    need no right. ``denied`` is the service's code for a refusal.
    """

    names: Callable[[Call, ServiceSettings], Mapping[str, Sequence[str]]] = _nothing
    keys: Callable[[Call, ServiceSettings], Mapping[str, str]] = _nothing
    tags: Callable[[Transaction, str], Awaitable[Mapping[str, str]]] = _no_tags
    resolve: Callable[[Transaction, str], Awaitable[str]] = _as_named
    guard: Callable[[Transaction, str], Awaitable[Guard | None]] = _no_guard
    acts: Callable[[Call], Sequence[str]] = _itself
    free: frozenset[str] = frozenset()
    denied: str = "AccessDenied"


def actions(call: Call, rights: Rights) -> Sequence[str]:
    """All that must be allowed."""
    return [f"{call.service}:{name}" for name in rights.acts(call)]


def resources(call: Call, rights: Rights, settings: ServiceSettings) -> Sequence[str]:
    """The ARNs at which the call's action must be allowed, all of them; ``*`` where it is about none in particular.

    Who looks without naming one looks at all: ``cluster:*``. What a change need not name, such as the parameter group that is a
    family's default, needs no right.
    """
    row = authorization()[call.service]["actions"][call.operation]
    named = rights.names(call, settings)
    found: list[str] = []
    for kind in row["resources"]:
        name = kind.removeprefix("!")
        if name in named:
            found += [str(each) if isinstance(each, Arn) else arn_of(call.service, name, each, settings) for each in named[name]]
        elif kind != name and row["level"] in ("List", "Read"):
            found.append(arn_of(call.service, name, "*", settings))
    return found or ["*"]


def arn_of(service: str, kind: str, name: str, settings: ServiceSettings) -> str:
    """The ARN of a resource of that type."""
    template: str = authorization()[service]["resources"][kind]
    whole = template.replace("${Region}", settings.region).replace("${Account}", settings.account)
    return _NAME.sub(lambda _: name, whole)


def tags_of_request(call: Call) -> Mapping[str, Sequence[str]]:
    """``aws:RequestTag/…`` and ``aws:TagKeys``."""
    asked = call.params.get("Tags", ())
    given = [] if isinstance(asked, Mapping) else [*asked]
    given += [tag for each in call.params.get("TagSpecifications", ()) for tag in each.get("Tags", ())]
    tags = asked if isinstance(asked, Mapping) else {tag["Key"]: tag.get("Value", "") for tag in given if tag.get("Key")}
    tags = tags or {tag["TagKey"]: tag.get("TagValue", "") for tag in given if tag.get("TagKey")}  # as KMS names them
    keys = [*tags, *call.params.get("TagKeys", ())]
    return {**{f"aws:requesttag/{key.lower()}": [value] for key, value in tags.items()}, **({"aws:tagkeys": keys} if keys else {})}
