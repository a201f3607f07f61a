"""Snapshots in a vault: whole or not at all, by any installation that has the key, and never another's bytes."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekeep.backup.keyring import RootKeyRing
from cachekeep.backup.objects import Objects
from cachekeep.backup.vault import Holding, Vault
from cachekeep.errors import Damaged, InvalidValue, NotInVault, VaultAway
from cachekeep.security.sealing import Sealing

AT = dt.datetime(2026, 11, 28, 6, 10, tzinfo=dt.UTC)
ABOUT = {"engine": "valkey", "shards": ["0001"], "size": 3}


def keys(number: int = 1) -> RootKeyRing:
    return RootKeyRing(Sealing(bytes([number]) * 32, path=Path("/etc/root.key")))


async def taken(vault: Vault, content: bytes, name: str = "nightly", *, at: dt.datetime = AT) -> Holding:
    draft = await vault.draft("demo", name)
    async with draft.put("0001.rdb") as writer:
        for start in range(0, len(content), 1 << 18):
            await writer.write(content[start : start + (1 << 18)])
    return await draft.commit(created_at=at, about=ABOUT)


async def content_of(vault: Vault, holding: Holding, name: str = "0001.rdb") -> bytes:
    return b"".join([chunk async for chunk in vault.read(holding, name)])


@pytest.fixture(params=["directory", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "s3":
        with s3_server(tmp_path, monkeypatch) as served:
            yield served
    else:
        yield {"directory": str(tmp_path / "vault"), "memory": "memory:///"}[request.param]


class s3_server:
    """rclone serves a directory as S3, with credentials that the vault finds where AWS's tools do."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rclone = shutil.which("rclone", path=f"{Path(os.sys.executable).parent}:{os.environ['PATH']}")  # type: ignore[attr-defined]
        if self.rclone is None:
            pytest.skip("needs rclone")
        self.directory, self.patch = tmp_path / "served", monkeypatch
        (self.directory / "bucket").mkdir(parents=True)

    def __enter__(self) -> str:
        from tests.addresses import free_port

        port = free_port()
        argv = [str(self.rclone), "serve", "s3", str(self.directory), "--addr", f"127.0.0.1:{port}", "--auth-key", "access,secret"]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        said = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": "access", "SECRET_ACCESS_KEY": "secret", "REGION": "x"}
        for name, value in said.items():
            self.patch.setenv(f"AWS_{name}", value)
        return "s3://bucket/vault"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


async def test_a_snapshot_comes_back_as_it_was_in_any_vault(url: str) -> None:
    content = os.urandom(3 << 20) + bytes(20 << 20)  # more than one part of an upload
    vault = Vault.open(url, keys())
    made = await taken(vault, content)
    listing = await vault.holdings()
    assert listing.holdings == (made,)
    assert not listing.problems
    assert (made.cache, made.name, made.created_at, made.about) == ("demo", "nightly", AT, ABOUT)
    assert made.objects["0001.rdb"].bytes == len(content)
    assert made.objects["0001.rdb"].stored_bytes < 4 << 20  # it is compressed
    assert await content_of(vault, made) == content
    await vault.delete(made.id)
    await vault.delete(made.id)
    assert (await vault.holdings()).holdings == ()
    with pytest.raises(NotInVault):
        await vault.find(made.id)
    vault.close()


async def test_another_installation_with_the_key_lists_and_reads_it(tmp_path: Path) -> None:
    made = await taken(Vault.open(str(tmp_path), keys()), b"content")
    other = Vault.open(f"file://{tmp_path}", keys())
    assert (await other.holdings()).holdings == (made,)
    assert await content_of(other, made) == b"content"
    assert b"content" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


async def test_without_the_key_it_says_which_one_is_needed(tmp_path: Path) -> None:
    made = await taken(Vault.open(str(tmp_path), keys(1)), b"content")
    listing = await Vault.open(str(tmp_path), keys(2)).holdings()
    assert listing.holdings == ()
    here, there = Sealing(bytes([2]) * 32).id, Sealing(bytes([1]) * 32).id
    assert listing.problems[made.id].startswith(
        f"its data key was wrapped by the root key {there}, and /etc/root.key holds {here}."
    )


