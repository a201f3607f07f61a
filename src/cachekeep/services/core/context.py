"""What every handler is given beside its call and its transaction, and the few ways in which handlers refuse."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from cachekeep.audit.trail import Trail
from cachekeep.clock import Clock
from cachekeep.engines.catalogue import Catalogue
from cachekeep.metrics.series import Archive
from cachekeep.model.security_group import ANY, EVERYBODY, SecurityGroup, SecurityGroupRule
from cachekeep.security.access_keys import Issuer
from cachekeep.security.certs import Authorities
from cachekeep.security.sealing import Sealing
from cachekeep.services.core.quotas import Quota
from cachekeep.wire.faults import ApiError

Params = Mapping[str, Any]


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API side needs to know of this installation."""

    region: str
    account: str
    zones: tuple[str, ...]
    address_pool: str
    """Of nodes and endpoints: a network, or addresses with commas between."""
    capacity_memory_bytes: int
    """What the machines have for caches: the sum of what their processes may use must stay below it unless ``overcommit``."""
    overcommit: bool = False
    any_subnet: bool = False
    """Whether subnets that are not of this installation stand for zones of it, and security groups for its default one."""
    default_ingress: Literal["everybody", "members"] = "everybody"
    """Who the default security group lets in until its rules are changed; only its members at AWS."""
    no_filter: str | None = None
    """Why connections cannot be filtered here, so that there can be no security group but one that lets everybody in; None: they
    can."""
    buckets: frozenset[str] = frozenset()
    """Names that requests may have for where plain data are put."""
    hold_seconds: float = 8.0
    """How long a Describe of one resource in transition is held open; 0 answers at once."""
    quotas: Mapping[Quota, int | None] = {}
    """Those that are others than AWS's defaults; None sets no limit."""
    issuer: Issuer
    """Makes access keys."""
    trails: tuple[Trail, ...] = ()
    """Where calls are recorded, for cloudtrail:LookupEvents."""
    root_created_at: dt.datetime | None = None
    """When the root key was made, for iam:GetUser."""

    @property
    def vpc_id(self) -> str:
        return "vpc-" + digest(self.account, self.region)

    @property
    def security_group_id(self) -> str:
        return "sg-" + digest(self.account, self.region, "default")

    def default_security_group(self) -> SecurityGroup:
        """The default one, as long as nobody has changed it."""
        rules: list[SecurityGroupRule] = []
        for egress in (False, True):
            peers = EVERYBODY if egress or self.default_ingress == "everybody" else (self.security_group_id,)
            for peer in peers:
                id = "sgr-" + digest(self.security_group_id, str(egress), peer)
                rules.append(SecurityGroupRule(id=id, egress=egress, protocol=ANY, peer=peer))
        return SecurityGroup(
            name=self.security_group_id, group_name="default", description="default VPC security group", rules=tuple(rules)
        )

    def subnet_id(self, zone: str) -> str:
        return "subnet-" + digest(self.account, self.region, zone)


class Context(msgspec.Struct, frozen=True):
    """The installation, as handlers see it."""

    settings: ServiceSettings
    catalogue: Catalogue
    clock: Clock
    sealing: Sealing
    authorities: Authorities
    archive: Archive


def digest(*parts: str) -> str:
    """17 hexadecimal digits that stay the same for the same parts: the tail of an EC2-like id."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:17]


def value_error(message: str) -> ApiError:
    """A parameter has a value that cannot be."""
    return ApiError("InvalidParameterValue", message)


def combination_error(message: str) -> ApiError:
    """Parameters do not go together, or not with the resource as it is."""
    return ApiError("InvalidParameterCombination", message)


def unsupported(what: str, *, plural: bool = False) -> ApiError:
    """The honest refusal of what has no effect yet."""
    return combination_error(f"{what} {'are' if plural else 'is'} not supported by this version of Cachekeep; nothing was changed.")
