"""The files that calls are recorded in: in order, bounded, read backwards, and what becomes of a disk that takes nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekeep.audit import segments
from cachekeep.audit.segments import SEGMENTS, Appender, Place, backwards, numbers, path_of
from cachekeep.audit.trail import NotRecorded, Trail
from cachekeep.errors import Unusable

PATIENCE = 60.0


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = Trail("tests", tmp_path / "audit", 1 << 20, patience_seconds=PATIENCE)
    trail.open()
    yield trail
    trail.close()


def texts(directory: Path, before: Place | None = None) -> list[bytes]:
    return [text for _, text in backwards(directory, before)]


def test_what_is_written_is_read_the_newest_first(trail: Trail) -> None:
    for number in range(3):
        asyncio.run(trail.write(b"%d\n" % number))
    assert texts(trail.directory) == [b"2", b"1", b"0"]


def test_files_are_their_owners_alone(trail: Trail) -> None:
    asyncio.run(trail.write(b"x\n"))
    assert stat.S_IMODE(trail.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in trail.directory.iterdir()] == [0o600]


def test_it_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    appender = Appender(tmp_path / "a", SEGMENTS * 100)
    appender.open()
    for number in range(1000):
        appender.make_room()
        appender.append(b"%09d\n" % number, durable=False)
    kept = texts(tmp_path / "a")
    assert kept == [b"%09d" % n for n in range(999, 999 - len(kept), -1)]
    assert 100 * (SEGMENTS - 1) <= sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) <= 100 * SEGMENTS
    appender.close()


def test_the_next_process_goes_on_after_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    for more in (b"one\n", b"two"):
        appender = Appender(tmp_path, 1 << 20)
        appender.open()
        appender.append(more, durable=True)
        appender.close()
    appender.open()
    appender.append(b"three\n", durable=True)
    assert texts(tmp_path) == [b"three", b"two", b"one"]
    assert len(numbers(tmp_path)) == 1
    appender.close()


@given(
    st.lists(st.binary(min_size=1, max_size=40).map(lambda b: b.replace(b"\n", b".")), max_size=30),
    st.integers(1, 9),
    st.integers(1, 50),
)
@settings(deadline=None, max_examples=60, database=None)
def test_any_lines_in_any_blocks(lines: list[bytes], per_file: int, block: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_BLOCK_BYTES", block)
        directory = Path(name)
        for number in range(0, len(lines), per_file):
            path_of(directory, number + 1).write_bytes(b"".join(each + b"\n" for each in lines[number : number + per_file]))
        rows = list(backwards(directory))
        assert [text for _, text in rows] == lines[::-1]
        for at, (place, _) in enumerate(rows):
            assert texts(directory, place) == lines[::-1][at + 1 :]


def test_a_directory_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="Nothing was started"):
        Trail("tests", tmp_path / "file" / "audit", 1 << 20).open()


def test_a_full_disk_refuses_beforehand_and_is_told_when_it_is_over(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was to be written is lost; what nobody waits for is kept as far as there is room, and counted beyond."""
    real = os.write
    monkeypatch.setattr("cachekeep.audit.trail._WAITING_BYTES_MAX", 5)

    def full(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "audit tests":
            real(fd, data[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)

    async def scenario() -> None:
        task = asyncio.create_task(trail.write(b"change\n"))
        while not trail._failed:
            await asyncio.sleep(0.01)
        with pytest.raises(NotRecorded, match="No space left"):
            trail.check()
        trail.put(b"lost\n")
        assert not task.done()
        monkeypatch.setattr(os, "write", real)
        await task
        trail.check()
        await trail.write(b"after\n")

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert texts(trail.directory)[0] == b"after"
    assert set(texts(trail.directory)) == {b"after", b"change", b'{"lost":1}'}


def test_a_frozen_disk_holds_up_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachekeep.audit.trail._STALLED_SECONDS", 0.0)
    trail = Trail("tests", tmp_path / "a", 1 << 20, patience_seconds=0.05)
    trail.open()
    thaw, real = threading.Event(), os.fdatasync

    def frozen(fd: int) -> None:
        thaw.wait(PATIENCE)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", frozen)

    async def scenario() -> None:
        with pytest.raises(NotRecorded) as caught:
            await trail.write(b"change\n")
        assert caught.value.kept
        with pytest.raises(NotRecorded, match="has taken nothing"):
            trail.check()

    asyncio.run(scenario())
    thaw.set()
    trail.settle(PATIENCE)
    assert texts(trail.directory) == [b"change"]
    trail.close()


def test_room_is_set_aside_before_it_is_needed(tmp_path: Path) -> None:
    appender = Appender(tmp_path, SEGMENTS << 20)
    appender.open()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 0
    if not path.stat().st_blocks:
        pytest.skip("needs a file system that sets room aside")
    assert path.stat().st_blocks * 512 >= 2 << 20
    appender.close()
