"""When a scheduled action is due: ``at(…)``, ``rate(…)`` and ``cron(…)``, in a time zone. Pure.

Source: Application Auto Scaling User Guide, "Schedule recurring scaling actions using cron expressions" and "Example rate
expressions"; a time that the clocks leave out counts when they have been put forward, one that they show twice counts once.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

_UNITS: Final = {"minute": 60, "hour": 3600, "day": 86400}
_MONTHS: Final = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS: Final = dict(zip(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), range(1, 8), strict=True))
_YEARS: Final = range(1970, 2200)
_YEARS_AHEAD_MAX: Final = 8
"""So far ahead is looked: between two 29ths of February there are at most eight years."""

_OnDay = Callable[[dt.date], bool]


class BadSchedule(ValueError):
    """The text is no schedule; the message says why."""


class At(msgspec.Struct, frozen=True):
    """Once, at a local time."""

    time: dt.datetime


class Rate(msgspec.Struct, frozen=True):
    """Again and again, counted from the beginning."""

    seconds: int


class Cron(msgspec.Struct, frozen=True):
    """Whenever the local time fits. ``days`` and ``weekdays`` are as they were written: what they mean depends on the month."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: str
    months: frozenset[int]
    weekdays: str
    years: frozenset[int]


Schedule = At | Rate | Cron


def parse(text: str) -> Schedule:
    """Raises BadSchedule."""
    found = re.fullmatch(r"(at|rate|cron)\((.*)\)", text.strip())
    if found is None:
        raise BadSchedule(f"{text!r} is none of at(yyyy-mm-ddThh:mm:ss), rate(value unit) and cron(fields)")
    kind, inner = found[1], found[2].strip()
    if kind == "at":
        return At(_time(inner))
    if kind == "rate":
        return Rate(_rate(inner))
    return _cron(inner)


def zone(name: str) -> dt.tzinfo:
    """A time zone by its IANA name; UTC for none. Raises BadSchedule."""
    if not name:
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise BadSchedule(f"{name!r} is not a time zone that is known here") from None


