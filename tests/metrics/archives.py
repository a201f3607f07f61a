"""Archives for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from cachekeep.clock import SystemClock
from cachekeep.metrics.datum import Datum, merge, single
from cachekeep.metrics.points import Dimensions
from cachekeep.metrics.series import HOUR, Archive, Points, Series, Teller, Written, coarse, database_for


def archive_in(directory: Path) -> Archive:
    return Archive(database_for("", directory, SystemClock()))


def row(
    at: int, values: Mapping[str, float | Datum], *, source: Teller | None = None
) -> tuple[Teller, int, dict[tuple[str, str], Datum]]:
    told = {(name, "Count"): value if isinstance(value, Datum) else single(value) for name, value in values.items()}
    return source or Teller("Own", (("Name", "one"),)), at, told


class MemoryArchive(Archive):
    """One that can be copied, and forgets nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Teller, str, str], Points] = {}

    async def write(self, rows: Written) -> None:
        for source, at, told in rows:
            for (metric, unit), datum in told.items():
                points = self.kept.setdefault((source, metric, unit), {})
                points[at] = merge((points[at], datum)) if at in points else datum

    async def find(
        self,
        namespace: str | None = None,
        metric: str | None = None,
        dimensions: Dimensions | None = None,
        *,
        after: int = 0,
        limit: int = 0,
    ) -> list[Series]:
        found = []
        for id, ((source, name, unit), points) in enumerate(self.kept.items(), 1):
            fits = namespace in (None, source.namespace) and metric in (None, name)
            if fits and (dimensions is None or source.dimensions[: len(dimensions)] == dimensions):
                found.append(Series(id, source, name, unit, max(points) - max(points) % HOUR))
        return found

    async def read(self, ids: Collection[int], start: int, end: int, period: int) -> dict[int, Points]:
        every = list(self.kept.values())
        return {id: coarse({at: d for at, d in every[id - 1].items() if start <= at < end}, period) for id in ids}
