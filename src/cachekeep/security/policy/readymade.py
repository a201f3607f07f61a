"""Managed policies that are there from the start, named as AWS's of the same purpose; written for the services that are served."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Final

ARN: Final = "arn:aws:iam::aws:policy/"


def _allow(*actions: str) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]})


_NETWORK: Final = ("ec2:DescribeAvailabilityZones", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs")

READY_MADE: Final[Mapping[str, str]] = {
    f"{ARN}AdministratorAccess": _allow("*"),
    f"{ARN}AmazonElastiCacheFullAccess": _allow("elasticache:*", *_NETWORK),
    f"{ARN}AmazonElastiCacheReadOnlyAccess": _allow("elasticache:Describe*", "elasticache:List*"),
    f"{ARN}IAMFullAccess": _allow("iam:*"),
}
"""ARN → text."""
MADE_AT: Final = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
"""When they were written."""
