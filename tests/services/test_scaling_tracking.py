"""How many there should be: the arithmetic of target tracking, and what becomes of it under loads of known shapes."""

from __future__ import annotations

import datetime as dt
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekeep.services.autoscaling.tracking import IN_POINTS, Changed, Last, Rule, desired, last_of, together, way

NOW = dt.datetime(2026, 11, 29, 12, 0, tzinfo=dt.UTC)
SHARDS = Rule(value=60, share=0.2)
REPLICAS = Rule(value=60, share=0)


def _points(*newest: float | None, before: float | None = 50.0) -> list[float | None]:
    return [before] * (IN_POINTS - len(newest)) + list(newest)


@pytest.mark.parametrize(
    ("points", "turned"),
    [
        (_points(60, 60, 60), "out"),
        (_points(59.9, 60, 60), "stay"),
        (_points(90, None, 90), "stay"),
        (_points(90, 90), "stay"),
        ([44.9] * IN_POINTS, "in"),
        ([44.9] * (IN_POINTS - 1), "stay"),
        (_points(45, before=44), "stay"),
        (_points(None, before=10), "stay"),
        ([], "stay"),
    ],
)
def test_where_the_metric_points_to(points: list[float | None], turned: str) -> None:
    assert way(SHARDS, points) == turned


@pytest.mark.parametrize(
    ("rule", "value", "current", "wanted"),
    [
        (SHARDS, 60, 10, 12),  # at the target: 20 %
        (SHARDS, 78, 10, 13),  # 30 % above it: 30 %
        (SHARDS, 60, 1, 2),
        (SHARDS, 150, 2, 5),
        (REPLICAS, 78, 1, 2),
        (REPLICAS, 600, 1, 2),
        (SHARDS, 44, 10, 9),  # 44 × 10 / 8 is above 90 % of 60, 44 × 10 / 9 below
        (SHARDS, 20, 10, 8),  # 20 % at the most
        (SHARDS, 40, 2, 2),  # one alone would have 80
        (SHARDS, 20, 2, 1),
        (SHARDS, 1, 1, 1),
        (REPLICAS, 10, 5, 4),
    ],
)
def test_how_many(rule: Rule, value: float, current: int, wanted: int) -> None:
    assert desired(rule, [value] * IN_POINTS, current) == wanted


def test_a_value_beyond_all_bounds_asks_for_more_and_no_error() -> None:
    points = _points(*[2.0**360] * IN_POINTS)
    assert together([(Rule(value=1e-300, share=0.2), points)], 3, least=1, most=9, last=Last(), now=NOW)[0] == 9


def test_cooldowns_count_from_the_end_of_the_last_change() -> None:
    hot, cold = [90.0] * IN_POINTS, [5.0] * IN_POINTS

    def wished(points: list[float], **ago: int) -> int:
        last = Last(**{f"{name}_at": NOW - dt.timedelta(seconds=seconds) for name, seconds in ago.items()})
        return together([(SHARDS, points)], 4, least=1, most=10, last=last, now=NOW)[0]

    assert wished(hot, out=599) == 4
    assert wished(hot, out=600) == 6
    assert wished(hot, **{"in": 1}) == 6, "what was too little is mended at once"
    assert wished(cold, **{"in": 899}) == 4
    assert wished(cold, out=899) == 4
    assert wished(cold, out=900, **{"in": 900}) == 3


def test_it_grows_for_one_rule_and_shrinks_for_all() -> None:
    hot, cold, calm = [90.0] * IN_POINTS, [5.0] * IN_POINTS, [45.0] * IN_POINTS
    other = Rule(value=50, share=0.2)

    def wished(first: list[float], second: list[float], second_rule: Rule = other) -> int:
        return together([(SHARDS, first), (second_rule, second)], 5, least=1, most=10, last=Last(), now=NOW)[0]

    assert wished(cold, hot) == 9
    assert wished(cold, calm) == 5
    assert wished(cold, cold) == 4
    assert wished(cold, calm, Rule(value=70, share=0.2, never_in=True)) == 4, "a rule that never shrinks it forbids nothing"
    assert together([(Rule(value=60, share=0.2, never_in=True), cold)], 5, least=1, most=9, last=Last(), now=NOW) == (5, None)


@given(
    value=st.floats(0, 1000),
    least=st.integers(1, 5),
    above=st.integers(0, 10),
    more=st.integers(0, 5),
    target=st.floats(35, 70),
    share=st.sampled_from([0.0, 0.2]),
)
def test_it_never_passes_a_bound_nor_turns_against_the_metric(
    value: float, least: int, above: int, more: int, target: float, share: float
) -> None:
    rule, current, most = Rule(value=target, share=share), least + above, least + above + more
    wished, _ = together([(rule, [value] * IN_POINTS)], current, least=least, most=most, last=Last(), now=NOW)
    turned = way(rule, [value] * IN_POINTS)
    assert wished == current or turned == ("out" if wished > current else "in")
    assert least <= wished <= most


def _run(load: list[float], rule: Rule, current: int, minutes_to_change: int = 3) -> list[int]:
    """A shard takes 100 at 100 %; one point a minute; how many there were at each minute."""
    points: list[float] = []
    counts: list[int] = []
    changes: list[Changed] = []
    changing, aim = 0, current
    for minute, whole in enumerate(load):
        now = NOW + dt.timedelta(minutes=minute)
        points.append(min(100.0, whole / current))
        counts.append(current)
        if changing:
            changing -= 1
            if not changing:
                changes.append(Changed(now, aim - current))
                current = aim
            continue
        aim, _ = together([(rule, points[-IN_POINTS:])], current, least=1, most=20, last=last_of(changes, now), now=now)
        changing = minutes_to_change if aim != current else 0
    return counts


def _turns(counts: list[int]) -> int:
    moves = [b - a for a, b in pairwise(counts) if a != b]
    return sum(a * b < 0 for a, b in pairwise(moves))


def test_a_day_moves_it_up_once_and_down_once() -> None:
    day = [150 + 450 * max(0.0, math.sin(math.pi * (minute - 360) / 900)) for minute in range(1440)]
    counts = _run(day, SHARDS, 3)
    assert max(counts) >= 9, "the noon is carried"
    assert _turns(counts) == 1
    assert counts[-1] <= 4, "the night is cheap"


def test_a_flash_crowd_is_answered_within_minutes_and_left_slowly() -> None:
    load = [120.0] * 60 + [900.0] * 45 + [120.0] * 300
    counts = _run(load, SHARDS, 3)
    assert counts[60 + 12] > 3
    assert counts[60 + 40] >= 6
    assert _turns(counts) == 1


def test_a_steady_load_at_any_height_comes_to_rest() -> None:
    for height in range(30, 900, 30):
        counts = _run([float(height)] * 600, SHARDS, 4)
        assert _turns(counts) <= 1, height
        assert len(set(counts[-120:])) == 1, height


def test_a_batch_job_of_five_minutes_every_hour_comes_to_be_waited_for() -> None:
    load = ([200.0] * 55 + [290.0] * 5) * 12
    counts = _run(load, SHARDS, 5)
    assert _turns(counts) <= 8, "a fixed cooldown swings 22 times"
    assert len(set(counts[-240:])) <= 2
