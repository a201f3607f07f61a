"""Acting: effects, each of which follows from what has been decided and saved."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from msgspec.structs import replace

from cachekeep.compute.contract import ApplyParts, Driver, File, Kept, Link, LinkEffect, ProcessSpec, PublishDiscovery, named_by
from cachekeep.control.fronts import Fronts
from cachekeep.control.observe import Observer, Passwords
from cachekeep.engines import discovery
from cachekeep.engines.catalogue import Catalogue
from cachekeep.engines.launch import ENGINES_OWN, data_file, launch
from cachekeep.engines.runtime import runtime
from cachekeep.engines.tls import AUTHORITIES, IDENTITY, Papers
from cachekeep.errors import CachekeepError, OrderFailed
from cachekeep.model import (
    Act,
    Apply,
    Begin,
    Cache,
    Cancel,
    Convert,
    Decided,
    Discover,
    Effect,
    Erase,
    Front,
    HandOver,
    Limits,
    MoveSlots,
    Node,
    Part,
    Point,
    Start,
    Stop,
    Swap,
    Task,
    Witness,
    collides,
)
from cachekeep.plan import restores

log = logging.getLogger("cachekeep.keeper")

ORDER_SECONDS, PROCESS_SECONDS = 10.0, 20.0
"""What an order to an engine or a front, and the start or end of a process, may take beyond what it is given by itself."""
COPIED_BYTES_A_SECOND = 10 << 20
"""At the least: what a process starts from is copied to its place first."""
SIZE_BYTES_MAX = 100 << 30
"""Of what a process starts from, where its size is not known."""
Specs = Callable[[Cache, Node], ProcessSpec]
"""How to start a node's process. Raises ``EngineMissing``."""
PapersOf = Callable[[Cache], Papers | None]
"""What the nodes of a cache show and go by; None without TLS. Raises ``Unsealable``."""


def no_papers(cache: Cache) -> None:
    """Of an installation without certificates."""


def specs(
    catalogue: Catalogue,
    password_of: Passwords,
    papers_of: PapersOf = no_papers,
    *,
    run_as: str | None = None,
    open_files: int | None = None,
) -> Specs:
    """Specs from installed builds. ``run_as`` and ``open_files`` are ``launch``'s: they are the machine's, not the cache's."""

    def spec(cache: Cache, node: Node) -> ProcessSpec:
        needs = ("tls",) if cache.decided.certificate is not None else ()
        build, password, papers = catalogue.resolve(node.engine, node.version, needs), password_of(cache), papers_of(cache)
        plan = launch(build, cache, node, password, papers, run_as=run_as, open_files=open_files)
        files = {path: File(text, secret) for path, (text, secret) in plan.files.items()}
        if (kept := restores.starts_from(cache, node)) is not None:
            files[data_file(node)] = File(Kept(kept))
        return ProcessSpec(
            key=(cache.uid, node.name),
            incarnation=node.incarnation,
            argv=plan.argv,
            files=files,
            env=plan.env,
            address=node.address,
            port=node.port,
            zone=node.zone,
            probe=plan.probe,
            tls=plan.tls,
            limits=plan.limits,
            settings=plan.settings,
            digests=plan.digests,
            order=shard.order if (shard := cache.shard(node.shard)) is not None else 0,
        )

    return spec


