"""Snapshots' data brought to where nodes start: out of the vault, opened, checked to the last byte, and only then there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from cachekeep.backup.objects import Objects
from cachekeep.backup.vault import Vault
from cachekeep.control.jobs import Report
from cachekeep.errors import OrderFailed
from cachekeep.model import Record, Task
from cachekeep.plan.restores import going_on, kept_name
from cachekeep.store.contract import Store

_NEW: Final = ".new"
_COPIES: Final = 2
"""Of the data on this disk at a time: here, and where the process starts from."""


class RestoreTasks:
    """``directory`` is what the driver's side keeps files in (``compute.contract.Kept``)."""

    def __init__(self, *, store: Store, vault: Vault, directory: Path, buckets: Mapping[str, str]) -> None:
        self._store, self._vault, self._directory, self._buckets = store, vault, directory, buckets

    async def fetch(self, task: Task, report: Report) -> tuple[Record, ...]:
        """Bring all of it. Raises ``OrderFailed``, ``Damaged``, ``VaultAway``."""
        uid = task.arguments["cache"]
        objects = {shard: name for shard, name in task.arguments.items() if shard not in ("cache", "holding")}
        if not task.arguments["holding"]:
            return await self._import(uid, objects)
        holding = await self._vault.find(task.arguments["holding"])
        total = sum(holding.objects[name].bytes for name in objects.values() if name in holding.objects)
        await asyncio.to_thread(self._check_room, total)
        done = 0
        for shard, name in objects.items():
            path = self._directory / kept_name(uid, shard)
            async for count in self._bring(self._vault.read(holding, name), path):
                done += count
                report(min(99.0, 100.0 * done / max(total, 1)))
        return ()

    def _check_room(self, size: int) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._directory).free
        if size * _COPIES > free:
            raise OrderFailed(
                f"{self._directory} has {free >> 20} MiB free, and {size * _COPIES >> 20} MiB are needed to restore. Make room"
            )

    async def _import(self, uid: str, objects: Mapping[str, str]) -> tuple[Record, ...]:
        """Plain files out of buckets. Whether they are what they should be, their engine finds when it loads them."""
        for shard, name in objects.items():
            bucket, _, key = name.partition("/")
            if bucket not in self._buckets:
                raise OrderFailed(f"there is no bucket {bucket} any more (--bucket)")
            source = Objects(self._buckets[bucket])
            try:
                listed = [each.bytes for each in await source.list(key.rpartition("/")[0]) if each.path == key]
                if not listed:
                    raise OrderFailed(f"there is no {key} in bucket {bucket}")
                await asyncio.to_thread(self._check_room, listed[0])
                async for _ in self._bring(source.stream(key), self._directory / kept_name(uid, shard)):
                    pass
            finally:
                source.close()
        return ()

    async def _bring(self, pieces: AsyncIterator[bytes], path: Path) -> AsyncIterator[int]:
        """One object, piece by piece. It is there by its name when all of it has come, and been checked where that can be."""
        draft = path.with_name(path.name + _NEW)
        try:
            with await asyncio.to_thread(open, draft, "wb", opener=_private) as file:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
                    yield len(piece)
            draft.replace(path)
        except OSError as error:
            raise OrderFailed(f"{path} cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()

    async def clear(self) -> None:
        """Remove what nobody starts from any more."""
        for path in await asyncio.to_thread(lambda: sorted(self._directory.glob("*.*.rdb*"))):
            cache = await self._store.load(path.name.partition(".")[0])
            if cache is None or not going_on(cache):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
