"""Limits on processes: in force where the machine allows them, moved while they run, and told where they cannot be had."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.addresses import new_address, own_name
from tests.contract.driver_fixtures import (
    PORT,
    LocalWorld,
    anyio_backend,  # noqa: F401  (fixture)
    eventually,
    local_fixture,  # noqa: F401  (fixture)
    redis_spec,
)

from cachekeep.compute.contract import Key, ProcessSpec
from cachekeep.compute.local import LocalDriver
from cachekeep.compute.local.known_limits import FRESH_SECONDS
from cachekeep.compute.local.limits import Hierarchy, Limiter, hierarchies
from cachekeep.errors import OrderFailed
from cachekeep.model import Limits, LimitsSeen

V1 = (
    "24 18 0:22 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "25 18 0:23 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "26 18 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_v1_trees_are_found() -> None:
    assert hierarchies(V1, "4:memory:/svc/me\n2:cpu,cpuacct:/docker/abc/me\n0::/") == {
        "memory": Hierarchy(1, Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/memory/svc/me")),
        "cpu": Hierarchy(1, Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu/me")),
    }


def test_v2_is_one_tree_for_all() -> None:
    tree = Hierarchy(2, Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/system.slice/cachekeep.service"))
    assert hierarchies(V2, "0::/system.slice/cachekeep.service") == {"memory": tree, "cpu": tree}
    assert [*map(str, tree.chain())] == [
        "/sys/fs/cgroup/system.slice/cachekeep.service",
        "/sys/fs/cgroup/system.slice",
        "/sys/fs/cgroup",
    ]


def test_a_group_outside_what_we_see_counts_as_the_top() -> None:
    assert hierarchies(V2, "0::/../elsewhere")["cpu"].own == Path("/sys/fs/cgroup")
    assert hierarchies("", "") == {}


def test_what_cannot_be_limited_is_told_and_not_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = Limiter()
    monkeypatch.setattr(limiter, "_hierarchies", {"memory": Hierarchy(2, Path("/proc/self"), Path("/proc/self"))})
    groups, doors, unable = limiter.prepare(("u", "n"), Limits(memory_bytes=1 << 20, cpus=0.5))
    assert (groups, doors) == ((), ())
    assert unable == {"memory_bytes": "No such file or directory", "cpus": "no cgroup tree with the cpu controller"}
    seen = limiter.seen(("u", "n"), os.getpid(), ())
    assert (seen.most.memory_bytes, seen.most.cpus) == (None, None), "so nobody tries for ever"
    assert limiter.prepare(("u", "n"), Limits()) == ((), (), {})


def test_capacity_is_no_more_than_the_machine() -> None:
    capacity = Limiter().capacity()
    assert 0 < (capacity.memory_bytes or 0) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < (capacity.cpus or 0) <= (os.cpu_count() or 1)
    assert (capacity.open_files or 0) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]


MIB = 1 << 20
KEY = ("u", "n")


class Tree:
    """A cgroup v2 tree of plain files, in which this process is in the group of ``KEY``."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, *, in_use: int) -> None:
        self.group = top / "cachekeep" / "u" / "n"
        self.group.mkdir(parents=True)
        for place in (top, top / "cachekeep", top / "cachekeep" / "u"):
            (place / "cgroup.subtree_control").write_text("memory cpu")
        self.write("cgroup.procs", f"{os.getpid()}\n")
        self.write("memory.max", str(100 * MIB))
        self.write("memory.high", "max")
        self.write("memory.current", str(in_use))
        self.write("cpu.max", "50000 100000")
        self.limiter = Limiter()
        tree = Hierarchy(2, top, top)
        monkeypatch.setattr(self.limiter, "_hierarchies", {"memory": tree, "cpu": tree})

    def write(self, name: str, text: str) -> None:
        (self.group / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.group / name).read_text()

    def seen(self) -> LimitsSeen:
        return self.limiter.seen(KEY, os.getpid(), (str(self.group),))

    def change(self, limits: Limits) -> tuple[str, ...]:
        return self.limiter.change(KEY, os.getpid(), (str(self.group),), limits)


