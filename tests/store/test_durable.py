"""What only databases on disk have to bear: crashes, full disks, damage, other versions, other processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from cachekeep.clock import SystemClock
from cachekeep.engines.users import credential_of
from cachekeep.errors import Unusable
from cachekeep.model import UNKNOWN, Condemned, Done, Errand, ParameterGroup, Resharded, Secret, Tags
from cachekeep.store import DataDirLock, Lease, SqlStore, StoreFailed, migrations, sqlite
from cachekeep.store.migrate import VERSION_TABLE
from cachekeep.store.tables import SCHEMA, metadata


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def opened(path: Path | str) -> SqlStore:
    store = SqlStore(path, SystemClock(), seal=lambda uid, text: credential_of(1, Secret(text), "sealed"))
    await store.open()
    return store


async def tags(store: SqlStore) -> list[str]:
    async with store.reading() as t:
        return [r.name for r in await t.list(Tags)]


CHILD = """
import asyncio, sys
from cachekeep.clock import SystemClock
from cachekeep.model import ParameterGroup, Tags
from cachekeep.store import SqlStore

async def main():
    store = SqlStore(sys.argv[1], SystemClock())
    await store.open()
    async with store.transaction() as t:
        await t.put(Tags(name="committed", values={}))
    async with store.transaction() as t:
        for i in range(200):
            await t.put(ParameterGroup(name=f"half-{i}", family="f", description="x" * 20000))
        print("in the middle", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killed_in_the_middle_of_a_transaction(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = await opened(path)
    assert await tags(store) == ["committed"]
    async with store.reading() as t:
        assert await t.list(ParameterGroup) == []
    async with store.transaction() as t:
        await t.put(Tags(name="later", values={}))
    assert await tags(store) == ["committed", "later"]
    await store.aclose()


FULL = """
import asyncio, resource, sys
from cachekeep.clock import SystemClock
from cachekeep.model import ParameterGroup, Tags
from cachekeep.store import SqlStore, StoreFailed

async def main():
    store = SqlStore(sys.argv[1], SystemClock())
    await store.open()
    async with store.transaction() as t:
        await t.put(Tags(name="before", values={}))
    woken = []
    store.on_change(woken.append)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        async with store.transaction() as t:
            await t.put(Tags(name="half", values={}))
            t.wake("somebody")
            for i in range(50):
                await t.put(ParameterGroup(name=f"half-{i}", family="f", description="x" * 20000))
    except StoreFailed as error:
        print(error)
    assert woken == []
    async with store.reading() as t:
        assert [r.name for r in await t.list(Tags)] == ["before"]
        assert await t.list(ParameterGroup) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with store.transaction() as t:
        await t.put(Tags(name="after", values={}))
    print("went on")

asyncio.run(main())
"""


async def test_a_full_disk_is_said_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    child = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=60)
    said = child.stdout.splitlines()
    assert child.returncode == 0, child.stderr
    assert said[0].startswith(f"database {path}: the disk ")
    assert said[0].endswith("Nothing of this change was kept.")
    assert said[1] == "went on"
    store = await opened(path)
    assert await tags(store) == ["after", "before"]
    await store.aclose()


@pytest.mark.parametrize("damage", ["garbage", "middle", "directory"])
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.db"
    if damage == "garbage":
        path.write_bytes(b"this was a database once" * 1000)
    elif damage == "directory":
        path.mkdir()
    else:
        store = await opened(path)
        async with store.transaction() as t:
            for i in range(100):
                await t.put(ParameterGroup(name=f"g{i}", family="f", description="x" * 2000))
        await store.aclose()
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 20000] = os.urandom(20000)
        path.write_bytes(content)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(Unusable, match=r"state\.db"):
        await opened(path)
    assert before is None or path.read_bytes() == before


async def test_a_database_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await (await opened(path)).aclose()
    with sqlite3.connect(path) as raw:
        raw.execute(f"update {VERSION_TABLE} set version_num = '9999'")
    raw.close()
    with pytest.raises(Unusable, match=r"newer Cachekeep \(schema 9999"):
        await opened(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute(f"select version_num from {VERSION_TABLE}").fetchall() == [("9999",)]
    raw.close()


async def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as raw:
        raw.execute("create table events (mine text)")
    raw.close()
    with pytest.raises(Unusable, match="not a Cachekeep database"):
        await opened(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("select name from sqlite_master").fetchall() == [("events",)]
    raw.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "sqlite://", "postgresql://u:secret@/d?host=/nowhere", "a://b:c:secret"])
async def test_an_unusable_url_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(Unusable) as refused:
        await opened(url)
    assert "secret" not in str(refused.value)


async def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.db"
    old_umask = os.umask(0)
    try:
        store = await opened(path)
        async with store.transaction() as t:
            await t.put(Tags(name="a", values={}))
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
        await store.aclose()
        path.chmod(0o644)
        await (await opened(path)).aclose()
    finally:
        os.umask(old_umask)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_waiting_for_another_writer_does_not_stop_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    store = await opened(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")

    async def write(name: str) -> None:
        async with store.transaction() as t:
            await t.put(Tags(name=name, values={}))

    writing = asyncio.create_task(write("waited"))
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert await tags(store) == []  # readers do not wait, and the loop turns
    other.execute("rollback")
    await writing
    assert await tags(store) == ["waited"]
    other.execute("begin immediate")
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with pytest.raises(StoreFailed, match="another process has been writing"):
        await write("never")
    other.execute("rollback")
    other.close()
    await write("again")
    await store.aclose()


async def test_cancelled_while_committing_is_committed_and_wakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path / "state.db")
    woken: list[str] = []
    store.on_change(woken.append)
    loop, task = asyncio.get_running_loop(), None
    real = sqlite.Sqlite._commit

    def commit(raw: sqlite3.Connection, touched: object) -> None:
        loop.call_soon_threadsafe(task.cancel)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        real(raw, touched)

    monkeypatch.setattr(sqlite.Sqlite, "_commit", staticmethod(commit))

    async def write() -> None:
        async with store.transaction() as t:
            await t.put(Tags(name="a", values={}))
            t.wake("somebody")

    task = asyncio.create_task(write())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert woken == ["somebody"]
    assert await tags(store) == ["a"]
    await store.aclose()


