"""Durations that outlive a process: from a moment to a moment of the same boot, or unknown."""

from __future__ import annotations

import msgspec
from tests.plan.builders import MOMENT, later

from cachekeep.clock import SystemClock
from cachekeep.model import UNKNOWN, Moment, elapsed


def test_moments_of_one_boot_can_be_compared() -> None:
    assert elapsed(MOMENT, later(2.5)) == 2.5
    assert elapsed(MOMENT, MOMENT) == 0.0


def test_those_of_another_boot_another_host_or_no_clock_at_all_cannot() -> None:
    assert elapsed(Moment("another", 1.0), MOMENT) is None
    assert elapsed(None, MOMENT) is None
    assert elapsed(UNKNOWN, MOMENT) is None
    assert elapsed(UNKNOWN, UNKNOWN) is None, "two that are not known are not therefore the same"


def test_a_decision_of_another_process_on_this_host_can_be_compared() -> None:
    stored = msgspec.json.decode(msgspec.json.encode(SystemClock().moment()), type=Moment)
    now = SystemClock().moment()
    assert 0.0 <= (elapsed(stored, now) or 0.0) < 60.0
    assert stored.boot == now.boot
