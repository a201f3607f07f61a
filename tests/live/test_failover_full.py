"""A disk without a byte left: the caches are in memory, and go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.contract.driver_fixtures import disk_of
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

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount"),
]


def fill(place: Path) -> Path:
    filling = place / "filling"
    with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return filling


@ENGINES
async def test_a_full_disk_keeps_no_replica_from_leading(engine: str, major: int, tmp_path: Path) -> None:
    """Twice: what an order took of the last room is there for the next one."""
    with disk_of("8m", tmp_path / "small") as place:
        async with LiveCache(place, wanted_group(build_of(engine, major), nodes=4)) as live:
            await whole(live)
            async with writing(live, replicas=1) as writer:
                filling = fill(place)
                led: list[str] = []
                for _ in range(2):
                    led.append(live.primary_of(await live.cache()))
                    await live.signal(led[-1], signal.SIGKILL)
                    await live.until(lambda c: live.primary_of(c) not in led, "another primary")
                    await live.until(lambda c: c.decided.shards[0].in_sync, "others follow it")
                    await goes_on(live, writer)
                filling.unlink()
                await whole(live)
                await goes_on(live, writer)
                assert await lost(live, writer) == 0
