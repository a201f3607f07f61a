"""Data points as they are kept: written a minute at a time, folded into an hour of each series when that is over, and into a day.

One-minute values stay for 15 days, five-minute ones for 63, hourly ones for 455 [CloudWatch, "Metrics retention"]. All work is
done in a thread of its own with connections of its own: a disk that answers no more holds up nobody but those who ask for metrics.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from cachekeep.clock import Clock
from cachekeep.errors import Unusable
from cachekeep.metrics import tables as t
from cachekeep.metrics.chunks import pack, pack_minute, unpack, unpack_minute
from cachekeep.metrics.datum import Datum, merge
from cachekeep.metrics.points import Dimensions
from cachekeep.store.contract import StoreFailed
from cachekeep.store.database import Database, Session
from cachekeep.store.sql import database_of, no_key
from cachekeep.store.sqlite import Sqlite
from cachekeep.store.wakes import Touched

T = TypeVar("T")
log = logging.getLogger("cachekeep.metrics")

FILE: Final = "metrics.db"
MINUTE, HOUR, DAY = 60, 3600, 86400
KEPT_SECONDS: Final = {60: 15 * DAY, 300: 63 * DAY, 3600: 455 * DAY}
"""Period → how long its values are kept."""
STRETCH_SECONDS: Final = {60: HOUR, 300: DAY, 3600: DAY}
"""Period → how much lies in one chunk."""
LATE_SECONDS: Final = 600
"""An hour is folded when it has been over for so long."""
_AT_ONCE: Final = 200
_FOLDED_SOURCES: Final = 20


class Teller(msgspec.Struct, frozen=True):
    """Who tells."""

    namespace: str
    dimensions: Dimensions


class Series(msgspec.Struct, frozen=True):
    """One metric of one source, in one unit."""

    id: int
    source: Teller
    metric: str
    unit: str
    seen_at: int


Told = Mapping[tuple[str, str], Datum]
"""(Metric, unit) → what it was in one minute."""
Written = Sequence[tuple[Teller, int, Told]]
"""Who, in the minute that begins at which second since 1970, what."""
Points = dict[int, Datum]
"""Second since 1970 → what was measured from then on for one period."""


def dimensions_text(dimensions: Dimensions) -> str:
    return json.dumps(dimensions, separators=(",", ":"), ensure_ascii=False)


def database_for(url: str, data_dir: Path, clock: Clock) -> Callable[[], Database]:
    """Where an installation's metrics lie: beside its SQLite file, or in its PostgreSQL."""
    if "://" in url and not url.startswith("sqlite"):
        return lambda: database_of(url, clock, no_key)
    return lambda: Sqlite(data_dir / FILE, clock, lambda connection, shown: False)


