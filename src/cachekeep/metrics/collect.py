"""Once a minute every node of every cache is asked how it is, and what it says becomes data points."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key, Target
from cachekeep.engines.node_types import node_type
from cachekeep.errors import CachekeepError
from cachekeep.metrics.catalogue import NAMESPACE, metrics_of
from cachekeep.metrics.datum import Datum
from cachekeep.metrics.points import MINUTE_SECONDS, About, Dimensions, Placed, behind_seconds, of_group, points
from cachekeep.metrics.series import Archive, Teller, Told
from cachekeep.model import Cache, Node
from cachekeep.model.sample import Host, Sample
from cachekeep.store.contract import Store
from cachekeep.store.every import every

log = logging.getLogger("cachekeep.metrics")

DEADLINE_SECONDS: Final = 10.0
_AT_ONCE: Final = 32
_UNWRITTEN_MAX: Final = 15
"""So many minutes are held where they cannot be written."""
_BETWEEN_FOLDS_SECONDS: Final = 0.05

Targets = Callable[[Cache, Node], Target]
"""How to speak to a node. Raises ``CachekeepError``."""
Hosts = Callable[[Iterable[Key]], Awaitable[Mapping[Key, Host]]]


class Asks(Protocol):
    """Who asks nodes how they are."""

    async def sample(self, target: Target, *, deadline_seconds: float) -> Sample | None:
        """What the node says; None: nothing in time."""

    def keep_only(self, targets: set[Key]) -> None:
        """No others are asked again."""

    async def aclose(self) -> None:
        """Let go of all."""


Rows = list[tuple[Teller, int, Told]]


class Collector:
    """A ``Worker``. Remembers what each node said last."""

    def __init__(self, store: Store, asks: Asks, hosts: Hosts, target: Targets, archive: Archive, clock: Clock) -> None:
        self._store, self._asks, self._hosts, self._target = store, asks, hosts, target
        self._archive, self._clock = archive, clock
        self._before: dict[Key, Sample] = {}
        self._unwritten: list[Rows] = []

    async def run(self) -> None:
        """Work until cancelled. A minute in which nobody could ask is a gap."""
        while True:
            now = self._clock.now().timestamp()
            await self._clock.sleep(MINUTE_SECONDS - now % MINUTE_SECONDS)
            try:
                await self.collect()
            except CachekeepError as error:
                log.warning("metrics of this minute are missing: %s", error)

    def hasten(self) -> None:
        """Its time is the minute's."""

    async def collect(self) -> None:
        """Ask everybody, and keep what became of the minute that is over."""
        now = int(self._clock.now().timestamp() + MINUTE_SECONDS / 2)
        minute = now - now % MINUTE_SECONDS - MINUTE_SECONDS
        async with self._store.reading() as tx:
            caches = [cache async for cache in every(tx)]
        samples = await self._ask([(cache, node) for cache in caches for node in cache.decided.nodes])
        rows: Rows = []
        for cache in caches:
            rows += rows_of(cache, self._before, samples, minute)
            await asyncio.sleep(0)  # others have their turn
        self._before = samples
        self._unwritten = [*self._unwritten[-_UNWRITTEN_MAX:], rows]
        while self._unwritten:
            await self._archive.write(self._unwritten[0])
            del self._unwritten[0]

    async def _ask(self, nodes: list[tuple[Cache, Node]]) -> dict[Key, Sample]:
        turns = asyncio.Semaphore(_AT_ONCE)
        found: dict[Key, Sample] = {}

        async def ask(cache: Cache, node: Node) -> None:
            async with turns:
                try:
                    sample = await self._asks.sample(self._target(cache, node), deadline_seconds=DEADLINE_SECONDS)
                except CachekeepError:
                    return
            if sample is not None:
                found[cache.uid, node.name] = sample

        keys = {(cache.uid, node.name) for cache, node in nodes}
        self._asks.keep_only(keys)
        await asyncio.gather(*(ask(*each) for each in nodes))
        hosts = await self._hosts(found)
        return {key: replace(sample, host=hosts.get(key, sample.host)) for key, sample in found.items()}


def rows_of(cache: Cache, before: Mapping[Key, Sample], after: Mapping[Key, Sample], minute: int) -> Rows:
    """What is to be kept of one cache: of its nodes, its shards, and itself."""
    rows: Rows = []
    placed = []
    for node in cache.decided.nodes:
        key = (cache.uid, node.name)
        if key not in after:
            continue
        shard = cache.shard(node.shard)
        primary = after.get((cache.uid, shard.primary)) if shard is not None and shard.primary else None
        kind = node_type(node.node_type)
        baseline = kind.network.partition("/")[0] if kind is not None else ""
        about = About(
            engine=node.engine,
            vcpus=kind.vcpu if kind is not None else 1,
            baseline_bits_per_second=float(baseline) * 1e9 if baseline else None,
            behind_seconds=behind_seconds(primary, node.address, node.port),
        )
        told = points(before.get(key), after[key], about)
        rows.append(_row((("CacheClusterId", node.cluster_id), ("CacheNodeId", node.node_id)), told, node.engine, minute))
        role = "Primary" if after[key].fields.get("role") == "master" else "Replica"
        placed.append(Placed(node.shard, role, told))
    if cache.kind == "group":
        engine = cache.wanted.engine
        rows += [_row(dimensions, told, engine, minute) for dimensions, told in of_group(cache.name, placed).items()]
    return rows


def _row(dimensions: Dimensions, told: Mapping[str, Datum], engine: str, minute: int) -> tuple[Teller, int, Told]:
    units = metrics_of(engine)
    return Teller(NAMESPACE, dimensions), minute, {(name, units[name].unit): datum for name, datum in told.items()}


class Folder:
    """A ``Worker``: brings what was kept a minute at a time to the form in which it stays, a little at a time."""

    def __init__(self, archive: Archive, clock: Clock) -> None:
        self._archive, self._clock = archive, clock

    async def run(self) -> None:
        while True:
            try:
                while await self._archive.fold(int(self._clock.now().timestamp())):
                    await self._clock.sleep(_BETWEEN_FOLDS_SECONDS)
            except CachekeepError as error:
                log.warning("metrics cannot be folded: %s", error)
            await self._clock.sleep(MINUTE_SECONDS)

    def hasten(self) -> None:
        """It lacks nothing."""
