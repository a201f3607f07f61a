"""All that backups need of a control plane, furnished together: who does their tasks, and who works beside the keeper for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cachekeep.backup.replica import receive
from cachekeep.backup.vault import Vault
from cachekeep.clock import Clock
from cachekeep.compute.contract import Link, Target
from cachekeep.control.copies import SnapshotCopier
from cachekeep.control.jobs import Runner
from cachekeep.control.restores import RestoreTasks
from cachekeep.control.snapshots import SnapshotSweeper, SnapshotTasks
from cachekeep.control.verify import Verifier
from cachekeep.control.workers import Worker
from cachekeep.engines.catalogue import Catalogue
from cachekeep.model import Cache, Node
from cachekeep.plan import restores, snapshots
from cachekeep.store.contract import Store

SCRATCH_DIR = "scratch"
"""In the data directory: engines that try snapshots work here."""


class Backups:
    """``kept``: the directory from which the driver's side starts processes (``compute.contract.Kept``)."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        link: Link,
        target_of: Callable[[Cache, Node], Target],
        clock: Clock,
        catalogue: Callable[[], Catalogue],
        data_dir: Path,
        kept: Path,
        verify_bytes: int,
        buckets: Mapping[str, str],
    ) -> None:
        taker = SnapshotTasks(store=store, vault=vault, link=link, target_of=target_of, receive=receive, clock=clock)
        fetcher = RestoreTasks(store=store, vault=vault, directory=kept, buckets=buckets)
        self.runners: Mapping[str, Runner] = {snapshots.KIND: taker.take, restores.KIND: fetcher.fetch}
        self.workers: Mapping[str, Worker] = {
            "sweeper": SnapshotSweeper(store=store, vault=vault, clock=clock, clear=fetcher.clear),
            "copier": SnapshotCopier(store=store, vault=vault, clock=clock, buckets=buckets),
            "verifier": Verifier(
                store=store,
                vault=vault,
                clock=clock,
                catalogue=catalogue,
                directory=data_dir / SCRATCH_DIR,
                memory_bytes=verify_bytes,
            ),
        }
