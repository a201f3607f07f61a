"""Snapshots of each day, and the last one."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, group, healthy

from cachekeep.model import Cache, Decide, Done, Failed, Forget, Job, Running, Snapshot, Step, Task, Wait, Working
from cachekeep.plan import Policy, plan
from cachekeep.plan.snapshots import DEADLINE_SECONDS

DAY = dt.timedelta(days=1)


def at(hour: int, minute: int = 0, *, day: int = 2) -> dt.datetime:
    return NOW.replace(day=day, hour=hour, minute=minute)


def daily(backed_up_at: dt.datetime | None, **more: Any) -> Cache:
    cache = group(2, snapshot_retention_days=3, snapshot_window="03:00-04:00", **more)
    return replace(cache, decided=replace(cache.decided, backed_up_at=backed_up_at))


def step(cache: Cache, now: dt.datetime) -> Step:
    return plan(cache, healthy(cache), now, MOMENT, Policy())


@pytest.mark.parametrize(
    ("last", "now", "stamp"),
    [
        (None, at(3, 30), "2030-01-02-03-00"),  # just turned on, in the window
        (at(3, 30, day=1), at(3, 0), "2030-01-02-03-00"),
        (at(3, 30, day=1), at(2, 59), None),
        (at(3, 30), at(3, 59), None),  # taken already
        (at(3, 30, day=1), at(11), "2030-01-02-03-00"),  # nobody was there to take it
        (at(12, 0, day=1), at(2, 59), None),  # turned on after yesterday's window
    ],
)
def test_one_a_day_is_taken_in_the_window_or_after_it(last: dt.datetime | None, now: dt.datetime, stamp: str | None) -> None:
    taken = step(daily(last), now)
    if stamp is None:
        assert isinstance(taken, Wait)
        return
    assert isinstance(taken, Decide)
    (record,) = taken.records
    assert isinstance(record, Snapshot)
    assert (record.name, record.source, record.group) == (f"automatic.demo-{stamp}", "automated", "demo")
    assert record.settings.retention_days == 3
    (job,) = taken.decided.jobs
    assert isinstance(job.work, Task)
    assert job.work.arguments == {"cache": "u1", "snapshot": record.uid, "node": "", "read:0001": "demo-002"}
    assert isinstance(step(replace(daily(last), decided=replace(taken.decided, jobs=())), now), Wait)


def test_it_begins_to_count_when_it_is_turned_on_and_ends_when_it_is_turned_off() -> None:
    begun = step(daily(None), at(12))
    assert isinstance(begun, Decide)
    assert begun.decided.backed_up_at == at(12)
    off = daily(at(12))
    off = replace(off, wanted=replace(off.wanted, snapshot_retention_days=0))
    ended = step(off, at(13))
    assert isinstance(ended, Decide)
    assert ended.decided.backed_up_at is None


def test_a_window_may_span_midnight() -> None:
    cache = daily(at(23, 40, day=1))
    cache = replace(cache, wanted=replace(cache.wanted, snapshot_window="23:30-00:30"))
    assert isinstance(step(cache, at(0, 15)), Wait)
    assert isinstance(step(cache, at(23, 31)), Decide)


def test_the_member_that_is_named_is_read() -> None:
    taken = step(daily(None, snapshotting_id="demo-001"), at(3, 30))
    assert isinstance(taken, Decide)
    assert isinstance(taken.decided.jobs[0].work, Task)
    assert taken.decided.jobs[0].work.arguments["read:0001"] == "demo-001"


def deleted(state: Any) -> Cache:
    cache = group(2)
    wanted = replace(cache.wanted.asking("snapshot", snapshot="5e7/last"), deleted=True, last_snapshot="errand-1")
    task = Task(kind="snapshot", arguments={"cache": "u1", "snapshot": "5e7/last", "node": "", "read:0001": "demo-001"})
    job = Job(id="errand-1", work=task, began_at=MOMENT, deadline_seconds=DEADLINE_SECONDS, state=state)
    return replace(cache, wanted=wanted, decided=replace(cache.decided, jobs=(job,)))


def test_nothing_goes_before_the_last_snapshot_is_there() -> None:
    cache = deleted(Running(1))
    view = replace(healthy(cache), jobs={"errand-1": Working(1)})
    assert isinstance(plan(cache, view, NOW, MOMENT, Policy()), Wait)
    done = deleted(Done())
    gone = plan(done, replace(healthy(done), nodes={}, fronts={}), NOW, MOMENT, Policy())
    assert not isinstance(gone, Wait | Decide)


def test_what_lacks_its_last_snapshot_stays_and_says_why() -> None:
    cache = deleted(Failed("the vault is full"))
    stays = step(cache, NOW)
    assert isinstance(stays, Wait)
    assert stays.refused
    assert stays.because == (
        "demo is to be deleted when its last snapshot is there, which has failed: the vault is full. Its nodes go on: delete it "
        "again, with another FinalSnapshotIdentifier or without one"
    )
    assert not isinstance(stays, Forget)