def test_v2_is_read_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, monkeypatch, in_use=60 * MIB)
    assert (tree.seen().held.memory_bytes, tree.seen().held.cpus) == (100 * MIB, 0.5)
    assert tree.change(Limits(memory_bytes=200 * MIB)) == (str(tree.group),)
    assert (tree.read("memory.max"), tree.read("memory.high"), tree.read("cpu.max")) == (str(200 * MIB), "max", "50000 100000")


def test_v2_is_lowered_only_when_less_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, monkeypatch, in_use=60 * MIB)
    with pytest.raises(OrderFailed, match="more than 50 MiB are in use"):
        tree.change(Limits(memory_bytes=50 * MIB))
    assert (tree.read("memory.max"), tree.read("memory.high")) == (str(100 * MIB), "max"), "it would have been killed"
    tree.change(Limits(memory_bytes=70 * MIB))
    assert (tree.read("memory.max"), tree.read("memory.high")) == (str(70 * MIB), "max")


def test_v2_gives_all_cpus_without_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, monkeypatch, in_use=MIB)
    capacity = tree.limiter.capacity().cpus
    tree.change(Limits(cpus=capacity))
    assert tree.read("cpu.max") == "max"
    assert tree.seen().held.cpus == capacity


def test_who_is_outside_is_held_to_nothing_and_brought_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, monkeypatch, in_use=MIB)
    tree.write("cgroup.procs", "")
    capacity = tree.limiter.capacity()
    assert tree.seen().held.memory_bytes == capacity.memory_bytes
    tree.change(Limits(memory_bytes=100 * MIB))
    assert tree.read("cgroup.procs") == str(os.getpid())
    assert tree.seen().held.memory_bytes == 100 * MIB


def writable_groups() -> None:
    limiter = Limiter()
    groups, _, unable = limiter.prepare(("uid-0", own_name("probe")), Limits(memory_bytes=1 << 30, cpus=0.5))
    limiter.release(("uid-0", "probe"), groups)
    if unable:
        pytest.skip(f"needs root and writable cgroups: {unable}")


async def test_limits_are_in_force_and_go_with_the_process(local: LocalWorld) -> None:
    writable_groups()
    driver, spec = (
        await local.driver(),
        redis_spec(lines="maxclients 500", limits=Limits(memory_bytes=96 * MIB, cpus=0.5, open_files=3000)),
    )
    await driver.start(spec)
    record = local.record(spec.key)
    assert await held(driver, spec.key) == Limits(memory_bytes=96 * MIB, cpus=0.5, open_files=3000)
    assert all(str(record.pid) in (Path(group) / "cgroup.procs").read_text().split() for group in record.cgroups)
    in_force = {name: (Path(g) / name).read_text().strip() for g in record.cgroups for name in os.listdir(g) if name in EXPECTED}
    assert in_force == {name: EXPECTED[name] for name in in_force}
    assert len(in_force) >= 2
    driver = await local.driver()
    await driver.erase(spec.key)
    assert [group for group in record.cgroups if Path(group).exists() or Path(group).parent.exists()] == []


EXPECTED = {
    "memory.limit_in_bytes": str(96 << 20),
    "memory.max": str(96 << 20),
    "cpu.cfs_quota_us": "50000",
    "cpu.max": "50000 100000",
}


async def held(driver: LocalDriver, key: Key) -> Limits:
    seen = (await driver.look([key]))[key].limits
    assert seen is not None
    return seen.held


async def test_limits_of_a_running_process_are_moved_by_whoever_adopts_it(local: LocalWorld) -> None:
    writable_groups()
    driver, spec = (
        await local.driver(),
        redis_spec(lines="maxclients 500", limits=Limits(memory_bytes=96 * MIB, cpus=0.5, open_files=3000)),
    )
    await driver.start(spec)
    for limits in (
        Limits(memory_bytes=128 * MIB, cpus=0.75, open_files=4000),
        Limits(memory_bytes=80 * MIB, cpus=0.25, open_files=2000),
    ):
        driver = await local.driver()
        await driver.limit(spec.key, limits)
        assert await held(driver, spec.key) == limits
    await driver.limit(spec.key, Limits(memory_bytes=90 * MIB))
    assert await held(driver, spec.key) == Limits(memory_bytes=90 * MIB, cpus=0.25, open_files=2000), "the others stay"


