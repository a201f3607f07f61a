"""sts, as far as clients ask at their start: who am I?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachekeep.services.core.callers import identify
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation, Service, reads, refuses
from cachekeep.services.core.rights import Rights
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


async def get_caller_identity(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Account, ARN and id of whoever signed the request."""
    principal, (_, user) = call.principal, await identify(call, tx)
    return {"UserId": user.id if user else principal.account, "Account": principal.account, "Arn": principal.arn}


def _no(what: str) -> Operation:
    return refuses("AccessDenied", f"{what} is not supported by this version of Cachekeep.")


SERVICE: Final = Service(
    name="sts",
    title="STS",
    parameters={},
    # "No permissions are required to perform this operation" [GetCallerIdentity].
    rights=Rights(free=frozenset({"GetCallerIdentity"})),
    operations={
        "GetCallerIdentity": reads(get_caller_identity),
        "GetSessionToken": _no("Making temporary credentials"),
        "AssumeRole": _no("Assuming a role"),
    },
)
