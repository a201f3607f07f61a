"""Snapshots, done: shards are read and put into the vault, and what is not to be there any more is removed from it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.backup.replica import AsReplica, Received
from cachekeep.backup.vault import Draft, Holding, Vault
from cachekeep.clock import Clock
from cachekeep.compute.contract import Link, Target
from cachekeep.control.jobs import Report
from cachekeep.engines.rdb import keys_of_first_database
from cachekeep.engines.users import REPLICA, secret_of
from cachekeep.errors import CachekeepError, OrderFailed
from cachekeep.model import Cache, Node, Record, Secret, ShardCopy, Snapshot, SnapshotEnd, Task, Verification
from cachekeep.plan import snapshots
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.snapshots")

READ_SECONDS: Final = snapshots.DEADLINE_SECONDS
LOOK_SECONDS: Final = 10.0
HEAD_BYTES: Final = 64 << 10
SWEEP_SECONDS: Final = 2.0
FORGOTTEN_SECONDS: Final = 24 * 3600.0
"""What an attempt left in the vault that ended without a word is removed after so long: four times as long as any lasts."""

Receive = Callable[..., Awaitable[Received]]
"""``backup.replica.receive``."""


class SnapshotTasks:
    """Takes snapshots: one attempt at a time of each. Whatever happens, the vault has all of a snapshot or nothing that counts."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        link: Link,
        target_of: Callable[[Cache, Node], Target],
        receive: Receive,
        clock: Clock,
    ) -> None:
        self._store, self._vault, self._link, self._target_of = store, vault, link, target_of
        self._receive, self._clock = receive, clock

    async def take(self, task: Task, report: Report) -> tuple[Record, ...]:
        """Read all shards at once. Raises what the attempt fails of."""
        uid = task.arguments["snapshot"]
        cache = await self._store.load(task.arguments["cache"])
        async with self._store.reading() as tx:
            found = await tx.get(Snapshot, uid.rpartition("/")[2])
        if cache is None or found is None or found.uid != uid:
            raise OrderFailed("it is not asked for any more")
        if "again" in task.arguments and (there := await self._there(uid)) is not None:
            return (_end(there),)
        sources = snapshots.sources(task)
        draft = await self._vault.draft(cache.name, found.name)
        try:
            holding = await self._fill(draft, cache, found, sources, report)
        except BaseException:
            with contextlib.suppress(CachekeepError):
                await draft.abandon()
            raise
        return (_end(holding),)

    async def _there(self, uid: str) -> Holding | None:
        """What an attempt before has brought to its end, of which nobody heard."""
        listing = await self._vault.holdings()
        return next((h for h in listing.holdings if h.about.get("uid") == uid), None)

    async def _fill(self, draft: Draft, cache: Cache, found: Snapshot, sources: dict[str, str], report: Report) -> Holding:
        nodes = {shard: cache.node(name) for shard, name in sources.items()}
        progress = _Progress(report)
        async with _together() as tasks:
            reads = [
                tasks.create_task(self._read(draft, cache, shard, node, progress))
                for shard, node in nodes.items()
                if node is not None
            ]
        copies = tuple(r.result() for r in reads)
        if len(copies) != len(sources):
            raise OrderFailed("a node that was to be read is gone")
        now = self._clock.now()
        about: dict[str, Any] = {
            "uid": found.uid,
            "snapshot": msgspec.to_builtins(found),
            "end": msgspec.to_builtins(SnapshotEnd(name=found.uid, at=now, holding=draft.id, copies=copies)),
        }
        return await draft.commit(created_at=now, about=about)

    async def _read(self, draft: Draft, cache: Cache, shard: str, node: Node, progress: _Progress) -> ShardCopy:
        at = self._target_of(cache, node)
        seen = await self._link.look(at, deadline_seconds=LOOK_SECONDS)
        if seen.answer != "complete" or seen.used_bytes is None:
            raise OrderFailed(f"{node.name}, which was to be read, does not answer")
        progress.expects(seen.used_bytes)
        login = AsReplica(REPLICA, Secret(secret_of(REPLICA, at.password)))
        tls = ssl.create_default_context(cadata=at.trust) if at.trust else None
        began_at, head = self._clock.now(), bytearray()
        async with draft.put(f"{shard}.rdb") as writer:

            async def sink(chunk: bytes) -> None:
                if len(head) < HEAD_BYTES:
                    head.extend(chunk[:HEAD_BYTES])
                await writer.write(chunk)
                progress.add(len(chunk))

            received = await self._receive((at.address, at.port), login, sink, deadline_seconds=READ_SECONDS, tls=tls)
        return ShardCopy(
            shard=shard,
            node=node.member,
            size_bytes=received.bytes,
            used_bytes=seen.used_bytes,
            keys=keys_of_first_database(bytes(head)),
            other_databases=seen.other_databases,
            taken_at=began_at,
        )


class _Progress:
    """How far a snapshot has come, of what its engines count as used: an RDB is smaller, so it is said with care."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._expected = self._read = 0

    def expects(self, count: int) -> None:
        self._expected += count

    def add(self, count: int) -> None:
        self._read += count
        if self._expected:
            self._report(min(99.0, 100.0 * self._read / self._expected))


@contextlib.asynccontextmanager
async def _together() -> Any:
    """Tasks of which the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _end(holding: Holding) -> SnapshotEnd:
    return msgspec.convert(holding.about["end"], SnapshotEnd)


class SnapshotSweeper:
    """Removes from the vault what is not to be there any more: snapshots that were deleted, and what attempts left behind."""

    def __init__(self, *, store: Store, vault: Vault, clock: Clock, clear: Callable[[], Awaitable[None]]) -> None:
        self._store, self._vault, self._clock, self._clear = store, vault, clock, clear
        self._swept_at: float | None = None
        self._said = ""

    async def run(self) -> None:
        while True:
            try:
                await self.sweep()
                self._said = ""
            except CachekeepError as error:
                if str(error) != self._said:
                    log.warning("snapshots that were deleted cannot be removed from the vault yet: %s", error)
                self._said = str(error)
            await self._clock.sleep(SWEEP_SECONDS)

    def hasten(self) -> None:
        """It lacks nothing that an engine could bring."""

    async def _prune(self) -> None:
        """Automatic snapshots stay for as many days as their cache says, or said when it still had some taken."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            for found in await tx.list(Snapshot):
                if found.source != "automated" or found.deleted:
                    continue
                cache = await self._store.load(found.cache_uid)
                days = cache.wanted.snapshot_retention_days if cache is not None else 0
                if now - found.asked_at > dt.timedelta(days=days or found.settings.retention_days):
                    await tx.put(replace(found, deleted=True))

    async def sweep(self) -> None:
        """Once. The data go first, then what tells of them: whatever is cut short is done again."""
        async with self._store.reading() as tx:
            leaving = [(s, await tx.get(SnapshotEnd, s.uid)) for s in await tx.list(Snapshot) if s.deleted]
        for found, end in leaving:
            if end is not None and end.holding:
                await self._vault.delete(end.holding)
            async with self._store.transaction() as tx:
                await tx.delete(SnapshotEnd, found.uid)
                await tx.delete(Verification, found.uid)
                await tx.delete(Snapshot, found.name)
            log.info("snapshot %s is deleted", found.name)
        await self._prune()
        await self._clear()
        now = self._clock.moment().seconds
        if self._swept_at is None or now - self._swept_at >= FORGOTTEN_SECONDS / 24:
            self._swept_at = now
            if count := await self._vault.sweep(older_than_seconds=FORGOTTEN_SECONDS, now=self._clock.now()):
                log.info("%d unfinished snapshots were removed from the vault", count)
