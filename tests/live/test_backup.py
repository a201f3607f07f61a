"""Data of real engines, taken by being a replica and made live again: it is the same, of every type, on every engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey.asyncio
from tests.backup.data import everything, fill
from tests.backup.test_vault import AT, content_of, keys
from tests.engines.servers import PASSWORD, REDIS_LIKE, Server, build_of, servers, until

from cachekeep.backup.feed import scratch
from cachekeep.backup.replica import AsReplica, receive
from cachekeep.backup.vault import Vault
from cachekeep.engines.users import ADMIN, REPLICA, secret_of
from cachekeep.errors import OrderFailed
from cachekeep.model import Secret

LOGIN = AsReplica(REPLICA, Secret(secret_of(REPLICA, PASSWORD)))
DEADLINE_SECONDS = 60


def admin(server: Server) -> valkey.asyncio.Valkey:
    return valkey.asyncio.Valkey(
        host=server.node.address, port=server.node.port, username=ADMIN, password=PASSWORD.value, single_connection_client=True
    )


async def leading(server: Server) -> valkey.asyncio.Valkey:
    client = admin(server)
    await client.execute_command("REPLICAOF", "NO", "ONE")
    return client


async def chunks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
async def test_every_type_goes_through_a_vault_and_comes_back(engine: str, major: int, tmp_path: Path) -> None:
    """From a file and straight from memory; loaded by itself, and fed by us; and dumped again."""
    build = build_of(engine, major)
    vault = Vault.open(str(tmp_path / "vault"), keys())
    with servers(build, tmp_path, 1) as [server]:
        client = await leading(server)
        await fill(client, field_ttl=build.can("hash-field-expiration"))
        before = await everything(client)
        for diskless in ("no", "yes"):
            await client.config_set("repl-diskless-sync", diskless)
            await client.config_set("repl-diskless-sync-delay", "0")
            draft = await vault.draft("demo", diskless)
            async with draft.put("0001.rdb") as writer:
                got = await receive((server.node.address, server.node.port), LOGIN, writer.write, deadline_seconds=DEADLINE_SECONDS)
            told = await client.info("replication")
            assert (got.history, got.offset) == (told["master_replid"], told["master_repl_offset"])
            holding = await draft.commit(created_at=AT, about={})
            assert (holding.objects["0001.rdb"].bytes, holding.objects["0001.rdb"].sha256) == (got.bytes, got.sha256)
            rdb = await content_of(vault, holding)
            assert hashlib.sha256(rdb).hexdigest() == got.sha256
            async with scratch((build.server,), rdb=vault.read(holding, "0001.rdb")) as past:
                assert await everything(past.client) == before
                assert await past.keys() == {n: sum(1 for k in before if isinstance(k, tuple) and k[0] == n) for n in (0, 3, 15)}
            async with scratch((build.server,)) as past, past.fed(chunks(rdb), history=got.history, offset=got.offset):
                assert await everything(past.client) == before
                again = b"".join([chunk async for chunk in past.dump()])
            async with scratch((build.server,), rdb=chunks(again)) as past:
                assert await everything(past.client) == before
        await client.aclose()


async def test_what_engines_refuse_is_said_in_their_words(tmp_path: Path) -> None:
    build = build_of("valkey", 9)
    kept: list[bytes] = []

    async def sink(chunk: bytes) -> None:
        kept.append(chunk)

    with servers(build, tmp_path, 1) as [server]:
        at = (server.node.address, server.node.port)
        with pytest.raises(OrderFailed, match=r"NOMASTERLINK.*Nothing was kept"):
            await receive(at, LOGIN, sink, deadline_seconds=DEADLINE_SECONDS)
        with pytest.raises(OrderFailed, match="WRONGPASS"):
            await receive(at, AsReplica(REPLICA, Secret("wrong")), sink, deadline_seconds=DEADLINE_SECONDS)
        with pytest.raises(OrderFailed, match="NOPERM"):
            await receive(at, None, sink, deadline_seconds=DEADLINE_SECONDS)
        client = await leading(server)
        await client.set("key", "value")
        server.freeze()
        with pytest.raises(OrderFailed, match=r"within 0\.5 s"):
            await receive(at, LOGIN, sink, deadline_seconds=0.5)
        server.thaw()
        assert not kept

        async def dying(chunk: bytes) -> None:
            server.kill()

        for _ in range(200):
            await client.set(f"key{_}", os.urandom(100_000))
        with pytest.raises(OrderFailed, match="closed the connection before the end"):
            await receive(at, LOGIN, dying, deadline_seconds=DEADLINE_SECONDS)
        with pytest.raises(OrderFailed, match="did not hand over its data"):
            await receive(at, LOGIN, sink, deadline_seconds=DEADLINE_SECONDS)
        await client.aclose()


async def test_a_sink_that_fails_ends_it_and_frees_the_engine(tmp_path: Path) -> None:
    async def full(chunk: bytes) -> None:
        raise KeyError

    with servers(build_of("valkey", 9), tmp_path, 1) as [server]:
        client = await leading(server)
        with pytest.raises(KeyError):
            await receive((server.node.address, server.node.port), LOGIN, full, deadline_seconds=DEADLINE_SECONDS)

        async def alone() -> bool:
            return bool((await client.info("replication"))["connected_slaves"] == 0)

        await until(alone)
        await client.aclose()


async def test_damaged_data_do_not_load_and_that_is_said(tmp_path: Path) -> None:
    build = build_of("valkey", 9)
    async with scratch((build.server,)) as past:
        await past.client.execute_command("REPLICAOF", "NO", "ONE")
        await past.client.set("key", "value" * 100)
        rdb = b"".join([chunk async for chunk in past.dump()])
    wrong = rdb[:-1] + bytes([rdb[-1] ^ 1])
    with pytest.raises(OrderFailed, match="could not load"):
        async with scratch((build.server,), rdb=chunks(wrong)):
            pass
    with pytest.raises(OrderFailed, match="did not take what it was fed"):
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            scratch((build.server,)) as past,
            past.fed(chunks(wrong), history="a" * 40, offset=1),
        ):
            pass


async def test_a_scratch_engine_has_the_memory_that_it_is_given(tmp_path: Path) -> None:
    build = build_of("valkey", 9)
    async with scratch((build.server,)) as past:
        await past.client.execute_command("REPLICAOF", "NO", "ONE")
        for number in range(64):
            await past.client.set(number, bytes(1 << 20))
        rdb = b"".join([chunk async for chunk in past.dump()])
    with pytest.raises(OrderFailed, match="could not load"):
        async with scratch((build.server,), rdb=chunks(rdb), memory_bytes=60 << 20):
            pass


async def test_nothing_of_a_scratch_engine_is_left(tmp_path: Path) -> None:
    build = build_of("valkey", 9)
    async with scratch((build.server,), parent=tmp_path, settings={"databases": "20"}) as past:
        [directory] = tmp_path.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (await past.client.config_get("databases"))["databases"] == "20"
        pid = (await past.client.info("server"))["process_id"]
    assert not list(tmp_path.iterdir())
    assert not Path(f"/proc/{pid}").exists()
