"""What engines say to each other: who listens at a primary's address is told nothing that opens more than replication."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey.asyncio
from tests.addresses import new_address
from tests.engines.servers import PASSWORD, REDIS_LIKE, Orders, Server, build_of, carry, servers, until

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import ApplyParts
from cachekeep.compute.line import parse_resp
from cachekeep.compute.link import EngineLink
from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import ADMIN, MOVER, REPLICA, secret_of
from cachekeep.model import Follow, Promote

engines = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))
NOT_A_REPLICAS = (
    "GET k",
    "SET k v",
    "KEYS *",
    "INFO",
    "CONFIG GET masterauth",
    "ACL LIST",
    "REPLICAOF NO ONE",
    "CLIENT LIST",
    "EVAL 1 0",
)
NOT_A_MOVERS = ("CONFIG GET masterauth", "ACL LIST", "ACL SETUSER default on", "REPLICAOF NO ONE", "SHUTDOWN", "SAVE")


def client(server: Server, user: str) -> valkey.asyncio.Valkey:
    node = server.node
    return valkey.asyncio.Valkey(
        host=node.address, port=node.port, username=user, password=secret_of(user, PASSWORD), decode_responses=True
    )


async def ask(server: Server, *words: str, user: str = ADMIN) -> object:
    async with client(server, user) as one:
        return await one.execute_command(*words)


async def linked_as(replica: Server, primary: Server) -> str | None:
    """The user that a replica is linked as to its primary; None: it is not."""
    role = await ask(replica, "ROLE")
    assert isinstance(role, list)
    if role[0] != "slave" or role[1] != primary.node.address or role[3] != "connected":
        return None
    clients = await ask(primary, "CLIENT", "LIST", "TYPE", "replica")
    words = str(clients).split()
    return next((word.partition("=")[2] for word in words if word.startswith("user=")), None)


def users_of(server: Server) -> ApplyParts:
    """All that a node of this release knows."""
    return ApplyParts(node=server.node.name, acl=runtime(server.cache, server.node).acl)


def login_of(server: Server) -> ApplyParts:
    """What it says to its primary."""
    login = runtime(server.cache, server.node).login
    assert login is not None
    return ApplyParts(node=server.node.name, login=login.user)


async def as_before(server: Server) -> None:
    """As a release that had nobody but the admin started it."""
    await ask(server, "CONFIG", "SET", "masteruser", ADMIN)
    await ask(server, "CONFIG", "SET", "masterauth", PASSWORD.value)
    await ask(server, "ACL", "DELUSER", REPLICA, MOVER)


@contextlib.asynccontextmanager
async def link() -> AsyncIterator[EngineLink]:
    made = EngineLink(Orders(), SystemClock())
    try:
        yield made
    finally:
        await made.aclose()


class Ear:
    """A stranger who says yes to everything. ``words`` are those that it was told."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self.words: list[str] = []

    async def __aenter__(self) -> Ear:
        self._server = await asyncio.start_server(self._hear, self.address, self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = bytearray()
        while more := await reader.read(4096):
            said += more
            while said and (found := parse_resp(said, 0)) is not None:
                command, end = found
                del said[:end]
                if not isinstance(
                    command, list
                ):  # an engine whose PSYNC is answered like this falls back to SYNC, and says it bare
                    break
                self.words += [word.decode() for word in command]
                writer.write(b"+PONG\r\n" if command[0] == b"PING" else b"+OK\r\n")
        writer.close()

    def secrets(self) -> dict[str, str]:
        """By user."""
        return {user: self.words[at + 1] for at, user in enumerate(self.words[:-1]) if user.startswith("cachekeep-")}


async def refuses(server: Server, user: str, secret: str, commands: tuple[str, ...]) -> None:
    node = server.node
    async with valkey.asyncio.Valkey(host=node.address, port=node.port, username=user, password=secret) as thief:
        for command in commands:
            with pytest.raises(valkey.exceptions.NoPermissionError):
                await thief.execute_command(*command.split())


@engines
async def test_who_listens_at_a_primarys_address_learns_to_replicate_and_no_more(engine: str, major: int, tmp_path: Path) -> None:
    with servers(build_of(engine, major), tmp_path, 2) as (primary, replica):
        async with link() as made, Ear(new_address(), 6379) as ear:
            await carry(made, Promote(primary.node.name, 1, (primary.node.address,)), primary.target)
            await carry(made, Follow(replica.node.name, primary.node.name, 1), replica.target, primary.target)
            await until(lambda: linked_as(replica, primary))
            assert await linked_as(replica, primary) == REPLICA
            await ask(replica, "REPLICAOF", ear.address, str(ear.port))
            await until(lambda: "PSYNC" in ear.words or "REPLCONF" in ear.words)
            assert ear.secrets() == {REPLICA: secret_of(REPLICA, PASSWORD)}
            assert not any(PASSWORD.value in word for word in ear.words)
            await refuses(primary, REPLICA, ear.secrets()[REPLICA], NOT_A_REPLICAS)
            with pytest.raises(valkey.exceptions.AuthenticationError):
                await refuses(primary, ADMIN, ear.secrets()[REPLICA], ("PING",))


@engines
async def test_what_a_mover_is_told_opens_no_administration(engine: str, major: int, tmp_path: Path) -> None:
    with servers(build_of(engine, major), tmp_path, 1) as (server,):
        await refuses(server, MOVER, secret_of(MOVER, PASSWORD), NOT_A_MOVERS)


@engines
async def test_nodes_of_a_release_before_go_over_one_after_the_other(engine: str, major: int, tmp_path: Path) -> None:
    """Whoever of them leads, old and new follow each other at every step, and nobody is cut off meanwhile."""
    with servers(build_of(engine, major), tmp_path, 3) as (old, other, new):
        await as_before(old)
        await as_before(other)
        async with link() as made:
            for server in (old, other):
                await carry(made, users_of(server), server.target)
            for order, (primary, replicas) in enumerate([(old, (other, new)), (new, (old, other)), (other, (new, old))], start=1):
                await carry(made, Promote(primary.node.name, order, (primary.node.address,)), primary.target)
                for replica in replicas:
                    await carry(made, Follow(replica.node.name, primary.node.name, order), replica.target, primary.target)
                for replica in replicas:
                    await until(lambda r=replica, p=primary: linked_as(r, p))
            for server in (new, old, other):
                await carry(made, login_of(server), server.target)
                assert await linked_as(new, other)
                assert await linked_as(old, other)
            await ask(other, "CLIENT", "KILL", "TYPE", "replica")
            for replica in (new, old):
                await until(lambda r=replica: linked_as(r, other))
            assert await linked_as(old, other) == REPLICA


@engines
async def test_a_node_is_told_anew_what_it_was_never_told_or_lost(engine: str, major: int, tmp_path: Path) -> None:
    """All of it begins anew: what somebody has added to a user is gone, and clients that are there notice nothing."""
    with servers(build_of(engine, major), tmp_path, 1) as (server,):
        async with link() as made, valkey.asyncio.Valkey(host=server.node.address, port=server.node.port) as user:
            mine = await user.client_id()
            await as_before(server)
            await ask(server, "ACL", "SETUSER", "default", "+config")
            await carry(made, users_of(server), server.target)
            await carry(made, login_of(server), server.target)
            assert await ask(server, "PING", user=REPLICA)
            assert await ask(server, "PING", user=MOVER)
            told = await ask(server, "CONFIG", "GET", "masterauth")
            assert secret_of(REPLICA, PASSWORD) in str(told)
            assert await user.client_id() == mine
            with pytest.raises(valkey.exceptions.NoPermissionError):
                await user.config_get("maxmemory")
