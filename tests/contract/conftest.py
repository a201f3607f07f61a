"""One world per kind of store: a way to open stores on the same database, and to let time pass."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.contract.stores import HandClock, World

from cachekeep.store import SqlStore

TABLES = "caches, members, addresses, released, leases, work, holders, conditions, resources, events"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def postgres() -> Iterator[tuple[str, int]]:
    """A PostgreSQL server of our own on a unix socket, without fsync: the URL of a database, and its process."""
    found = shutil.which("pg_config")
    binaries = Path(subprocess.check_output([found, "--bindir"], text=True).strip()) if found else Path("/none")
    if not (binaries / "initdb").exists():
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=binaries, key=lambda p: int(p.parent.name))
    if not (binaries / "initdb").exists():
        pytest.skip("needs postgresql")
    user = None
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_uid
        except KeyError:
            pytest.skip("needs postgresql: as root also its system user postgres")
    home = Path(tempfile.mkdtemp(prefix="cachekeep-pg-"))
    if user is not None:
        os.chown(home, user, -1)
    initdb = [
        binaries / "initdb",
        "-D",
        home / "data",
        "-U",
        "keeper",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--locale=C.UTF-8",
    ]
    subprocess.run(initdb, check=True, user=user, cwd=home, stdout=subprocess.DEVNULL)
    options = {
        "listen_addresses": "",
        "unix_socket_directories": home,
        "fsync": "off",
        "max_connections": 60,
        "shared_buffers": "16MB",
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", home / "data", *(f"--{name}={value}" for name, value in options.items())],
            user=user,
            cwd=home,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGINT),  # PR_SET_PDEATHSIG
        )
    url = f"postgresql://keeper@/cachekeep?host={home}"

    try:
        createdb = [binaries / "createdb", "-h", home, "-U", "keeper", "cachekeep"]
        until = time.monotonic() + 60
        while subprocess.run(createdb, cwd=home, stderr=subprocess.DEVNULL).returncode:
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.02)
        yield url, server.pid
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of a server that ends with the test run."""
    with postgres() as (url, _):
        yield url


@pytest.fixture(params=["memory", "sqlite", "journaled", "postgres"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind = request.param
    url = f"sqlite:///{tmp_path}/state.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
        store = SqlStore(url, HandClock())
        await store.open()
        await store.aclose()
        connection = await asyncpg.connect(url)
        await connection.execute(f"TRUNCATE {TABLES}")
        await connection.close()
    world = World(kind, url)
    yield world
    await world.aclose()
