"""The tables, declared once for SQLite and PostgreSQL. Structs are JSON text; only what a query asks for is a column of its own."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

SCHEMA = "0008"
"""The newest revision in ``migrations/versions``."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# Pages are cut by name, so both databases must sort by code point.
Name = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
Micros = sa.BigInteger
"""UTC, microseconds since 1970: exact in both databases, and what datetime holds."""


def _uid(*, primary: bool) -> sa.Column[str]:
    return sa.Column("uid", sa.Text, sa.ForeignKey("caches.uid", ondelete="CASCADE"), primary_key=primary, nullable=False)


caches = sa.Table(
    "caches",
    metadata,
    sa.Column("uid", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", Name, nullable=False),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("created_at", Micros, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False),
    sa.Column("decided", sa.Text, nullable=False),
    sa.UniqueConstraint("kind", "name"),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("cluster_id", Name, primary_key=True),
    _uid(primary=False),
    sa.Index(None, "uid"),
)

addresses = sa.Table(
    "addresses",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),
    _uid(primary=False),
    sa.Index(None, "uid"),
)

# Those that were given up, by which cache and when: nobody else is given them for a while.
released = sa.Table(
    "released",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("boot", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)

# A lease lives while its holder does, so that renewing a thousand leases is one small write: the holder counts up its beat. One
# whose beat stays the same for its time to live, microseconds, is dead.
leases = sa.Table(
    "leases",
    metadata,
    _uid(primary=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text),
    sa.Index(None, "holder"),
)

# What one worker of an installation does at a time, and whose it is.
work = sa.Table(
    "work",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text),
)

holders = sa.Table(
    "holders",
    metadata,
    sa.Column("holder", sa.Text, primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("ttl", sa.BigInteger, nullable=False),
)

conditions = sa.Table(
    "conditions",
    metadata,
    _uid(primary=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", Name, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", Micros, nullable=False),
    sa.Column("source_type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Index(None, "at", "id"),
)
