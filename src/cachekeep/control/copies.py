"""Copies of snapshots: into another of the vault, or plain into a bucket, as files that any engine loads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.backup.objects import Objects
from cachekeep.backup.vault import Vault
from cachekeep.clock import Clock
from cachekeep.errors import CachekeepError, Damaged, NotInVault, OrderFailed, VaultAway
from cachekeep.model import Event, Export, Snapshot, SnapshotEnd
from cachekeep.rounds import rounds
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.snapshots")

LOOK_SECONDS: Final = 2.0


class SnapshotCopier:
    """One copy at a time. ``buckets``: name → where it is, as a vault's."""

    def __init__(self, *, store: Store, vault: Vault, clock: Clock, buckets: Mapping[str, str]) -> None:
        self._store, self._vault, self._clock, self._buckets = store, vault, clock, buckets

    async def run(self) -> None:
        await rounds(self._clock, LOOK_SECONDS, self.copy_all, log, "snapshots cannot be copied now")

    def hasten(self) -> None:
        """It lacks nothing that an engine could bring."""

    async def copy_all(self) -> None:
        """Whatever was asked for and is not there. Raises ``VaultAway`` where that has to be tried again later."""
        async with self._store.reading() as tx:
            everything = await tx.list(Snapshot)
            ends = {s.uid: await tx.get(SnapshotEnd, s.uid) for s in everything}
            exports = await tx.list(Export)
        for snapshot in everything:
            if snapshot.copy_of and not snapshot.deleted and ends[snapshot.uid] is None:
                await self._copy(snapshot, ends.get(snapshot.copy_of))
        named = {s.name: s for s in everything}
        for export in exports:
            source = named.get(export.snapshot)
            await self._export(export, source, ends[source.uid] if source is not None else None)

    async def _copy(self, snapshot: Snapshot, source: SnapshotEnd | None) -> None:
        now = self._clock.now()
        try:
            end = await self._copied(snapshot, source)
        except (Damaged, NotInVault) as error:
            end = SnapshotEnd(name=snapshot.uid, at=now, problem=str(error))
        async with self._store.transaction() as tx:
            if await tx.get(SnapshotEnd, snapshot.uid) is None:
                await tx.put(end)
                told = f"failed for snapshot with ID '{snapshot.name}': {end.problem}" if end.problem else ""
                await tx.tell(_event(snapshot, f"Copy {told or f'succeeded for snapshot with ID {snapshot.name!r}'}"))

    async def _copied(self, snapshot: Snapshot, source: SnapshotEnd | None) -> SnapshotEnd:
        if source is None or not source.holding:
            raise NotInVault("what was to be copied is gone")
        for there in (await self._vault.holdings()).holdings:  # by a control plane that died before it could say so
            if there.about.get("uid") == snapshot.uid:
                return msgspec.convert(there.about["end"], SnapshotEnd)
        holding = await self._vault.find(source.holding)
        draft = await self._vault.draft(holding.cache, snapshot.name)
        try:
            for name in holding.objects:
                async with draft.put(name) as writer:
                    async for piece in self._vault.read(holding, name):
                        await writer.write(piece)
            end = replace(source, name=snapshot.uid, at=self._clock.now(), holding=draft.id, version=0)
            about: dict[str, Any] = {
                "uid": snapshot.uid,
                "snapshot": msgspec.to_builtins(snapshot),
                "end": msgspec.to_builtins(end),
            }
            await draft.commit(created_at=holding.created_at, about=about)
        except BaseException:
            with contextlib.suppress(CachekeepError):
                await draft.abandon()
            raise
        return end

    async def _export(self, export: Export, source: Snapshot | None, end: SnapshotEnd | None) -> None:
        bucket, _, target = export.name.partition("/")
        try:
            if source is None or end is None or not end.holding:
                raise NotInVault("what was to be exported is gone")
            await self._exported(bucket, target, end)
            told = f"Export succeeded for snapshot with ID '{source.name}': {target}-….rdb is in bucket {bucket}"
        except (Damaged, NotInVault, OrderFailed, VaultAway) as error:
            told = f"Export failed for snapshot with ID '{export.snapshot}': {error}"
        async with self._store.transaction() as tx:
            await tx.delete(Export, export.name)
            if source is not None:
                await tx.tell(_event(source, told))
        log.info("%s", told)

    async def _exported(self, bucket: str, target: str, end: SnapshotEnd) -> None:
        url = self._buckets.get(bucket)
        if url is None:
            raise OrderFailed(f"there is no bucket {bucket} any more (--bucket)")
        holding = await self._vault.find(end.holding)
        objects = Objects(url)
        try:
            paths = {name: f"{target}-{name}" for name in holding.objects}
            folder = target.rpartition("/")[0]
            there = {listed.path for listed in await objects.list(folder)}
            if taken := sorted(there & set(paths.values())):
                raise OrderFailed(f"{taken[0]} is in bucket {bucket} already. Nothing was written: choose another name")
            for name, path in paths.items():
                upload = objects.upload(path, _plain)
                try:
                    async for piece in self._vault.read(holding, name):
                        await upload.write(piece)
                    await upload.finish()
                except BaseException:
                    await upload.abandon()
                    raise
        finally:
            objects.close()


def _plain(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return pieces


def _event(snapshot: Snapshot, message: str) -> Event:
    source = snapshot.group or snapshot.nodes[0].cluster_id
    return Event(source_type="replication-group" if snapshot.group else "cache-cluster", source=source, message=message)
