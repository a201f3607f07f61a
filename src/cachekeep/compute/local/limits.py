"""Limits on processes: memory and CPU by control groups (v1 and v2), open files by prlimit(2); and what this machine has to give.

Each process gets a group of its own, ``cachekeep/<uid>/<name>``. Where it hangs: under the deepest group above us that limits us,
so that nobody gets out of a limit that was set on Cachekeep as a whole; else at the top of what we can see, so that processes are
not tied to the session or service that the control plane happened to be started from.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from msgspec.structs import replace

from cachekeep.compute.contract import Key
from cachekeep.errors import OrderFailed
from cachekeep.model import Limits, LimitsSeen
from cachekeep.model.limits import RESOURCES

Controller = Literal["memory", "cpu"]
_CONTROLLERS: tuple[Controller, ...] = ("memory", "cpu")
_BRANCH = "cachekeep"
_CPU_PERIOD_MICROSECONDS = 100_000
_UNLIMITED_BYTES = 1 << 60  # v1 shows "no limit" as the largest number of whole pages
_CAP_SYS_RESOURCE = 24
_SPARE_DESCRIPTORS = 128
"""A process that cannot open a descriptor for the next client tries again and again."""
_RESOURCE_OF: Final[dict[Controller, str]] = {"memory": "memory_bytes", "cpu": "cpus"}


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


def _read(path: Path | str) -> str | None:
    """A small file of the kernel's, as every look reads several of each process: plainly, which takes a quarter of the time."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 65536).decode(errors="replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)


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
    """Limits ready for a process: the groups' paths; the files by which a process enters them; which resources have
    none, and why."""

    groups: tuple[str, ...]
    doors: tuple[Path, ...]
    unable: dict[str, str]


