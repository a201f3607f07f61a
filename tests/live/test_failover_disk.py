"""A primary whose disk answers no more: it hangs in the kernel at its next write there, and not even SIGKILL ends it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkey
from tests.addresses import own_name
from tests.engines.servers import build_of
from tests.live.harness import LiveCache, wanted_group
from tests.live.test_failover import (
    ENGINES,
    anyio_backend,  # noqa: F401  (fixture)
    goes_on,
    lost,
    whole,
    writing,
)

from cachekeep.compute.local.proc import stat
from cachekeep.plan import Policy

_TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "ss")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not all(map(shutil.which, _TOOLS)), reason=f"needs {', '.join(_TOOLS)}"),
]


class Disk:
    """A filesystem of its own at ``place``, which can be frozen."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "-f", self._place], check=True)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "-u", self._place], check=True)

    def part(self) -> None:
        """Take it out of the tree: its mount point can be removed, and it ends with the last process that is on it."""
        subprocess.run(["umount", "--lazy", self._place], check=False, capture_output=True)


@contextlib.contextmanager
def disk(image: Path, place: Path) -> Iterator[Disk]:
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode != 0:
        pytest.skip("needs loop devices")
    found = Disk(place)
    try:
        yield found
    finally:
        subprocess.run(["fsfreeze", "-u", place], check=False, capture_output=True)
        found.part()


@ENGINES
async def test_a_primary_whose_disk_is_frozen_is_succeeded_and_comes_back_with_it(engine: str, major: int, tmp_path: Path) -> None:
    policy = Policy(silence_seconds=3.0)  # more than the machine stalls: it is to be hanging by then
    with disk(tmp_path / "image", tmp_path / "nodes" / own_name("uid-demo") / "demo-001") as primarys:
        async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3), policy=policy) as live:
            cache = await whole(live)
            assert live.primary_of(cache) == "demo-001"
            pid = await live.pid("demo-001")
            async with writing(live, replicas=1) as writer:
                primarys.freeze()
                with contextlib.suppress(valkey.ConnectionError):  # it says in its log that it begins to save, and hangs there
                    await live.ask("demo-001", "BGSAVE")
                cache = await live.until(lambda c: live.primary_of(c) != "demo-001", "another primary")
                await goes_on(live, writer)
                assert stat(pid) is not None, "the kernel has not let go of the old one"
                assert (await live.view()).node("demo-001").process == "stuck"
                first = live.primary_of(cache)
                await live.until(lambda c: len(c.decided.shards[0].in_sync) == 1, "the third is in sync")
                await live.signal(first)
                await live.until(
                    lambda c: live.primary_of(c) not in ("demo-001", first), "nor does it keep the next from being succeeded"
                )
                await goes_on(live, writer)
                primarys.thaw()
                await whole(live)
                assert (await live.view()).node("demo-001").role == "replica"
                assert await lost(live, writer) == 0
            primarys.part()


@pytest.mark.parametrize(("engine", "major"), [("valkey", 8)])
async def test_a_primary_that_dies_while_its_disk_is_frozen_is_succeeded_too(engine: str, major: int, tmp_path: Path) -> None:
    """What became of it cannot be written down beside it."""
    with disk(tmp_path / "image", tmp_path / "nodes" / own_name("uid-demo") / "demo-001") as primarys:
        async with LiveCache(tmp_path, wanted_group(build_of(engine, major), nodes=3)) as live:
            assert live.primary_of(await whole(live)) == "demo-001"
            async with writing(live, replicas=1) as writer:
                primarys.freeze()
                await live.signal("demo-001")
                cache = await live.until(lambda c: live.primary_of(c) != "demo-001", "another primary")
                await goes_on(live, writer)
                first = live.primary_of(cache)
                await live.until(lambda c: len(c.decided.shards[0].in_sync) == 1, "the third is in sync")
                await live.signal(first)
                await live.until(lambda c: live.primary_of(c) not in ("demo-001", first), "its successor is succeeded, too")
                await goes_on(live, writer)
                primarys.thaw()
                await whole(live)
                assert await lost(live, writer) == 0
            primarys.part()
