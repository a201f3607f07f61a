"""The smaller nouns: parameter groups, subnet groups, tags, events."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

from cachekeep.model.clients import CacheUser, UserGroup
from cachekeep.model.identities import IamGroup, IamRole, IamUser, IssuedKey, ManagedPolicy
from cachekeep.model.keys import KmsAlias, KmsKey
from cachekeep.model.scaling import ScalableTarget, ScalingActivity, ScalingPolicy, ScheduledAction
from cachekeep.model.security_group import SecurityGroup
from cachekeep.model.snapshot import Export, Snapshot, SnapshotEnd, Verification
from cachekeep.model.updates import ServiceUpdate

SourceType = Literal[
    "cache-cluster",
    "cache-parameter-group",
    "cache-security-group",
    "cache-subnet-group",
    "replication-group",
    "serverless-cache",
    "serverless-cache-snapshot",
    "user",
    "user-group",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What DescribeEvents tells. ``at`` is filled by the store when it is None."""

    source_type: SourceType
    source: str
    message: str
    at: dt.datetime | None = None


class ParameterGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A custom parameter group: only what differs from the family's defaults. The defaults' own groups are not stored."""

    name: str
    family: str
    description: str
    values: dict[str, str] = {}
    version: int = 0


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet and its zone."""

    id: str
    zone: str


class SubnetGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A cache subnet group."""

    name: str
    description: str
    vpc_id: str
    subnets: tuple[Subnet, ...]
    version: int = 0


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """The tags of one resource; ``name`` is its ARN."""

    name: str
    values: dict[str, str]
    version: int = 0


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """Whose database this is. Processes belong to a data directory, so two of them cannot share what is decided about processes."""

    name: str
    identity: str
    version: int = 0


Record = (
    CacheUser
    | IamGroup
    | IamRole
    | Export
    | IamUser
    | Installation
    | IssuedKey
    | KmsAlias
    | KmsKey
    | ManagedPolicy
    | ParameterGroup
    | ScalableTarget
    | ScalingActivity
    | ScalingPolicy
    | ScheduledAction
    | SecurityGroup
    | Snapshot
    | SnapshotEnd
    | ServiceUpdate
    | SubnetGroup
    | Tags
    | UserGroup
    | Verification
)
"""What is stored by kind and name, beside caches."""
RECORDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        CacheUser,
        IamGroup,
        IamRole,
        IamUser,
        Installation,
        IssuedKey,
        KmsAlias,
        KmsKey,
        ManagedPolicy,
        ParameterGroup,
        ScalableTarget,
        ScalingActivity,
        ScalingPolicy,
        ScheduledAction,
        SecurityGroup,
        Snapshot,
        SnapshotEnd,
        ServiceUpdate,
        SubnetGroup,
        Tags,
        UserGroup,
        Verification,
        Export,
    )
}
"""By the name that their kind is stored under."""
