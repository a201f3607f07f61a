"""Security groups, as every service finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cachekeep.model import Cache
from cachekeep.model.security_group import SecurityGroup
from cachekeep.services.core.context import ServiceSettings
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError

WAKE: Final = "security-groups"
"""Under which those hear of a change who keep the doors."""


def check_filter(settings: ServiceSettings) -> None:
    """Raises ApiError where a rule would be stored and keep nobody out."""
    if settings.no_filter is not None:
        raise ApiError(
            "UnsupportedOperation",
            f"Security groups cannot be enforced by this endpoint: {settings.no_filter}. Nothing was changed; the default group "
            "lets everybody in.",
        )


async def security_group(tx: Transaction, settings: ServiceSettings, id: str) -> SecurityGroup | None:
    """The group of that id. The default one is there though it be stored only when it is changed."""
    found = await tx.get(SecurityGroup, id)
    return settings.default_security_group() if found is None and id == settings.security_group_id else found


async def security_groups(tx: Transaction, settings: ServiceSettings) -> Mapping[str, SecurityGroup]:
    """All of them by their ids, the default one first."""
    default = settings.default_security_group()
    return {default.name: default} | {group.name: group for group in await tx.list(SecurityGroup)}


def let_in(cache: Cache, groups: Mapping[str, SecurityGroup], settings: ServiceSettings) -> list[SecurityGroup]:
    """The groups whose members a cache's own groups let in at its port."""
    mine = [groups[id] for id in cache.wanted.security_group_ids or (settings.security_group_id,) if id in groups]
    peers = {rule.peer for group in mine for rule in group.rules if not rule.egress and rule.covers(cache.wanted.port)}
    return [group for id, group in groups.items() if id in peers]
