"""How many there should be, by what a metric has been lately. Pure.

Sources: ElastiCache User Guide, "Target tracking scaling policies" for shards and replicas: out when the metric is at the target
or above, by the larger of its deviation in percent and 20 % of the shards, or one replica; in only below 75 % of the target,
replicas one at a time. Application Auto Scaling User Guide, "How target tracking works": out fast, in slowly, and in only if every
policy would.

AWS does not say by how many shards it scales in. Here it is at most 20 % of them, at least one, and never so many that the metric,
spread over those that stay, would be at 90 % of the target: else the next minutes would bring them back. Nor does AWS say
anything of loads that come and go; here the cooldown of scaling in grows with each time that it was regretted.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec

OUT_POINTS: Final = 3
"""So many of the last minutes must all be at the target [the AlarmHigh of a target tracking policy: 3 of 3]."""
IN_POINTS: Final = 15
"""So many must all be below 75 % of it [its AlarmLow: 15 of 15]."""
IN_BELOW: Final = 0.75
CALM_BELOW: Final = 0.9
STEP: Final = 0.2
OUT_COOLDOWN_SECONDS: Final = 600
IN_COOLDOWN_SECONDS: Final = 900

_SOON: Final = dt.timedelta(hours=2)
_REMEMBERED: Final = dt.timedelta(days=1)
_STEP_MAX: Final = 1000.0
"""More than there may be of anything: a metric of one's own may have any value."""
_REGRETS_MAX: Final = 6

Way = Literal["out", "in", "stay"]
Points = Sequence[float | None]
"""A value for each of the last minutes, the newest last; None where there is none."""


class Changed(msgspec.Struct, frozen=True):
    """A change that was made: when it ended, and by how many."""

    at: dt.datetime
    by: int


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """When the last change of each direction ended. ``regrets``: how often it had to grow again soon after it had shrunk."""

    out_at: dt.datetime | None = None
    in_at: dt.datetime | None = None
    regrets: int = 0


def last_of(changes: Iterable[Changed], now: dt.datetime) -> Last:
    """What the past says to the next change."""
    past = sorted(changes, key=lambda change: change.at)
    out = [change.at for change in past if change.by > 0]
    inward = [change.at for change in past if change.by < 0]
    regrets = sum(
        first.by < 0 < second.by and second.at - first.at < _SOON and now - second.at < _REMEMBERED
        for first, second in pairwise(past)
    )
    return Last(out_at=max(out, default=None), in_at=max(inward, default=None), regrets=regrets)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A policy, as the arithmetic needs it. ``share`` is the least step out as a share of what there is; 0: one."""

    value: float
    share: float
    out_cooldown_seconds: int = OUT_COOLDOWN_SECONDS
    in_cooldown_seconds: int = IN_COOLDOWN_SECONDS
    never_in: bool = False


def way(rule: Rule, points: Points) -> Way:
    """Where the metric alone points to. What is not known moves nothing."""
    if _all(points, OUT_POINTS, lambda value: value >= rule.value):
        return "out"
    if _all(points, IN_POINTS, lambda value: value < rule.value * IN_BELOW):
        return "in"
    return "stay"


def _all(points: Points, count: int, holds: Callable[[float], bool]) -> bool:
    newest = points[-count:]
    return len(newest) == count and all(value is not None and holds(value) for value in newest)


def desired(rule: Rule, points: Points, current: int) -> int:
    """How many there should be by one rule, without bounds and cooldowns."""
    turned = way(rule, points)
    if turned == "stay":
        return current
    value = points[-1]
    assert value is not None
    if turned == "out":
        deviation = value / rule.value - 1
        step = max(deviation * current, rule.share * current, 1) if rule.share else 1
        return current + math.ceil(round(min(step, _STEP_MAX), 6))
    most = max(1, math.floor(current * rule.share)) if rule.share else 1
    for step in range(min(most, current - 1), 0, -1):
        if value * current / (current - step) < rule.value * CALM_BELOW:
            return current - step
    return current


def together(
    rules: Sequence[tuple[Rule, Points]], current: int, *, least: int, most: int, last: Last, now: dt.datetime
) -> tuple[int, Rule | None]:
    """How many there should be by all rules of a target, and the rule that decided it.

    The largest wins; it shrinks only if each rule that may shrink it would. A cooldown counts from the end of the last change: out
    waits for that of a change out, in waits for that of either, and twice as long for each regret of the last day: a load that
    comes back every hour would else have its shards moved every hour, and each move is felt.
    """
    wishes = [(desired(rule, points, current), rule) for rule, points in rules]
    outward = max(wishes, key=lambda wish: wish[0], default=(current, None))
    if outward[0] > current and outward[1] is not None:
        if _rests(last.out_at, outward[1].out_cooldown_seconds, now):
            return current, None
        return max(current, min(outward[0], most)), outward[1]
    inward = [wish for wish in wishes if not wish[1].never_in]
    if not inward or any(count >= current for count, _ in inward):
        return current, None
    count, rule = max(inward, key=lambda wish: wish[0])
    longer = 2 ** min(last.regrets, _REGRETS_MAX)
    if any(_rests(at, each.in_cooldown_seconds * longer, now) for _, each in inward for at in (last.in_at, last.out_at)):
        return current, None
    return min(current, max(count, least)), rule


def _rests(at: dt.datetime | None, seconds: int, now: dt.datetime) -> bool:
    return at is not None and (now - at).total_seconds() < seconds
