"""Looking: from processes, engines and fronts to a ``View``. Everything at once, everything with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Driver, Key, Link, Places, ProcessSeen, Target
from cachekeep.control.flights import Flights
from cachekeep.control.fronts import Fronts
from cachekeep.control.jobs import Jobs
from cachekeep.engines.launch import cluster_node_id
from cachekeep.errors import CachekeepError
from cachekeep.model import (
    Answer,
    Cache,
    Excuse,
    Front,
    FrontView,
    JobSeen,
    Moment,
    Node,
    NodeView,
    Plight,
    Process,
    Reason,
    Secret,
    Silence,
    Start,
    Task,
    View,
    Wait,
    Waited,
    Witness,
    elapsed,
)
from cachekeep.plan.nodes.members import addresses_needed
from cachekeep.store.contract import Store

LOOK_DEADLINE_SECONDS = 0.25
LATE_SECONDS = 5.0
"""A look that has outlasted its deadline is given up after this long, and begun anew."""
STILL: frozenset[Plight] = frozenset({"loading", "busy", "unkillable", "paused"})
"""Plights in which an engine acknowledges nothing to anybody."""
ENDED: frozenset[Process] = frozenset({"absent", "exited", "stuck"})
"""It runs no instruction of its own again."""
WORK_SECONDS, WORK_SHARE = 1.0, 0.05
"""Over so long at least it is counted how much of a CPU a process uses. One that waits for a disk or a lock uses none; one that
carries out a long command all that it gets, be that a small share on a busy machine."""
STILL_SECONDS = 2.0
"""Who was still at two looks that are farther apart than this may have gone on in between."""


Passwords = Callable[[Cache], Secret]
"""By which a cache's nodes are spoken to now. Raises ``Unsealable``."""
Trust = Callable[[Cache], str]
"""The authorities by which a cache's nodes are known, as PEM; empty: they are spoken to without TLS."""


def no_trust(cache: Cache) -> str:
    """Of an installation without certificates."""
    return ""


def target(cache: Cache, node: Node, password_of: Passwords, trust_of: Trust = no_trust) -> Target:
    """How to speak to a node. Raises ``Unsealable``."""
    return Target(
        key=(cache.uid, node.name),
        address=node.address,
        port=node.port,
        engine=node.engine,
        version=node.version,
        password=password_of(cache),
        trust=trust_of(cache),
        cluster_id=cluster_node_id(cache, node) if cache.in_cluster_mode(node) else "",
        fed_from_outside=node in cache.decided.successors,
        moving=cache.decided.resharding > 0 or cache.decided.available_at is None,
    )


Seen = TypeVar("Seen", bound=NodeView | FrontView)


def _with(problems: Mapping[str, str], name: str, seen: Seen) -> Seen:
    """What the last effect on it said, if that failed, says more than how its last process ended."""
    return replace(seen, problem=problems[name]) if name in problems else seen


def _unsettled(view: View) -> View:
    """What a node that is being changed shows in the middle of it is no word to go by: a process that is being started is not
    silent, and a replica that is being made to connect anew has not tried yet."""
    nodes = dict(view.nodes)
    for flight in view.flights:
        match flight.effect:
            case Start(name) if name in nodes and isinstance(nodes[name].answer, Silence):
                nodes[name] = replace(nodes[name], answer=None)
            case Witness(name) if name in nodes:
                nodes[name] = replace(nodes[name], reaches=None)
    return replace(view, nodes=nodes)


T = TypeVar("T")