class Hands:
    """Carries effects out through the driver, the link and the fronts."""

    def __init__(self, *, driver: Driver, link: Link, fronts: Fronts, specs: Specs, observer: Observer) -> None:
        self._driver, self._link, self._fronts = driver, link, fronts
        self._specs, self._observer = specs, observer
        self._acts: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def begin(
        self, cache: Cache, act: Act, *, decided: Callable[[], Decided | None], ended: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Have an act carried out, stage after stage, and the effects of a stage at the same time. Whoever waits for the task is
        told of no failure: those are in ``Observer.flights``, and so is what flies, from this moment on.

        ``decided`` is asked before each effect: None, and it is not ours to carry out any more. Before each later stage, if it is
        not what the act follows from, or one of its effects failed, the rest is left to the next look. ``ended`` is called at the
        end of each effect.
        """
        for effect in act.stages[0]:
            self._take_off(cache, effect, act)
        task = asyncio.create_task(self._stages(cache, act, decided, ended), name=f"act on {cache.name}")
        self._acts[cache.uid].add(task)
        task.add_done_callback(self._acts[cache.uid].discard)
        return task

    def halt(self, uid: str) -> None:
        """No effect on the cache takes another step."""
        for act in self._acts.get(uid, ()):
            act.cancel()

    async def abandon(self, uid: str) -> None:
        """Whoever decides for the cache now is another, or it is no more: nothing of what has not ended goes on from here."""
        self.halt(uid)
        acts = self._acts.pop(uid, set())
        await asyncio.gather(*acts, return_exceptions=True)
        self._observer.flights.forget(uid)
        await self._observer.jobs.abandon(uid)

    async def _stages(self, cache: Cache, act: Act, decided: Callable[[], Decided | None], ended: Callable[[], None]) -> None:
        for stage in act.stages:
            if stage is not act.stages[0]:
                flying, _ = self._observer.flights.seen(cache.uid)
                if decided() != cache.decided or any(collides(e, f.effect) for e in stage for f in flying):
                    return
                for effect in stage:
                    self._take_off(cache, effect, act)
            if not await self._stage(cache, stage, decided, ended):
                return

    async def _stage(
        self, cache: Cache, stage: tuple[Effect, ...], decided: Callable[[], Decided | None], ended: Callable[[], None]
    ) -> bool:
        """Carry out effects that have taken off, at the same time. Whether all of them worked."""
        return all(await asyncio.gather(*(self._fly(cache, e, decided, ended) for e in stage)))

    def _take_off(self, cache: Cache, effect: Effect, act: Act) -> None:
        self._observer.flights.begin(cache.uid, effect, act.because, deadline_seconds=deadline_seconds(cache, effect))

    async def _fly(self, cache: Cache, effect: Effect, decided: Callable[[], Decided | None], ended: Callable[[], None]) -> bool:
        """Carry out an effect that has taken off. Whether it worked."""
        problem: str | None = None
        seconds = deadline_seconds(cache, effect)
        if decided() is None:
            self._observer.flights.end(cache.uid, effect, None)
            ended()
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._carry(cache, effect)
        except TimeoutError:
            problem = f"{type(effect).__name__} was not confirmed within {seconds:g} s"
        except CachekeepError as error:
            problem = str(error)
        except Exception as error:
            log.exception("%s: %s failed in a way that nobody expected", cache.name, effect)
            problem = f"{type(error).__name__}: {error}"
        self._observer.flights.end(cache.uid, effect, problem)
        ended()
        return problem is None

    async def _carry(self, cache: Cache, effect: Effect) -> None:
        match effect:
            case Start(name):
                await self._driver.start(replace(self._spec(cache, name), decision=cache.decided.serial))
            case Stop(name, grace_seconds):
                await self._driver.stop((cache.uid, name), grace_seconds=grace_seconds, decision=cache.decided.serial)
            case Erase(name):
                self._link.unwatch((cache.uid, name))
                await self._driver.erase((cache.uid, name), decision=cache.decided.serial)
            case Apply():
                await self._apply(cache, effect)
            case Begin(id, attempt):
                await self._observer.jobs.begin((cache.uid, id), _task(cache, id), attempt)
            case Cancel(id):
                await self._observer.jobs.cancel((cache.uid, id))
            case Point(front, targets, version):
                await self._fronts.point(cache, _front(cache, front), _nodes(cache, targets), version)
            case Discover(node, targets, version):
                payload = discovery.payload(version, _nodes(cache, targets))
                await self._fronts.post(cache, _node(cache, node), payload)
                await self._tell(cache, PublishDiscovery(node, payload))
            case Witness(node, primary):
                await self._tell(cache, effect)
                self._observer.has_witnessed((cache.uid, node), _node(cache, primary).address)
            case _:
                await self._tell(cache, effect)

    async def _tell(self, cache: Cache, effect: LinkEffect) -> None:
        await self._link.carry(effect, {name: self._observer.target(cache, _node(cache, name)) for name in named_by(effect)})

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

    async def _apply(self, cache: Cache, effect: Apply) -> None:
        """The process's limits; then the engine's parts, and its own word for what it says of them; then the files that it would be
        restarted with, and the digests that say so."""
        if effect.limits != Limits():
            await self._driver.limit((cache.uid, effect.name), effect.limits)
        if not effect.parts:
            return
        node = _node(cache, effect.name)
        spec = self._specs(cache, node)
        if "tls" in effect.parts:  # an engine reads them when it is told of them
            papers = {name: file for name, file in spec.files.items() if name in (IDENTITY, AUTHORITIES)}
            await self._driver.rewrite(spec.key, papers, digests={})
        await self._tell(cache, _parts(cache, node, effect.parts, spec.settings))
        if "settings" in effect.parts:
            seen = await self._link.look(self._observer.target(cache, node), deadline_seconds=ORDER_SECONDS)
            for name, value in seen.settings.items():
                if spec.settings.get(name, value) != value:  # it would be told the same again and again
                    raise OrderFailed(f"{node.name}: {name} is {value} after it was set to {spec.settings[name]}")
        files = {name: file for name, file in spec.files.items() if name not in ENGINES_OWN}
        await self._driver.rewrite(spec.key, files, digests={p: d for p, d in spec.digests.items() if p in effect.parts})


def _parts(cache: Cache, node: Node, parts: Collection[Part], settings: Mapping[str, str]) -> ApplyParts:
    """What its engine is told: ``settings`` as this machine has room for them, the rest as it is decided."""
    wanted = runtime(cache, node)
    return ApplyParts(
        node=node.name,
        acl=wanted.acl if "acl" in parts else (),
        gone=wanted.gone if "acl" in parts else (),
        login=wanted.login.user if "login" in parts and wanted.login is not None else "",
        settings=settings if "settings" in parts else {},
        tls=dict(wanted.tls.settings) if "tls" in parts and wanted.tls is not None else {},
    )


def deadline_seconds(cache: Cache, effect: Effect) -> float:
    """An effect that has not ended by then has failed."""
    match effect:
        case Start() if restores.going_on(cache) and (restore := cache.wanted.restore) is not None:
            size = SIZE_BYTES_MAX if restore.size_bytes is None else restore.size_bytes
            return PROCESS_SECONDS + size / COPIED_BYTES_A_SECOND
        case Start() | Erase():
            return PROCESS_SECONDS
        case Stop(_, grace_seconds):
            return PROCESS_SECONDS + grace_seconds
        case HandOver() | Convert() | Swap():
            return ORDER_SECONDS + effect.timeout_seconds
        case MoveSlots():
            return ORDER_SECONDS + effect.seconds
        case _:
            return ORDER_SECONDS


def _node(cache: Cache, name: str) -> Node:
    node = cache.node(name)
    if node is None:
        raise OrderFailed(f"{name} is no node of {cache.name}")
    return node


def _nodes(cache: Cache, names: tuple[str, ...]) -> tuple[Node, ...]:
    return tuple(_node(cache, n) for n in names)


def _task(cache: Cache, id: str) -> Task:
    job = cache.decided.job(id)
    if job is None or not isinstance(job.work, Task):
        raise OrderFailed(f"{id} is no task of {cache.name}")
    return job.work


def _front(cache: Cache, name: str) -> Front:
    front = next((f for f in cache.decided.fronts if f.name == name), None)
    if front is None:
        raise OrderFailed(f"{name} is neither a node nor a front of {cache.name}")
    return front
