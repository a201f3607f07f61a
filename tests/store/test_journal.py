"""The journal: what has been kept is there again, whatever happened meanwhile;
what is damaged is named, and never half believed."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from cachekeep.errors import Unusable
from cachekeep.model import Decided, Done, Event, Shard
from cachekeep.sim.store import SimDisk
from cachekeep.store.contract import Lease, StoreFailed
from cachekeep.store.journal import _HEADER, _MAGIC, EVENTS_KEPT_MAX, Entry, FileDisk, Journal, _checksum

HALF = 8192


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def entry(uid: str = "u1", order: int = 1, *, epoch: int = 1, padding: str = "") -> Entry:
    decided = Decided(
        serial=order, shards=(Shard(id="0001", primary=f"n{order}", order=order),), configuration_node=padding or None
    )
    return Entry(lease=Lease(uid, "holder", epoch), decided=decided, addresses=("127.0.0.2",))


async def opened(path: Path, *, half_bytes: int = HALF) -> Journal:
    journal = Journal(FileDisk(path), half_bytes=half_bytes)
    await journal.open()
    return journal


async def filled(path: Path, *entries: Entry) -> bytes:
    """Keep these, close, and return what the file holds then."""
    journal = await opened(path)
    for one in entries:
        await journal.keep(one)
    await journal.aclose()
    return path.read_bytes()


async def test_what_was_kept_is_there_again_until_it_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await opened(path)
    assert journal.empty
    event = Event(source_type="replication-group", source="demo", message="m")
    for one in (entry("u1", 1), entry("u2", 1), replace(entry("u1", 2), events=(event,))):
        await journal.keep(one)
    await journal.aclose()
    journal = await opened(path)
    assert dict(journal.entries) == {"u1": replace(entry("u1", 2), events=(event,)), "u2": entry("u2", 1)}
    assert (journal.damage, journal.empty) == ("", False)
    await journal.drop("u1", 2)
    await journal.aclose()
    journal = await opened(path)
    assert dict(journal.entries) == {"u2": entry("u2", 1)}
    await journal.drop("u2", 1)
    assert journal.empty
    await journal.aclose()
    assert (await opened(path)).empty
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_size) == (0o600, 2 * HALF)


@pytest.mark.parametrize("whole", [True, False], ids=["all", "kept"])
async def test_errands_that_an_earlier_program_had_taken_up_are_not_done_again(tmp_path: Path, whole: bool) -> None:
    """Its records said up to which serial; consents to a loss were among them."""
    path = tmp_path / "journal"
    text = msgspec.json.encode(entry("u1", 3)).replace(b'"jobs":[]', b'"errands_done":2')
    payload = b'{"type":"all","entries":[' + text + b"]}" if whole else b'{"type":"kept","entry":' + text + b"}"
    assert b"errands_done" in payload
    header = _HEADER.pack(_MAGIC, 1, len(payload), _checksum(1, payload))
    path.write_bytes((bytes(HALF) + header + payload).ljust(2 * HALF, b"\0"))
    journal = await opened(path)
    jobs = journal.entries["u1"].decided.jobs
    assert [(j.id, type(j.state)) for j in jobs] == [("errand-1", Done), ("errand-2", Done)]
    await journal.keep(replace(journal.entries["u1"], addresses=()))
    await journal.aclose()
    assert (await opened(path)).entries["u1"].decided.jobs == jobs


async def test_what_is_kept_while_the_one_before_is_dropped_stays(tmp_path: Path) -> None:
    journal = await opened(tmp_path / "journal")
    await journal.keep(entry("u1", 1))
    await asyncio.gather(journal.keep(entry("u1", 2)), journal.drop("u1", 1))
    assert dict(journal.entries) == {"u1": entry("u1", 2)}
    await asyncio.gather(journal.drop("u1", 1), journal.drop("u1", 2), journal.drop("nobody", 9))
    assert journal.empty
    await journal.aclose()


async def test_its_size_never_changes_and_what_is_kept_goes_from_one_half_to_the_other(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await opened(path)
    await journal.keep(entry("other", 7))
    for order in range(1, 200):
        await journal.keep(entry("u1", order))
        if order % 17 == 0:
            await journal.aclose()
            assert path.stat().st_size == 2 * HALF
            journal = await opened(path)
            assert dict(journal.entries) == {"other": entry("other", 7), "u1": entry("u1", order)}
    await journal.aclose()


async def test_what_does_not_fit_is_refused_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await opened(path)
    await journal.keep(entry("u1", 1))
    with pytest.raises(StoreFailed, match=rf"more than its {HALF} bytes.*Nothing of this decision was kept"):
        await journal.keep(entry("u2", 1, padding="x" * HALF))
    await journal.keep(entry("u3", 1))
    await journal.aclose()
    assert set((await opened(path)).entries) == {"u1", "u3"}


async def test_only_so_many_events_are_kept(tmp_path: Path) -> None:
    journal = await opened(tmp_path / "journal", half_bytes=1 << 20)
    events = tuple(Event(source_type="user", source="s", message=str(i)) for i in range(EVENTS_KEPT_MAX + 3))
    await journal.keep(replace(entry(), events=events))
    assert journal.entries["u1"].events == events[3:]
    await journal.aclose()


async def test_many_at_once_are_written_together(tmp_path: Path) -> None:
    disk = SimDisk(random.Random(1))
    journal = Journal(disk)
    await journal.open()
    await asyncio.gather(*(journal.keep(entry(f"u{i}")) for i in range(100)))
    assert len(journal.entries) == 100
    assert disk.writes <= 3


async def test_a_write_cut_short_anywhere_counts_as_never_done_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    before = await filled(path, entry("u1", 1), entry("u2", 1))
    after = await filled(path, entry("u1", 2))
    changed = [i for i in range(len(after)) if before[i] != after[i]]
    for cut in range(changed[0] + 1, changed[-1] + 1):
        path.write_bytes(after[:cut] + before[cut:])
        journal = await opened(path)
        assert journal.entries["u1"] in (entry("u1", 1), entry("u1", 2))
        assert journal.entries["u2"] == entry("u2", 1)
        if journal.entries["u1"] == entry("u1", 1):
            assert "cut short" in journal.damage
            assert (tmp_path / "journal.damaged").read_bytes() == after[:cut] + before[cut:]
        await journal.keep(entry("u1", 3))
        await journal.aclose()
        journal = await opened(path)
        assert (journal.damage, journal.entries["u1"]) == ("", entry("u1", 3)), "named once, whole again"
        await journal.aclose()


async def test_a_change_of_halves_cut_short_anywhere_leaves_the_older_half(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal, order = await opened(path), 0
    first = path.read_bytes()
    while first[:HALF] == path.read_bytes()[:HALF]:  # it begins with the second
        before, order = path.read_bytes(), order + 1
        await journal.keep(entry("u1", order))
    await journal.aclose()
    after = path.read_bytes()
    end = max(i for i in range(HALF) if before[i] != after[i]) + 1
    for cut in range(1, end):
        path.write_bytes(after[:cut] + before[cut:])
        journal = await opened(path)
        assert journal.entries["u1"] == entry("u1", order - 1)
        assert "cut short" in journal.damage
        await journal.aclose()


@pytest.mark.parametrize("at", ["first", "middle"])
async def test_where_what_came_last_can_be_read_no_more_nothing_counts(tmp_path: Path, at: str) -> None:
    """What is left could be older than what was carried out: the caches are looked at anew."""
    path = tmp_path / "journal"
    content = bytearray(await filled(path, *(entry("u1", i) for i in range(1, 6))))
    where = content.index(b'"kept"' if at == "middle" else b'"all"')
    content[where] ^= 1
    path.write_bytes(content)
    journal = await opened(path)
    assert journal.entries == {}
    assert "nothing of it counts" in journal.damage
    assert journal.damage.endswith(f"{path}.damaged")
    assert (tmp_path / "journal.damaged").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "journal.damaged").stat().st_mode) == 0o600
    await journal.keep(entry("u1", 9))
    await journal.aclose()
    journal = await opened(path)
    assert (journal.damage, dict(journal.entries)) == ("", {"u1": entry("u1", 9)})
    await journal.aclose()


async def test_no_single_bad_byte_brings_up_anything_that_was_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    content = await filled(path, entry("u1", 1), entry("u1", 2), entry("u1", 3))
    used = len(content.rstrip(b"\0"))
    for where in random.Random(1).sample(range(HALF, used), 150):
        damaged = bytearray(content)
        damaged[where] ^= 1 << random.Random(where).randrange(8)
        path.write_bytes(damaged)
        journal = await opened(path)
        assert dict(journal.entries) in ({}, {"u1": entry("u1", 2)})
        assert journal.damage
        await journal.aclose()


@pytest.mark.parametrize("content", [b"\xff" * 3 * HALF, b"CKJ1" * HALF, os.urandom(2 * HALF), b"x"])
async def test_what_was_never_a_journal_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = await opened(path)
    assert (dict(journal.entries), bool(journal.damage)) == ({}, True)
    await journal.keep(entry())
    await journal.aclose()
    journal = await opened(path)
    assert (dict(journal.entries), journal.damage) == ({"u1": entry()}, "")
    await journal.aclose()


async def test_a_newer_programs_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    disk = SimDisk(random.Random(1))
    journal = Journal(disk, half_bytes=HALF)
    await journal.open()
    real = Journal.__module__
    framed = sys.modules[real]._framed  # type: ignore[attr-defined]
    await journal.keep(entry())
    content = bytes(disk.content)
    strange = framed(1, {"type": "from the future"})
    path.write_bytes(content[:HALF] + strange + content[HALF + len(strange) :])
    before = path.read_bytes()
    with pytest.raises(Unusable, match="newer Cachekeep"):
        await opened(path)
    assert path.read_bytes() == before


async def test_a_place_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in ("directory", "link", "none/journal"):
        with pytest.raises(Unusable, match="cannot be used"):
            await opened(tmp_path / path)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


async def test_a_failed_write_is_not_there_later(tmp_path: Path) -> None:
    """Whoever heard that it failed decides anew: what it had decided first must not come back."""
    path = tmp_path / "journal"
    journal = await opened(path)
    await journal.keep(entry("u1", 1))
    real, os.fdatasync = os.fdatasync, _no_sync  # type: ignore[assignment]
    try:
        with pytest.raises(StoreFailed, match="Nothing of this decision was kept"):
            await journal.keep(entry("u1", 2))
    finally:
        os.fdatasync = real
    await journal.aclose()
    journal = await opened(path)
    assert (dict(journal.entries), journal.damage) == ({"u1": entry("u1", 1)}, "")
    await journal.keep(entry("u1", 3))
    await journal.aclose()
    assert (await opened(path)).entries["u1"] == entry("u1", 3)


def _no_sync(fd: int) -> None:
    raise OSError(5, "Input/output error")


async def test_a_disk_that_fills_up_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await opened(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * HALF, limit[1]))  # nothing may grow beyond what it has
    try:
        for order in range(1, 50):
            await journal.keep(entry("u1", order))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    await journal.aclose()
    assert (await opened(path)).entries["u1"] == entry("u1", 49)


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.store.test_journal import entry, opened

async def main():
    journal = await opened(Path(sys.argv[1]))
    order = max((e.decided.serial for e in journal.entries.values()), default=0)
    while True:
        order += 1
        await journal.keep(entry("u1", order, padding="x" * (order % 900)))
        print(order, flush=True)

asyncio.run(main())
"""


async def test_killed_at_any_moment_it_has_the_last_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    said = 0
    for round in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        for _ in range(20 + 7 * round):
            said = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
        child.wait()
        child.stdout.close()
        said = max([said, *(int(line) for line in rest[:-1])])
        journal = await opened(path)
        kept = journal.entries["u1"].decided.serial
        await journal.aclose()
        assert kept in (said, said + 1), "the last one may have been on its way"
