"""ec2, as far as a cache's user asks: the network that there is, and security groups.

They describe this installation: the VPC is the pool of addresses that nodes and endpoints get, whichever zone a node is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.operation import Service
from cachekeep.services.core.parameters import Effect
from cachekeep.services.core.rights import Rights, arn_of
from cachekeep.services.ec2 import groups, listings, rules, tags
from cachekeep.wire.gateway import Call


def _names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    params, named = call.params, dict[str, Sequence[str]]()
    if call.operation == "CreateSecurityGroup":
        return {"security-group": ["*"], "vpc": [params.get("VpcId", settings.vpc_id)]}
    if "GroupId" in params:
        named["security-group"] = [params["GroupId"]]
    if "SecurityGroupRuleIds" in params and call.operation.startswith("Revoke"):
        named["security-group-rule"] = params["SecurityGroupRuleIds"]
    if "Resources" in params:
        for kind, start in (("security-group", "sg-"), ("security-group-rule", "sgr-")):
            if found := [id for id in params["Resources"] if id.startswith(start)]:
                named[kind] = found
    return named


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    """[Condition keys for Amazon EC2]. All groups are in the one VPC."""
    vpc = arn_of("ec2", "vpc", settings.vpc_id, settings)
    found = {"ec2:Region": settings.region, "ec2:Vpc": vpc, "ec2:VpcID": settings.vpc_id}
    return found | ({"ec2:SecurityGroupID": call.params["GroupId"]} if "GroupId" in call.params else {})


SERVICE: Final = Service(
    name="ec2",
    title="EC2",
    operations={**listings.OPERATIONS, **groups.OPERATIONS, **rules.OPERATIONS, **tags.OPERATIONS},
    parameters={
        "DryRun": Effect("only says that it would have been answered"),
        "Filters": Effect("those that match"),
        "Filters.Name": Effect("what must match"),
        "Filters.Values": Effect("one of them must match; `*` and `?` stand for others"),
        "MaxResults": Effect("how many a page holds"),
        "NextToken": Effect("the page after this one"),
        "TagSpecifications": Effect("tags of what is made"),
        "TagSpecifications.ResourceType": Effect("what they are for; another is refused"),
        "TagSpecifications.Tags": Effect("tags"),
        "TagSpecifications.Tags.Key": Effect("a tag's key"),
        "TagSpecifications.Tags.Value": Effect("a tag's value"),
        **listings.PARAMETERS,
        **groups.PARAMETERS,
        **rules.PARAMETERS,
        **tags.PARAMETERS,
    },
    named=groups.by_id,
    rights=Rights(names=_names, keys=_keys, tags=tags.of, denied="UnauthorizedOperation"),
)