# ---------------------------------------------------------------------------------------------------- schema


def test_the_newest_revision_is_the_one_in_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA]


async def test_migrations_make_exactly_the_declared_tables(tmp_path: Path) -> None:
    await (await opened(tmp_path / "state.db")).aclose()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/state.db")
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


# ---------------------------------------------------------------------------------------------------- data directory


def test_one_control_plane_per_data_directory(tmp_path: Path) -> None:
    with DataDirLock(tmp_path / "d"), pytest.raises(Unusable, match=f"in use by process {os.getpid()}"):
        DataDirLock(tmp_path / "d").acquire()
    with DataDirLock(tmp_path / "d"):
        pass


def test_the_lock_ends_with_its_holder_though_engines_live_on(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
from pathlib import Path
from cachekeep.store import DataDirLock
DataDirLock(Path(sys.argv[1])).acquire()
engine = subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL)
print(engine.pid, flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    engine = int(holder.stdout.readline())
    try:
        with pytest.raises(Unusable, match=f"process {holder.pid}"):
            DataDirLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(engine, 0)
        with DataDirLock(tmp_path):
            pass
    finally:
        os.kill(engine, signal.SIGKILL)


TAKEN_UP = {
    "serial": 7,
    "nodes": [
        {"name": "demo-001", "shard": "0001", "zone": "a", "address": "127.77.0.1", "port": 6379, "engine": "valkey"}
        | {"version": "8.0.1", "node_type": "cache.t3.micro", "due": "reboot", "announced": True}
    ],
    "shards": [{"id": "0001", "primary": "demo-001"}],
    "errands_done": 2,
}
"""What was decided when one number said which errands had been taken up: here a reboot and a consent, and a promotion is left."""
ASKED = [
    {"serial": 1, "kind": "reboot", "nodes": ["demo-001"], "shard": None},
    {"serial": 2, "kind": "promote-stale", "nodes": [], "shard": "0001"},
    {"serial": 3, "kind": "promote", "nodes": ["demo-001"], "shard": None},
]


async def test_errands_that_had_been_taken_up_are_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        wanted = json.dumps(json.loads(WANTED) | {"errands": ASKED})
        connection.execute(
            sa.text("insert into caches values ('u1', 'group', 'demo', 'us-east-1', 0, 'hush', 1, :wanted, :decided)"),
            {"wanted": wanted, "decided": json.dumps(TAKEN_UP)},
        )
    engine.dispose()
    store = await opened(path)
    cache = await store.load("u1")
    assert cache is not None
    assert [(j.id, type(j.state), j.work) for j in cache.decided.jobs] == [
        ("errand-1", Done, Errand(serial=1, kind="reboot", nodes=("demo-001",))),
        ("errand-2", Done, Errand(serial=2, kind="promote-stale", shard="0001")),
    ]
    assert [e.serial for e in cache.errands_left] == [3]
    assert cache.decided.nodes[0].due == "reboot"
    assert cache.wanted.asking("reboot").errands[-1].serial == 4
    await store.aclose()


OLD = {
    "nodes": [
        {"name": "demo-001", "shard": "0001", "zone": "a", "address": "127.77.0.1", "port": 6379, "engine": "valkey"}
        | {"version": "8.0.1", "node_type": "cache.t3.micro", "condemned": True, "condemned_at": "2026-01-01T12:00:00.5Z"}
        | {"created_at": "2026-01-01T11:00:00Z"}
    ],
    "shards": [{"id": "0001", "ordered_at": "2026-01-01T12:00:00Z", "starved_since": None}, {"id": "0002"}],
    "resharded_at": "2026-01-01T12:00:00Z",
    "available_at": "2026-01-01T11:30:00Z",
}
"""What was decided before durations were counted by moments."""


async def test_durations_that_were_begun_by_the_wall_clock_began_nobody_knows_when(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            sa.text("insert into caches values ('u1', 'group', 'demo', 'us-east-1', 0, 'hush', 1, :wanted, :decided)"),
            {"wanted": WANTED, "decided": json.dumps(OLD)},
        )
        connection.execute(sa.text("insert into leases values ('u1', 3, 'before')"))
        connection.execute(sa.text("insert into holders values ('before', 9999999999999999)"))
    engine.dispose()
    store = await opened(path)
    cache = await store.load("u1")
    assert cache is not None
    (node,), (one, two) = cache.decided.nodes, cache.decided.shards
    assert node.fate == Condemned(since=UNKNOWN)
    assert cache.decided.reshard == Resharded(since=UNKNOWN)
    assert one.change is two.change is None
    assert node.created_at == dt.datetime(2026, 1, 1, 11, tzinfo=dt.UTC)
    assert cache.decided.available_at == dt.datetime(2026, 1, 1, 11, 30, tzinfo=dt.UTC)
    assert await store.claim("after", ttl_seconds=60) == [Lease("u1", "after", 4)], "nobody waits until a date"
    await store.aclose()


WANTED = json.dumps({"engine": "valkey", "version": "8.0.1", "node_type": "cache.t3.micro", "port": 6379, "shards": []})
