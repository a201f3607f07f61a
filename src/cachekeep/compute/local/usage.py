"""What this machine says of the processes of nodes (proc(5))."""

from __future__ import annotations

from collections.abc import Iterable

from cachekeep.compute.contract import Driver, Key
from cachekeep.model.sample import Host

_MAJOR_FAULTS_AT = 9
"""Field 12 of /proc/PID/stat, counted behind the command's name."""


class LocalUsage:
    """Reads /proc for the processes of a driver of this machine."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def __call__(self, keys: Iterable[Key]) -> dict[Key, Host]:
        """Of those that run."""
        found = {}
        for key, seen in (await self._driver.look(keys)).items():
            if seen.pid is not None and seen.process == "running":
                held = seen.limits.held.memory_bytes if seen.limits is not None else None
                host = _host(seen.pid, held)
                if host is not None:
                    found[key] = host
        return found


def _host(pid: int, held_bytes: int | None) -> Host | None:
    try:
        status = _kibibytes(f"/proc/{pid}/status")
        available = _kibibytes("/proc/meminfo")["MemAvailable"]
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, KeyError):
        return None
    left = available if held_bytes is None else min(available, held_bytes - status.get("VmRSS", 0))
    return Host(freeable_bytes=max(left, 0), swap_bytes=status.get("VmSwap", 0), major_faults=int(fields[_MAJOR_FAULTS_AT]))


def _kibibytes(path: str) -> dict[str, int]:
    """Rows such as ``VmRSS:  1234 kB``, in bytes."""
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = [line.split() for line in file]
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if len(row) == 3 and row[2] == "kB"}