async def test_what_is_not_committed_is_not_there_and_is_swept_when_nobody_makes_it_any_more(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    draft = await vault.draft("demo", "nightly")
    async with draft.put("0001.rdb") as writer:
        await writer.write(b"content")
    assert (await vault.holdings()).holdings == ()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    assert await vault.sweep(older_than_seconds=7200, now=later) == 0
    assert await vault.sweep(older_than_seconds=60, now=later, spare=[draft.id]) == 0
    whole = await taken(vault, b"whole")
    assert await vault.sweep(older_than_seconds=60, now=later) == 1
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"manifest", "0001.rdb"}
    assert await content_of(vault, whole) == b"whole"


async def test_what_somebody_else_has_put_there_is_left_alone(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    whole = await taken(vault, b"whole")
    others = [tmp_path / "snapshots" / name for name in ("README", "notes/mine", f"{'0' * 32}", f"{'1' * 32}/deep/down")]
    for path in others:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("mine")
    deep = tmp_path / "snapshots" / ("2" * 32) / "manifest"
    deep.parent.mkdir()
    deep.write_bytes(b"[" * 100_000 + b"\n")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    assert await vault.sweep(older_than_seconds=60, now=later) == 0
    assert all(path.exists() for path in others)
    listing = await vault.holdings()
    assert (listing.holdings, [*listing.problems]) == ((whole,), ["2" * 32])


async def test_what_is_in_a_directory_is_its_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    objects = Objects(str(tmp_path))
    await objects.put("small", b"x")
    upload = objects.upload("deep/down/large", lambda pieces: pieces)
    await upload.write(b"y")
    await upload.finish()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.name != "deep"}
    assert modes == {"small": 0o600, "large": 0o600, "down": 0o700}
    objects.close()


async def test_a_writer_that_fails_puts_nothing(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    draft = await vault.draft("demo", "nightly")
    with pytest.raises(KeyError):
        async with draft.put("0001.rdb") as writer:
            await writer.write(bytes(5 << 20))
            raise KeyError
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


async def test_a_draft_that_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    draft = await vault.draft("demo", "nightly")
    async with draft.put("0001.rdb") as writer:
        await writer.write(b"content")
    await draft.abandon()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("where", ["0001.rdb", "manifest"])
async def test_flipped_bits_and_cut_ends_are_found_and_said(tmp_path: Path, where: str) -> None:
    vault = Vault.open(str(tmp_path), keys())
    made = await taken(vault, os.urandom(3 << 20))
    file = tmp_path / "snapshots" / made.id / where
    stored = file.read_bytes()
    for wrong in (stored[:-1], stored[: len(stored) // 2], bytes([stored[0] ^ 1]) + stored[1:], stored + b"x", b""):
        file.write_bytes(wrong)
        if where == "manifest":
            listing = await vault.holdings()
            assert listing.holdings == ()
            assert "manifest" in listing.problems[made.id]
        else:
            with pytest.raises(Damaged, match=r"0001\.rdb of snapshot nightly of demo .* is damaged: "):
                await content_of(vault, made)


async def test_an_object_of_another_snapshot_in_its_place_is_found(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    one, two = await taken(vault, b"one", "a"), await taken(vault, b"two", "b")
    place = tmp_path / "snapshots"
    shutil.copy(place / one.id / "0001.rdb", place / two.id / "0001.rdb")
    with pytest.raises(Damaged):
        await content_of(vault, two)
    shutil.copy(place / one.id / "manifest", place / two.id / "manifest")
    assert set((await vault.holdings()).problems) == {two.id}


async def test_the_manifest_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path), keys())
    made = await taken(vault, b"one")
    file = tmp_path / "snapshots" / made.id / "manifest"
    file.write_bytes(file.read_bytes().replace(b'"form":1', b'"form":2'))
    assert "a newer Cachekeep wrote it" in (await vault.holdings()).problems[made.id]


async def test_a_vault_without_room_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path / "vault"), keys())
    made = await taken(vault, b"before")
    shutil.rmtree(tmp_path / "vault" / "snapshots")
    (tmp_path / "vault" / "snapshots").write_text("in the way")
    draft = await vault.draft("demo", "nightly")
    with pytest.raises(VaultAway, match="What it holds is as it was"):
        async with draft.put("0001.rdb") as writer:
            for _ in range(200):  # whoever goes on writing is told, too
                await writer.write(bytes(1 << 20))
    with pytest.raises(VaultAway):
        await draft.commit(created_at=AT, about={})
    with pytest.raises((VaultAway, NotInVault)):
        await content_of(vault, made)


def test_there_are_no_other_vaults() -> None:
    with pytest.raises(InvalidValue, match="file, s3, gs, az, memory"):
        Vault.open("ftp://there", keys())
