"""A Describe of one resource is held until it has settled; lists never are; nobody waits inside a transaction."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, CATALOGUE, SETTINGS, Keeper, SetClock

from cachekeep.security.sealing import Sealing
from cachekeep.services import SERVICES, Services
from cachekeep.store import MemoryStore, SqlStore, Store
from cachekeep.wire.caller import Principal
from cachekeep.wire.gateway import Call

LONG = replace(SETTINGS, hold_seconds=60.0)
NEW = {"ReplicationGroupDescription": "d", "CacheNodeType": "cache.t3.micro", "Engine": "valkey", "NumCacheClusters": 2}


class Desk:
    """Services over a store, asked without a wire."""

    def __init__(self, store: Store, clock: SetClock) -> None:
        self.store = store
        self.services = Services(SERVICES, store, CATALOGUE, LONG, clock, Sealing(bytes(32)))
        self.keeper = Keeper(store, clock)

    async def ask(self, operation: str, **params: Any) -> Mapping[str, Any]:
        principal = Principal("key", f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT)
        return await self.services.dispatch(
            Call("elasticache", operation, params, principal, "us-east-1", "request", dt.datetime.now(dt.UTC), None)
        )

    async def status(self, name: str = "demo") -> str:
        answer = await self.ask("DescribeReplicationGroups", ReplicationGroupId=name)
        return str(answer["ReplicationGroups"][0]["Status"])


@pytest.fixture(params=["memory", "sqlite"])
def desk_of(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    async def make() -> Desk:
        clock = SetClock()
        store: Store = MemoryStore(clock) if request.param == "memory" else SqlStore(f"sqlite+aiosqlite:///{tmp_path}/db", clock)
        await store.open()
        return Desk(store, clock)

    return make


def asks(answers: list[asyncio.Task[Any]]) -> int:
    return sum(task.done() for task in answers)


async def let_run() -> None:
    """Until everything that can go on without a change has done so."""
    await asyncio.sleep(0.05)


def test_it_answers_the_moment_the_group_is_ready(desk_of: Any) -> None:
    async def main() -> None:
        desk = await desk_of()
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        held = asyncio.create_task(desk.status())
        member = asyncio.create_task(desk.ask("DescribeCacheClusters", CacheClusterId="demo-002"))
        await let_run()
        assert not held.done()
        assert not member.done()
        listed = await desk.ask("DescribeReplicationGroups")
        assert listed["ReplicationGroups"][0]["Status"] == "creating"
        assert (await desk.ask("DescribeCacheClusters"))["CacheClusters"][0]["CacheClusterStatus"] == "creating"
        await desk.keeper.settle_all()
        async with asyncio.timeout(60):
            assert await held == "available"
            assert (await member)["CacheClusters"][0]["CacheClusterStatus"] == "available"
        assert desk.services._waiting._waiters == {}
        desk.services.close()
        await desk.store.aclose()

    asyncio.run(main())


def test_it_answers_the_moment_the_group_is_gone(desk_of: Any) -> None:
    async def main() -> None:
        desk = await desk_of()
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        await desk.keeper.settle_all()
        await desk.ask("DeleteReplicationGroup", ReplicationGroupId="demo")
        held = asyncio.create_task(desk.status())
        await let_run()
        assert not held.done()
        await desk.keeper.settle_all()
        async with asyncio.timeout(60):
            with pytest.raises(Exception, match="ReplicationGroupNotFoundFault"):
                await held
        desk.services.close()
        await desk.store.aclose()

    asyncio.run(main())


def test_a_rule_that_waits_for_the_user_is_an_answer() -> None:
    async def main() -> None:
        clock = SetClock()
        desk = Desk(MemoryStore(clock), clock)
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        await desk.keeper.settle_all(status="modifying", settled=False, refused=True)
        async with asyncio.timeout(60):
            assert await desk.status() == "modifying"

    asyncio.run(main())


def test_what_is_not_there_is_told_at_once() -> None:
    async def main() -> None:
        clock = SetClock()
        desk = Desk(MemoryStore(clock), clock)
        async with asyncio.timeout(60):
            with pytest.raises(Exception, match="ReplicationGroupNotFoundFault"):
                await desk.status("nope")

    asyncio.run(main())


def test_time_runs_out() -> None:
    async def main() -> None:
        clock = SetClock()
        desk = Desk(MemoryStore(clock), clock)
        desk.services._context = replace(desk.services._context, settings=replace(LONG, hold_seconds=0.05))
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        async with asyncio.timeout(60):
            assert await desk.status() == "creating"

    asyncio.run(main())


def test_many_are_held_and_writers_pass() -> None:
    async def main() -> None:
        clock = SetClock()
        desk = Desk(MemoryStore(clock), clock)
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        held = [asyncio.create_task(desk.status()) for _ in range(1000)]
        await let_run()
        assert asks(held) == 0
        async with asyncio.timeout(60):
            await desk.ask("CreateReplicationGroup", ReplicationGroupId="other", **NEW)
        held[0].cancel()
        await desk.keeper.settle_all()
        async with asyncio.timeout(60):
            assert await asyncio.gather(*held[1:]) == ["available"] * 999
        assert desk.services._waiting._waiters == {}

    asyncio.run(main())


def test_closing_lets_everybody_go() -> None:
    """A control plane that stops answers what it holds."""

    async def main() -> None:
        clock = SetClock()
        desk = Desk(MemoryStore(clock), clock)
        await desk.ask("CreateReplicationGroup", ReplicationGroupId="demo", **NEW)
        held = asyncio.create_task(desk.status())
        await let_run()
        desk.services.close()
        async with asyncio.timeout(60):
            assert await held == "creating"

    asyncio.run(main())
