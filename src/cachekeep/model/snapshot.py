"""Snapshots: what was asked for, and what came of it. Each is a record with one writer, and a snapshot's status is concluded from
them.

``Snapshot`` is written when one is asked for. ``SnapshotEnd`` is left with the decision that its job has ended. What
the vault keeps of it goes by the snapshot's ``uid``, which is never used again; names are.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

SnapshotSource = Literal["manual", "automated"]


class SnapshotNode(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's node of a snapshot, and what its cache was to it."""

    shard: str
    cluster_id: str
    slots: tuple[tuple[int, int], ...] = ()
    """Cluster mode: what the shard owned."""
    replicas: int = 0
    created_at: dt.datetime | None = None


class SnapshotSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache was, as far as it is told of its snapshot and taken over by a restore."""

    engine: str
    version: str
    node_type: str
    port: int
    clustered: bool
    parameter_group: str
    subnet_group: str | None
    description: str
    maintenance_window: str
    snapshot_window: str
    retention_days: int
    auto_minor_version_upgrade: bool
    automatic_failover: bool
    zone: str
    created_at: dt.datetime


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as it was asked for."""

    name: str
    uid: str
    source: SnapshotSource
    asked_at: dt.datetime
    cache_uid: str
    group: str = ""
    """The replication group's id, where that is what was named."""
    cluster_id: str = ""
    """The cache cluster's, where that is."""
    settings: SnapshotSettings
    nodes: tuple[SnapshotNode, ...]
    copy_of: str = ""
    """Uid of the snapshot of which it is a copy."""
    deleted: bool = False
    """Its data are to go, and then this."""
    version: int = 0


class ShardCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's data in the vault."""

    shard: str
    node: str
    """It was read from."""
    size_bytes: int
    """Of its RDB."""
    used_bytes: int
    """That its data took in memory, by the engine's count."""
    keys: int | None = None
    """That its engine counted in the first database when it began; None: it did not say."""
    other_databases: tuple[int, ...] = ()
    """Those other than 0 that held keys."""
    taken_at: dt.datetime


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """What a new cache's first primaries start from."""

    snapshot: str
    """Its uid, or empty for data from elsewhere."""
    name: str
    """As it is told."""
    holding: str
    """By which the vault knows the data; empty: they are in buckets."""
    objects: dict[str, str]
    """Shard → the vault's object with its RDB; or bucket and key, with a slash between."""
    size_bytes: int | None = None
    """Of the largest; None: not known."""


class SnapshotEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What came of taking a snapshot. ``name`` is the snapshot's uid."""

    name: str
    at: dt.datetime
    problem: str = ""
    """Why there are no data; empty: they are whole."""
    holding: str = ""
    """By which the vault knows them."""
    copies: tuple[ShardCopy, ...] = ()
    version: int = 0


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What came of restoring a snapshot for a trial. ``name`` is the snapshot's uid."""

    name: str
    at: dt.datetime
    how: Literal["loaded", "read"]
    """By an engine, which counted its keys; or, where that would not fit, as far as the vault itself can tell: to the last byte."""
    keys: int | None = None
    seconds: float = 0.0
    problem: str = ""
    """Why it cannot be restored; empty: it can."""
    version: int = 0


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot's data that are to be put into a bucket, as they are; gone when that is over. ``name`` is the bucket's and the
    target's, with a slash between."""

    name: str
    snapshot: str
    """The name of the snapshot."""
    version: int = 0
