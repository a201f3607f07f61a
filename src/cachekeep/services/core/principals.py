"""Those that a resource's policy names by their ARN: there must be such, and it means these and no later ones of that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cachekeep.model import IamRole, IamUser
from cachekeep.security.policy.tree import PolicyDocument
from cachekeep.store.contract import Transaction

_KINDS: Final[Mapping[str, type[IamUser | IamRole]]] = {"user": IamUser, "role": IamRole, "assumed-role": IamRole}


class UnknownPrincipal(Exception):
    """A policy names one that there is not. The message is its ARN."""


async def ids_of(document: PolicyDocument, tx: Transaction, account: str) -> dict[str, str]:
    """ARN → id. Raises ``UnknownPrincipal``."""
    ids: dict[str, str] = {}
    for statement in document.statements:
        for arn in statement.principals.names if statement.principals else ():
            if not arn.startswith("arn:") or arn.endswith(":root"):
                continue
            kind, _, rest = arn.partition(f":{account}:")[2].partition("/")
            name = rest.split("/")[0]
            found = await tx.get(_KINDS[kind], name.lower()) if kind in _KINDS else None
            if found is None or (found.user_name if isinstance(found, IamUser) else found.role_name) != name:
                raise UnknownPrincipal(arn)
            ids[arn] = found.id
    return ids
