"""A disk that hangs under one process: nobody waits for it who does not need it. Pipes without a reader stand for it, in place
of the draft that a record is written to, and of the orders."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.contract.driver_fixtures import LocalWorld, eventually, local_fixture, redis_spec  # noqa: F401  (fixture)

from cachekeep.compute.contract import Key
from cachekeep.compute.local import ledger, output
from cachekeep.errors import OrderFailed


@contextmanager
def hanging(directory: Path) -> Iterator[None]:
    """Until the end of the block, and what was written meanwhile is lost."""
    with pipe(directory / ".process.json.draft"), pipe(directory / "orders"):
        yield


@contextmanager
def pipe(path: Path) -> Iterator[None]:
    """In place of a file, which is lost."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    held = os.open(path, os.O_PATH)
    try:
        yield
    finally:
        path.unlink()  # first: whoever writes there goes on as soon as there is a reader
        os.close(os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK))
        os.close(held)


async def test_the_end_of_a_process_is_told_though_it_cannot_be_written_down(local: LocalWorld) -> None:
    driver, one, two = await local.driver(), redis_spec("a-001"), redis_spec("a-002")
    deaths: list[Key] = []
    driver.on_death(deaths.append)
    for spec in (one, two):
        await driver.start(spec)
    pid = local.record(one.key).pid
    with hanging(local.directory / "nodes" / "uid-1" / "a-001"):
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: deaths == [one.key])
        seen = (await driver.look([one.key]))[one.key]
        assert (seen.process, seen.ended_at is not None) == ("exited", True)
        assert await driver.admit(two.key, 1)
        assert local.record(two.key).last_order == 1


async def test_an_order_that_cannot_be_written_down_fails_and_holds_up_no_other(
    local: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "HANGS_SECONDS", 0.1)
    monkeypatch.setattr("cachekeep.compute.local.driver.HANGS_SECONDS", 0.5)
    driver, one, two = await local.driver(), redis_spec("a-001"), redis_spec("a-002")
    for spec in (one, two):
        await driver.start(spec)
    with hanging(local.directory / "nodes" / "uid-1" / "a-001"):
        refused = [asyncio.create_task(driver.admit(one.key, order)) for order in range(1, 9)]
        assert await driver.admit(two.key, 1)
        for order in refused:
            with pytest.raises(OrderFailed, match="the disk does not answer"):
                await order
        assert await driver.admit(two.key, 2)


def test_the_output_ends_in_good_order_though_its_thread_is_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("uid-1", "a-001")
    kept = ledger.Ledger(tmp_path, tmp_path)
    kept.make_directory(key)
    outputs = output.Outputs(kept)
    printed = outputs.begin(key)
    tell = os.eventfd_write

    def late(fd: int, value: int) -> None:
        os.write(printed, b"last words\n")  # wakes it
        assert outputs._thread is not None
        outputs._thread.join(0.5)
        tell(fd, value)

    monkeypatch.setattr(os, "eventfd_write", late)
    outputs.close()
    os.close(printed)
    assert (kept.directory(key) / "log").read_bytes() == b"last words\n"