class Late:
    """Looks that outlast their deadline. Each goes on by itself, and until it has ended nobody waits for another at the same thing:
    so what does not answer costs one deadline, and not one in each look."""

    def __init__(self) -> None:
        self._pending: dict[Hashable, asyncio.Task[Any]] = {}

    async def within(self, seconds: float, what: Hashable, look: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """What ``look`` saw; None: nothing in time. Raises what it raised."""
        if what in self._pending:
            return None
        task = asyncio.create_task(asyncio.wait_for(look(), LATE_SECONDS))
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done:
            return task.result()
        self._pending[what] = task
        task.add_done_callback(lambda task: self._ended(what, task))
        return None

    def _ended(self, what: Hashable, task: asyncio.Task[Any]) -> None:
        if self._pending.get(what) is task:
            del self._pending[what]
        if not task.cancelled():
            task.exception()  # seen: nobody waits for it any more


class _Still(NamedTuple):
    """A process that acknowledges nothing: since when, and when that was last seen."""

    incarnation: int
    since: Moment
    looked_at: Moment
    ended: bool


class _Work(NamedTuple):
    """What a process had used of a CPU at some look, and whether it had been at work until then."""

    incarnation: int
    at: float
    cpu_seconds: float
    computes: bool


class Observer:
    """Looks at caches. Remembers only when a node last answered or moved, when it was a witness, what is in flight, and since when
    it has been waited for."""

    def __init__(
        self,
        *,
        store: Store,
        driver: Driver,
        link: Link,
        fronts: Fronts,
        jobs: Jobs,
        places: Places,
        clock: Clock,
        password_of: Passwords,
        trust_of: Trust = no_trust,
    ) -> None:
        self._password_of, self._trust_of = password_of, trust_of
        self._store, self._driver, self._link, self._fronts, self._places, self._clock = store, driver, link, fronts, places, clock
        self.jobs = jobs
        self._silent_since: dict[Key, float] = {}
        self._waiting_since: dict[Key, float] = {}
        self._heard_at: dict[Key, float] = {}
        self._looked_at: dict[Key, float] = {}
        self._witnessed_at: dict[tuple[str, str, str], float] = {}
        self._still: dict[Key, _Still] = {}
        self._work: dict[Key, _Work] = {}
        self._waited: dict[tuple[str], tuple[tuple[Reason, tuple[str, ...]], float]] = {}
        self._late = Late()
        self.flights = Flights(clock)

    def target(self, cache: Cache, node: Node) -> Target:
        """How to speak to a node. Raises ``Unsealable``."""
        return target(cache, node, self._password_of, self._trust_of)

    async def look(self, cache: Cache) -> View:
        """What is there now, and what is under way."""
        decided = cache.decided
        flights, failures = self.flights.seen(cache.uid)
        keys = [(cache.uid, name) for name in (*(n.name for n in decided.everyone), *(f.name for f in decided.fronts))]
        processes = await self._late.within(LOOK_DEADLINE_SECONDS, cache.uid, lambda: self._driver.look(keys)) or {}
        unknown = ProcessSeen(process=None)
        nodes, fronts = await asyncio.gather(
            asyncio.gather(*(self._node(cache, n, processes.get((cache.uid, n.name), unknown)) for n in decided.everyone)),
            asyncio.gather(*(self._front(cache, f, processes.get((cache.uid, f.name), unknown)) for f in decided.fronts)),
        )
        problems = self.flights.problems(cache.uid)
        view = View(
            nodes={n.name: _with(problems, n.name, v) for n, v in zip(decided.everyone, nodes, strict=True)},
            fronts={f.name: _with(problems, f.name, v) for f, v in zip(decided.fronts, fronts, strict=True)},
            flights=flights,
            failures=failures,
            jobs=await self._jobs_of(cache),
            waited=self._waited_for(cache.uid),
            free_addresses=await self._free(cache),
            last_start=max((p.decision for p in processes.values()), default=0),
        )
        return _unsettled(view)

    async def _jobs_of(self, cache: Cache) -> dict[str, JobSeen]:
        keys = [(cache.uid, job.id) for job in cache.decided.jobs if isinstance(job.work, Task)]
        if not keys:
            return {}
        try:
            seen = await self._late.within(LOOK_DEADLINE_SECONDS, ("jobs", cache.uid), lambda: self.jobs.look(keys)) or {}
        except CachekeepError:
            return {}
        return {id: job for (_, id), job in seen.items()}

    async def _node(self, cache: Cache, node: Node, process: ProcessSeen) -> NodeView:
        key = (cache.uid, node.name)
        seen = NodeView()
        asked_at, moment = self._clock.monotonic(), self._clock.moment()
        if process.process == "running":
            seen = await self._link.look(self.target(cache, node), deadline_seconds=LOOK_DEADLINE_SECONDS)
        elif process.process == "frozen":
            seen = NodeView(answer=Silence())
        return replace(
            seen,
            process=process.process,
            incarnation=process.incarnation,
            answer=self._timed(cache, node, seen.answer, asked_at, computes=self._computes(key, process, asked_at)),
            witnessed_seconds=None if (at := self._witnessed_at.get((*key, seen.follows or ""))) is None else asked_at - at,
            heard=process.heard,
            still_since=self._still_since(key, process, seen, moment),
            limits=process.limits,
            program=process.program,
            digests=process.digests,
            last_order=process.last_order,
            lead_order=process.lead_order,
            problem=process.problem,
        )

    def _still_since(self, key: Key, process: ProcessSeen, seen: NodeView, moment: Moment) -> Moment | None:
        """The end of a process is final. One that is stopped, busy, or does not take up what has reached it,
        may have gone on since the last look unless that was just now."""
        ended = process.process in ENDED
        mute = isinstance(seen.answer, Silence) and seen.answer.reachable is True
        busy = process.process == "running" and (mute or (seen.excuse is not None and seen.excuse.plight in STILL))
        if not (ended or busy or process.process == "frozen"):
            broken = process.process == "running" and isinstance(seen.answer, Silence) and seen.answer.reachable is None
            if (before := self._still.get(key)) is None or not (broken and self._goes_on(before, process, moment)):
                self._still.pop(key, None)
                return None
            return before.since  # not counted as a look: it is as good as the last one for as long as that is
        now = self._clock.moment()
        if (elapsed(moment, now) or 0.0) > STILL_SECONDS / 2:
            moment = now  # we have been halted since we asked, and may not have read an answer that had come
        still = self._still.get(key) or _Still(process.incarnation, moment, moment, ended)
        since = still.since if self._goes_on(still, process, moment) else moment
        self._still[key] = _Still(process.incarnation, since, moment, ended)
        return process.ended_at if ended and process.ended_at is not None else since

    @staticmethod
    def _goes_on(still: _Still, process: ProcessSeen, moment: Moment) -> bool:
        """Whether what was still at the last look has been so until this one."""
        went_on = bool(process.heard) and (elapsed(still.since, process.heard[0].asked_at) or 0.0) > 0
        just_now = (elapsed(still.looked_at, moment) or 0.0) <= STILL_SECONDS and not went_on
        return still.incarnation == process.incarnation and (still.ended or just_now)

    def _computes(self, key: Key, process: ProcessSeen, now: float) -> bool:
        """Whether it has been at work of late, by its CPU time."""
        if process.cpu_seconds is None:
            self._work.pop(key, None)
            return False
        before = self._work.get(key)
        if before is None or before.incarnation != process.incarnation:
            before = self._work[key] = _Work(process.incarnation, now, process.cpu_seconds, False)
        elif (passed := now - before.at) >= WORK_SECONDS:
            computes = process.cpu_seconds - before.cpu_seconds >= WORK_SHARE * passed
            before = self._work[key] = _Work(process.incarnation, now, process.cpu_seconds, computes)
        return before.computes

    def _timed(self, cache: Cache, node: Node, answer: Answer | None, asked_at: float, *, computes: bool) -> Answer | None:
        """The answer with how long it has been no better."""
        key, now = (cache.uid, node.name), self._clock.monotonic()
        before, within = self._away(key, asked_at, now)
        if not isinstance(answer, Silence):
            self._heard_at[key] = now
            if self._silent_since.pop(key, None) is not None:  # what was said of it while it was silent is over
                for told in [t for t in self._witnessed_at if t[0] == cache.uid and t[2] == node.address]:
                    del self._witnessed_at[told]
        if not isinstance(answer, Excuse | Silence):
            self._waiting_since.pop(key, None)
            return answer
        # A heartbeat may have asked before us; what it waited for while we were away is no silence.
        since = asked_at + within - max(0.0, answer.seconds - before)
        waiting = now - self._waiting_since.setdefault(key, since)
        if isinstance(answer, Excuse):
            return replace(answer, seconds=waiting)
        silent_since = self._silent_since.setdefault(key, max(since, self._heard_at.get(key, since)))
        return replace(answer, seconds=now - silent_since, computes=computes)

    def _away(self, key: Key, asked_at: float, now: float) -> tuple[float, float]:
        """For how long we were away, halted or held up, before this look at a node and in the middle of it. Whoever did not answer
        us then may have: what is remembered of its silence is moved by that."""
        before = max(0.0, asked_at - self._looked_at.get(key, asked_at) - STILL_SECONDS)
        within = max(0.0, now - asked_at - STILL_SECONDS)
        self._looked_at[key] = now
        for memory in (self._silent_since, self._waiting_since):
            if key in memory:
                memory[key] += before + within
        return before, within

    async def _front(self, cache: Cache, front: Front, process: ProcessSeen) -> FrontView:
        targets: tuple[str, ...] | None = None
        version: int | None = None
        if process.process == "running":
            key = (cache.uid, front.name)
            with contextlib.suppress(CachekeepError, OSError):
                told = await self._late.within(LOOK_DEADLINE_SECONDS, key, lambda: self._fronts.pointed(cache, front))
                targets, version = told or (None, None)
        return FrontView(
            process=process.process,
            incarnation=process.incarnation,
            limits=process.limits,
            targets=targets,
            version=version,
            problem=process.problem,
        )

    async def _free(self, cache: Cache) -> tuple[str, ...] | None:
        """Enough addresses for whatever this cache may still have to place; none when everything has its own. None: who has which
        is not known, or not in time."""
        needed = addresses_needed(cache)
        if not needed:
            return ()
        try:
            taken = await self._store.addresses()
            key = ("places", cache.uid)
            return await self._late.within(LOOK_DEADLINE_SECONDS, key, lambda: self._places.free(cache.uid, needed, taken=taken))
        except CachekeepError:
            return None

    def has_witnessed(self, key: Key, primary_address: str) -> None:
        """A replica has just connected to its primary anew, or tried to."""
        self._witnessed_at[(*key, primary_address)] = self._clock.monotonic()

    def has_to_wait(self, uid: str, wait: Wait) -> None:
        """The keeper of this cache waits."""
        what = (wait.reason, wait.about)
        if (before := self._waited.get((uid,))) is None or before[0] != what:
            self._waited[uid,] = (what, self._clock.monotonic())

    def _waited_for(self, uid: str) -> Waited | None:
        if (found := self._waited.get((uid,))) is None:
            return None
        (reason, about), since = found
        return Waited(reason=reason, about=about, seconds=self._clock.monotonic() - since)

    def forget(self, cache: Cache) -> None:
        """Drop what is remembered of a cache that is no more."""
        memories: tuple[dict[Any, Any], ...] = (
            self._silent_since,
            self._waiting_since,
            self._heard_at,
            self._looked_at,
            self._witnessed_at,
            self._still,
            self._work,
            self._waited,
        )
        for memory in memories:
            for key in [k for k in memory if k[0] == cache.uid]:
                del memory[key]
