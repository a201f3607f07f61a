"""IAM. Each module of operations ends with the tables of those it serves and of what their parameters do."""

from collections.abc import Mapping, Sequence

from cachekeep.model import IamRole, IamUser, ManagedPolicy
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.operation import Service
from cachekeep.services.core.rights import Arn, Rights
from cachekeep.services.iam import groups, managed, policies, roles, simulate, tags, users
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call

_HOLDERS = {"user": "UserName", "group": "GroupName", "role": "RoleName"}


def _names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    """Who leaves the user out means itself."""
    found = {kind: [call.params[parameter]] for kind, parameter in _HOLDERS.items() if call.params.get(parameter)}
    if source := call.params.get("PolicySourceArn"):
        return {kind: [source.rpartition(f":{kind}/")[2]] for kind in _HOLDERS if f":{kind}/" in source}
    if arn := call.params.get("PolicyArn"):
        found["policy"] = [Arn(arn)]
    elif name := call.params.get("PolicyName"):
        found["policy"] = [name]
    if "user" not in found and (caller := users.caller_name(call)):
        found["user"] = [caller]
    return found


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    asked = {"iam:PolicyARN": call.params.get("PolicyArn"), "iam:PermissionsBoundary": call.params.get("PermissionsBoundary")}
    return {key: value for key, value in asked.items() if value}


async def _tags(tx: Transaction, arn: str) -> Mapping[str, str]:
    """Those of a user, a role or a policy."""
    kind, _, name = arn.split(":", 5)[-1].partition("/")
    kinds: Mapping[str, type[IamUser | IamRole | ManagedPolicy]] = {"user": IamUser, "role": IamRole, "policy": ManagedPolicy}
    found = await tx.get(kinds[kind], name.lower()) if kind in kinds else None
    return found.tags if found is not None else {}


SERVICE = Service(
    name="iam",
    title="IAM",
    operations={
        **users.OPERATIONS,
        **groups.OPERATIONS,
        **roles.OPERATIONS,
        **policies.OPERATIONS,
        **managed.OPERATIONS,
        **tags.OPERATIONS,
        **simulate.OPERATIONS,
    },
    parameters={
        **users.PARAMETERS,
        **groups.PARAMETERS,
        **roles.PARAMETERS,
        **policies.PARAMETERS,
        **managed.PARAMETERS,
        **tags.PARAMETERS,
        **simulate.PARAMETERS,
    },
    rights=Rights(names=_names, keys=_keys, tags=_tags),
)
