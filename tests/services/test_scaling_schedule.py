"""When scheduled actions are due."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekeep.services.autoscaling.schedule import BadSchedule, last_within, next_after, parse, zone

UTC = dt.UTC


def _at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


SINCE = _at("2026-11-01T00:30:00")


@pytest.mark.parametrize(
    ("text", "tz", "after", "due"),
    [
        ("at(2026-12-24T18:00:00)", "", "2026-11-29T00:00:00", "2026-12-24T18:00:00"),
        ("at(2026-12-24T18:00:00)", "America/New_York", "2026-11-29T00:00:00", "2026-12-24T23:00:00"),
        ("at(2026-11-24T18:00:00)", "", "2026-11-29T00:00:00", None),
        ("rate(1 hour)", "", "2026-11-01T00:30:00", "2026-11-01T01:30:00"),
        ("rate(90 minutes)", "", "2026-11-01T02:00:00", "2026-11-01T03:30:00"),
        ("rate(2 days)", "", "2026-10-01T00:00:00", "2026-11-03T00:30:00"),
        ("cron(0 9 * * ? *)", "", "2026-11-29T09:00:00", "2026-11-30T09:00:00"),
        ("cron(30 8 ? * MON-FRI *)", "", "2026-11-28T00:00:00", "2026-11-30T08:30:00"),
        ("cron(0/15 10 * * ? *)", "", "2026-11-29T10:14:59", "2026-11-29T10:15:00"),
        ("cron(0 12 L * ? *)", "", "2026-02-01T00:00:00", "2026-02-28T12:00:00"),
        ("cron(0 12 15W * ? *)", "", "2026-11-01T00:00:00", "2026-11-16T12:00:00"),
        ("cron(0 12 1W * ? *)", "", "2026-08-01T00:00:00", "2026-08-03T12:00:00"),
        ("cron(0 12 31W * ? *)", "", "2026-05-31T13:00:00", "2026-07-31T12:00:00"),
        ("cron(0 12 ? * 6#3 *)", "", "2026-11-01T00:00:00", "2026-11-20T12:00:00"),
        ("cron(0 12 ? * FRIL *)", "", "2026-11-01T00:00:00", "2026-11-27T12:00:00"),
        ("cron(0 0 29 2 ? *)", "", "2026-11-01T00:00:00", "2028-02-29T00:00:00"),
        ("cron(0 0 1 JAN,JUL ? 2026-2027)", "", "2027-01-02T00:00:00", "2027-07-01T00:00:00"),
        ("cron(0 0 1 1 ? 2026)", "", "2026-11-01T00:00:00", None),
        # The night in which 02:30 does not exist, and the one in which it exists twice.
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-03-28T12:00:00", "2026-03-29T01:30:00"),
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-24T12:00:00", "2026-10-25T00:30:00"),
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-25T00:30:00", "2026-10-26T01:30:00"),
    ],
)
def test_due(text: str, tz: str, after: str, due: str | None) -> None:
    found = next_after(parse(text), _at(after), since=SINCE, tz=zone(tz))
    assert found == (_at(due) if due else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "every day",
        "at(tomorrow)",
        "at(2026-12-24)",
        "rate(0 minutes)",
        "rate(1 hours)",
        "rate(5 minute)",
        "rate(5 weeks)",
        "cron(* * * * *)",
        "cron(0 9 * * * *)",
        "cron(0 9 ? * ? *)",
        "cron(60 9 * * ? *)",
        "cron(0 24 * * ? *)",
        "cron(0 9 0 * ? *)",
        "cron(0 9 ? * MON#6 *)",
        "cron(0 9 ? * FUNDAY *)",
        "cron(5-2 9 * * ? *)",
        "cron(0/0 9 * * ? *)",
        "cron(0 9 LW * ? *)",
        "cron(0 9 * * ? 1969)",
    ],
)
def test_no_schedule(text: str) -> None:
    with pytest.raises(BadSchedule):
        parse(text)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../../etc/passwd", "/etc/localtime", "\0"])
def test_no_zone(name: str) -> None:
    with pytest.raises(BadSchedule):
        zone(name)


@pytest.mark.parametrize("text", ["rate(1 minute)", "cron(* * * * ? *)"])
def test_after_years_away_the_last_time_is_found_without_going_through_all(text: str) -> None:
    until = _at("2036-11-01T12:00:30")
    assert last_within(parse(text), SINCE, until, since=SINCE, tz=UTC) == _at("2036-11-01T12:00:00")


@given(
    after=st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2027, 12, 31)),
    hours=st.integers(0, 24 * 40),
    text=st.sampled_from(
        [
            "at(2026-12-24T18:00:00)",
            "rate(7 hours)",
            "rate(3 days)",
            "cron(30 2 * * ? *)",
            "cron(0/15 1-3 ? * SUN *)",
            "cron(0 12 L * ? *)",
            "cron(0 0 1 JAN,JUL ? 2026)",
        ]
    ),
    tz=st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"]),
)
def test_the_last_time_is_the_one_that_going_on_step_by_step_comes_to(after: dt.datetime, hours: int, text: str, tz: str) -> None:
    start, place, last = after.replace(tzinfo=UTC), zoneinfo.ZoneInfo(tz), None
    until, at = start + dt.timedelta(hours=hours), start
    while (due := next_after(parse(text), at, since=SINCE, tz=place)) is not None and due <= until:
        last = at = due
    assert last_within(parse(text), start, until, since=SINCE, tz=place) == last


@given(
    after=st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2027, 12, 31)),
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    tz=st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"]),
)
def test_a_daily_time_is_due_within_two_days_and_is_that_local_time(after: dt.datetime, minute: int, hour: int, tz: str) -> None:
    start, place = after.replace(tzinfo=UTC), zoneinfo.ZoneInfo(tz)
    due = next_after(parse(f"cron({minute} {hour} * * ? *)"), start, since=SINCE, tz=place)
    assert due is not None
    assert start < due <= start + dt.timedelta(hours=49)
    local = due.astimezone(place)
    there_is_such = dt.datetime(local.year, local.month, local.day, hour, minute, tzinfo=place)
    if there_is_such.astimezone(UTC).astimezone(place).replace(tzinfo=None) == there_is_such.replace(tzinfo=None):
        assert (local.hour, local.minute) == (hour, minute)
