"""Passwords that a release before kept as they are: they are sealed in place, and nothing of them stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from tests.contract.conftest import postgres

from cachekeep.clock import SystemClock
from cachekeep.errors import Unusable
from cachekeep.model import Credential, Secret
from cachekeep.security.sealing import Sealing
from cachekeep.store import SqlStore, migrations

PASSWORDS = {
    "u1": "qLwbq3xJ9K0zFLO7cjGTd2Jj3x9mVQzUq4vYpG1rVbA",
    "u2": "2hT0o9c3wQh8cS1yKQfM5bXk7uZr6tVnD4pLsJgEwI8",
    "m": "unused",
}
SEALING = Sealing(b"\7" * 32)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def seal(uid: str, password: str) -> Credential:
    return SEALING.credential(uid, 1, Secret(password))


def wanted(engine: str) -> str:
    return json.dumps({"engine": engine, "version": "8.0.1", "node_type": "cache.t3.micro", "port": 6379, "shards": []})


def as_before(url: str) -> None:
    """A database as the release before this one left it, a running one's among it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
    with engine.begin() as connection:
        for uid, password in PASSWORDS.items():
            connection.execute(
                sa.text("insert into caches values (:uid, 'group', :uid, 'us-east-1', 0, :password, 1, :wanted, '{}')"),
                {"uid": uid, "password": password, "wanted": wanted("memcached" if uid == "m" else "valkey")},
            )
    with engine.begin() as connection:  # so that a former row is somewhere, too
        connection.execute(sa.text("update caches set version = 2"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
    """A URL, and where its bytes are."""
    if request.param == "sqlite":
        as_before(f"sqlite:///{tmp_path}/state.db")
        yield f"sqlite:///{tmp_path}/state.db", lambda: list(tmp_path.iterdir())
        return
    with postgres() as (url, _):
        home = Path(url.partition("host=")[2])
        as_before(url.replace("postgresql:", "postgresql+psycopg:"))
        yield url, lambda: [p for p in (home / "data" / "base").rglob("*") if p.is_file()]


async def test_it_is_sealed_in_place_and_nothing_of_it_stays(database: tuple[str, Callable[[], list[Path]]]) -> None:
    url, files = database
    words = [password.encode() for password in PASSWORDS.values() if password != "unused"]
    store = SqlStore(url, SystemClock(), seal=seal)
    await store.open()
    for uid in ("u1", "u2"):
        cache = await store.load(uid)
        assert cache is not None
        assert SEALING.password_of(cache) == Secret(PASSWORDS[uid])
        assert cache.version == 2
    cache = await store.load("m")
    assert cache is not None
    assert cache.credentials == (), "it has no users"
    if "sqlite" in url:  # while it runs, with all that goes with it; PostgreSQL writes its pages when it likes
        assert [p for p in files() if any(word in p.read_bytes() for word in words)] == []
    await store.aclose()
    if "postgresql" in url:
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("checkpoint"))
        engine.dispose()
    assert [p for p in files() if any(word in p.read_bytes() for word in words)] == []
    store = SqlStore(url, SystemClock())
    await store.open()
    cache = await store.load("u1")
    assert cache is not None
    assert SEALING.password_of(cache) == Secret(PASSWORDS["u1"]), "once, and for good"
    await store.aclose()


async def test_without_a_key_it_is_left_as_it_is(database: tuple[str, Callable[[], list[Path]]]) -> None:
    url, _ = database
    with pytest.raises(Unusable, match="left as it is"):
        await SqlStore(url, SystemClock()).open()
    store = SqlStore(url, SystemClock(), seal=seal)
    await store.open()
    cache = await store.load("u1")
    assert cache is not None
    assert SEALING.password_of(cache) == Secret(PASSWORDS["u1"])
    await store.aclose()
