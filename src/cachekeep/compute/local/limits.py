"""Limits on processes by control groups (v1 and v2), and what this machine has to give.

Each process gets a group of its own, ``cachekeep/<uid>/<name>``. Where it hangs: under the deepest group above us that limits us,
so that nobody gets out of a limit that was set on Cachekeep as a whole; else at the top of what we can see, so that processes are
not tied to the session or service that the control plane happened to be started from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from cachekeep.compute.contract import Key

Controller = Literal["memory", "cpu"]
_CONTROLLERS: tuple[Controller, ...] = ("memory", "cpu")
_BRANCH = "cachekeep"
_CPU_PERIOD_MICROSECONDS = 100_000
_UNLIMITED_BYTES = 1 << 60  # v1 shows "no limit" as the largest number of whole pages


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes together may use."""

    memory_bytes: int
    cpus: float


class Hierarchy(NamedTuple):
    """The tree of groups that a controller lives in, as far as we can see it."""

    version: Literal[1, 2]
    top: Path
    own: Path

    def chain(self) -> Iterator[Path]:
        """Our own group and those above it, up to the top."""
        path = self.own
        while path != self.top and self.top in path.parents:
            yield path
            path = path.parent
        yield self.top


def hierarchies(mountinfo: str, own_groups: str) -> dict[Controller, Hierarchy]:
    """Find the trees in the texts of /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7))."""
    own_path = {}
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own_path[name] = path
    found: dict[Controller, Hierarchy] = {}
    unified: Hierarchy | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount_point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            unified = _hierarchy(2, mount_point, root, own_path.get("", "/"))
        elif kind == "cgroup":
            for controller in _CONTROLLERS:
                if controller in options.split(",") and controller in own_path:
                    found[controller] = _hierarchy(1, mount_point, root, own_path[controller])
    if unified is not None:
        for controller in _CONTROLLERS:
            found.setdefault(controller, unified)
    return found


def _hierarchy(version: Literal[1, 2], mount_point: str, root: str, own: str) -> Hierarchy:
    inside = os.path.relpath(own, root)
    top = Path(mount_point)
    return Hierarchy(version, top, top if ".." in (*own.split("/"), *inside.split("/")) else top / inside)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _limit(hierarchy: Hierarchy, controller: Controller, group: Path) -> float | None:
    """The limit of one group, in bytes or CPUs; None if it has none."""
    match controller, hierarchy.version:
        case "memory", 1:
            text = _read(group / "memory.limit_in_bytes")
            return float(text) if text and int(text) < _UNLIMITED_BYTES else None
        case "memory", _:
            text = _read(group / "memory.max")
            return float(text) if text and text != "max" else None
        case _, 1:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            return int(quota) / int(period) if quota and period and int(quota) > 0 else None
        case _:
            quota, _, period = (_read(group / "cpu.max") or "max 1").partition(" ")
            return int(quota) / int(period) if quota != "max" else None


class Confinement(NamedTuple):
    """Limits ready for a process: what they are, in words; the groups' paths; the files by which a process enters them."""

    said: str
    groups: tuple[str, ...]
    doors: tuple[Path, ...]


class Limits:
    """Hands out groups to processes and takes them back."""

    def __init__(self) -> None:
        try:
            self._hierarchies = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        except OSError:
            self._hierarchies = {}

    def capacity(self) -> Capacity:
        """What this machine has, or what the limits above us leave of it."""
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        cpus = float(len(os.sched_getaffinity(0)))
        for controller, hierarchy in self._hierarchies.items():
            for group in hierarchy.chain():
                limit = _limit(hierarchy, controller, group)
                if limit is not None and controller == "memory":
                    memory = min(memory, limit)
                elif limit is not None:
                    cpus = min(cpus, limit)
        return Capacity(memory_bytes=int(memory), cpus=cpus)

    def prepare(self, key: Key, *, memory_bytes: int | None, cpus: float | None) -> Confinement:
        """Make groups with these limits for a process to enter. Never raises: a limit that cannot be had is said, not enforced."""
        asked: list[tuple[Controller, float, str]] = []
        if memory_bytes is not None:
            asked.append(("memory", memory_bytes, f"memory {memory_bytes / (1 << 20):.0f} MiB"))
        said: list[str] = []
        if cpus is not None and cpus >= self.capacity().cpus:
            said.append(f"all {self.capacity().cpus:g} CPUs")  # a quota that limits nothing still costs an engine some 8 %
        elif cpus is not None:
            asked.append(("cpu", cpus, f"{cpus:g} CPU{'' if cpus == 1 else 's'}"))
        doors: dict[str, Path] = {}
        for controller, amount, words in asked:
            try:
                version, group = self._group(controller, key)
                # A thread that moves itself needs no system-wide lock, which costs some 10 ms. v2 moves whole processes only.
                doors[str(group)] = group / ("tasks" if version == 1 else "cgroup.procs")
                for name, value in _settings(controller, version, amount):
                    (group / name).write_text(value)
                said.append(f"{words} by cgroup v{version}")
            except OSError as error:
                said.append(f"no {controller} limit: {error.strerror}")
        return Confinement(", ".join(said) or "none asked for", tuple(doors), tuple(doors.values()))

    @staticmethod
    def hold(groups: tuple[str, ...], pid: int) -> bool:
        """Whether the process is in all of these groups."""
        return all(str(pid) in (_read(Path(group) / "cgroup.procs") or "").split() for group in groups)

    def _group(self, controller: Controller, key: Key) -> tuple[int, Path]:
        hierarchy = self._hierarchies.get(controller)
        if hierarchy is None:
            raise OSError(0, f"no cgroup tree with the {controller} controller")
        base = next((g for g in hierarchy.chain() if _limit(hierarchy, controller, g) is not None), hierarchy.top)
        group = base / _BRANCH / key[0] / key[1]
        for attempt in range(3):
            try:
                group.mkdir(parents=True, exist_ok=True)
                break
            except FileNotFoundError:  # a sibling's removal took a parent away in between
                if attempt == 2:
                    raise
        if hierarchy.version == 2:
            for parent in (base, base / _BRANCH, group.parent):
                if controller not in (_read(parent / "cgroup.subtree_control") or "").split():
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        return hierarchy.version, group

    @staticmethod
    def memory_kills(groups: tuple[str, ...]) -> int:
        """How many processes of these groups the kernel has killed for want of memory so far."""
        counters = (_read(Path(g) / name) for g in groups for name in ("memory.oom_control", "memory.events"))
        counts = (line.split() for text in counters if text for line in text.splitlines())
        return sum(int(count) for name, count in counts if name == "oom_kill")

    @staticmethod
    def release(groups: tuple[str, ...]) -> None:
        """Remove groups that are empty by now, and the branch above them when nobody else is on it."""
        for group in map(Path, groups):
            for path in (group, group.parent, group.parent.parent):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    break


def _settings(controller: Controller, version: int, amount: float) -> list[tuple[str, str]]:
    quota = str(max(1000, int(amount * _CPU_PERIOD_MICROSECONDS)))
    match controller, version:
        case "memory", 1:
            return [("memory.limit_in_bytes", str(int(amount)))]
        case "memory", _:
            return [("memory.max", str(int(amount)))]
        case _, 1:
            return [("cpu.cfs_period_us", str(_CPU_PERIOD_MICROSECONDS)), ("cpu.cfs_quota_us", quota)]
        case _:
            return [("cpu.max", f"{quota} {_CPU_PERIOD_MICROSECONDS}")]
