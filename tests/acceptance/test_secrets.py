"""No password is in any file but those that an engine needs; and what becomes of caches whose root key is lost."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import valkey
from botocore.exceptions import ClientError
from tests.acceptance.installation import Installation, available, created, eventually

from cachekeep.clock import SystemClock
from cachekeep.engines.users import ADMIN, MOVER, REPLICA, secret_of
from cachekeep.model import Cache
from cachekeep.security.sealing import FILE, load
from cachekeep.store import SqlStore


async def stored(installation: Installation, name: str) -> Cache:
    store = SqlStore(installation.data_dir / "cachekeep.db", SystemClock())
    await store.open()
    async with store.reading() as tx:
        cache = await tx.cache(name, "group")
    await store.aclose()
    assert cache is not None
    return cache


def holding(installation: Installation, secret: str) -> set[Path]:
    """Every file that it stands in, the log of the control plane among them."""
    files = [p for p in installation.data_dir.parent.rglob("*") if p.is_file()]
    return {p for p in files if secret.encode() in p.read_bytes()}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_passwords_are_in_no_file_but_an_engines_own(another: Callable[..., Installation]) -> None:
    installation = another("--log-level", "debug").up()
    client = installation.client()
    created(client, "demo", NumCacheClusters=2)
    client.modify_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="more")
    key = installation.data_dir / FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    password = load(key, given=True).password_of(await stored(installation, "demo"))
    assert holding(installation, password.value) == set(), "while it runs"
    for user in (REPLICA, MOVER):
        found = holding(installation, secret_of(user, password))
        assert {p.name for p in found} == ({"server.conf"} if user == REPLICA else set())
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in found)
    assert holding(installation, key.read_text().strip()) == {key}
    installation.kill()
    assert holding(installation, password.value) == set(), "and after a crash"


async def test_without_their_key_caches_go_on_and_it_is_said(another: Callable[..., Installation], tmp_path: Path) -> None:
    installation = another().up()
    created(installation.client(), "demo", NumCacheClusters=2)
    (node, *_) = installation.status("demo")["nodes"]
    host, _, port = node["endpoint"].partition(":")
    user = valkey.Valkey(host, int(port))
    before = installation.pids()
    installation.kill()
    key, away = installation.data_dir / FILE, tmp_path / "away.key"
    key.rename(away)

    installation.up()
    eventually(lambda: "sealed by the root key" in installation.status("demo")["because"], what="status says so")
    assert "go on" in installation.status("demo")["because"]
    assert "does not open the passwords of demo" in installation.narration()
    assert user.ping()
    assert installation.pids() == before
    assert not key.exists(), "none is made in its place"
    with pytest.raises(ClientError, match="nothing can be kept as a secret"):
        installation.client(retries={"total_max_attempts": 1}).create_replication_group(
            ReplicationGroupId="more", ReplicationGroupDescription="x", Engine="valkey", CacheNodeType="cache.t3.micro"
        )
    explained = installation.run("explain", "demo", check=False)
    assert "sealed by the root key" in explained.stdout + explained.stderr
    installation.kill()

    wrong = tmp_path / "wrong.key"
    wrong.write_text("ab" * 32)
    wrong.chmod(0o600)
    refused = installation.popen("--root-key", str(wrong))
    assert refused.wait(60) != 0
    assert "is not the root key that sealed" in installation.narration()
    assert installation.pids() == before

    installation.options = ("--root-key", str(away))
    installation.up()
    available(installation.client(), "demo")
    eventually(lambda: installation.status("demo")["status"] == "available")
    assert installation.pids() == before
    with pytest.raises(valkey.exceptions.AuthenticationError):
        valkey.Valkey(host, int(port), username=ADMIN, password="x").ping()
