"""What is kept: minutes, hours, days; what comes late; what is too old; a disk that is full; a file that is none."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.metrics.archives import archive_in, row

from cachekeep.metrics.datum import merge, of_values, single
from cachekeep.metrics.series import DAY, FILE, HOUR, Archive, Teller
from cachekeep.store.contract import StoreFailed

MIDNIGHT = 1_795_910_400 - 1_795_910_400 % DAY


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    archive = archive_in(tmp_path)
    await archive.open()
    yield archive
    await archive.aclose()


async def fold(archive: Archive, now: int) -> None:
    while await archive.fold(now):
        pass


async def test_what_was_written_is_read_at_once_and_after_every_fold(archive: Archive) -> None:
    chance = random.Random(7)
    written = {MIDNIGHT + minute * 60: float(chance.randrange(1000)) for minute in range(2 * 1440) if minute % 7}
    rows = [row(at, {"Wave": value, "Still": 5.0}) for at, value in written.items()]
    await archive.write(rows)
    ids = {series.metric: series.id for series in await archive.find("Own")}
    wave, still = ids["Wave"], ids["Still"]
    everything = (MIDNIGHT, MIDNIGHT + 3 * DAY)
    for now in (MIDNIGHT, MIDNIGHT + 5 * HOUR, MIDNIGHT + DAY + HOUR, MIDNIGHT + 3 * DAY):
        await fold(archive, now)
        found = await archive.read([wave, still], *everything, 60)
        assert {at: datum.total for at, datum in found[wave].items()} == written
        assert set(found[still].values()) == {single(5.0)}
        for period in (300, HOUR):
            coarse = (await archive.read([wave], *everything, period))[wave]
            wanted = {at - at % period for at in written}
            assert set(coarse) == wanted
            at = max(wanted)
            whole = merge([single(v) for t, v in written.items() if at <= t < at + period])
            assert replace(coarse[at], values=()) == replace(whole, values=())


async def test_percentiles_of_days_are_kept_of_what_was_told_with_its_distribution(archive: Archive) -> None:
    told = of_values([(1.0, 9.0), (100.0, 1.0)])
    await archive.write([row(MIDNIGHT + minute * 60, {"Latency": told, "Single": float(minute)}) for minute in range(60)])
    ids = {series.metric: series.id for series in await archive.find()}
    await fold(archive, MIDNIGHT + 2 * DAY)
    found = await archive.read(list(ids.values()), MIDNIGHT, MIDNIGHT + DAY, HOUR)
    assert found[ids["Latency"]][MIDNIGHT].values == ((1.0, 540.0), (100.0, 60.0))
    assert found[ids["Single"]][MIDNIGHT].distribution is None


async def test_what_comes_late_changes_hours_and_days_that_are_folded(archive: Archive) -> None:
    await archive.write([row(MIDNIGHT, {"Hits": 1.0})])
    await fold(archive, MIDNIGHT + 2 * DAY)
    await archive.write([row(MIDNIGHT, {"Hits": 3.0}), row(MIDNIGHT + 60, {"Hits": 5.0})])
    (series,) = await archive.find("Own", "Hits")
    for now in (MIDNIGHT, MIDNIGHT + 2 * DAY):
        await fold(archive, now)
        minutes = (await archive.read([series.id], MIDNIGHT, MIDNIGHT + HOUR, 60))[series.id]
        assert {at: (datum.count, datum.total) for at, datum in minutes.items()} == {MIDNIGHT: (2, 4), MIDNIGHT + 60: (1, 5)}
    hours = (await archive.read([series.id], MIDNIGHT, MIDNIGHT + HOUR, HOUR))[series.id]
    assert [(datum.count, datum.total) for datum in hours.values()] == [(3, 9)]


async def test_what_is_too_old_goes(archive: Archive) -> None:
    await archive.write([row(MIDNIGHT, {"Hits": 1.0})])
    (series,) = await archive.find("Own")

    async def kept(period: int) -> int:
        return len((await archive.read([series.id], MIDNIGHT, MIDNIGHT + DAY, period))[series.id])

    for days, wanted in ((14, (1, 1, 1)), (17, (0, 1, 1)), (65, (0, 0, 1)), (457, (0, 0, 0))):
        await fold(archive, MIDNIGHT + days * DAY)
        assert (await kept(60), await kept(300), await kept(HOUR)) == wanted
    assert await archive.find("Own") == []


async def test_series_are_found_by_what_they_are(archive: Archive) -> None:
    one = Teller("AWS/ElastiCache", (("CacheClusterId", "a"), ("CacheNodeId", "0001")))
    two = Teller("AWS/ElastiCache", (("CacheClusterId", "ab"), ("CacheNodeId", "0001")))
    await archive.write([row(0, {"X": 1.0, "Y": 1.0}, source=one), row(0, {"X": 1.0}, source=two), row(0, {"X": 1.0})])
    assert len(await archive.find()) == 4
    assert {s.source for s in await archive.find("AWS/ElastiCache", "X")} == {one, two}
    assert {s.source for s in await archive.find("AWS/ElastiCache", "X", (("CacheClusterId", "a"),))} == {one}
    assert {s.source for s in await archive.find("AWS/ElastiCache", "X", two.dimensions)} == {two}
    first, *_ = await archive.find()
    assert len(await archive.find(after=first.id, limit=2)) == 2


async def test_it_is_all_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        archive = archive_in(tmp_path)
        await archive.open()
        await archive.write([row(number * 60, {"Hits": float(number)})])
        (series,) = await archive.find("Own")
        assert len((await archive.read([series.id], 0, HOUR, 60))[series.id]) == number + 1
        await archive.aclose()


async def test_a_file_that_is_none_keeps_nobody_from_starting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, " * 100)
    archive = archive_in(tmp_path)
    await archive.open()
    assert "no metrics are kept" in caplog.text
    with pytest.raises(StoreFailed, match="metrics cannot be read or written"):
        await archive.write([row(0, {"Hits": 1.0})])
    await archive.aclose()
    with pytest.raises(StoreFailed):
        await archive.find()
