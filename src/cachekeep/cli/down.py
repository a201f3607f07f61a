"""``cachekeep down``."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path
from typing import Any, Final

import click

from cachekeep.backup.recording import recordings
from cachekeep.cli import confirm, data_dir_flag, options, settings_of
from cachekeep.errors import CachekeepError, Unusable
from cachekeep.store.lock import DataDirLock

_GOODBYE_SECONDS: Final = 20.0
_GRACE_SECONDS: Final = 5.0


@click.command(short_help="Stop the control plane; with --engines, the caches too.")
@options("data_dir")
@click.option("--engines", "ends_engines", is_flag=True, help="Also end every cache process of the data directory. Their data go.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def down(ends_engines: bool, yes: bool, **flags: Any) -> None:
    """Stop the control plane of a data directory, and return when it is gone. Caches go on unless --engines is given."""
    settings = settings_of(flags)
    directory = settings.data_dir
    if not directory.is_dir():
        raise Unusable(f"{directory} is not there: nothing runs from it.")
    if ends_engines and not yes:
        confirm(
            f"End every cache process of {directory}? What they hold in memory is lost",
            "nothing was stopped, neither the control plane nor a cache. `cachekeep down` stops the control plane alone.",
        )
    lock = DataDirLock(directory)
    pid = _stop_control_plane(lock)
    try:
        if pid:
            click.echo(f"The control plane (process {pid}) has stopped.")
        else:
            click.echo(f"No control plane runs from {directory}.")
        if ends_engines:
            for recording in recordings(directory):
                recording.stop()
            count = asyncio.run(_end_engines(directory))
            click.echo(
                f"{count} cache process{'' if count == 1 else 'es'} ended. The caches' definitions are kept: "
                f"`cachekeep up{data_dir_flag(settings)}` starts them, empty."
            )
    finally:
        lock.release()


def _stop_control_plane(lock: DataDirLock) -> int:
    """Have the lock; returns the pid of the control plane that was stopped for it, 0 if there was none. Raises ``Unusable``."""
    try:
        lock.acquire()
    except Unusable:
        pass
    else:
        return 0
    pid = _holder(lock.path)
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, PermissionError, OSError) as error:
        raise Unusable(f"the data directory is in use, but process {pid} cannot be reached: {error.strerror}.") from error
    try:
        if _holder(lock.path) != pid:
            raise Unusable("the control plane changed while it was to be stopped: try again.")
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except PermissionError:
            raise Unusable(f"process {pid} belongs to somebody else: stop it as that user.") from None
        ended, _, _ = select.select([pidfd], [], [], _GOODBYE_SECONDS)
        if not ended:
            raise Unusable(
                f"process {pid} was asked to stop and is still there after {_GOODBYE_SECONDS:g} s; `kill -9 {pid}` harms no cache."
            )
    finally:
        os.close(pidfd)
    lock.acquire()
    return pid


def _holder(path: Path) -> int:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        raise Unusable(f"the data directory is in use, but {path} does not say by which process.") from None


async def _end_engines(directory: Path) -> int:
    """End every process on record, all at the same time. Raises what could not be ended."""
    from cachekeep.clock import SystemClock
    from cachekeep.compute.local import LocalDriver, packet_filter

    driver = LocalDriver(directory, SystemClock())
    await driver.open()
    try:
        keys = driver.known()
        running = [key for key, seen in (await driver.look(keys)).items() if seen.process in ("running", "frozen")]
        results = await asyncio.gather(*(driver.stop(key, grace_seconds=_GRACE_SECONDS) for key in running), return_exceptions=True)
    finally:
        await driver.aclose()
    failed = [r for r in results if isinstance(r, BaseException)]
    for error in failed:
        if not isinstance(error, CachekeepError):
            raise error
    if failed:
        raise Unusable(f"{len(running) - len(failed)} processes ended, {len(failed)} did not: {failed[0]}")
    if packet_filter.unable() is None:
        packet_filter.remove(packet_filter.table_of(directory))
    return len(running)