def next_after(schedule: Schedule, after: dt.datetime, *, since: dt.datetime, tz: dt.tzinfo) -> dt.datetime | None:
    """The first time after ``after`` at which it is due, as UTC; None if never again. A rate is counted from ``since``."""
    match schedule:
        case At(time):
            due = time.replace(tzinfo=tz).astimezone(dt.UTC)
            return due if due > after else None
        case Rate(seconds):
            passed = max(0, int((after - since).total_seconds() // seconds))
            return since + dt.timedelta(seconds=seconds * (passed + 1))
        case Cron():
            return next((due for due in _times(schedule, after.astimezone(tz).date(), tz) if due > after), None)


def last_within(
    schedule: Schedule, after: dt.datetime, until: dt.datetime, *, since: dt.datetime, tz: dt.tzinfo
) -> dt.datetime | None:
    """The last time after ``after`` and up to ``until`` at which it was due, as UTC; None if it was not. It does not go through
    those in between: there are half a million minutes in a year."""
    match schedule:
        case At():
            due = next_after(schedule, after, since=since, tz=tz)
            return due if due is not None and due <= until else None
        case Rate(seconds):
            passed = int((until - since).total_seconds() // seconds)
            due = since + dt.timedelta(seconds=seconds * passed)
            return due if passed > 0 and due > after else None
        case Cron():
            day, first, fits = until.astimezone(tz).date(), after.astimezone(tz).date(), _on_days(schedule)
            while day >= first:
                if found := [due for due in _times_of(schedule, day, fits, tz) if after < due <= until]:
                    return max(found)
                day -= dt.timedelta(days=1)
            return None


def _times(cron: Cron, first: dt.date, tz: dt.tzinfo) -> Iterator[dt.datetime]:
    fits = _on_days(cron)
    for ahead in range(366 * _YEARS_AHEAD_MAX):
        yield from _times_of(cron, first + dt.timedelta(days=ahead), fits, tz)


def _times_of(cron: Cron, day: dt.date, fits: _OnDay, tz: dt.tzinfo) -> Iterator[dt.datetime]:
    if day.year in cron.years and day.month in cron.months and fits(day):
        for hour in cron.hours:
            for minute in cron.minutes:
                yield dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=tz).astimezone(dt.UTC)


def _time(text: str) -> dt.datetime:
    try:
        return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise BadSchedule(f"{text!r} is not a time like 2026-12-24T18:00:00") from None


def _rate(text: str) -> int:
    found = re.fullmatch(r"(\d{1,6})\s+(minute|hour|day)(s?)", text)
    if found is None or not (count := int(found[1])) or (count == 1) == bool(found[3]):
        raise BadSchedule(f"{text!r} is not a rate like 1 hour or 5 minutes")
    return count * _UNITS[found[2]]


def _cron(text: str) -> Cron:
    fields = text.upper().split()
    if len(fields) != 6:
        raise BadSchedule(f"{text!r} has {len(fields)} fields; cron has six: minutes hours day-of-month month day-of-week year")
    minutes, hours, days, months, weekdays, years = fields
    if (days == "?") == (weekdays == "?"):
        raise BadSchedule(f"one of day-of-month and day-of-week must be ?, and not both: {text!r}")
    found = Cron(
        minutes=tuple(_numbers(minutes, range(60))),
        hours=tuple(_numbers(hours, range(24))),
        days=days,
        months=frozenset(_numbers(months, range(1, 13), _MONTHS)),
        weekdays=weekdays,
        years=frozenset(_numbers(years, _YEARS)),
    )
    _on_days(found)
    return found


def _numbers(field: str, span: Sequence[int], names: dict[str, int] | None = None) -> list[int]:
    """What a field allows, in order: ``*``, lists, ranges, steps, names. Raises BadSchedule."""
    found: set[int] = set()
    for part in field.split(","):
        whole, slash, step = part.partition("/")
        first, dash, last = whole.partition("-")
        if whole == "*":
            low, high = span[0], span[-1]
        else:
            low = _number(first, names)
            high = _number(last, names) if dash else span[-1] if slash else low
        every = _number(step, None) if slash else 1
        if low not in span or high not in span or low > high or every < 1:
            raise BadSchedule(f"{field!r} is not within {span[0]} to {span[-1]}")
        found.update(range(low, high + 1, every))
    return sorted(found)


def _number(text: str, names: dict[str, int] | None) -> int:
    if names and text in names:
        return names[text]
    if not re.fullmatch(r"\d{1,4}", text):
        raise BadSchedule(f"{text!r} is not a number that a cron field can have")
    return int(text)


def _on_days(cron: Cron) -> _OnDay:
    """Which dates the two day fields allow. Raises BadSchedule."""
    if cron.weekdays == "?":
        return _by_date(cron.days)
    return _by_weekday(cron.weekdays)


def _by_date(field: str) -> _OnDay:
    if field == "L":
        return lambda day: day.day == _last(day)
    if found := re.fullmatch(r"(\d{1,2})W", field):
        (wanted,) = _numbers(found[1], range(1, 32))
        return lambda day: day.day == _nearest_weekday(day, wanted)
    days = _numbers(field, range(1, 32))
    return lambda day: day.day in days


def _by_weekday(field: str) -> _OnDay:
    if found := re.fullmatch(r"(\w+)L", field):
        (wanted,) = _numbers(found[1], range(1, 8), _DAYS)
        return lambda day: _weekday(day) == wanted and day.day + 7 > _last(day)
    if found := re.fullmatch(r"(\w+)#([1-5])", field):
        (wanted,), nth = _numbers(found[1], range(1, 8), _DAYS), int(found[2])
        return lambda day: _weekday(day) == wanted and (day.day - 1) // 7 + 1 == nth
    days = _numbers(field, range(1, 8), _DAYS)
    return lambda day: _weekday(day) in days


def _weekday(day: dt.date) -> int:
    """1 is Sunday."""
    return day.isoweekday() % 7 + 1


def _last(day: dt.date) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def _nearest_weekday(day: dt.date, wanted: int) -> int:
    """The day of this month from Monday to Friday that is nearest to the wanted one, never in another month; 0: it has no such."""
    if wanted > _last(day):
        return 0
    at = day.replace(day=wanted).isoweekday()
    if at == 6:
        return wanted - 1 if wanted > 1 else wanted + 2
    if at == 7:
        return wanted + 1 if wanted < _last(day) else wanted - 2
    return wanted
