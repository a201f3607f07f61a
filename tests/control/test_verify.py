"""Snapshots that are tried: what a flipped bit does to one, and a vault that is away."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import pytest
from tests.services.rig import CATALOGUE, SetClock

from cachekeep.backup.keyring import RootKeyRing
from cachekeep.backup.vault import Vault
from cachekeep.control.verify import Verifier
from cachekeep.errors import VaultAway
from cachekeep.model import ShardCopy, Snapshot, SnapshotEnd, SnapshotNode, SnapshotSettings, Verification
from cachekeep.security.sealing import Sealing
from cachekeep.store import MemoryStore

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SETTINGS = SnapshotSettings(
    engine="valkey",
    version="8.0",
    node_type="cache.t3.micro",
    port=6379,
    clustered=False,
    parameter_group="default.valkey8",
    subnet_group=None,
    description="d",
    maintenance_window="sun:05:00-sun:06:00",
    snapshot_window="03:00-04:00",
    retention_days=0,
    auto_minor_version_upgrade=True,
    automatic_failover=True,
    zone="a",
    created_at=NOW,
)


class World:
    def __init__(self, place: Path) -> None:
        self.place, self.clock = place, SetClock()
        self.store = MemoryStore(self.clock)
        self.vault = Vault.open(str(place / "vault"), RootKeyRing(Sealing(bytes(32))))
        self.verifier = Verifier(
            store=self.store,
            vault=self.vault,
            clock=self.clock,
            catalogue=lambda: CATALOGUE,
            directory=place / "scratch",
            memory_bytes=0,  # so it is only read, and no engine is needed
        )

    async def taken(self) -> None:
        await self.store.open()
        draft = await self.vault.draft("demo", "nightly")
        async with draft.put("0001.rdb") as writer:
            await writer.write(b"REDIS0011" + bytes(100_000))
        holding = await draft.commit(created_at=NOW, about={"uid": "5e7/nightly"})
        copy = ShardCopy(shard="0001", node="demo-002", size_bytes=100_009, used_bytes=1000, taken_at=NOW)
        node = SnapshotNode(shard="0001", cluster_id="demo-001")
        async with self.store.transaction() as tx:
            await tx.put(
                Snapshot(
                    name="nightly",
                    uid="5e7/nightly",
                    source="manual",
                    asked_at=NOW,
                    cache_uid="u1",
                    group="demo",
                    settings=SETTINGS,
                    nodes=(node,),
                )
            )
            await tx.put(SnapshotEnd(name="5e7/nightly", at=NOW, holding=holding.id, copies=(copy,)))

    async def found(self) -> Verification | None:
        async with self.store.reading() as tx:
            return await tx.get(Verification, "5e7/nightly")

    async def told(self) -> list[str]:
        async with self.store.reading() as tx:
            return [event.message for _, event in await tx.events(limit=10)]


@pytest.mark.parametrize("flipped", [False, True])
def test_what_cannot_be_restored_is_told_of_once(tmp_path: Path, flipped: bool) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.taken()
        if flipped:
            (box,) = tmp_path.glob("vault/snapshots/*/0001.rdb")
            content = bytearray(box.read_bytes())
            content[len(content) // 2] ^= 1
            box.write_bytes(content)
        await world.verifier.verify_all()
        await world.verifier.verify_all()
        made = await world.found()
        assert made is not None
        assert made.how == "read"
        assert bool(made.problem) is flipped
        told = await world.told()
        assert len(told) == flipped
        assert all(t.startswith("Snapshot nightly cannot be restored: ") for t in told)
        world.vault.close()

    asyncio.run(main())


def test_a_vault_that_is_away_says_nothing_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.taken()

        async def away(self: Vault, id: str) -> None:
            raise VaultAway("it is away")

        with monkeypatch.context() as patch:
            patch.setattr(Vault, "find", away)
            await world.verifier.verify_all()
        assert await world.found() is None
        await world.verifier.verify_all()
        made = await world.found()
        assert made is not None
        assert not made.problem
        world.vault.close()

    asyncio.run(main())
