"""Where data points lie: in an SQLite file of their own, so that they never hold the store's write lock, or in the same
PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# Who tells: a namespace and dimensions, JSON as it comes out of ``series.dimensions_text``.
sources = sa.Table(
    "metric_sources",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("dimensions", sa.Text, nullable=False),
    sa.UniqueConstraint("namespace", "dimensions", name="uq_metric_sources"),
)

# What it tells. ``seen_at``: the hour of its latest point; ``folded_to``: the day up to which days are folded. Seconds since 1970.
series = sa.Table(
    "metric_series",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("source", sa.BigInteger, nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Column("folded_to", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("source", "metric", "unit", name="uq_metric_series"),
    sa.Index("ix_metric_series_metric", "metric"),
    sa.Index("ix_metric_series_folded_to", "folded_to"),
)

# What came in and is not folded yet: a row for each source and minute.
minutes = sa.Table(
    "metric_minutes",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("source", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("ix_metric_minutes_source", "source", "at"),
)

# Stretches of one series, as ``chunks`` packs them. ``period`` 60: an hour; 300 and 3600: a day.
chunks = sa.Table(
    "metric_chunks",
    metadata,
    sa.Column("period", sa.BigInteger, primary_key=True),
    sa.Column("series", sa.BigInteger, primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
