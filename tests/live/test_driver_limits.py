"""Limits by control groups: in force where the machine allows them, and said where not."""

from __future__ import annotations

import os
import signal
import sys
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
from cachekeep.compute.local.limits import Hierarchy, Limits, hierarchies

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


def test_what_cannot_be_limited_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits()
    monkeypatch.setattr(limits, "_hierarchies", {"memory": Hierarchy(2, Path("/proc/self"), Path("/proc/self"))})
    said, groups, doors = limits.prepare(("u", "n"), memory_bytes=1 << 20, cpus=1)
    assert said == "no memory limit: No such file or directory, no cpu limit: no cgroup tree with the cpu controller"
    assert (groups, doors) == ((), ())
    assert limits.prepare(("u", "n"), memory_bytes=None, cpus=None) == ("none asked for", (), ())


def test_capacity_is_no_more_than_the_machine() -> None:
    capacity = Limits().capacity()
    assert 0 < capacity.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < capacity.cpus <= (os.cpu_count() or 1)


def writable_groups() -> None:
    said, groups, _ = Limits().prepare((own_name("uid"), "probe"), memory_bytes=1 << 30, cpus=1)
    Limits.release(groups)
    if len(groups) == 0 or "no " in said:
        pytest.skip(f"needs root and writable cgroups: {said}")


async def test_limits_are_in_force_and_go_with_the_process(local: LocalWorld) -> None:
    writable_groups()
    driver, spec = await local.driver(), redis_spec(key=(own_name("uid"), "a-001"), memory_bytes=96 << 20, cpus=0.5)
    await driver.start(spec)
    record = local.record(spec.key)
    found = (await driver.look([spec.key]))[spec.key]
    assert found.limits.startswith("memory 96 MiB by cgroup v")
    assert "0.5 CPUs by cgroup v" in found.limits
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


async def test_death_for_want_of_memory_is_called_so(local: LocalWorld) -> None:
    writable_groups()
    code = (
        "import signal, socket, sys, time\n"
        "hoard = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: hoard.extend(bytearray(1 << 20) for _ in range(256)))\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    address = new_address()
    argv = (sys.executable, "-c", code, address, str(PORT))
    spec = ProcessSpec(key=(own_name("uid"), "p-001"), incarnation=1, argv=argv, address=address, port=PORT, memory_bytes=64 << 20)
    driver = await local.driver()
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGUSR1)
    await eventually(lambda: bool(deaths))
    assert (await driver.look([spec.key]))[spec.key].problem == "was killed for want of memory"
    await driver.start(spec)
    os.kill(local.record(spec.key).pid, signal.SIGKILL)
    await eventually(lambda: len(deaths) == 2)
    assert (await driver.look([spec.key]))[spec.key].problem == "was killed by SIGKILL"
