"""Acting: effects, each of which follows from what has been decided and saved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachekeep.compute.contract import Driver, File, Link, ProcessSpec, Target
from cachekeep.control.fronts import Fronts
from cachekeep.control.observe import Observer, target
from cachekeep.engines.catalogue import Catalogue
from cachekeep.engines.config import boot_digest, live_digest, settings
from cachekeep.engines.launch import ENGINES_OWN, launch
from cachekeep.errors import CachekeepError, OrderFailed
from cachekeep.model import (
    Act,
    Bind,
    Cache,
    Configure,
    Convert,
    Detach,
    Discover,
    Disown,
    DropClients,
    Effect,
    Elect,
    Erase,
    Follow,
    Front,
    HandOver,
    Meet,
    MoveSlots,
    Node,
    Own,
    Point,
    Promote,
    Replicate,
    Settle,
    Start,
    Stop,
    Swap,
    Witness,
)

EFFECT_SECONDS = 20.0
Specs = Callable[[Cache, Node], ProcessSpec]
"""How to start a node's process. Raises ``EngineMissing``."""


def specs(catalogue: Catalogue, *, run_as: str | None = None, open_files: int | None = None) -> Specs:
    """Specs from installed builds. ``run_as`` and ``open_files`` are ``launch``'s: they are the machine's, not the cache's."""

    def spec(cache: Cache, node: Node) -> ProcessSpec:
        plan = launch(catalogue.resolve(node.engine, node.version), cache, node, run_as=run_as, open_files=open_files)
        return ProcessSpec(
            key=(cache.uid, node.name),
            incarnation=node.incarnation,
            argv=plan.argv,
            files={path: File(text, secret) for path, (text, secret) in plan.files.items()},
            env=plan.env,
            address=node.address,
            port=node.port,
            zone=node.zone,
            probe=plan.probe,
            memory_bytes=plan.memory_bytes,
            cpus=plan.cpus,
            live_digest=live_digest(cache, node),
            boot_digest=boot_digest(cache, node),
            order=shard.order if (shard := cache.shard(node.shard)) is not None else 0,
        )

    return spec


