"""Looking: from processes, engines and fronts to a ``View``. Everything at once, everything with a deadline."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Driver, Key, Link, ProcessSeen, Target
from cachekeep.control.fronts import Fronts
from cachekeep.engines.launch import cluster_node_id
from cachekeep.errors import CachekeepError
from cachekeep.model import Cache, Front, FrontView, Node, NodeView, View
from cachekeep.network.addresses import free
from cachekeep.plan.members import addresses_needed
from cachekeep.store.contract import Store

LOOK_DEADLINE_SECONDS = 0.25


def target(cache: Cache, node: Node) -> Target:
    """How to speak to a node."""
    return Target(
        key=(cache.uid, node.name),
        address=node.address,
        port=node.port,
        engine=node.engine,
        version=node.version,
        password=cache.admin_password,
        cluster_id=cluster_node_id(cache, node) if cache.in_cluster_mode(node) else "",
        fed_from_outside=node in cache.decided.successors,
        moving=cache.decided.resharding > 0 or cache.decided.available_at is None,
    )


class Observer:
    """Looks at caches. Remembers only since when a node has been silent, when it was a witness, and what the last effect on it said."""

    def __init__(self, *, store: Store, driver: Driver, link: Link, fronts: Fronts, clock: Clock, pool: str) -> None:
        self._store, self._driver, self._link, self._fronts, self._clock, self._pool = store, driver, link, fronts, clock, pool
        self._silent_since: dict[Key, float] = {}
        self._witnessed_at: dict[tuple[str, str, str], float] = {}
        self._last_offset: dict[Key, int] = {}
        self.problems: dict[Key, str] = {}

    async def look(self, cache: Cache) -> View:
        """What is there now."""
        decided = cache.decided
        keys = [(cache.uid, name) for name in (*(n.name for n in decided.everyone), *(f.name for f in decided.fronts))]
        processes = await self._driver.look(keys)
        nodes, fronts = await asyncio.gather(
            asyncio.gather(*(self._node(cache, n, processes[cache.uid, n.name]) for n in decided.everyone)),
            asyncio.gather(*(self._front(cache, f, processes[cache.uid, f.name]) for f in decided.fronts)),
        )
        return View(
            nodes={n.name: v for n, v in zip(decided.everyone, nodes, strict=True)},
            fronts={f.name: v for f, v in zip(decided.fronts, fronts, strict=True)},
            free_addresses=await self._free(cache),
        )

    async def _node(self, cache: Cache, node: Node, process: ProcessSeen) -> NodeView:
        key = (cache.uid, node.name)
        seen = NodeView()
        asked_at = self._clock.monotonic()
        if process.process == "running":
            seen = await self._link.look(target(cache, node), deadline_seconds=LOOK_DEADLINE_SECONDS)
        if seen.answering or process.process not in ("running", "frozen"):
            if self._silent_since.pop(key, None) is not None:  # what was said of it while it was silent is over
                for told in [t for t in self._witnessed_at if t[0] == cache.uid and t[2] == node.address]:
                    del self._witnessed_at[told]
            silent = None
        else:
            since = asked_at - (seen.silent_seconds or 0.0)  # a heartbeat may have asked before us
            silent = self._clock.monotonic() - self._silent_since.setdefault(key, since)
        if seen.offset is not None:
            self._last_offset[key] = seen.offset
        return replace(
            seen,
            process=process.process,
            incarnation=process.incarnation,
            silent_seconds=silent,
            witnessed_seconds=None if (at := self._witnessed_at.get((*key, seen.follows or ""))) is None else asked_at - at,
            offset=seen.offset if seen.offset is not None else self._last_offset.get(key),
            live_digest=process.live_digest,
            boot_digest=process.boot_digest,
            last_order=process.last_order,
            problem=self.problems.get(key) or process.problem,
        )

    async def _front(self, cache: Cache, front: Front, process: ProcessSeen) -> FrontView:
        targets: tuple[str, ...] | None = None
        version: int | None = None
        if process.process == "running":
            try:
                targets, version = await self._fronts.pointed(cache, front)
            except (CachekeepError, OSError):
                targets = None
        return FrontView(
            process=process.process,
            incarnation=process.incarnation,
            targets=targets,
            version=version,
            problem=self.problems.get((cache.uid, front.name)) or process.problem,
        )

    async def _free(self, cache: Cache) -> tuple[str, ...]:
        """Enough addresses for whatever this cache may still have to place; none when everything has its own."""
        needed = addresses_needed(cache)
        return free(self._pool, await self._store.addresses(), needed, seed=cache.uid) if needed else ()

    def has_witnessed(self, key: Key, primary_address: str) -> None:
        """A replica has just connected to its primary anew, or tried to."""
        self._witnessed_at[(*key, primary_address)] = self._clock.monotonic()

    def forget(self, cache: Cache) -> None:
        """Drop what is remembered of a cache that is no more."""
        memories: tuple[dict[Any, Any], ...] = (self._silent_since, self._witnessed_at, self._last_offset, self.problems)
        for memory in memories:
            for key in [k for k in memory if k[0] == cache.uid]:
                del memory[key]
