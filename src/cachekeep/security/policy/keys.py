"""The condition keys that a policy may name, and their types.

Global ones: IAM User Guide, "AWS global condition context keys". Those of services: Service Authorization Reference, in
``security/data/authorization.json``. Many are never in a request here (there is no MFA, no organisation); a condition on one of
these meets an absent key, as it would at AWS for a caller without.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec

_GLOBAL: Final = {
    "String": """AssumedRoot CalledViaFirst CalledViaLast ChatbotSourceArn Ec2InstanceSourceVpc FederatedProvider PrincipalAccount
        PrincipalOrgID PrincipalServiceName PrincipalTag/* PrincipalType referer RequestedRegion RequestTag/* ResourceAccount
        ResourceOrgID ResourceTag/* SourceAccount SourceIdentity SourceOrgID SourceOwner SourceVpc SourceVpce SourceVpcArn UserAgent
        userid username VpceAccount VpceOrgID""",
    "ArrayOfString": """CalledVia PrincipalOrgPaths PrincipalServiceNamesList ResourceOrgPaths SourceOrgPaths TagKeys
        VpceOrgPaths""",
    "ARN": "PrincipalArn SourceArn",
    "Bool": "MultiFactorAuthPresent PrincipalIsAWSService SecureTransport ViaAWSService",
    "Date": "CurrentTime EpochTime TokenIssueTime",
    "Numeric": "MultiFactorAuthAge",
    "IP": "Ec2InstanceSourcePrivateIPv4 SourceIp VpcSourceIp",
}


@cache
def authorization() -> dict[str, Any]:
    """The Service Authorization Reference, as far as it is of use: service → its keys and, where it is served, its actions."""
    read: dict[str, Any] = msgspec.json.decode(files("cachekeep.security").joinpath("data/authorization.json").read_bytes())
    return read


@cache
def _types() -> dict[str, str]:
    """Key in lower case → type; ``aws:requesttag/*`` stands for every key that begins so."""
    types = {f"aws:{name}": kind for kind, names in _GLOBAL.items() for name in names.split()}
    for service in authorization().values():
        types |= service["keys"]
    return {name.lower(): kind for name, kind in types.items()}


def kind_of(key: str) -> str | None:
    """The type of a condition key, None for one that there is not. Names of keys have no case, tags' names included."""
    name = key.lower()
    for mark in "/:":
        family, found, member = name.partition(mark) if mark == "/" else name.rpartition(mark)
        if found and member and (kind := _types().get(f"{family}{mark}*")):
            return kind
    return None if name.endswith("*") else _types().get(name)


def has_many(key: str) -> bool:
    """Whether a request may have several values for it, so that ForAnyValue or ForAllValues must say what is meant."""
    return (kind_of(key) or "").startswith("ArrayOf")
