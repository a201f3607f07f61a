"""Users of clients at real engines: they come and go while everything runs, on every node, and nobody else is touched."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import valkey.asyncio
from msgspec.structs import replace
from tests.engines.servers import REDIS_LIKE, build_of, until
from tests.live.harness import LiveCache, wanted_cluster
from tests.live.test_failover import endpoint, group

from cachekeep.engines.users import hash_of
from cachekeep.model import Anybody, Cache, Clients, ClientUser, NamedUsers, TokenHolders, fingerprint

ENGINES = pytest.mark.parametrize(("engine", "major"), REDIS_LIKE, ids=lambda x: str(x))
APP, READER, LATER = "the app's own password", "the reader's password", "another of the app's"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def user(name: str, access: str, *passwords: str) -> ClientUser:
    return ClientUser(name=name, access=access, passwords=tuple(map(hash_of, passwords)))


def users(*found: ClientUser) -> NamedUsers:
    return NamedUsers(group="g", users=found)


async def let_in(live: LiveCache, clients: Clients) -> None:
    """Wait until the keeper says that every node that answers knows them."""
    await live.change(lambda wanted: replace(wanted, clients=clients))

    async def told(cache: Cache) -> bool:
        condition = await live.condition()
        return condition is not None and condition.clients_told == fingerprint(clients) and condition.settled

    await live.until(told, "users")


async def nodes(live: LiveCache) -> list[str]:
    return [n.name for n in (await live.cache()).decided.nodes]


async def known(live: LiveCache, name: str) -> set[str]:
    found = await live.ask(name, "ACL", "USERS")
    assert isinstance(found, list)
    return {user for user in found if not user.startswith("cachekeep-")}


@contextlib.asynccontextmanager
async def came(
    live: LiveCache, name: str, user: str | None = None, password: str | None = None
) -> AsyncIterator[valkey.asyncio.Valkey]:
    """A client of a node with one connection, which is not opened anew."""
    node = await live.node(name)
    pool = valkey.asyncio.Valkey(
        host=node.address, port=node.port, username=user, password=password, decode_responses=True, single_connection_client=True
    )
    async with pool as client:
        yield client


async def comes_in(live: LiveCache, name: str, user: str | None = None, password: str | None = None) -> bool:
    try:
        async with came(live, name, user, password) as client:
            await client.execute_command("ACL", "WHOAMI")
            return True
    except (valkey.exceptions.AuthenticationError, valkey.exceptions.NoPermissionError):
        return False


async def connections(live: LiveCache, name: str, user: str) -> int:
    return str(await live.ask(name, "CLIENT", "LIST")).split().count(f"user={user}")


async def dropped(live: LiveCache, name: str, user: str) -> None:
    async def gone() -> bool:
        return await connections(live, name, user) == 0

    await until(gone)


@ENGINES
@pytest.mark.anyio
async def test_users_come_change_and_go_while_everything_runs(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major) as live:
        primary = live.primary_of(await live.cache())
        for name in await nodes(live):
            await live.ask(name, "ACL", "SETUSER", "stranger", "on", "nopass", "~*", "+get")
        async with came(live, primary) as anybody, came(live, primary, "stranger", "x") as stranger:
            await anybody.set("app:k", "v")
            await stranger.get("app:k")
            app, reader = user("app", "on ~app:* +@all", APP), user("reader", "on ~* -@all +@read +acl|whoami +monitor", READER)
            await let_in(live, users(app, reader))
            await dropped(live, primary, "default")
            assert await stranger.get("app:k") == "v", "who is none of ours is left alone"
            for name in await nodes(live):
                assert await known(live, name) == {"default", "app", "reader", "stranger"}
                assert not await comes_in(live, name)
                assert not await comes_in(live, name, "app", READER)
                assert await comes_in(live, name, "app", APP)

            async with came(live, primary, "app", APP) as one, came(live, primary, "reader", READER) as two:
                await one.set("app:k", "w")
                for command in ("CONFIG GET *", "GET other", "ACL SETUSER x on", "ACL LIST", "REPLICAOF NO ONE"):
                    with pytest.raises(valkey.exceptions.NoPermissionError):
                        await one.execute_command(*command.split())
                assert await two.get("app:k") == "w"
                with pytest.raises(valkey.exceptions.NoPermissionError):
                    await two.set("app:k", "x")
                await two.connection.send_command("MONITOR")
                # Another password and other rights: connections go on, but not that of who watches everything.
                await let_in(live, users(replace(app, passwords=(hash_of(LATER),)), replace(reader, access="on ~* -@all +@read")))
                await dropped(live, primary, "reader")
                await one.set("app:k", "y")
                assert not await comes_in(live, primary, "app", APP)
                await let_in(live, users(replace(app, access="off ~* +@all", passwords=(hash_of(LATER),))))
                await dropped(live, primary, "app")
        for name in await nodes(live):
            assert await known(live, name) == {"default", "app", "stranger"}
        await live.until(lambda cache: cache.decided.known_users == {"app"}, "nobody remembers the reader")
        await let_in(live, Anybody())
        for name in await nodes(live):
            assert await known(live, name) == {"default", "stranger"}
            assert await comes_in(live, name)


@ENGINES
@pytest.mark.anyio
async def test_who_missed_a_change_or_starts_anew_lets_in_who_is_wanted_now(engine: str, major: int, tmp_path: Path) -> None:
    app, reader = user("app", "on ~* +@all", APP), user("reader", "on ~* +@read", READER)
    async with group(tmp_path, engine, major, clients=users(app, reader)) as live:
        cache = await live.cache()
        first = live.primary_of(cache)
        replica = next(n for n in await nodes(live) if n != first)
        await live.signal(replica, signal.SIGSTOP)
        await live.change(lambda wanted: replace(wanted, clients=users(replace(app, passwords=(hash_of(LATER),)))))
        await live.until(lambda _: live.said_any("changed users"), "the others are told")
        with contextlib.suppress(AssertionError, ProcessLookupError):  # it may have been ended for hanging, and be another by now
            await live.signal(replica, signal.SIGCONT)
        await live.signal(first, signal.SIGKILL)

        async def all_know(cache: Cache) -> bool:
            condition = await live.condition()
            whole = condition is not None and condition.settled and all(n.status == "available" for n in condition.nodes)
            return whole and cache.decided.known_users == {"app"} and live.primary_of(cache) != first

        cache = await live.until(all_know, "the users after a failover")
        for name in await nodes(live):
            assert await known(live, name) == {"default", "app"}
            assert not await comes_in(live, name, "app", APP)
            assert not await comes_in(live, name)
            assert await comes_in(live, name, "app", LATER)
        async with valkey.asyncio.Valkey(host=endpoint(cache), port=6379, username="app", password=LATER) as client:
            assert await client.set("k", "v")


@pytest.mark.anyio
async def test_every_shard_of_a_cluster_lets_in_the_same(tmp_path: Path) -> None:
    app = user("app", "on ~* &* +@all", APP)
    wanted = wanted_cluster(build_of("valkey", 8), shards=2, replicas=1, clients=users(app))
    async with LiveCache(tmp_path, wanted) as live:
        await live.available()
        await let_in(live, users(replace(app, passwords=(hash_of(LATER),))))
        for name in await nodes(live):
            assert not await comes_in(live, name)
            assert not await comes_in(live, name, "app", APP)
            assert await comes_in(live, name, "app", LATER)
        address = (await live.cache()).decided.configuration_address
        assert address is not None
        cluster = valkey.asyncio.ValkeyCluster(host=address, port=6379, username="app", password=LATER)
        async with cluster as client:
            for number in range(20):
                await client.set(f"k{number}", number)


def token(*words: str, optional: bool = False) -> TokenHolders:
    return TokenHolders(tokens=tuple(map(hash_of, words)), optional=optional, changed_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


@ENGINES
@pytest.mark.anyio
async def test_a_token_is_added_set_rotated_and_given_up(engine: str, major: int, tmp_path: Path) -> None:
    async with group(tmp_path, engine, major, nodes=2) as live:
        first, *_ = names = await nodes(live)
        async with came(live, first) as anybody:
            await anybody.ping()
            await let_in(live, token(APP, optional=True))
            assert await anybody.ping()
            assert await comes_in(live, first, "default", APP)
            assert await comes_in(live, first, "default", LATER), "as long as none is needed, engines take any"
            assert not await comes_in(live, first, password=APP), "and refuse one that comes without a name"
            await let_in(live, token(APP))
            await dropped(live, first, "default")
        for name in names:
            assert not await comes_in(live, name)
            assert not await comes_in(live, name, password=LATER)
        async with came(live, first, password=APP) as holder:
            await holder.set("k", "v")
            with pytest.raises(valkey.exceptions.NoPermissionError):
                await holder.execute_command("CONFIG", "GET", "*")
            await let_in(live, token(APP, LATER))
            for name in names:
                assert await comes_in(live, name, password=APP)
                assert await comes_in(live, name, password=LATER)
            await let_in(live, token(LATER))
            assert await holder.get("k") == "v", "a connection outlives its token"
            assert not await comes_in(live, first, password=APP)
            await let_in(live, users(user("app", "on ~* +@all", READER)))
            await dropped(live, first, "default")
        assert not await comes_in(live, first, password=LATER)
        assert await comes_in(live, first, "app", READER)
