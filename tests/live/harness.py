"""A cache kept alive for a test: the real keeper, driver, link and engines, a store in memory, no API.

``async with LiveCache(tmp_path, wanted_group(build)) as live`` yields when the keeper runs; ``await live.available()`` when the
cache is. Nothing of it outlives the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import valkey.asyncio
from msgspec.structs import replace
from tests.addresses import new_pool, own_name
from tests.engines.servers import PASSWORD

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import Target
from cachekeep.compute.link import EngineLink
from cachekeep.compute.local import LocalDriver
from cachekeep.compute.spares import Spares
from cachekeep.control import Hands, Keeper, Observer
from cachekeep.control.execute import specs
from cachekeep.control.jobs import JobsHere
from cachekeep.engines.catalogue import Build
from cachekeep.engines.users import ADMIN
from cachekeep.errors import Conflict
from cachekeep.model import Cache, CacheKind, Condition, ErrandKind, Event, Member, Node, View, Wanted, WantedShard
from cachekeep.network.addresses import Pool
from cachekeep.network.fronts import LocalFronts, programs
from cachekeep.plan import Policy
from cachekeep.security.certs import Authorities
from cachekeep.security.sealing import Sealing
from cachekeep.store.memory import MemoryStore
from cachekeep.toolchain.installed import discover

PATIENCE_SECONDS = 300.0
"""What takes seconds on an idle machine takes minutes on one that many share."""
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


def wanted_group(build: Build, *, nodes: int = 2, port: int = 6379, **more: object) -> Wanted:
    """A group without cluster mode: one primary and ``nodes - 1`` replicas."""
    members = tuple(Member(name=f"demo-{i + 1:03}", zone=ZONES[i % 3]) for i in range(nodes))
    return _wanted(build, (WantedShard(id="0001", members=members),), port, more)


def wanted_cluster(build: Build, *, shards: int = 3, replicas: int = 1, port: int = 6379, **more: object) -> Wanted:
    """A group with cluster mode: ``shards`` × (1 + ``replicas``)."""
    made = tuple(wanted_shard(f"{i + 1:04}", replicas) for i in range(shards))
    return _wanted(build, made, port, {"cluster_mode": "enabled", "automatic_failover": True} | more)


def wanted_shard(id: str, replicas: int) -> WantedShard:
    """A shard of a cluster, its members named as ElastiCache names them."""
    return WantedShard(id=id, members=tuple(Member(name=f"demo-{id}-{i + 1:03}", zone=ZONES[i % 3]) for i in range(replicas + 1)))


def _wanted(build: Build, shards: tuple[WantedShard, ...], port: int, more: dict[str, object]) -> Wanted:
    version = ".".join(build.version.split(".")[:2])
    given: dict[str, object] = {"automatic_failover": len(shards[0].members) > 1, "node_type": "cache.t3.micro"} | more
    return Wanted(engine=build.engine, version=version, port=port, shards=shards, **given)  # type: ignore[arg-type]


class LiveCache:
    """One cache, one control plane. ``said`` holds every sentence that the keeper logged, oldest first."""

    def __init__(
        self, place: Path | None, wanted: Wanted, *, name: str = "demo", policy: Policy | None = None, pool: str | None = None
    ) -> None:
        self._made = place is None
        self.place = place or Path(tempfile.mkdtemp(prefix="live-"))
        self.name, self.uid, self.pool = name, own_name(f"uid-{name}"), pool or new_pool()
        self.policy = policy or Policy(linger_seconds=1.0)  # nobody waits for stale clients that are not there
        self.clock = SystemClock()
        self.store = MemoryStore(self.clock, linger_seconds=self.policy.linger_seconds)
        self.catalogue = discover()
        self.said: list[str] = []
        self.sealing = Sealing(os.urandom(32))
        users = () if wanted.engine == "memcached" else (self.sealing.credential(self.uid, 1, PASSWORD),)
        self.authorities = Authorities((), self.sealing)
        if wanted.transit != "disabled":
            self.authorities.make(self.clock)
        self._wanted = replace(wanted, credentials=users, authorities=self.authorities.ids)
        self.kind: CacheKind = "group" if wanted.engine != "memcached" else "cluster"
        self._ear = _Ear(self.said)
        self._holders = itertools.count()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LiveCache:
        log = logging.getLogger("cachekeep.keeper")
        log.addHandler(self._ear)
        log.setLevel(logging.INFO)
        await self.store.open()
        cache = Cache(
            uid=self.uid,
            name=self.name,
            kind=self.kind,
            region="us-east-1",
            created_at=self.clock.now(),
            wanted=self._wanted,
        )
        async with self.store.transaction() as tx:
            await tx.insert(cache)
        await self.start_control_plane()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.stop_control_plane(erase=True)
        finally:
            logging.getLogger("cachekeep.keeper").removeHandler(self._ear)
            if self._made:
                shutil.rmtree(self.place, ignore_errors=True)
        if kind is not None:
            print(f"--- what the keeper of {self.name} said last", *self.said[-60:], sep="\n")  # pytest shows it with the failure

    # -- the control plane

    async def start_control_plane(self) -> None:
        """A keeper that finds what is there and goes on."""
        self.driver = LocalDriver(self.place, self.clock, programs=programs(lambda: self.catalogue))
        await self.driver.open()
        self.link = EngineLink(self.driver, self.clock, Spares(self.place))
        fronts = LocalFronts(lambda key: self.driver.log_path(key).parent)
        self.observer = Observer(
            store=self.store,
            driver=self.driver,
            link=self.link,
            fronts=fronts,
            jobs=JobsHere({}),
            clock=self.clock,
            places=Pool(self.pool),
            password_of=self.sealing.password_of,
            trust_of=self.authorities.trust_of,
        )
        self.hands = Hands(
            driver=self.driver,
            link=self.link,
            fronts=fronts,
            specs=lambda cache, node: specs(
                self.catalogue,
                self.sealing.password_of,
                self.authorities.papers_of,
                run_as="nobody" if os.geteuid() == 0 else None,
                open_files=self.driver.capacity().open_files,
            )(cache, node),
            observer=self.observer,
        )
        self.keeper = Keeper(
            store=self.store,
            driver=self.driver,
            link=self.link,
            observer=self.observer,
            hands=self.hands,
            clock=self.clock,
            holder=f"test/{next(self._holders)}",
            policy=self.policy,
        )
        self._keeping = asyncio.create_task(self.keeper.run())

    async def stop_control_plane(self, *, erase: bool = False) -> None:
        """End the keeper as abruptly as its own process can; engines go on. The next one finds its leases free."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
            await self.link.aclose()
            await self.store.bury("test/")
            if erase:
                await asyncio.gather(*(self.driver.erase(key) for key in self.driver.known()))
            await self.driver.aclose()

    # -- what users do

    async def change(self, change: Callable[[Wanted], Wanted]) -> None:
        """Write what is wanted, as a request would."""
        while True:
            with contextlib.suppress(Conflict):
                async with self.store.transaction() as tx:
                    cache = await tx.cache(self.name, self.kind)
                    assert cache is not None
                    await tx.save_wanted(replace(cache, wanted=change(cache.wanted)))
                    tx.wake(self.uid)
                return

    async def errand(self, kind: ErrandKind, *, nodes: tuple[str, ...] = (), shard: str | None = None) -> None:
        """Add an errand: ``reboot``, ``promote`` (``nodes``), ``test-failover`` (``shard``), ``promote-stale``."""
        await self.change(lambda wanted: wanted.asking(kind, nodes=nodes, shard=shard))

    # -- what there is

    async def cache(self) -> Cache:
        """As it is stored."""
        cache = await self.store.load(self.uid)
        assert cache is not None
        return cache

    async def view(self) -> View:
        """A look of our own."""
        return await self.observer.look(await self.cache())

    async def condition(self) -> Condition | None:
        """What the keeper last told."""
        async with self.store.reading() as tx:
            return await tx.condition(self.uid)

    async def events(self) -> list[Event]:
        """All of them, oldest first."""
        async with self.store.reading() as tx:
            return [event for _, event in await tx.events(limit=10_000)]

    async def node(self, name: str) -> Node:
        """As it is decided."""
        node = (await self.cache()).node(name)
        assert node is not None, f"there is no {name}"
        return node

    async def target(self, name: str) -> Target:
        """How to speak to it with a link."""
        return self.observer.target(await self.cache(), await self.node(name))

    async def pid(self, name: str) -> int:
        """Of its process."""
        seen = (await self.driver.look([(self.uid, name)]))[self.uid, name]
        assert seen.pid is not None, f"{name} does not run"
        return seen.pid

    async def signal(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send its process a signal."""
        os.kill(await self.pid(name), number)

    async def client(self, name: str) -> valkey.asyncio.Valkey:
        """The admin's connection to a node. Close it."""
        node, password = await self.node(name), self.sealing.password_of(await self.cache())
        return valkey.asyncio.Valkey(
            host=node.address,
            port=node.port,
            username=ADMIN,
            password=password.value,
            decode_responses=True,
            **self.by_tls(await self.cache()),
        )

    def by_tls(self, cache: Cache) -> dict[str, Any]:
        """What a client of valkey-py is given for it to come as this cache wants it."""
        if not cache.encrypted:
            return {}
        return {"ssl": True, "ssl_ca_data": self.authorities.pem(), "ssl_check_hostname": True}

    async def ask(self, name: str, *command: object) -> object:
        """One command to a node, as admin. Tried again when the connection is reset before it was taken:
        an engine whose addresses change opens its sockets anew."""
        for attempt in range(5):
            client = await self.client(name)
            try:
                return await client.execute_command(*command)
            except valkey.exceptions.ConnectionError:
                if attempt == 4:
                    raise
            finally:
                await client.aclose()
        raise AssertionError("not reached")

    # -- waiting

    async def until(self, met: Callable[[Cache], object], what: str = "", *, seconds: float = PATIENCE_SECONDS) -> Cache:
        """Wait until ``met(cache)`` (plain or async) is true; the cache then. How long it takes is a matter of benchmarks."""
        deadline = time.monotonic() + seconds
        while True:
            cache = await self.cache()
            answer = met(cache)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return cache
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or met}; last said: {self.said[-3:]}"
            await asyncio.sleep(0.005)

    async def available(self, *, seconds: float = PATIENCE_SECONDS) -> Cache:
        """Wait until the keeper says ``available`` of what is wanted now."""

        async def settled(cache: Cache) -> bool:
            told = await self.condition()
            return told is not None and told.settled and {n.member for n in cache.decided.nodes} == set(cache.wanted_names())

        return await self.until(settled, "available", seconds=seconds)

    def primary_of(self, cache: Cache, shard: str = "0001") -> str:
        """Name of the decided primary."""
        found = cache.shard(shard)
        assert found is not None
        assert found.primary is not None
        return found.primary

    def said_any(self, *words: str) -> bool:
        """Whether one sentence had all these words."""
        return any(all(w in line for w in words) for line in self.said)


class _Ear(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.INFO)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(f"{record.created:.3f} {record.getMessage()}")
