"""Data points: what becomes of several, and what is asked of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachekeep.metrics.chunks import pack, unpack
from cachekeep.metrics.datum import Datum, merge, of_values, single, statistic

NUMBERS = st.one_of(
    st.integers(-(10**15), 10**15).map(float),
    st.floats(-(2.0**360), 2.0**360),
    st.decimals(-999, 999, places=4).map(float),
)
DATA = st.one_of(
    NUMBERS.map(single), st.lists(st.tuples(NUMBERS, st.integers(1, 9).map(float)), min_size=1, max_size=9).map(of_values)
)
HUNDRED = merge([single(float(n)) for n in range(1, 101)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, 287), DATA, min_size=1, max_size=60))
def test_what_is_packed_is_what_comes_out(slots: dict[int, Datum]) -> None:
    assert unpack(pack(slots)) == slots


@pytest.mark.parametrize("blob", [b"", b"x", pack({0: single(1.5)})[:-1]])
def test_what_is_damaged_is_said_to_be(blob: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        unpack(blob)


def test_a_still_series_costs_next_to_nothing() -> None:
    assert len(pack({slot: single(0.0) for slot in range(60)})) < 20
    assert len(pack({slot: single(float(4096 + slot % 3)) for slot in range(60)})) < 60


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_several_are_as_they_would_be_at_once(values: list[float]) -> None:
    together = merge([single(value) for value in values])
    assert (together.count, together.low, together.high) == (len(values), min(values), max(values))
    assert math.isclose(together.total, math.fsum(values), abs_tol=1e-6)
    for percent in (0, 50, 90, 100):
        asked = statistic(f"p{percent}")
        assert asked is not None
        found, exact = asked.of(together), sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
        assert found is not None
        if len(set(values)) <= 64:
            assert found == exact
        else:
            assert math.isclose(found, exact, rel_tol=0.021, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SampleCount", 100),
        ("Average", 50.5),
        ("Sum", 5050),
        ("Minimum", 1),
        ("Maximum", 100),
        ("p50", 50),
        ("p99", 99),
        ("p100", 100),
        ("p0", 1),
        ("tm90", 45.5),
        ("TM(10%:90%)", 50.5),
        ("TM(10:20)", 15.5),
        ("wm90", (sum(range(1, 91)) + 10 * 90) / 100),
        ("tc90", 90),
        ("ts90", 4095),
        ("PR(:10)", 10),
        ("PR(10:30)", 20),
        ("IQM", 50.5),
    ],
)
def test_statistics(name: str, value: float) -> None:
    asked = statistic(name)
    assert asked is not None
    # More than 64 different values are grouped within 2 %.
    assert asked.of(HUNDRED) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize(
    "name", ["", "average", "p101", "p", "p-1", "TM(90%:10%)", "TM(:)", "PR(10%:20%)", "TM(10%:20)", "x5", "p5O"]
)
def test_there_is_no_such_statistic(name: str) -> None:
    assert statistic(name) is None


def test_of_a_set_without_its_values_percentiles_are_not_known() -> None:
    asked = statistic("p50")
    assert asked is not None
    assert asked.of(Datum(3, 6, 1, 3)) is None
    assert asked.of(Datum(3, 6, 2, 2)) == 2
    assert asked.of(merge([Datum(3, 6, 1, 3), single(1.0)])) is None