class Limiter:
    """Holds processes to limits, and says what they are held to. Of what cannot be limited it keeps why: it is not
    tried again until the process is started anew."""

    def __init__(self) -> None:
        try:
            self._hierarchies = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        except OSError:
            self._hierarchies = {}
        self._unable: dict[Key, dict[str, str]] = {}

    @functools.cached_property
    def most(self) -> Limits:
        """``capacity`` when it was first asked for."""
        return self.capacity()

    def capacity(self) -> Limits:
        """What this machine has, or what the limits above us leave of it; open files are for each process."""
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        cpus = float(len(os.sched_getaffinity(0)))
        for controller, hierarchy in self._hierarchies.items():
            for group in hierarchy.chain():
                limit = _limit(hierarchy, controller, group)
                if limit is not None and controller == "memory":
                    memory = min(memory, limit)
                elif limit is not None:
                    cpus = min(cpus, limit)
        return Limits(memory_bytes=int(memory), cpus=cpus, open_files=_open_files_max())

    # Before a process starts

    def prepare(self, key: Key, limits: Limits) -> Confinement:
        """Make groups with these limits for a process to enter. Never raises: a limit that cannot be had is told, not enforced."""
        doors: dict[str, Path] = {}
        unable: dict[str, str] = {}
        for controller, amount in self._asked(limits):
            try:
                version, group = self._group(controller, key)
                # A thread that moves itself needs no system-wide lock, which costs some 10 ms. v2 moves whole processes only.
                doors[str(group)] = group / ("tasks" if version == 1 else "cgroup.procs")
                for name, value in _settings(controller, version, amount):
                    (group / name).write_text(value)
            except OSError as error:
                unable[_RESOURCE_OF[controller]] = error.strerror or str(error)
        self._unable[key] = dict(unable)
        return Confinement(tuple(doors), tuple(doors.values()), unable)

    def confine(self, key: Key, pid: int, limits: Limits) -> None:
        """What is left to be done when the process is there, before it becomes the program. Never raises, as ``prepare``."""
        if limits.open_files is not None:
            self._set_open_files(key, pid, min(limits.open_files, _open_files_max()))

    def _asked(self, limits: Limits) -> list[tuple[Controller, float]]:
        """Amounts by controller. A quota that limits nothing is not set: it still costs an engine some 8 %."""
        asked: list[tuple[Controller, float]] = []
        if limits.memory_bytes is not None:
            asked.append(("memory", limits.memory_bytes))
        if limits.cpus is not None and limits.cpus < (self.most.cpus or 0):
            asked.append(("cpu", limits.cpus))
        return asked

    # While it runs

    def seen(self, key: Key, pid: int, groups: Sequence[str]) -> LimitsSeen:
        """What a process is held to: a limit of a group that it is not in is none of its."""
        held: dict[str, float] = {}
        for controller, name in _RESOURCE_OF.items():
            hierarchy, own = self._hierarchies.get(controller), self._own_group(controller, pid, groups)
            limit = _limit(hierarchy, controller, own[1]) if hierarchy is not None and own is not None else None
            held[name] = min(limit if limit is not None else math.inf, getattr(self.most, name))
        unable = {n: None for c, n in _RESOURCE_OF.items() if c not in self._hierarchies} | dict.fromkeys(self._unable.get(key, ()))
        return LimitsSeen(
            held=Limits(memory_bytes=int(held["memory_bytes"]), cpus=held["cpus"], open_files=_open_files(pid)),
            most=replace(self.most, **unable),
            resident_bytes=_resident_bytes(pid),
        )

    def change(self, key: Key, pid: int, groups: Sequence[str], limits: Limits) -> tuple[str, ...]:
        """Hold a running process to these limits, and leave alone what is None. Returns the groups that it is in then.

        What this machine cannot limit is kept in mind, and seen from then on. Raises OrderFailed where a limit cannot
        be lowered because more than that is in use: it stays as it was, and can be lowered later.
        """
        there = dict.fromkeys(groups)
        unable = self._unable.setdefault(key, {})
        for controller, amount in ((c, getattr(limits, name)) for c, name in _RESOURCE_OF.items()):
            if amount is None:
                continue
            try:
                version, group = self._own_group(controller, pid, groups) or self._group(controller, key)
                _set(controller, version, group, amount if self._asked(_only(controller, amount)) else None)
                if not self.hold((str(group),), pid):
                    # All of its threads; what it holds already stays charged to where it was.
                    (group / "cgroup.procs").write_text(str(pid))
                there[str(group)] = None
            except _InUse as error:
                raise OrderFailed(f"{key[1]}: {error}") from None
            except OSError as error:
                unable[_RESOURCE_OF[controller]] = error.strerror or str(error)
        if limits.open_files is not None:
            in_use = _descriptors(pid)
            if in_use + _SPARE_DESCRIPTORS > limits.open_files:
                raise OrderFailed(
                    f"{key[1]}: open files stay limited as they are: {in_use} are open, too many for {limits.open_files}"
                )
            self._set_open_files(key, pid, limits.open_files)
        self._read_back(key, pid, tuple(there), limits)
        return tuple(there)

    def _read_back(self, key: Key, pid: int, groups: Sequence[str], limits: Limits) -> None:
        """A limit that did not become what was asked for is taken for one that cannot be had, or it would be set for ever."""
        held = self.seen(key, pid, groups).held
        for name in RESOURCES:
            asked, got = getattr(limits, name), getattr(held, name)
            if asked is not None and got is not None and got != asked:
                self._unable.setdefault(key, {}).setdefault(name, f"{got} is in force after {asked} was set")

    def _set_open_files(self, key: Key, pid: int, count: int) -> None:
        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, max(count, hard)))
        except ProcessLookupError:
            return
        except (OSError, ValueError) as error:  # another user's process, or above the hard limit
            self._unable.setdefault(key, {})["open_files"] = str(error)

    @staticmethod
    def hold(groups: Sequence[str], pid: int) -> bool:
        """Whether the process is in all of these groups."""
        return all(str(pid) in (_read(f"{group}/cgroup.procs") or "").split() for group in groups)

    def _own_group(self, controller: Controller, pid: int, groups: Sequence[str]) -> tuple[int, Path] | None:
        """Which of these groups limits the process; None: it is in none of them."""
        hierarchy = self._hierarchies.get(controller)
        if hierarchy is None:
            return None
        mine = (Path(group) for group in groups if group.startswith(f"{hierarchy.top}/") and self.hold((group,), pid))
        return next(((hierarchy.version, group) for group in mine), None)

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

    def release(self, key: Key, groups: tuple[str, ...]) -> None:
        """Forget a process: remove its groups if they are empty by now, and the branch above them when nobody else is on it."""
        self._unable.pop(key, None)
        for group in map(Path, groups):
            for path in (group, group.parent, group.parent.parent):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    break


