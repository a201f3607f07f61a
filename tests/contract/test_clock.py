"""What any ``Clock`` must do: durations go by a clock that nobody sets, and end at a boot; the wall clock is for people alone."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import string
import subprocess
import sys
import time
import uuid
from typing import Protocol

import pytest

from cachekeep import clock as clocks
from cachekeep.clock import Clock, SystemClock
from cachekeep.model import Moment
from cachekeep.model.moment import elapsed
from cachekeep.sim import timeless

HOUR = dt.timedelta(hours=1)


class Host(Protocol):
    """A machine with a clock."""

    clock: Clock

    def another(self) -> Clock:
        """That of a process beside, or of one that is started later."""

    def set_wall(self, by: dt.timedelta) -> None: ...

    def after_a_boot(self) -> Moment:
        """What is read when the machine was booted anew."""


class _Wall(dt.datetime):
    """The wall clock, as this process reads it."""

    ahead = dt.timedelta()

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return super().now(tz) + cls.ahead


class Machine:
    """This one. Its wall clock is set for the module alone: it is everybody's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock: Clock = SystemClock()
        self._patch, self._time = patch, time.time
        _Wall.ahead = dt.timedelta()

    def another(self) -> Clock:
        return SystemClock()

    def set_wall(self, by: dt.timedelta) -> None:
        _Wall.ahead += by
        self._patch.setattr(clocks.dt, "datetime", _Wall)
        self._patch.setattr(time, "time", lambda: self._time() + _Wall.ahead.total_seconds())

    def after_a_boot(self) -> Moment:
        """In a time namespace of its own, where the host has been up for longer: as near to a boot as a test may come."""
        if os.geteuid() != 0:
            pytest.skip("needs root")
        code = "from cachekeep.clock import SystemClock; m = SystemClock().moment(); print(m.boot, m.seconds, sep='|')"
        unshare = ["unshare", "--time", "--boottime", "86400", "--fork", sys.executable, "-c", code]
        told = subprocess.run(unshare, check=True, capture_output=True, text=True).stdout
        boot, _, seconds = told.strip().rpartition("|")
        return Moment(boot, float(seconds))


class Simulated:
    """One of the simulated world."""

    def __init__(self) -> None:
        self._host, self._chance = timeless.SimHost(), random.Random(0)
        self._clock = timeless.SimClock(self._chance, self._host)
        self.clock: Clock = self._clock

    def another(self) -> Clock:
        return timeless.SimClock(self._chance, self._host)

    def set_wall(self, by: dt.timedelta) -> None:
        self._clock.set(by.total_seconds())

    def after_a_boot(self) -> Moment:
        self._host.boot()
        return self.clock.moment()


@pytest.fixture(params=["system", "sim"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Machine(monkeypatch) if request.param == "system" else Simulated()


async def test_what_is_slept_has_passed_by_every_clock(host: Host) -> None:
    clock = host.clock
    wall, moment, monotonic = clock.now(), clock.moment(), clock.monotonic()
    await clock.sleep(0.05)
    passed = elapsed(moment, clock.moment())
    assert passed is not None
    assert passed + 0.001 >= 0.05
    assert clock.monotonic() - monotonic + 0.001 >= 0.05
    assert (clock.now() - wall).total_seconds() > 0.0
    assert clock.now().utcoffset() == dt.timedelta()


async def test_no_clock_for_durations_goes_back(host: Host) -> None:
    moments, readings = [host.clock.moment()], [host.clock.monotonic()]
    for _ in range(200):
        moments.append(host.clock.moment())
        readings.append(host.clock.monotonic())
        await host.clock.sleep(0)
    assert readings == sorted(readings)
    assert [m.seconds for m in moments] == sorted(m.seconds for m in moments)
    assert len({m.boot for m in moments}) == 1


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["ahead", "back"])
async def test_who_sets_the_wall_clock_sets_no_other(host: Host, by: dt.timedelta) -> None:
    clock = host.clock
    wall, moment, monotonic = clock.now(), clock.moment(), clock.monotonic()
    host.set_wall(by)
    assert abs(clock.now() - wall - by) < dt.timedelta(minutes=1)
    passed = elapsed(moment, clock.moment())
    assert passed is not None
    assert 0.0 <= passed < 60.0
    assert 0.0 <= clock.monotonic() - monotonic < 60.0
    started = clock.monotonic()
    await asyncio.wait_for(clock.sleep(0.01), 30)
    assert clock.monotonic() - started < 30.0


async def test_processes_of_one_host_share_its_moments(host: Host) -> None:
    first = host.clock.moment()
    second = host.another().moment()
    passed = elapsed(first, second)
    assert passed is not None
    assert passed < 60.0


async def test_moments_of_two_boots_do_not_compare(host: Host) -> None:
    before = host.clock.moment()
    after = host.after_a_boot()
    assert after.boot != before.boot
    assert elapsed(before, after) is None
    assert elapsed(after, before) is None


async def test_ids_and_secrets_are_nobody_elses(host: Host) -> None:
    clocks_ = (host.clock, host.another())
    ids = [clock.new_id() for clock in clocks_ for _ in range(100)]
    assert len(set(ids)) == 200
    assert {uuid.UUID(id).version for id in ids} == {4}
    secrets = [clock.new_secret() for clock in clocks_ for _ in range(100)]
    assert len(set(secrets)) == 200
    assert set("".join(secrets)) <= set(string.ascii_letters + string.digits + "-_")
    assert all(0.0 <= clock.chance() < 1.0 for clock in clocks_ for _ in range(100))
