"""Snapshots' data brought to where nodes start: out of the vault, opened, checked to the last byte, and only then there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from cachekeep.backup.vault import Holding, Vault
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

    def __init__(self, *, store: Store, vault: Vault, directory: Path) -> None:
        self._store, self._vault, self._directory = store, vault, directory

    async def fetch(self, task: Task, report: Report) -> tuple[Record, ...]:
        """Bring all of it. Raises ``OrderFailed``, ``Damaged``, ``VaultAway``."""
        uid, holding = task.arguments["cache"], await self._vault.find(task.arguments["holding"])
        objects = {shard: name for shard, name in task.arguments.items() if shard not in ("cache", "holding")}
        total = sum(holding.objects[name].bytes for name in objects.values() if name in holding.objects)
        await asyncio.to_thread(self._check_room, total)
        done = 0
        for shard, name in objects.items():
            path = self._directory / kept_name(uid, shard)
            async for count in self._bring(holding, name, path):
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

    async def _bring(self, holding: Holding, name: str, path: Path) -> AsyncIterator[int]:
        """One object, piece by piece. It is there by its name when all of it has been checked."""
        draft = path.with_name(path.name + _NEW)
        try:
            with await asyncio.to_thread(open, draft, "wb", opener=_private) as file:
                async for piece in self._vault.read(holding, name):
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
