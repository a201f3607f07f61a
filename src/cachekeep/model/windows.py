"""Maintenance windows (``sun:05:00-sun:06:00``) and daily windows (``03:00-04:00``), always UTC.

Source: PreferredMaintenanceWindow and SnapshotWindow in the ElastiCache API reference.
"""

from __future__ import annotations

import datetime as dt
import re

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(r"([a-z]{3}):([01]\d|2[0-3]):([0-5]\d)-([a-z]{3}):([01]\d|2[0-3]):([0-5]\d)")
_DAILY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
WEEK_MINUTES = 7 * 24 * 60
DAY_MINUTES = 24 * 60


def weekly(text: str) -> tuple[int, int]:
    """First minute of the week and length in minutes. Raises ``ValueError`` for anything that is no window."""
    found = _WEEKLY.fullmatch(text.lower())
    if not found or found[1] not in DAYS or found[4] not in DAYS:
        raise ValueError(f"{text!r} is not a window of the form ddd:hh24:mi-ddd:hh24:mi")
    start = (DAYS.index(found[1]) * 24 + int(found[2])) * 60 + int(found[3])
    end = (DAYS.index(found[4]) * 24 + int(found[5])) * 60 + int(found[6])
    return start, (end - start) % WEEK_MINUTES


def daily(text: str) -> tuple[int, int]:
    """First minute of the day and length in minutes. Raises ``ValueError`` for anything that is no window."""
    found = _DAILY.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a window of the form hh24:mi-hh24:mi")
    start, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    return start, (end - start) % DAY_MINUTES


def in_window(text: str, now: dt.datetime) -> bool:
    """Whether ``now`` lies inside a weekly window."""
    start, length = weekly(text)
    minute = (now.weekday() * 24 + now.hour) * 60 + now.minute
    return (minute - start) % WEEK_MINUTES < length
