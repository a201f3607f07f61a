"""Every snapshot is restored for a trial, out of the vault, into an engine that nobody sees, and counted. One that cannot be
restored is told of at once, and not when it is needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cachekeep.backup.feed import scratch
from cachekeep.backup.vault import Holding, Vault
from cachekeep.clock import Clock
from cachekeep.engines.catalogue import Build, Catalogue
from cachekeep.errors import Damaged, EngineMissing, NotInVault, OrderFailed, Unsealable, VaultAway
from cachekeep.model import Event, Snapshot, SnapshotEnd, Verification
from cachekeep.rounds import rounds
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.snapshots")

LOOK_SECONDS: Final = 3.0
ROOM: Final = 2
"""What an engine that loads may need, against what the source counted as used."""
LOAD_SECONDS: Final = 3600.0


class Verifier:
    """One snapshot at a time. ``directory``: where an engine works, and its data lie while it loads them. ``memory_bytes``: the
    most that it may have; what needs more is only read."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        clock: Clock,
        catalogue: Callable[[], Catalogue],
        directory: Path,
        memory_bytes: int,
    ) -> None:
        self._store, self._vault, self._clock, self._catalogue = store, vault, clock, catalogue
        self._directory, self._memory_bytes = directory, memory_bytes

    async def run(self) -> None:
        await rounds(self._clock, LOOK_SECONDS, self.verify_all, log, "snapshots cannot be verified now")

    def hasten(self) -> None:
        """What lacked an engine is looked at again anyway."""

    async def verify_all(self) -> None:
        """Those that nobody has tried yet."""
        async with self._store.reading() as tx:
            found = [(s, await tx.get(SnapshotEnd, s.uid)) for s in await tx.list(Snapshot) if not s.deleted]
            due = [(s, e) for s, e in found if e is not None and e.holding and await tx.get(Verification, s.uid) is None]
        for snapshot, end in due:
            made = await self._verify(snapshot, end)
            if made is not None:
                await self._keep(snapshot, made)

    async def _verify(self, snapshot: Snapshot, end: SnapshotEnd) -> Verification | None:
        """None: nobody can say now."""
        began = self._clock.monotonic()
        build = self._build(snapshot)
        fits = max((c.used_bytes for c in end.copies), default=0) * ROOM <= self._memory_bytes
        keys, problem = None, ""
        try:
            holding = await self._vault.find(end.holding)
            if fits and build is not None:
                keys = await self._load(holding, end, build)
            else:
                await self._read(holding)
        except (VaultAway, Unsealable) as error:
            log.warning("snapshot %s cannot be verified now: %s", snapshot.name, error)
            return None
        except (Damaged, NotInVault, OrderFailed) as error:
            problem = str(error)
        return Verification(
            name=snapshot.uid,
            at=self._clock.now(),
            how="loaded" if fits and build is not None else "read",
            keys=keys,
            seconds=round(self._clock.monotonic() - began, 3),
            problem=problem,
        )

    def _build(self, snapshot: Snapshot) -> Build | None:
        try:
            return self._catalogue().resolve(snapshot.settings.engine, snapshot.settings.version)
        except EngineMissing:
            return None

    async def _load(self, holding: Holding, end: SnapshotEnd, build: Build) -> int:
        """How many keys there are. Raises ``OrderFailed`` where they are others than the source counted."""
        total = 0
        await asyncio.to_thread(lambda: self._directory.mkdir(mode=0o700, parents=True, exist_ok=True))
        for copy in end.copies:
            rdb = self._vault.read(holding, f"{copy.shard}.rdb")
            more = {"databases": str(max((16, *(n + 1 for n in copy.other_databases))))}
            server = self._catalogue().command(build.program)
            async with scratch(
                server,
                parent=self._directory,
                rdb=rdb,
                settings=more,
                memory_bytes=self._memory_bytes,
                start_seconds=LOAD_SECONDS,
            ) as engine:
                counted = await engine.keys()
            first = counted.get(min(counted), 0) if counted else 0
            if copy.keys is not None and first != copy.keys:
                raise OrderFailed(f"shard {copy.shard} has {first} keys, and its engine counted {copy.keys} when it was taken")
            total += sum(counted.values())
        return total

    async def _read(self, holding: Holding) -> None:
        for name in holding.objects:
            async for _ in self._vault.read(holding, name):
                pass

    async def _keep(self, snapshot: Snapshot, made: Verification) -> None:
        async with self._store.transaction() as tx:
            if await tx.get(Verification, snapshot.uid) is None and await tx.get(SnapshotEnd, snapshot.uid) is not None:
                await tx.put(made)
                if made.problem:
                    await tx.tell(_told(snapshot, made.problem))
        log.log(
            logging.ERROR if made.problem else logging.INFO,
            "snapshot %s %s",
            snapshot.name,
            f"cannot be restored: {made.problem}" if made.problem else f"is verified ({made.how}, {made.seconds:g} s)",
        )


def _told(snapshot: Snapshot, problem: str) -> Event:
    source = snapshot.group or snapshot.nodes[0].cluster_id
    message = f"Snapshot {snapshot.name} cannot be restored: {problem}. Take another one"
    return Event(source_type="replication-group" if snapshot.group else "cache-cluster", source=source, message=message)
