"""Writing to many disks in a thread: one that hangs holds up no other, and what is for it waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.driver_fixtures import LocalWorld, eventually, local_fixture, redis_spec  # noqa: F401  (fixture)

from cachekeep.compute.local import scribe
from cachekeep.compute.local.scribe import Scribe
from cachekeep.model import Heard, Moment, Stream

A, B = ("uid", "a"), ("uid", "b")


@pytest.fixture
def disk() -> Iterator[threading.Event]:
    """Set when the disk under A goes on: at the latest at the end."""
    goes_on = threading.Event()
    yield goes_on
    goes_on.set()


def size(path: Path) -> int:
    """Bytes; of one that is not there yet, none."""
    return path.stat().st_size if path.exists() else 0


def soon(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_hangs_holds_up_nobody_else_and_goes_on_in_order(disk: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "HANGS_SECONDS", 0.05)
    writes, written = Scribe("test"), list[str]()

    def hang() -> None:
        disk.wait()
        written.append("a1")

    writes.put(A, hang)
    writes.put(A, lambda: written.append("a2"))
    soon(lambda: writes._writing is not None)
    for number in range(3):
        writes.put(B, lambda number=number: written.append(f"b{number}"))  # type: ignore[misc]
    soon(lambda: written == ["b0", "b1", "b2"])
    writes.put(A, lambda: written.append("a3"))
    disk.set()
    soon(lambda: written[3:] == ["a1", "a2", "a3"])


def test_later_words_take_the_place_of_earlier_ones(disk: threading.Event) -> None:
    writes, written = Scribe("test"), list[int]()
    writes.put(B, disk.wait)
    soon(lambda: writes._writing is not None)
    for number in range(3):
        writes.put(A, lambda number=number: written.append(number), replaces=True)  # type: ignore[misc]
    writes.put(B, lambda: written.append(9))
    writes.forget(B)
    disk.set()
    writes.close()
    assert written == [2]


def test_the_end_waits_for_what_can_be_written_and_not_for_a_disk(disk: threading.Event) -> None:
    writes, written = Scribe("test", soon_seconds=60), list[str]()
    writes.put(A, disk.wait)
    writes.put(B, lambda: written.append("b"))
    writes.close()
    assert written == ["b"]
    assert not disk.is_set()


def test_what_cannot_be_written_ends_nothing() -> None:
    writes, written = Scribe("test"), list[str]()

    def full() -> None:
        raise OSError(28, "No space left on device")

    writes.put(A, full)
    writes.put(A, lambda: written.append("a"))
    writes.close()
    assert written == ["a"]


async def test_words_and_logs_of_others_are_written_while_one_disk_hangs(local: LocalWorld) -> None:
    """A pipe without a reader stands for the disk, in the place of both files of one process."""
    driver, one, two = await local.driver(), redis_spec("a-001"), redis_spec("a-002")
    for spec in (one, two):
        await driver.start(spec)
    place = local.directory / "nodes" / "uid-1"
    for name in ("heard", "log"):
        (place / "a-001" / name).unlink(missing_ok=True)
        os.mkfifo(place / "a-001" / name)
    try:
        log = place / "a-002" / "log"
        before = size(log)
        heard = Heard(Moment("b", 1.0), Stream("id", 7))
        driver.remember(one.key, heard)
        os.kill(local.record(one.key).pid, signal.SIGUSR1)  # nothing that it prints can be written
        await eventually(lambda: driver._words._scribe._writing is not None)

        def written() -> bool:
            driver.remember(two.key, heard)
            return (place / "a-002" / "heard").exists()

        await eventually(written)
        os.kill(local.record(two.key).pid, signal.SIGTERM)  # it says good-bye
        await eventually(lambda: size(log) > before)
    finally:
        for name in ("heard", "log"):
            fd = os.open(place / "a-001" / name, os.O_RDONLY | os.O_NONBLOCK)
            (place / "a-001" / name).unlink()
            os.close(fd)
