"""Identifiers, ARNs, ports and windows: the rules of ElastiCache's API reference, checked in one place each."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Final

from cachekeep.model.windows import DAY_MINUTES, daily, weekly
from cachekeep.services.core.context import ServiceSettings, value_error
from cachekeep.wire.faults import ApiError

CLUSTER_ID_MAX: Final = 50
GROUP_ID_MAX: Final = 40
NAME_MAX: Final = 255
PORT_MIN, PORT_MAX = 1024, 65535
WINDOW_MINUTES_MIN: Final = 60

_ID: Final = re.compile(r"[a-z](?:-?[a-z0-9])*")
_SECURITY_GROUP: Final = re.compile(r"sg-[0-9a-zA-Z]{1,40}")
_SUBNET: Final = re.compile(r"subnet-[0-9a-zA-Z]{1,40}")


def identifier(text: str, parameter: str, longest: int) -> str:
    """``text`` in lower case. Letters, digits and single hyphens, a letter first, no hyphen last [CreateCacheCluster,
    CacheClusterId].

    Raises ApiError InvalidParameterValue.
    """
    lowered = text.lower()
    if len(lowered) > longest or not _ID.fullmatch(lowered):
        raise value_error(
            f"The parameter {parameter} is not a valid identifier. Identifiers must begin with a letter; must contain only ASCII "
            f"letters, digits, and hyphens; must not end with a hyphen or contain two consecutive hyphens; "
            f"and must have at most {longest} characters."
        )
    return lowered


def port(number: int | None, default: int) -> int:
    """A port that an ordinary process may listen on. Raises ApiError InvalidParameterValue."""
    if number is None:
        return default
    if not PORT_MIN <= number <= PORT_MAX:
        raise value_error(f"Invalid port {number}: it must be between {PORT_MIN} and {PORT_MAX}.")
    return number


def is_security_group_id(text: str) -> bool:
    """Whether it has the form of a security group's id."""
    return _SECURITY_GROUP.fullmatch(text) is not None


def is_subnet_id(text: str) -> bool:
    """Whether it has the form of a subnet id."""
    return _SUBNET.fullmatch(text) is not None


# ------------------------------------------------------------------ windows


def maintenance_window(text: str) -> str:
    """A weekly window in lower case, 60 minutes to 24 hours long. Raises ApiError InvalidParameterValue."""
    try:
        length = weekly(text)[1]
    except ValueError as error:
        raise value_error(f"Invalid maintenance window: {error}.") from None
    if not WINDOW_MINUTES_MIN <= length <= DAY_MINUTES:
        raise value_error(f"The maintenance window must be at least {WINDOW_MINUTES_MIN} minutes and at most 24 hours long.")
    return text.lower()


def snapshot_window(text: str) -> str:
    """A daily window of at least 60 minutes. Raises ApiError InvalidParameterValue."""
    try:
        length = daily(text)[1]
    except ValueError as error:
        raise value_error(f"Invalid snapshot window: {error}.") from None
    if length < WINDOW_MINUTES_MIN:
        raise value_error(f"The snapshot window must be at least {WINDOW_MINUTES_MIN} minutes long.")
    return text


def overlap(maintenance: str, snapshot: str) -> bool:
    """Whether a weekly and a daily window share a minute on any day."""
    start, length = weekly(maintenance)
    other, other_length = daily(snapshot)
    ahead = (other - start) % DAY_MINUTES
    return ahead < length or DAY_MINUTES - ahead < other_length


def windows(maintenance: str | None, snapshot: str | None) -> tuple[str, str]:
    """Both windows, with a free hour in place of one that was not asked for [CreateReplicationGroup, SnapshotWindow].

    Raises ApiError InvalidParameterValue for a bad window, or for two that overlap.
    """
    weekly_text = maintenance_window(maintenance) if maintenance else None
    daily_text = snapshot_window(snapshot) if snapshot else None
    hours = [f"{hour:02}:00-{(hour + 1) % 24:02}:00" for hour in (3, 5, 7, *range(24))]
    if daily_text is None:
        days = weekly_text or "sun:05:00-sun:06:00"
        daily_text = next((text for text in hours if not overlap(days, text)), hours[0])
    if weekly_text is None:
        free = (f"sun:{text[:5]}-{'mon' if text.startswith('23') else 'sun'}:{text[6:]}" for text in (hours[1], *hours))
        weekly_text = next((text for text in free if not overlap(text, daily_text)), None)
    if weekly_text is None or (overlap(weekly_text, daily_text) and maintenance and snapshot):
        raise value_error("The snapshot window and maintenance window must not overlap.")
    return weekly_text, daily_text


# ------------------------------------------------------------------ members


def numbered(prefix: str, digits: int, taken: Container[str]) -> Iterator[str]:
    """``demo-001``, ``demo-002`` …: the lowest numbers that are not taken, without end."""
    number = 1
    while True:
        name = f"{prefix}{number:0{digits}}"
        if name not in taken:
            yield name
        number += 1


# ------------------------------------------------------------------ ARNs

ARN_KINDS: Final = frozenset(
    [
        "cluster",
        "replicationgroup",
        "snapshot",
        "parametergroup",
        "subnetgroup",
        "securitygroup",
        "user",
        "usergroup",
        "serverlesscache",
        "serverlesscachesnapshot",
        "reserved-instance",
        "globalreplicationgroup",
    ]
)


def arn(settings: ServiceSettings, kind: str, name: str) -> str:
    """The ARN of a resource of ours; ``kind`` is one of ``ARN_KINDS``."""
    return f"arn:aws:elasticache:{settings.region}:{settings.account}:{kind}:{name}"


def parse_arn(settings: ServiceSettings, text: str) -> tuple[str, str]:
    """Kind and name (in lower case) of an ARN of this region and account. Raises ApiError InvalidARN."""
    parts = text.split(":", 6)
    known = len(parts) == 7 and parts[:3] == ["arn", "aws", "elasticache"] and parts[5] in ARN_KINDS and parts[6]
    if not known:
        raise ApiError("InvalidARN", f"The ARN {text} is not the ARN of an ElastiCache resource.")
    if parts[3] not in ("", settings.region) or parts[4] != settings.account:
        here = f"{settings.region}, account {settings.account}"
        raise ApiError("InvalidARN", f"The ARN {text} is not of this endpoint's region and account ({here}).")
    return parts[5], parts[6].lower()