class Hands:
    """Carries effects out through the driver, the link and the fronts."""

    def __init__(self, *, driver: Driver, link: Link, fronts: Fronts, specs: Specs, observer: Observer) -> None:
        self._driver, self._link, self._fronts = driver, link, fronts
        self._specs, self._observer = specs, observer

    async def carry(self, cache: Cache, act: Act) -> None:
        """Stage after stage; the effects of a stage at the same time. Raises the first error after its whole stage has ended."""
        for stage in act.stages:
            results = await asyncio.gather(*(self._one(cache, e) for e in stage), return_exceptions=True)
            failed = [r for r in results if isinstance(r, BaseException)]
            if failed:
                raise failed[0]

    async def _one(self, cache: Cache, effect: Effect) -> None:
        key = (cache.uid, _subject(effect))
        try:
            async with asyncio.timeout(EFFECT_SECONDS):
                await self._carry(cache, effect)
        except TimeoutError:
            self._observer.problems[key] = f"{type(effect).__name__} was not confirmed within {EFFECT_SECONDS:.0f} s"
            raise OrderFailed(self._observer.problems[key]) from None
        except CachekeepError as error:
            self._observer.problems[key] = str(error)
            raise
        self._observer.problems.pop(key, None)

    async def _carry(self, cache: Cache, effect: Effect) -> None:
        match effect:
            case Start(name):
                await self._driver.start(self._spec(cache, name))
            case Stop(name, grace_seconds):
                await self._driver.stop((cache.uid, name), grace_seconds=grace_seconds)
            case Erase(name):
                self._link.unwatch((cache.uid, name))
                await self._driver.erase((cache.uid, name))
            case Promote(node, order, addresses):
                await self._link.promote(target(cache, _node(cache, node)), order=order, addresses=addresses)
            case Follow(node, primary, order):
                whom = target(cache, _node(cache, primary))
                await self._link.follow(target(cache, _node(cache, node)), primary=whom, order=order)
            case HandOver():
                await self._link.hand_over(
                    target(cache, _node(cache, effect.giver)),
                    target(cache, _node(cache, effect.taker)),
                    order=effect.order,
                    giver_addresses=effect.giver_addresses,
                    taker_addresses=effect.taker_addresses,
                    timeout_seconds=effect.timeout_seconds,
                )
            case Convert(giver, taker, order, addresses, timeout_seconds):
                await self._link.convert(
                    target(cache, _node(cache, giver)),
                    target(cache, _node(cache, taker)),
                    order=order,
                    giver_addresses=addresses,
                    timeout_seconds=timeout_seconds,
                )
            case Witness(node, primary):
                await self._link.witness(target(cache, _node(cache, node)))
                self._observer.has_witnessed((cache.uid, node), _node(cache, primary).address)
            case Detach(node, order):
                await self._link.detach(target(cache, _node(cache, node)), order=order)
            case Bind(node, addresses):
                await self._link.bind(target(cache, _node(cache, node)), addresses)
            case DropClients(node):
                await self._link.drop_clients(target(cache, _node(cache, node)))
            case Configure(node):
                await self._configure(cache, _node(cache, node))
            case Point(front, targets, version):
                await self._fronts.point(cache, _front(cache, front), _nodes(cache, targets), version)
            case Discover(node, targets, version):
                payload = self._fronts.payload(version, _nodes(cache, targets))
                await self._link.discover(target(cache, _node(cache, node)), payload)
            case _:
                await self._carry_clustered(cache, effect)

    async def _carry_clustered(self, cache: Cache, effect: Effect) -> None:
        """The effects of cluster mode."""
        link = self._link.cluster

        def to(name: str) -> Target:
            return target(cache, _node(cache, name))

        match effect:
            case Elect(node, order, seize, others):
                await link.elect(to(node), order=order, seize=seize, others=[to(o) for o in others])
            case Swap(giver, taker, order, timeout_seconds):
                await link.swap(to(giver), to(taker), order=order, timeout_seconds=timeout_seconds)
            case Replicate(node, primary, order):
                await link.replicate(to(node), primary=to(primary), order=order)
            case Meet(node, others):
                await link.meet(to(node), [to(o) for o in others])
            case Disown(node, ids):
                await link.disown(to(node), ids)
            case Own(node, slots, order, others):
                await link.own(to(node), slots, order=order, others=[to(o) for o in others])
            case Settle(node, slots):
                await link.settle(to(node), slots)
            case MoveSlots():
                await link.move_slots(
                    to(effect.source),
                    to(effect.target),
                    effect.slots,
                    source_order=effect.source_order,
                    target_order=effect.target_order,
                    seconds=effect.seconds,
                )

    def _spec(self, cache: Cache, name: str) -> ProcessSpec:
        node = cache.node(name)
        if node is None:
            return self._fronts.spec(cache, _front(cache, name), self._behind(cache))
        return self._specs(cache, node)

    def _behind(self, cache: Cache) -> tuple[Node, ...]:
        """What a front that starts now is pointed at: the discovery list, or the shard's primary until replicas are in sync."""
        listed = _nodes(cache, cache.decided.discovery_nodes)
        if listed or not cache.decided.shards[0].primary:
            return listed
        return _nodes(cache, tuple(cache.decided.shards[0].in_sync) or (cache.decided.shards[0].primary,))

    async def _configure(self, cache: Cache, node: Node) -> None:
        """The running process first, then the files that it would be restarted with, then the digest that says so."""
        await self._link.configure(target(cache, node), settings(cache, node).live)
        spec = self._specs(cache, node)
        files = {name: file for name, file in spec.files.items() if name not in ENGINES_OWN}
        await self._driver.rewrite(spec.key, files, live_digest=spec.live_digest)


def _subject(effect: Effect) -> str:
    match effect:
        case Start(name) | Stop(name) | Erase(name):
            return name
        case HandOver() | Convert() | Swap():
            return effect.taker
        case MoveSlots():
            return effect.source
        case Point(front):
            return front
        case _:
            return effect.node


def _node(cache: Cache, name: str) -> Node:
    node = cache.node(name)
    if node is None:
        raise OrderFailed(f"{name} is no node of {cache.name}")
    return node


def _nodes(cache: Cache, names: tuple[str, ...]) -> tuple[Node, ...]:
    return tuple(_node(cache, n) for n in names)


def _front(cache: Cache, name: str) -> Front:
    front = next((f for f in cache.decided.fronts if f.name == name), None)
    if front is None:
        raise OrderFailed(f"{name} is neither a node nor a front of {cache.name}")
    return front