async def test_a_process_without_a_group_gets_one(local: LocalWorld) -> None:
    writable_groups()
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    assert local.record(spec.key).cgroups == ()
    await driver.limit(spec.key, Limits(memory_bytes=80 * MIB, cpus=0.5))
    found = await held(driver, spec.key)
    assert (found.memory_bytes, found.cpus) == (80 * MIB, 0.5)
    await eventually(lambda: bool(local.record(spec.key).cgroups))
    groups = local.record(spec.key).cgroups
    await driver.erase(spec.key)
    assert not any(Path(group).exists() for group in groups)


async def test_a_limit_is_not_lowered_below_what_is_in_use(local: LocalWorld) -> None:
    writable_groups()
    driver = await local.driver()
    spec = hoarder(Limits(memory_bytes=400 * MIB))
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGUSR1)
    await eventually(lambda: resident(local, spec.key) > 250 * MIB)
    with pytest.raises(OrderFailed, match="in use"):
        await driver.limit(spec.key, Limits(memory_bytes=100 * MIB))
    found = (await driver.look([spec.key]))[spec.key]
    assert (found.process, found.limits and found.limits.held.memory_bytes) == ("running", 400 * MIB)


async def test_a_process_that_is_gone_has_no_limits(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=0)
    assert (await driver.look([spec.key]))[spec.key].limits is None
    with pytest.raises(OrderFailed, match="does not run"):
        await driver.limit(spec.key, Limits(memory_bytes=MIB))


def resident(local: LocalWorld, key: Key) -> int:
    return int(Path(f"/proc/{local.record(key).pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hoarder(limits: Limits) -> ProcessSpec:
    """Takes 256 MiB when it is sent SIGUSR1."""
    code = (
        "import signal, socket, sys, time\n"
        "hoard = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: hoard.extend(bytearray(1 << 20) for _ in range(256)))\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    address = new_address()
    argv = (sys.executable, "-c", code, address, str(PORT))
    return ProcessSpec(key=(own_name("uid"), "p-001"), incarnation=1, argv=argv, address=address, port=PORT, limits=limits)


async def test_death_for_want_of_memory_is_called_so(local: LocalWorld) -> None:
    writable_groups()
    spec = hoarder(Limits(memory_bytes=64 * MIB))
    driver = await local.driver()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGUSR1)
    await eventually(lambda: bool(deaths))
    await eventually(lambda: local.record(spec.key).problem == "was killed for want of memory")
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGKILL)
    await eventually(lambda: len(deaths) == 2)
    assert (await driver.look([spec.key]))[spec.key].problem == "was killed by SIGKILL"


async def test_a_look_reads_no_limits_but_at_first_and_after_a_change(local: LocalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover waits for the look that follows a death. What a foreign hand has changed is seen soon all the same."""
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    await held(driver, spec.key)
    reads: list[Key] = []
    read = driver._limiter.seen

    def counted(key: Key, pid: int, groups: Sequence[str]) -> LimitsSeen:
        reads.append(key)
        return read(key, pid, groups)

    monkeypatch.setattr(driver._limiter, "seen", counted)
    await asyncio.sleep(2 * FRESH_SECONDS)
    await held(driver, spec.key)
    assert reads == []
    resource.prlimit(local.record(spec.key).pid, resource.RLIMIT_NOFILE, (777, 777))
    async with asyncio.timeout(60):
        while (await held(driver, spec.key)).open_files != 777:
            await asyncio.sleep(0.02)
    await driver.limit(spec.key, Limits(open_files=700))
    assert (await held(driver, spec.key)).open_files == 700


async def test_last_words_are_not_waited_for_and_come_all_the_same(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    told: list[str | None] = []
    driver.on_death(lambda key: told.append(driver._look(key).problem))
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGKILL)
    await eventually(lambda: bool(told))
    assert told == ["was killed by SIGKILL"]
    async with asyncio.timeout(60):
        while not ((await driver.look([spec.key]))[spec.key].problem or "").startswith("was killed by SIGKILL: "):
            await asyncio.sleep(0.02)