class Archive:
    """``database`` makes what it writes into; it is called in the archive's own thread. None: nothing is kept. Every method
    raises ``StoreFailed`` while that cannot be used, for good if it could not be opened."""

    def __init__(self, database: Callable[[], Database] | None = None) -> None:
        self._make = database
        self._database: Database | None = None
        self._insert: Callable[[sa.Table], Any] = sqlite.insert
        self._loop: asyncio.AbstractEventLoop | None = None
        self._why_not = "they are not open"
        self._known: dict[Teller, tuple[int, dict[tuple[str, str], builtins.list[int]]]] = {}
        """Teller → its id, and of each of its series id and the hour of the latest point."""

    async def open(self) -> None:
        """Make ready. What keeps it from being used is logged, and told to whoever asks."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="cachekeep-metrics", daemon=True).start()
        try:
            await self._there(self._open())
        except (Unusable, StoreFailed) as error:
            self._why_not = str(error)
            log.error("no metrics are kept: %s. Caches are looked after all the same", error)

    async def aclose(self) -> None:
        if self._loop is not None:
            await self._there(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    async def write(self, rows: Written) -> None:
        """Keep what was measured: beside what is there for the same series and minute."""
        await self._there(self._write(rows))

    async def find(
        self,
        namespace: str | None = None,
        metric: str | None = None,
        dimensions: Dimensions | None = None,
        *,
        after: int = 0,
        limit: int = 0,
    ) -> builtins.list[Series]:
        """Series by namespace, name, and dimensions which are theirs or their first ones; in the order of their ids, behind one of
        them. ``limit`` 0: all."""
        return await self._there(self._find(namespace, metric, dimensions, after, limit))

    async def read(self, ids: Collection[int], start: int, end: int, period: int) -> dict[int, Points]:
        """Series → its points from ``start`` up to before ``end``, each over one ``period`` of 60, 300 or 3600 seconds."""
        return await self._there(self._read(ids, start, end, period))

    async def fold(self, now: int) -> bool:
        """Fold some of what is over, and remove what is too old. Whether there is more to do."""
        return await self._there(self._fold(now))

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise StoreFailed(f"metrics cannot be read or written: {self._why_not}")
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except ValueError as error:
            raise StoreFailed(f"metrics: {error}") from None

    # -- in the thread

    async def _open(self) -> None:
        if self._make is None:
            return
        database = self._make()
        await database.open()
        if not isinstance(database, Sqlite):
            self._insert = postgresql.insert
        async with database.writing(Touched()) as session:
            for table in t.metadata.sorted_tables:
                await session.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    await session.execute(CreateIndex(index, if_not_exists=True))
        self._database = database

    async def _close(self) -> None:
        if self._database is not None:
            await self._database.aclose()
            self._database = None

    def _open_database(self) -> Database:
        if self._database is None:
            raise StoreFailed(f"metrics cannot be read or written: {self._why_not}")
        return self._database

    async def _write(self, rows: Written) -> None:
        async with self._open_database().writing(Touched(), durable=False) as session:
            try:
                await self._introduce(session, rows)
                bodies = []
                for source, at, told in rows:
                    id, series = self._known[source]
                    bodies.append({"source": id, "at": at, "body": pack_minute({series[what][0]: d for what, d in told.items()})})
                if bodies:
                    await session.execute(sa.insert(t.minutes), bodies)
            except BaseException:
                self._known.clear()  # what was given an id may not have been kept
                raise

    async def _introduce(self, session: Session, rows: Written) -> None:
        """See to it that every source and series has its id, and that it is known when it last told something."""
        for source, at, told in rows:
            hour = at - at % HOUR
            if source not in self._known:
                self._known[source] = await self._learn(session, source)
            id, series = self._known[source]
            day = hour - hour % DAY
            new = [
                {"source": id, "metric": m, "unit": u, "seen_at": hour, "folded_to": day} for m, u in told if (m, u) not in series
            ]
            if new:
                await session.execute(self._insert(t.series).on_conflict_do_nothing(), new)
                self._known[source] = await self._learn(session, source)
                series = self._known[source][1]
            stale = [series[what] for what in told if series[what][1] < hour]
            if stale:
                ids = [each[0] for each in stale]
                await session.execute(sa.update(t.series).where(t.series.c.id.in_(ids)).values(seen_at=hour))
                for each in stale:
                    each[1] = hour

    async def _learn(self, session: Session, source: Teller) -> tuple[int, dict[tuple[str, str], builtins.list[int]]]:
        text = dimensions_text(source.dimensions)
        row = {"namespace": source.namespace, "dimensions": text}
        await session.execute(self._insert(t.sources).on_conflict_do_nothing(), [row])
        c = t.sources.c
        id = (await session.execute(sa.select(c.id).where(c.namespace == source.namespace, c.dimensions == text))).scalar_one()
        found = (await session.execute(sa.select(t.series).where(t.series.c.source == id))).all()
        return id, {(row.metric, row.unit): [row.id, row.seen_at] for row in found}

    async def _find(
        self, namespace: str | None, metric: str | None, dimensions: Dimensions | None, after: int, limit: int
    ) -> builtins.list[Series]:
        query = (
            sa.select(t.series, t.sources.c.namespace, t.sources.c.dimensions)
            .join(t.sources, t.sources.c.id == t.series.c.source)
            .where(t.series.c.id > after)
            .order_by(t.series.c.id)
        )
        if namespace is not None:
            query = query.where(t.sources.c.namespace == namespace)
        if metric is not None:
            query = query.where(t.series.c.metric == metric)
        if dimensions is not None:
            text = dimensions_text(dimensions)
            longer = t.sources.c.dimensions.startswith(text[:-1] + ",", autoescape=True)
            query = query.where(sa.or_(t.sources.c.dimensions == text, longer))
        if limit:
            query = query.limit(limit)
        async with self._open_database().reading() as session:
            rows = (await session.execute(query)).all()
        return [
            Series(row.id, Teller(row.namespace, _dimensions(row.dimensions)), row.metric, row.unit, row.seen_at) for row in rows
        ]

    async def _read(self, ids: Collection[int], start: int, end: int, period: int) -> dict[int, Points]:
        found: dict[int, Points] = {id: {} for id in ids}
        async with self._open_database().reading() as session:
            for some in _batches(sorted(found)):
                if period != MINUTE:
                    await self._add_chunks(session, found, some, period, start, end)
                    # What is not folded into days yet, from minutes.
                    c = t.series.c
                    folded = sa.select(sa.func.min(c.folded_to)).where(c.id.in_(some))
                    since = max(start - start % period, (await session.execute(folded)).scalar() or 0)
                    fine: dict[int, Points] = {id: {} for id in some}
                    await self._add_minutes(session, fine, some, since, end - end % -period)
                    for id in some:
                        found[id] |= {
                            at: d for at, d in coarse(fine[id], period).items() if at not in found[id] and start <= at < end
                        }
                else:
                    await self._add_minutes(session, found, some, start, end)
        return found

    async def _add_minutes(self, session: Session, found: dict[int, Points], ids: Sequence[int], start: int, end: int) -> None:
        await self._add_chunks(session, found, ids, MINUTE, start, end)
        wanted = set(ids)
        of = sa.select(t.series.c.source).where(t.series.c.id.in_(ids))
        c = t.minutes.c
        rows = (await session.execute(sa.select(c.at, c.body).where(c.source.in_(of), c.at >= start, c.at < end))).all()
        for row in rows:
            for id, datum in unpack_minute(row.body).items():
                if id in wanted:
                    _add(found[id], row.at, datum)

    async def _add_chunks(
        self, session: Session, found: dict[int, Points], ids: Sequence[int], period: int, start: int, end: int
    ) -> None:
        c, stretch = t.chunks.c, STRETCH_SECONDS[period]
        within = (c.period == period, c.series.in_(ids), c.start > start - stretch, c.start < end)
        rows = (await session.execute(sa.select(c.series, c.start, c.body).where(*within))).all()
        for row in rows:
            points = found[row.series]
            for slot, datum in unpack(row.body).items():
                at = row.start + slot * period
                if start <= at < end:
                    points[at] = datum

    # -- folding

    async def _fold(self, now: int) -> bool:
        over = now - LATE_SECONDS
        over -= over % HOUR
        database, c = self._open_database(), t.minutes.c
        async with database.reading() as session:
            due = sa.select(c.source).where(c.at < over).distinct().order_by(c.source).limit(_FOLDED_SOURCES)
            sources = (await session.execute(due)).scalars().all()
        if sources:
            async with database.writing(Touched(), durable=False) as session:
                await self._fold_hours(session, sources, over)
            return True
        async with database.writing(Touched(), durable=False) as session:
            if await self._fold_days(session, over - over % DAY):
                return True
            await self._forget(session, now)
        return False

    async def _forget(self, session: Session, now: int) -> None:
        for period, kept in KEPT_SECONDS.items():
            too_old = now - kept - STRETCH_SECONDS[period]
            await session.execute(sa.delete(t.chunks).where(t.chunks.c.period == period, t.chunks.c.start < too_old))
        old = t.series.c.seen_at < now - KEPT_SECONDS[HOUR]
        if (await session.execute(sa.delete(t.series).where(old).returning(t.series.c.id))).all():
            self._known.clear()

    async def _fold_hours(self, session: Session, sources: Sequence[int], over: int) -> None:
        c = t.minutes.c
        rows = (await session.execute(sa.select(c.id, c.at, c.body).where(c.source.in_(sources), c.at < over))).all()
        fresh: dict[tuple[int, int], Points] = defaultdict(dict)
        for row in rows:
            for id, datum in unpack_minute(row.body).items():
                _add(fresh[id, row.at - row.at % HOUR], row.at, datum)
        await self._merge_into(session, fresh)
        for some in _batches([row.id for row in rows]):
            await session.execute(sa.delete(t.minutes).where(c.id.in_(some)))
        since: dict[int, builtins.list[int]] = defaultdict(list)  # what comes late has its day folded again
        for id, hour in fresh:
            since[hour - hour % DAY].append(id)
        for day, ids in since.items():
            for some in _batches(ids):
                late = sa.update(t.series).where(t.series.c.id.in_(some), t.series.c.folded_to > day)
                await session.execute(late.values(folded_to=day))

    async def _merge_into(self, session: Session, fresh: Mapping[tuple[int, int], Points]) -> None:
        """Hours of series, over what is there of the same hours."""
        c = t.chunks.c
        there: dict[tuple[int, int], bytes] = {}
        ids, hours = sorted({id for id, _ in fresh}), {hour for _, hour in fresh}
        for some in _batches(ids):
            of = (c.period == MINUTE, c.series.in_(some), c.start >= min(hours), c.start <= max(hours))
            for row in (await session.execute(sa.select(c.series, c.start, c.body).where(*of))).all():
                there[row.series, row.start] = row.body
        rows = []
        for (id, hour), points in fresh.items():
            slots = unpack(there[id, hour]) if (id, hour) in there else {}
            for at, datum in points.items():
                _add(slots, (at - hour) // MINUTE, datum)
            rows.append({"period": MINUTE, "series": id, "start": hour, "body": pack(slots)})
        await self._put(session, rows)

    async def _fold_days(self, session: Session, today: int) -> bool:
        """Fold days before this one, of some series. Whether there were any."""
        c = t.series.c
        due = (
            sa.select(c.id, c.folded_to).where(c.folded_to < today, c.seen_at >= c.folded_to).order_by(c.folded_to).limit(_AT_ONCE)
        )
        found = (await session.execute(due)).all()
        for day in sorted({row.folded_to for row in found}):
            ids = [row.id for row in found if row.folded_to == day]
            await self._fold_day(session, ids, day)
            await session.execute(sa.update(t.series).where(c.id.in_(ids)).values(folded_to=day + DAY))
        return bool(found)

    async def _fold_day(self, session: Session, ids: Sequence[int], day: int) -> None:
        found: dict[int, Points] = {id: {} for id in ids}
        await self._add_chunks(session, found, ids, MINUTE, day, day + DAY)
        rows = []
        for id, points in found.items():
            # Percentiles stay known of what was told with its distribution: of a single value a minute they would double the file.
            distributed = any(datum.values for datum in points.values())
            for period in (300, HOUR):
                data = coarse(points, period)
                slots = {(at - day) // period: datum if distributed else replace(datum, values=()) for at, datum in data.items()}
                if slots:
                    rows.append({"period": period, "series": id, "start": day, "body": pack(slots)})
        await self._put(session, rows)

    async def _put(self, session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            insert = self._insert(t.chunks)
            key = [t.chunks.c.period, t.chunks.c.series, t.chunks.c.start]
            await session.execute(insert.on_conflict_do_update(index_elements=key, set_={"body": insert.excluded.body}), rows)


def coarse(points: Points, period: int) -> Points:
    """Over longer periods."""
    groups: dict[int, builtins.list[Datum]] = defaultdict(list)
    for at in sorted(points):
        groups[at - at % period].append(points[at])
    return {at: merge(data) for at, data in groups.items()}


def _add(points: Points, at: int, datum: Datum) -> None:
    points[at] = merge((points[at], datum)) if at in points else datum


def _dimensions(text: str) -> Dimensions:
    return tuple((name, value) for name, value in json.loads(text))


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))