class _InUse(Exception):
    """More is in use than a limit would allow."""


def _only(controller: Controller, amount: float) -> Limits:
    return Limits(memory_bytes=int(amount)) if controller == "memory" else Limits(cpus=amount)


def _set(controller: Controller, version: int, group: Path, amount: float | None) -> None:
    """Have a group that may be in use hold its processes to this; None: to nothing. Raises ``_InUse``, and ``OSError``."""
    if amount is None:
        for name, value in _UNLIMITED[controller, version]:
            (group / name).write_text(value)
    elif (controller, version) == ("memory", 2):
        _set_memory_max(group, int(amount))
    else:
        try:
            for name, value in _settings(controller, version, amount):
                (group / name).write_text(value)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise _InUse(f"the memory limit stays as it is: more than {int(amount) >> 20} MiB are in use") from None


def _set_memory_max(group: Path, amount: int) -> None:
    """v1 refuses a limit below what is in use; v2 would kill for it (``memory.max``,
    Documentation/admin-guide/cgroup-v2.rst). So there, ``memory.high`` goes first: above it processes are slowed down
    and what can be reclaimed is, but nobody is killed."""
    if (before := _read(group / "memory.max") or "max") == "max" or int(before) > amount:
        (group / "memory.high").write_text(str(amount))
        if int(_read(group / "memory.current") or 0) > amount:
            (group / "memory.high").write_text("max")
            raise _InUse(f"the memory limit stays as it is: more than {amount >> 20} MiB are in use")
    (group / "memory.max").write_text(str(amount))
    (group / "memory.high").write_text("max")


_UNLIMITED: Final[dict[tuple[Controller, int], list[tuple[str, str]]]] = {
    ("memory", 1): [("memory.limit_in_bytes", "-1")],
    ("memory", 2): [("memory.max", "max")],
    ("cpu", 1): [("cpu.cfs_quota_us", "-1")],
    ("cpu", 2): [("cpu.max", "max")],
}


def _open_files_max() -> int:
    """The most that RLIMIT_NOFILE of a process of ours can be: the hard limit, or what the system allows whoever may pass that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    capabilities = next(
        (line.split()[1] for line in (_read(Path("/proc/self/status")) or "").splitlines() if line[:7] == "CapEff:"), "0"
    )
    if int(capabilities, 16) >> _CAP_SYS_RESOURCE & 1 or hard == resource.RLIM_INFINITY:
        return int(_read(Path("/proc/sys/fs/nr_open")) or 1 << 20)
    return hard


def _open_files(pid: int) -> int | None:
    """RLIMIT_NOFILE of a process. Of another user's the kernel tells it in words only."""
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return None
    except PermissionError:
        lines = (_read(Path(f"/proc/{pid}/limits")) or "").splitlines()
        text = next((line.split()[3] for line in lines if line.startswith("Max open files")), "unlimited")
        return int(text) if text.isdigit() else None
    return None if soft == resource.RLIM_INFINITY else soft


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _resident_bytes(pid: int) -> int | None:
    fields = (_read(Path(f"/proc/{pid}/statm")) or "").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


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
